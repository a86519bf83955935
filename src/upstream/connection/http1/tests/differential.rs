//! The connection of the gateway and hyper's client judge the same streams of bytes, whole and in pieces. Where the
//! verdicts differ, the one of the gateway is stricter, for a reason in [`STRICTER`].

use fastrand::Rng;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};

use super::clients::{End, Hypers, Ours, Received, Verdict, judge};
use super::streams::generate;
use crate::framing::charset::is_token;

/// Whether a stream has what a verdict is about.
type Sign = fn(&[u8]) -> bool;

/// The texts of errors that hyper does not have, or has for less, why, and a sign of it in the stream.
const STRICTER: [(&str, &str, Sign); 6] = [
    (
        "a line of the head does not end in CRLF",
        "Readers disagree on a lone LF; the gate refuses it as well.",
        has_bare_line_feed,
    ),
    (
        "invalid content-length parsed",
        "A list of equal lengths, and a length of more than 18 digits: the gate refuses both. Also where no body follows.",
        |stream| has(stream, b"content-length"),
    ),
    (
        "unexpected transfer-encoding parsed",
        "HTTP/1.0 has no chunks, not even where no body follows.",
        |stream| has(stream, b"transfer-encoding") && has(stream, b"http/1.0"),
    ),
    (
        "error reading a body from connection: Invalid chunk size line",
        "A size of more than 15 digits, blanks without an extension, and extensions that are none: as at the gate.",
        |stream| {
            has(stream, b";") || has(stream, b" \r\n") || has(stream, b"\t\r\n") || has_long_number(stream)
        },
    ),
    (
        "error reading a body from connection: Invalid trailer end LF",
        "A lone LF in the trailers, which hyper takes for a part of the line, is refused at once.",
        has_bare_line_feed,
    ),
    (
        "error reading a body from connection: Invalid trailer",
        "Fields that frame a message are no trailers: as at the gate.",
        |stream| has(stream, b"content-length") || has(stream, b"transfer-encoding"),
    ),
];

fn has(stream: &[u8], part: &[u8]) -> bool {
    stream.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

fn has_long_number(stream: &[u8]) -> bool {
    stream.windows(16).any(|window| window.iter().all(u8::is_ascii_hexdigit))
}

fn has_bare_line_feed(stream: &[u8]) -> bool {
    (0..stream.len()).any(|at| stream[at] == b'\n' && (at == 0 || stream[at - 1] != b'\r'))
}

/// Why the verdict of the gateway may differ from hyper's, or `None` if it may not.
fn reason(ours: &Verdict, hypers: &Verdict, stream: &[u8]) -> Option<&'static str> {
    let error = match (ours, hypers) {
        (Verdict::Refused(_, text), _) => text,
        (Verdict::Response(ours), Verdict::Response(hypers)) => match &ours.end {
            End::Broken(text) if is_begin_of(ours, hypers) => text,
            End::Complete(false) => {
                let closed = Received { end: ours.end.clone(), ..*hypers.clone() };
                return reason_to_close(ours).filter(|_| **ours == closed);
            }
            _ => return None,
        },
        _ => return None,
    };
    let row = STRICTER.iter().find(|(text, _, is_there)| text == error && is_there(stream));
    row.map(|(_, why, _)| *why)
}

/// Why the connection is closed after a response for which hyper would keep it.
fn reason_to_close(received: &Received) -> Option<&'static str> {
    if has_odd_option(received) {
        return Some("An option of `Connection` that cannot be understood might be `close`.");
    }
    let announces_body =
        [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| received.fields.contains_key(name));
    (received.status == StatusCode::NO_CONTENT && announces_body)
        .then_some("The body that a 204 announces might follow.")
}

fn has_odd_option(received: &Received) -> bool {
    let mut values = received.fields.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    values.any(|value| !value.split(|byte| *byte == b',').all(|option| is_token(option.trim_ascii())))
}

fn is_begin_of(part: &Received, whole: &Received) -> bool {
    part.status == whole.status
        && part.fields == whole.fields
        && whole.body.starts_with(&part.body)
        && part.trailers.is_empty()
}

/// The two count as the same if they fail alike, though in other words. Both a malformed response and an unusable one
/// are a 502 and a closed connection.
fn without_words(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Refused(kind, _) => Verdict::Refused(kind.replace("Unusable", "Malformed"), String::new()),
        Verdict::Response(mut received) => {
            if let End::Broken(text) = &mut received.end {
                text.clear();
            }
            Verdict::Response(received)
        }
        Verdict::AwaitsHead => Verdict::AwaitsHead,
    }
}

/// How often the verdicts agreed, and how often they differed for a reason.
#[derive(Debug, Default)]
struct Tally {
    same: usize,
    stricter: usize,
    responses: usize,
    cuts: usize,
    /// What must not be.
    wrong: Vec<String>,
}

fn compare(streams: usize, seed: u64, longest_cut: usize) -> Tally {
    let mut random = Rng::with_seed(seed);
    let mut tally = Tally::default();
    for nth in 0..streams {
        let stream = generate(&mut random);
        let method = if random.u8(..10) == 0 { Method::HEAD } else { Method::GET };
        let closes = random.bool();
        let shown = || {
            format!(
                "stream {nth} of seed {seed}, {method}, closes: {closes}: {:?}",
                String::from_utf8_lossy(&stream)
            )
        };
        let ours = judge(Ours::new(&method), &[&stream], closes);
        let hypers = judge(Hypers::new(&method), &[&stream], closes);
        tally.responses += usize::from(matches!(ours, Verdict::Response(_)));
        let same_as_ours = |verdict: &Verdict| without_words(verdict.clone()) == without_words(ours.clone());
        if same_as_ours(&hypers) {
            tally.same += 1;
        } else {
            if reason(&ours, &hypers, &stream).is_none() {
                tally.wrong.push(format!("{}\nours: {ours:?}\nhyper's: {hypers:?}", shown()));
            }
            tally.stricter += 1;
        }
        if stream.len() > longest_cut {
            continue;
        }
        for at in 1..stream.len() {
            let (begin, end) = stream.split_at(at);
            let cut = judge(Ours::new(&method), &[begin, end], closes);
            if !same_as_ours(&cut) {
                tally.wrong.push(format!("cut at {at}, {cut:?}: {}\nwhole: {ours:?}", shown()));
            }
            tally.cuts += 1;
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        let in_bytes = judge(Ours::new(&method), &bytes, closes);
        if !same_as_ours(&in_bytes) {
            tally.wrong.push(format!("in bytes, {in_bytes:?}: {}\nwhole: {ours:?}", shown()));
        }
    }
    let shown = tally.wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(tally.wrong.is_empty(), "{} verdicts are wrong:\n{shown}", tally.wrong.len());
    tally
}

#[test]
fn a_stream_is_judged_as_by_hyper_or_more_strictly_for_a_reason() {
    let tally = compare(4_000, 1, 100);
    // Both kinds are there, and most streams are responses.
    assert!(tally.stricter > 50 && tally.same > 3_000 && tally.responses > 2_000, "{tally:?}");
    assert!(tally.cuts > 10_000, "{tally:?}");
}

/// `cargo test --locked --lib a_million_streams -- --ignored --nocapture`
#[test]
#[ignore = "it takes ten minutes"]
fn a_million_streams_are_judged_alike() {
    for nth in 1..=100 {
        let seed = fastrand::u64(..);
        let tally = compare(10_000, seed, 60);
        eprintln!("{nth} of 100, seed {seed}: {tally:?}");
        assert!(tally.stricter > 0 && tally.responses > 5_000, "{tally:?}");
    }
}
