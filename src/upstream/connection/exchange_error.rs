//! Why an exchange over a connection brought no response. Raw errors are classified here, once; everything else asks
//! the result.

use super::error::{ConnectError, is_reset};
use super::http1::error::Http1Error;
use super::limits::{HEAD_BUFFER, MAX_RESPONSE_FIELDS};

/// Why a request that was sent, at least in part, got no response.
#[derive(Debug, thiserror::Error)]
#[error("{}", .fault.advice())]
pub struct ExchangeError {
    fault: ExchangeErrorKind,
    is_reset: bool,
    is_unread: bool,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What was wrong with an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum ExchangeErrorKind {
    /// The connection ended.
    Interrupted,
    /// What came is not HTTP/1.1.
    Malformed,
    /// The server speaks HTTP/2.
    WrongVersion,
    /// The head of the response is larger than the gateway allows.
    HeadTooLarge,
    /// The head of the response does not come to an end.
    EndlessHead,
}

impl ExchangeError {
    /// Of HTTP/2.
    pub(super) fn from_http2(error: hyper::Error) -> Self {
        let fault = match &error {
            error if error.is_parse_too_large() => ExchangeErrorKind::HeadTooLarge,
            error if error.is_parse() => ExchangeErrorKind::Malformed,
            _ => ExchangeErrorKind::Interrupted,
        };
        let source = std::error::Error::source(&error);
        let is_reset = source.and_then(|source| source.downcast_ref()).is_some_and(is_reset);
        let is_unread = source.and_then(|source| source.downcast_ref()).is_some_and(is_refused_stream);
        Self { fault, is_reset, is_unread, source: error.into() }
    }

    /// Of HTTP/1.1. `is_reset` says whether the connection was reset before anything was answered.
    pub(super) fn from_http1(error: Http1Error, is_reset: bool) -> Self {
        let fault = match &error {
            Http1Error::TooLarge => ExchangeErrorKind::HeadTooLarge,
            Http1Error::Http2Preface => ExchangeErrorKind::WrongVersion,
            Http1Error::EndlessHead => ExchangeErrorKind::EndlessHead,
            Http1Error::Version
            | Http1Error::Status
            | Http1Error::Field
            | Http1Error::BareLineFeed
            | Http1Error::ContentLength
            | Http1Error::TransferEncoding
            | Http1Error::Unusable(_) => ExchangeErrorKind::Malformed,
            Http1Error::Io(_)
            | Http1Error::Incomplete
            | Http1Error::Body(_)
            | Http1Error::RequestBody(_)
            | Http1Error::RequestLength => ExchangeErrorKind::Interrupted,
        };
        Self { fault, is_reset, is_unread: false, source: error.into() }
    }

    /// The same error of a server whose resets prove that it has not read the request.
    ///
    /// A unix socket is reset only if its process closes it with something unread, which is proof. A Rails on
    /// this machine that closes a TCP connection resets it for the same reason (RFC 1122 §4.2.2.13), unless the
    /// process asks for a reset itself (`SO_LINGER` of 0): no server that is known does, so it is a strong sign.
    /// What the kernel knows beyond that is of no help: the bytes that it counts as unsent (`SIOCOUTQ`) are 0
    /// once the other side is closed, and over TCP a byte is acknowledged before it is read. From elsewhere, a
    /// reset may be anything on the way.
    pub(in crate::upstream) fn with_reset_as_proof(self) -> Self {
        Self { is_unread: self.is_unread || self.is_reset, ..self }
    }

    pub(in crate::upstream) fn fault(&self) -> ExchangeErrorKind {
        self.fault
    }

    /// Whether the server has not read all of the request, so that it cannot have acted on it.
    pub(in crate::upstream) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether the connection was reset, over HTTP/1.1 before anything was answered.
    #[cfg(test)]
    pub(super) fn is_reset(&self) -> bool {
        self.is_reset
    }
}

/// The server has not processed a stream that it refused, or that began after it had announced to take no more
/// (RFC 9113 §8.7).
fn is_refused_stream(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}

impl ExchangeErrorKind {
    fn advice(self) -> String {
        match self {
            Self::HeadTooLarge => format!(
                "the head of the response has more than {MAX_RESPONSE_FIELDS} fields or {HEAD_BUFFER} bytes; let \
                 Rails, or what stands in front of it, send less"
            ),
            Self::EndlessHead => {
                "the server sends interim responses, or pieces of a head, without end".to_owned()
            }
            Self::WrongVersion => "the server speaks HTTP/2; set upstream.protocol".to_owned(),
            Self::Malformed => {
                "the response is not HTTP/1.1: if the server speaks TLS, upstream.url has to begin \
                                with https://, else check its host and port"
                    .to_owned()
            }
            Self::Interrupted => "the connection failed before a response came".to_owned(),
        }
    }
}

/// Why a connection brought no response.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum SendError {
    /// There is no connection. The request is as it was: nothing of it was sent.
    #[error("no connection: {0}")]
    Connect(ConnectError),
    /// The request was sent, at least in part.
    #[error("no answer: {0}")]
    Exchange(ExchangeError),
    /// The body of the request broke off, or has another length than it says, which is not the server's fault.
    #[error("the request body broke off: {0}")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The response leaves a choice where it ends, or is an upgrade that was not asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
}

impl SendError {
    /// Of an exchange over HTTP/1.1. `was_reset` says whether the connection was reset before anything was answered.
    pub(super) fn from_http1(error: Http1Error, was_reset: impl FnOnce(&Http1Error) -> bool) -> Self {
        match error {
            Http1Error::Unusable(why) => Self::Unusable(why),
            Http1Error::RequestBody(_) | Http1Error::RequestLength => Self::RequestBody(error.into()),
            error => {
                let is_reset = was_reset(&error);
                Self::Exchange(ExchangeError::from_http1(error, is_reset))
            }
        }
    }
}
