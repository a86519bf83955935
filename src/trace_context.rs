//! The fields by which a request is found in a trace, as W3C Trace Context defines them: `traceparent` and
//! `tracestate`.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Which trace a request belongs to, and which of its spans has sent it.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems on the way have to tell themselves.
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The flags that are known (W3C Trace Context, level 2). All others have to be zero when they are sent.
const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// The bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// How much of a `tracestate` is passed on (W3C Trace Context §3.3.1.1 and §3.3.1.5).
const MAX_MEMBERS: usize = 32;
const MAX_TRACESTATE: usize = 512;
const LONG_MEMBER: usize = 128;

/// The id of a trace; never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The id of a span; never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// A new one.
    pub fn random() -> Self {
        Self(fastrand::u128(1..).to_be_bytes())
    }

    /// As it is exported.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The part that decides whether a trace is sampled: 63 bits that are the same everywhere, and random.
    pub fn sampling_number(self) -> u64 {
        let lower = self.0.last_chunk::<8>().copied().unwrap_or_default();
        u64::from_be_bytes(lower) >> 1
    }
}

impl SpanId {
    /// A new one.
    pub fn random() -> Self {
        Self(fastrand::u64(1..).to_be_bytes())
    }

    /// As it is exported.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The place of a span in a trace, as it is told to the next system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span in it.
    pub span_id: SpanId,
    flags: u8,
}

impl TraceContext {
    /// The first span of a new trace.
    pub fn root(trace_id: TraceId, is_sampled: bool) -> Self {
        let flags = if is_sampled { SAMPLED | RANDOM } else { RANDOM };
        Self { trace_id, span_id: SpanId::random(), flags }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        self.with_span(SpanId::random())
    }

    /// This span of the same trace.
    #[must_use]
    pub const fn with_span(&self, span_id: SpanId) -> Self {
        Self { span_id, ..*self }
    }

    /// Whether the caller records its spans.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// As flags of a span are exported.
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Reads the value of a `traceparent`. Of a version that is not known yet, only the part is read that all versions
    /// have.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let [a, b, b'-', rest_of_known @ ..] = known else { return None };
        let (trace, rest_of_known) = rest_of_known.split_at_checked(32)?;
        let [b'-', rest_of_known @ ..] = rest_of_known else { return None };
        let (span, rest_of_known) = rest_of_known.split_at_checked(16)?;
        let [b'-', flags @ ..] = rest_of_known else { return None };
        let [version] = hex(&[*a, *b])?;
        let is_whole = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => matches!(rest, [] | [b'-', ..]),
        };
        let (trace, span, [flags]) = (hex::<16>(trace)?, hex::<8>(span)?, hex(flags)?);
        let is_valid = is_whole && trace != [0; 16] && span != [0; 8];
        is_valid.then_some(Self {
            trace_id: TraceId(trace),
            span_id: SpanId(span),
            flags: flags & (SAMPLED | RANDOM),
        })
    }

    /// That of a request. One with several is as good as one with none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let (first, second) = (values.next()?, values.next());
        second.is_none().then(|| Self::parse(first.as_bytes())).flatten()
    }

    /// The value of a `traceparent`, of version 00.
    pub fn to_value(&self) -> HeaderValue {
        let text = format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags);
        // Only digits and dashes.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// So many bytes of so many pairs of digits, in lower case.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The `tracestate` of a request in one line, shortened if need be. `None` if there is none, or none that can be used.
pub fn tracestate(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut members: Vec<&[u8]> = Vec::new();
    for value in headers.get_all(&TRACESTATE) {
        for member in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if member.is_empty() {
                continue;
            }
            let key = key_of(member)?;
            let is_repeated = members.iter().any(|other| key_of(other) == Some(key));
            if is_repeated || members.len() == MAX_MEMBERS {
                return None;
            }
            members.push(member);
        }
    }
    // One comma less, and one byte more, than members.
    while members.iter().map(|member| member.len() + 1).sum::<usize>() > MAX_TRACESTATE + 1 {
        match members.iter().rposition(|member| member.len() > LONG_MEMBER) {
            Some(long) => drop(members.remove(long)),
            None => drop(members.pop()),
        }
    }
    HeaderValue::from_bytes(&members.join(&b","[..])).ok().filter(|value| !value.is_empty())
}

/// The key of a list-member; `None` if it is malformed.
fn key_of(member: &[u8]) -> Option<&[u8]> {
    let (key, value) = member.split_at_checked(member.iter().position(|byte| *byte == b'=')?)?;
    let value = value.strip_prefix(b"=")?;
    let is_key = (1..=256).contains(&key.len())
        && key.first().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(b))
        && key.split(|byte| *byte == b'@').nth(2).is_none();
    let is_value = (1..=256).contains(&value.len())
        && value.iter().all(|b| (0x20..0x7f).contains(b) && !matches!(b, b',' | b'='));
    (is_key && is_value).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_traceparent_is_read_and_written() {
        for (flags, sampled, written) in [
            ("00", false, "00"),
            ("01", true, "01"),
            ("02", false, "02"),
            ("03", true, "03"),
            ("ff", true, "03"),
            ("fc", false, "00"),
        ] {
            let context = TraceContext::parse(format!("00-{TRACE}-{SPAN}-{flags}").as_bytes()).unwrap();
            assert_eq!(context.is_sampled(), sampled, "{flags}");
            assert_eq!(context.to_value(), format!("00-{TRACE}-{SPAN}-{written}"));
        }
        // Of a later version: the part that is known, as version 00.
        for more in ["", "-", "-what=ever"] {
            let context = TraceContext::parse(format!("cc-{TRACE}-{SPAN}-01{more}").as_bytes()).unwrap();
            assert_eq!(context.to_value(), format!("00-{TRACE}-{SPAN}-01"));
        }
    }

    #[test]
    fn a_malformed_traceparent_is_none() {
        let (zeros, short_zeros) = ("0".repeat(32), "0".repeat(16));
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01."),
            format!("cc-{TRACE}-{SPAN}-01.what"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("0x-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{short_zeros}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}0-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01{}", "0".repeat(10_000)),
            format!(" 00-{TRACE}-{SPAN}-01"),
            "\u{e9}".repeat(40),
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap()));
        values.collect()
    }

    #[test]
    fn several_traceparents_are_as_good_as_none() {
        let one = format!("00-{TRACE}-{SPAN}-01");
        assert!(TraceContext::of(&headers(&TRACEPARENT, &[&one])).is_some());
        assert_eq!(TraceContext::of(&headers(&TRACEPARENT, &[&one, &one])), None);
        assert_eq!(TraceContext::of(&headers(&TRACEPARENT, &[])), None);
    }

    #[test]
    fn a_tracestate_is_joined_and_shortened() {
        let many: Vec<String> = (0..32).map(|n| format!("k{n}=v")).collect();
        let (all, long) = (many.join(","), format!("long={}", "v".repeat(200)));
        let medium: Vec<String> = (0..6).map(|n| format!("m{n}={}", "v".repeat(97))).collect();
        for (values, expected) in [
            (&["rojo=1"][..], "rojo=1"),
            (&["rojo=1", "congo=t6 1"], "rojo=1,congo=t6 1"),
            (&[" rojo=1 ,, \tcongo=2", "", " , "], "rojo=1,congo=2"),
            (&["fw529a3039@dt=x/y;z:1"], "fw529a3039@dt=x/y;z:1"),
            (&["0tenant@system=1"], "0tenant@system=1"),
            (&[&all], &all),
            // 600 bytes: the last one gives way; 700 with a longer one: that gives way first.
            (&[&medium.join(",")], &medium[..5].join(",")),
            (&[&long, &medium[..4].join(",")], &medium[..4].join(",")),
        ] {
            let value = tracestate(&headers(&TRACESTATE, values));
            assert_eq!(value.as_ref().and_then(|value| value.to_str().ok()), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn a_malformed_tracestate_is_dropped_as_a_whole() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        for values in [
            &[][..],
            &[""],
            &["rojo"],
            &["=1"],
            &["rojo="],
            &["Rojo=1"],
            &["rojo=1,rojo=2"],
            &["rojo=1", "rojo=2"],
            &["rojo =1"],
            &["ro@jo@x=1"],
            &["rojo=1=2"],
            &["rojo=\u{e9}"],
            &["good=1,b\u{e9}d=2"],
            &[&many.join(",")],
            &[&format!("rojo={}", "v".repeat(257))],
            &[&format!("{}=1", "k".repeat(257))],
        ] {
            assert_eq!(tracestate(&headers(&TRACESTATE, values)), None, "{values:?}");
        }
    }

    #[test]
    fn ids_are_random_and_the_sampling_number_has_63_bits() {
        let (first, second) = (TraceContext::root(TraceId::random(), true), TraceId::random());
        assert_ne!(first.trace_id, second);
        assert_ne!(first.child().span_id, first.span_id);
        assert_eq!(first.child().trace_id, first.trace_id);
        assert_eq!(TraceId([0xff; 16]).sampling_number(), (1 << 63) - 1);
        assert_eq!(TraceId([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4]).sampling_number(), 2);
    }
}
