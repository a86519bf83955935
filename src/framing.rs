//! How messages of HTTP/1.1 are framed (RFC 9112 §6): where a body ends, and the next message begins.
//!
//! The rules are the same for requests of clients and for responses of Rails: two readers must not be able to
//! disagree on them, so a message that leaves a choice is refused.

pub(crate) mod charset;
pub(crate) mod chunk;

use self::charset::{is_value, token_length};

/// How the bytes behind a head are framed, as its fields say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// This many bytes.
    Length(u64),
    Chunked,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FramingError {
    /// `Content-Length` is not a number, or its values differ.
    Length,
    /// `Content-Length` is repeated, with the same value.
    RepeatedLength,
    /// `Transfer-Encoding` is not `chunked` alone.
    Encoding,
    /// `Transfer-Encoding` in a message of HTTP/1.0.
    EncodingOfOldVersion,
    /// Both `Content-Length` and `Transfer-Encoding`.
    TwoFramings,
}

impl FramingError {
    /// What is wrong with the message.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Length | Self::RepeatedLength => "Content-Length is repeated or not a number",
            Self::Encoding | Self::EncodingOfOldVersion => "Transfer-Encoding is not `chunked` alone",
            Self::TwoFramings => "both Content-Length and Transfer-Encoding",
        }
    }
}

/// The header fields that frame a message. An `Upgrade` is not one of them: a server may ignore the offer (RFC
/// 9110 §7.8), and this one does.
#[derive(Debug, Default)]
pub(crate) struct FramingFields {
    length: Option<u64>,
    is_chunked: bool,
}

impl FramingFields {
    /// Takes note of a field, if it is one of framing.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), FramingError> {
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = parse_length(value.trim_ascii()).ok_or(FramingError::Length)?;
            match self.length.replace(length) {
                None => {}
                Some(before) if before == length => return Err(FramingError::RepeatedLength),
                Some(_) => return Err(FramingError::Length),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_repeated = std::mem::replace(&mut self.is_chunked, true);
            if is_repeated || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(FramingError::Encoding);
            }
        }
        Ok(())
    }

    /// `None` if no field frames the message.
    pub(crate) fn framing(&self, is_http_11: bool) -> Result<Option<Framing>, FramingError> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(FramingError::TwoFramings),
            (None, true) if !is_http_11 => Err(FramingError::EncodingOfOldVersion),
            (None, true) => Ok(Some(Framing::Chunked)),
            (length, false) => Ok(length.map(Framing::Length)),
        }
    }
}

/// RFC 9110 §8.6: only digits; at most 18, so that no reader overflows.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The name and the value of a field line (RFC 9112 §5), which is passed without its CRLF. `None` if it is malformed.
pub(crate) fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = line.split_at_checked(token_length(line))?;
    let value = rest.strip_prefix(b":")?;
    (!name.is_empty() && is_value(value)).then_some((name, value))
}

/// The name and the value of a trailer line, without its CRLF: a field line that does not frame the message.
pub(crate) fn split_trailer(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = split_field(line)?;
    let mut fields = FramingFields::default();
    fields.add(name, value).ok()?;
    matches!(fields.framing(true), Ok(None)).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_leave_a_choice_are_refused() {
        use FramingError::{Encoding, EncodingOfOldVersion, Length, RepeatedLength, TwoFramings};
        let cl = |value: &'static str| ("Content-Length", value);
        let te = |value: &'static str| ("transfer-encoding", value);
        for (fields, is_http_11, expected) in [
            (vec![], true, Ok(None)),
            (vec![("A", "1"), cl("\t12 ")], false, Ok(Some(Framing::Length(12)))),
            (vec![te(" Chunked")], true, Ok(Some(Framing::Chunked))),
            (vec![te("chunked")], false, Err(EncodingOfOldVersion)),
            (vec![cl("1"), cl("1")], true, Err(RepeatedLength)),
            (vec![cl("1"), cl("2")], true, Err(Length)),
            (vec![cl("1, 1")], true, Err(Length)),
            (vec![cl("")], true, Err(Length)),
            (vec![cl("+1")], true, Err(Length)),
            (vec![cl("1234567890123456789")], true, Err(Length)),
            (vec![te("gzip, chunked")], true, Err(Encoding)),
            (vec![te("chunked"), te("chunked")], true, Err(Encoding)),
            (vec![cl("1"), te("chunked")], true, Err(TwoFramings)),
        ] {
            let mut read = FramingFields::default();
            let added =
                fields.iter().try_for_each(|(name, value)| read.add(name.as_bytes(), value.as_bytes()));
            assert_eq!(added.and_then(|()| read.framing(is_http_11)), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_trailer_is_a_field_that_frames_nothing() {
        assert_eq!(split_trailer(b"X-Sum: 1"), Some((&b"X-Sum"[..], &b" 1"[..])));
        for bad in [
            "",
            ":",
            ": 1",
            "A",
            "A : 1",
            " A: 1",
            "A: \0",
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
        ] {
            assert_eq!(split_trailer(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
