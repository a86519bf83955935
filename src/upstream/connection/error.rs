//! Why there is no connection. Raw errors are classified here, once; everything else asks the result.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

use super::cause::UnreachableCause;

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

#[cfg(test)]
mod tests;
