//! Why an exchange with a server failed. Raw errors are classified here, once; everything else asks the result.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

use super::cause::UnreachableCause;
use super::http1::error::Http1Error;
use super::limits::{HEAD_BUFFER, MAX_RESPONSE_FIELDS};

/// A failure to connect: nothing of the request was sent.
///
/// Requests that waited for another one's attempt get a copy of its error (`Self::for_waiters`).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    cause: UnreachableCause,
    is_transient: bool,
    is_timeout: bool,
    is_own_attempt: bool,
    text: String,
    hint: Option<&'static str>,
}

impl ConnectError {
    fn new(cause: UnreachableCause, text: impl Into<String>) -> Self {
        Self {
            cause,
            is_transient: true,
            is_timeout: cause == UnreachableCause::Timeout,
            is_own_attempt: true,
            text: text.into(),
            hint: None,
        }
    }

    /// A failure that no library reports.
    pub(in crate::upstream) fn other(text: impl Into<String>) -> Self {
        Self::new(UnreachableCause::Other, text)
    }

    /// Resolving the name failed. The standard library has no `ErrorKind` for this.
    pub(in crate::upstream) fn resolving(error: &io::Error) -> Self {
        let cause = if is_exhaustion(error) { UnreachableCause::Resources } else { UnreachableCause::Dns };
        Self::new(cause, with_sources(error))
    }

    /// Resolving the name took all of the time, or brought no address.
    pub(in crate::upstream) fn unresolved(text: impl Into<String>, is_timeout: bool) -> Self {
        Self { is_timeout, ..Self::new(UnreachableCause::Dns, text) }
    }

    /// The attempt took all of its time.
    pub(in crate::upstream) fn timed_out(text: impl Into<String>) -> Self {
        Self::new(UnreachableCause::Timeout, text)
    }

    /// TLS cannot be used as configured, or as the server uses it.
    pub(in crate::upstream) fn tls(text: impl Into<String>) -> Self {
        Self { is_transient: false, ..Self::new(UnreachableCause::Tls, text) }
    }

    /// The TLS handshake failed. A server that does not speak TLS may reset the connection.
    pub(in crate::upstream) fn handshake(error: io::Error) -> Self {
        let was_reset = is_reset(&error);
        let error = Self::from(error);
        if was_reset {
            Self { cause: UnreachableCause::Tls, hint: Some(HANDSHAKE_RESET), ..error }
        } else {
            error
        }
    }

    /// Nothing was attempted, for this reason.
    pub(in crate::upstream) fn not_attempted(cause: UnreachableCause, text: impl Into<String>) -> Self {
        Self { is_own_attempt: false, ..Self::new(cause, text) }
    }

    /// The failure of several attempts, at different addresses.
    pub(in crate::upstream) fn of_all<'e>(
        attempts: impl Iterator<Item = &'e Self> + Clone,
        text: String,
    ) -> Self {
        use UnreachableCause::{Resources, Tls};
        let find = |is: fn(&Self) -> bool| attempts.clone().find(|error| is(error));
        let telling = find(|error| error.is_timeout).or_else(|| find(|error| error.is_transient));
        let Some(telling) = telling.or_else(|| attempts.clone().next()) else {
            return Self::unresolved(text, false);
        };
        let special = find(|error| error.cause == Resources).or_else(|| find(|error| error.cause == Tls));
        Self {
            cause: special.unwrap_or(telling).cause,
            hint: attempts.clone().find_map(|error| error.hint),
            text,
            ..*telling
        }
    }

    /// The same failure for requests that have waited for the attempt, with `detail` appended.
    pub(in crate::upstream) fn for_waiters(&self, detail: Option<&str>) -> Self {
        let parts = [Some(self.text.as_str()), self.hint, detail];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
        Self { is_own_attempt: false, text, hint: None, ..*self }
    }

    /// Why, as a label.
    pub fn cause(&self) -> UnreachableCause {
        self.cause
    }

    /// Whether it may be over in a while. An untrusted certificate is not, nor is a socket that may not be opened.
    pub fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// Whether an attempt took all of its time.
    pub fn is_timeout(&self) -> bool {
        self.is_timeout
    }

    /// Whether file descriptors or memory are exhausted on this machine. That says nothing about the server.
    pub fn is_resource_exhaustion(&self) -> bool {
        self.cause == UnreachableCause::Resources
    }

    /// Whether the request itself tried to connect, or only waited for another one that did.
    pub(in crate::upstream) fn is_own_attempt(&self) -> bool {
        self.is_own_attempt
    }

    /// What an operator may have to change, where the text does not say so.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        let cause = match error.kind() {
            _ if is_exhaustion(&error) => UnreachableCause::Resources,
            ErrorKind::InvalidData => UnreachableCause::Tls,
            _ if is_handshake_eof(&error) || tls_error(&error).is_some() => UnreachableCause::Tls,
            ErrorKind::ConnectionRefused => UnreachableCause::Refused,
            ErrorKind::NotFound => UnreachableCause::NoSocket,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
                UnreachableCause::Unroutable
            }
            ErrorKind::TimedOut => UnreachableCause::Timeout,
            ErrorKind::PermissionDenied => UnreachableCause::Denied,
            _ => UnreachableCause::Other,
        };
        Self {
            cause,
            is_transient: !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::PermissionDenied),
            is_timeout: error.kind() == ErrorKind::TimedOut,
            is_own_attempt: true,
            text: with_sources(&error),
            hint: tls_hint(&error),
        }
    }
}

impl From<hyper::Error> for ConnectError {
    fn from(error: hyper::Error) -> Self {
        Self::other(with_sources(&error))
    }
}

/// `EADDRNOTAVAIL` is not among them: it is also the last error for a name with an IPv6 address, such as
/// `localhost`, where there is no IPv6.
fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// Whether the server has closed the connection during the handshake.
fn is_handshake_eof(error: &io::Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof && error.to_string().starts_with("tls")
}

const HANDSHAKE_RESET: &str = "the server reset the connection during the TLS handshake: if it speaks HTTP, \
                               upstream.url has to begin with http://";

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn tls_hint(error: &io::Error) -> Option<&'static str> {
    match tls_error(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            Some("the server does not speak TLS: if it speaks HTTP, upstream.url has to begin with http://")
        }
        None if is_handshake_eof(error) => Some(
            "the server closed the connection during the TLS handshake: if it speaks HTTP, upstream.url has to begin with http://",
        ),
        _ => None,
    }
}

/// The text of an error and of its sources, outermost first, without repetitions.
pub(in crate::upstream) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text.push_str(": ");
            text.push_str(&source_text);
        }
        next = source.source();
    }
    text
}

/// Whether an error of reading or writing is a reset. Writing to a closed unix socket fails with a broken pipe.
pub(super) fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

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

    /// Of HTTP/1.1. `was_reset` is what the connection knows beyond the error.
    pub(super) fn from_http1(error: Http1Error, was_reset: bool) -> Self {
        let fault = match &error {
            Http1Error::TooLarge => ExchangeErrorKind::HeadTooLarge,
            Http1Error::Http2Preface => ExchangeErrorKind::WrongVersion,
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
        let is_reset = was_reset || matches!(&error, Http1Error::Io(error) if is_reset(error));
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

    /// Whether the connection was reset.
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
    /// The response leaves a choice where it ends, or is an upgrade that was not asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
}

impl SendError {
    /// Of an exchange over HTTP/1.1. `was_reset` is what the connection knows beyond the error.
    pub(super) fn from_http1(error: Http1Error, was_reset: impl FnOnce() -> bool) -> Self {
        match error {
            Http1Error::Unusable(why) => Self::Unusable(why),
            error => Self::Exchange(ExchangeError::from_http1(error, was_reset())),
        }
    }
}

#[cfg(test)]
mod tests;
