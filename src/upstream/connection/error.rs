//! Why a server cannot be connected to: as a label, in words, and in a form that several requests can share.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

use super::happy_eyeballs::causes;
use crate::upstream::Error;

/// Why no connection could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum UnreachableCause {
    /// The host name cannot be resolved.
    Dns = 0,
    /// Nothing listens there.
    Refused = 1,
    /// The socket file does not exist.
    NoSocket = 2,
    /// There is no route to the host.
    Unroutable = 3,
    /// No connection within `connect_timeout`.
    Timeout = 4,
    /// The handshake failed: the server does not speak TLS, or its certificate is not trusted.
    Tls = 5,
    /// The gateway's user may not open the socket (file permissions).
    Denied = 6,
    /// File descriptors or memory are exhausted on this machine.
    Resources = 7,
    /// A proxy accepts connections, and reports in its responses that Rails is unreachable.
    Proxy = 8,
    /// An operator has drained all servers.
    Drained = 9,
    /// None of these; the log has the error.
    Other = 10,
}

impl UnreachableCause {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Dns,
        Self::Refused,
        Self::NoSocket,
        Self::Unroutable,
        Self::Timeout,
        Self::Tls,
        Self::Denied,
        Self::Resources,
        Self::Proxy,
        Self::Drained,
        Self::Other,
    ];

    /// The label in metrics, logs and `/ready`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::NoSocket => "no_socket",
            Self::Unroutable => "unroutable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Denied => "denied",
            Self::Resources => "resources",
            Self::Proxy => "proxy",
            Self::Drained => "drained",
            Self::Other => "other",
        }
    }

    /// Classifies an error of connecting.
    pub fn of(error: &io::Error) -> Self {
        if let Some(shared) = as_shared(error) {
            return shared.cause;
        }
        match error.kind() {
            _ if is_resource_exhaustion(error) => Self::Resources,
            _ if is_tls_failure(error) => Self::Tls,
            _ if is_dns_failure(error) => Self::Dns,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::NotFound => Self::NoSocket,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
                Self::Unroutable
            }
            ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Other,
        }
    }

    /// An error with this cause that comes from no system call.
    pub(in crate::upstream) fn error(self, text: &str) -> io::Error {
        io::Error::other(SharedConnectError { cause: self, text: text.to_owned() })
    }
}

crate::counters::label!(UnreachableCause);

fn is_tls_failure(error: &io::Error) -> bool {
    tls(error).is_some()
        || causes(error).any(|cause| cause.kind() == ErrorKind::InvalidData || is_handshake_eof(cause))
}

/// Whether the server has closed the connection during the handshake.
fn is_handshake_eof(error: &io::Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof && error.to_string().starts_with("tls")
}

fn tls(error: &io::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.get_ref()?.downcast_ref())
}

/// `io::ErrorKind` has none for this.
fn is_dns_failure(error: &io::Error) -> bool {
    let text = error.to_string();
    ["failed to lookup address information", "the name has no address", "the name was not resolved"]
        .iter()
        .any(|marker| text.contains(marker))
}

/// The failure of one attempt to connect, for all requests that have waited for it. It is classified as the
/// original is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(in crate::upstream) struct SharedConnectError {
    cause: UnreachableCause,
    text: String,
}

impl SharedConnectError {
    pub(in crate::upstream) fn cause(&self) -> UnreachableCause {
        self.cause
    }

    pub(in crate::upstream) fn of(error: &io::Error) -> Self {
        let text = tls_hint(error).map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"));
        Self { cause: UnreachableCause::of(error), text }
    }

    /// The error, with `detail` appended.
    pub(in crate::upstream) fn into_io_error(mut self, kind: ErrorKind, detail: Option<&str>) -> io::Error {
        if let Some(detail) = detail {
            self.text = format!("{}; {detail}", self.text);
        }
        io::Error::new(kind, self)
    }
}

fn as_shared(error: &io::Error) -> Option<&SharedConnectError> {
    error.get_ref()?.downcast_ref()
}

/// Whether an error is that of another request's attempt to connect, or of no attempt.
pub(in crate::upstream) fn is_shared(error: &io::Error) -> bool {
    as_shared(error).is_some()
}

/// Whether a connection failed since file descriptors or memory are exhausted on this machine. That says nothing
/// about the server. `EADDRNOTAVAIL` is not among them: it is also the last error for a name with an IPv6 address,
/// such as `localhost`, where there is no IPv6.
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    if let Some(shared) = as_shared(error) {
        return shared.cause == UnreachableCause::Resources;
    }
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error);
    causes(error).filter_map(io::Error::raw_os_error).any(|code| exhausted.contains(&code))
}

/// What an operator may have to change, where the error itself does not say so.
pub(in crate::upstream) fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::Connect(_, error) => tls_hint(error),
        _ => None,
    }
}

fn tls_hint(error: &io::Error) -> Option<&'static str> {
    match tls(error) {
        // Its text has the hint already.
        _ if is_shared(error) => None,
        Some(rustls::Error::InvalidMessage(_)) => {
            Some("the server does not speak TLS: if it speaks HTTP, upstream.url has to begin with http://")
        }
        None if causes(error).any(is_handshake_eof) => Some(
            "the server closed the connection during the TLS handshake: if it speaks HTTP, upstream.url has to begin with http://",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system_error(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn each_cause_has_a_label_and_an_index_of_its_own() {
        for (at, cause) in UnreachableCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at);
            assert_eq!(
                UnreachableCause::ALL.iter().filter(|other| other.as_str() == cause.as_str()).count(),
                1
            );
        }
    }

    #[test]
    fn errors_are_classified_and_keep_their_cause_when_they_are_shared() {
        let of_tls = |error| io::Error::new(ErrorKind::InvalidData, error);
        for (error, cause) in [
            (
                io::Error::other("failed to lookup address information: Name or service not known"),
                UnreachableCause::Dns,
            ),
            (io::Error::new(ErrorKind::NotFound, "the name has no address"), UnreachableCause::Dns),
            (
                io::Error::new(ErrorKind::TimedOut, "the name was not resolved within 1s"),
                UnreachableCause::Dns,
            ),
            (system_error(Errno::CONNREFUSED), UnreachableCause::Refused),
            (system_error(Errno::NOENT), UnreachableCause::NoSocket),
            (system_error(Errno::HOSTUNREACH), UnreachableCause::Unroutable),
            (system_error(Errno::NETUNREACH), UnreachableCause::Unroutable),
            (system_error(Errno::ADDRNOTAVAIL), UnreachableCause::Unroutable),
            (system_error(Errno::TIMEDOUT), UnreachableCause::Timeout),
            (io::Error::new(ErrorKind::TimedOut, "no connection within 1s"), UnreachableCause::Timeout),
            (
                of_tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
                UnreachableCause::Tls,
            ),
            (
                of_tls(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)),
                UnreachableCause::Tls,
            ),
            (io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof"), UnreachableCause::Tls),
            (system_error(Errno::ACCESS), UnreachableCause::Denied),
            (system_error(Errno::MFILE), UnreachableCause::Resources),
            (system_error(Errno::NFILE), UnreachableCause::Resources),
            (system_error(Errno::NOBUFS), UnreachableCause::Resources),
            (system_error(Errno::NOMEM), UnreachableCause::Resources),
            (UnreachableCause::Proxy.error("a proxy says so"), UnreachableCause::Proxy),
            (UnreachableCause::Drained.error("all are drained"), UnreachableCause::Drained),
            (system_error(Errno::PROTO), UnreachableCause::Other),
        ] {
            assert_eq!(UnreachableCause::of(&error), cause, "{error}");
            let shared = SharedConnectError::of(&error).into_io_error(error.kind(), Some("and more"));
            assert_eq!(UnreachableCause::of(&shared), cause, "{error}");
            assert_eq!(is_resource_exhaustion(&shared), cause == UnreachableCause::Resources, "{error}");
            assert_eq!(shared.kind(), error.kind());
            let text = shared.to_string();
            assert!(text.starts_with(&error.to_string()) && text.ends_with("; and more"), "{text}");
            assert_eq!(hint(&Error::Connect("x".into(), shared)), None, "the text has it already");
        }
    }

    #[test]
    fn http_where_tls_is_expected_has_a_hint() {
        let tls = |error| Error::Connect("x".into(), io::Error::new(ErrorKind::InvalidData, error));
        let no_tls = tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        assert!(hint(&no_tls).unwrap().ends_with("begin with http://"));
        let eof = io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof");
        assert!(hint(&Error::Connect("x".into(), eof)).unwrap().ends_with("begin with http://"));
        for error in [
            tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)),
            Error::Connect("x".into(), system_error(Errno::CONNREFUSED)),
            Error::Timeout(std::time::Duration::from_secs(1)),
        ] {
            assert_eq!(hint(&error), None, "{error}");
        }
    }
}
