//! Why an exchange over HTTP/1.1 failed.

use std::io;

use crate::body;
use crate::framing::FramingError;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream::connection) enum Http1Error {
    /// Reading or writing failed.
    #[error("connection error")]
    Io(#[source] io::Error),
    /// It ended before the head of the response.
    #[error("connection closed before message completed")]
    Incomplete,
    #[error("invalid HTTP version parsed")]
    Version,
    #[error("invalid HTTP version parsed (found HTTP2 preface)")]
    Http2Preface,
    #[error("invalid HTTP status-code parsed")]
    Status,
    /// A field of the head.
    #[error("invalid HTTP header parsed")]
    Field,
    /// RFC 9112 §2.2 lets a recipient accept a lone LF; two recipients then disagree on framing.
    #[error("a line of the head does not end in CRLF")]
    BareLineFeed,
    #[error("invalid content-length parsed")]
    ContentLength,
    #[error("unexpected transfer-encoding parsed")]
    TransferEncoding,
    #[error("message head is too large")]
    TooLarge,
    /// Interim responses, or a head in tiny pieces.
    #[error("the head of the response does not come to an end")]
    EndlessHead,
    /// A response that leaves a choice where it ends, or an upgrade that was not asked for.
    #[error("{0}")]
    Unusable(&'static str),
    /// The body of the response.
    #[error("error reading a body from connection")]
    Body(#[source] io::Error),
    /// The body of the request, which does not come from the server.
    #[error("error from user's Body stream")]
    RequestBody(#[source] body::Error),
    /// The body of the request has another length than it says.
    #[error("error writing a body to connection")]
    RequestLength,
}

impl From<FramingError> for Http1Error {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::Length => Self::ContentLength,
            FramingError::EncodingOfOldVersion => Self::TransferEncoding,
            FramingError::RepeatedLength | FramingError::Encoding | FramingError::TwoFramings => {
                Self::Unusable(error.text())
            }
        }
    }
}

impl From<httparse::Error> for Http1Error {
    fn from(error: httparse::Error) -> Self {
        use httparse::Error::{HeaderName, HeaderValue, NewLine, Status, Token, TooManyHeaders, Version};
        match error {
            HeaderName | HeaderValue | NewLine | Token => Self::Field,
            Status => Self::Status,
            TooManyHeaders => Self::TooLarge,
            Version => Self::Version,
        }
    }
}
