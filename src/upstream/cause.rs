//! Why a server cannot be connected to: as a label, in words, and in a form that can be told to others.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

use super::Error;
use super::happy_eyeballs::parts;

/// What has kept a connection from coming about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Cause {
    /// The host name cannot be resolved.
    Dns = 0,
    /// Nothing listens there.
    Refused = 1,
    /// There is no such socket file.
    NoSocket = 2,
    /// There is no way to the host.
    Unroutable = 3,
    /// It does not answer in time.
    Timeout = 4,
    /// No TLS comes about: what is there speaks none, or its certificate is not believed.
    Tls = 5,
    /// The gateway's user may not open the socket.
    Denied = 6,
    /// Files or memory are wanting on this machine.
    Resources = 7,
    /// A proxy is there, and says that Rails is away.
    Proxy = 8,
    /// An operator has drained all servers.
    Drained = 9,
    /// Anything else; the log says what.
    Other = 10,
}

impl Cause {
    /// All of them, in the order of their numbers.
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

    /// The cause of an error.
    pub fn of(error: &io::Error) -> Self {
        if let Some(told) = told(error) {
            return told.cause;
        }
        match error.kind() {
            _ if is_for_want_of_resources(error) => Self::Resources,
            _ if is_of_tls(error) => Self::Tls,
            _ if is_of_dns(error) => Self::Dns,
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

    /// An error of this cause that no system call has made.
    pub(super) fn error(self, text: &str) -> io::Error {
        io::Error::other(Told { cause: self, text: text.to_owned() })
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    tls(error).is_some() || parts(error).any(|part| part.kind() == ErrorKind::InvalidData || is_hang_up(part))
}

/// Whether the other side has closed the connection in the middle of a handshake.
fn is_hang_up(error: &io::Error) -> bool {
    error.kind() == ErrorKind::UnexpectedEof && error.to_string().starts_with("tls")
}

fn tls(error: &io::Error) -> Option<&rustls::Error> {
    parts(error).find_map(|part| part.get_ref()?.downcast_ref())
}

/// The standard library has no kind for that.
fn is_of_dns(error: &io::Error) -> bool {
    let text = error.to_string();
    ["failed to lookup address information", "the name has no address", "the name was not resolved"]
        .iter()
        .any(|of_dns| text.contains(of_dns))
}

/// Another request's failure to connect, for those that have waited for it. What can be asked of an error can be
/// asked of it too.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Told {
    cause: Cause,
    text: String,
}

impl Told {
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    pub(super) fn of(error: &io::Error) -> Self {
        let text = tls_hint(error).map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"));
        Self { cause: Cause::of(error), text }
    }

    /// The error again, with more to say.
    pub(super) fn again(mut self, kind: ErrorKind, more: Option<&str>) -> io::Error {
        if let Some(more) = more {
            self.text = format!("{}; {more}", self.text);
        }
        io::Error::new(kind, self)
    }
}

fn told(error: &io::Error) -> Option<&Told> {
    error.get_ref()?.downcast_ref()
}

/// Whether an error is that of another request's attempt to connect, or of no attempt.
pub(super) fn is_told(error: &io::Error) -> bool {
    told(error).is_some()
}

/// Whether a connection failed for want of something on this machine: files or memory. It says nothing
/// of the other side. No address to connect from is not among them: that is also what is said last of a
/// name with an IPv6 address, such as `localhost`, where there is no IPv6.
pub fn is_for_want_of_resources(error: &io::Error) -> bool {
    if let Some(told) = told(error) {
        return told.cause == Cause::Resources;
    }
    let wanting = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error);
    parts(error).filter_map(io::Error::raw_os_error).any(|code| wanting.contains(&code))
}

/// What an operator may have to mend, where the error itself does not say so.
pub(super) fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::Connect(_, error) => tls_hint(error),
        _ => None,
    }
}

fn tls_hint(error: &io::Error) -> Option<&'static str> {
    match tls(error) {
        // It says so already.
        _ if is_told(error) => None,
        Some(rustls::Error::InvalidMessage(_)) => {
            Some("what came is no TLS: if it speaks HTTP there, upstream.url has to begin with http://")
        }
        None if parts(error).any(is_hang_up) => Some(
            "it closed the connection instead of speaking TLS: if it speaks HTTP there, upstream.url has to begin with http://",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_system(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn each_cause_has_a_label_and_a_place_of_its_own() {
        for (at, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at);
            assert_eq!(Cause::ALL.iter().filter(|other| other.as_str() == cause.as_str()).count(), 1);
        }
    }

    #[test]
    fn errors_are_told_apart_and_stay_what_they_are_when_they_are_told_to_others() {
        let of_tls = |error| io::Error::new(ErrorKind::InvalidData, error);
        for (error, cause) in [
            (io::Error::other("failed to lookup address information: Name or service not known"), Cause::Dns),
            (io::Error::new(ErrorKind::NotFound, "the name has no address"), Cause::Dns),
            (io::Error::new(ErrorKind::TimedOut, "the name was not resolved within 1s"), Cause::Dns),
            (of_system(Errno::CONNREFUSED), Cause::Refused),
            (of_system(Errno::NOENT), Cause::NoSocket),
            (of_system(Errno::HOSTUNREACH), Cause::Unroutable),
            (of_system(Errno::NETUNREACH), Cause::Unroutable),
            (of_system(Errno::ADDRNOTAVAIL), Cause::Unroutable),
            (of_system(Errno::TIMEDOUT), Cause::Timeout),
            (io::Error::new(ErrorKind::TimedOut, "no connection within 1s"), Cause::Timeout),
            (of_tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Cause::Tls),
            (of_tls(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)), Cause::Tls),
            (io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof"), Cause::Tls),
            (of_system(Errno::ACCESS), Cause::Denied),
            (of_system(Errno::MFILE), Cause::Resources),
            (of_system(Errno::NFILE), Cause::Resources),
            (of_system(Errno::NOBUFS), Cause::Resources),
            (of_system(Errno::NOMEM), Cause::Resources),
            (Cause::Proxy.error("a proxy says so"), Cause::Proxy),
            (Cause::Drained.error("all are drained"), Cause::Drained),
            (of_system(Errno::PROTO), Cause::Other),
        ] {
            assert_eq!(Cause::of(&error), cause, "{error}");
            let again = Told::of(&error).again(error.kind(), Some("and more"));
            assert_eq!(Cause::of(&again), cause, "{error}");
            assert_eq!(is_for_want_of_resources(&again), cause == Cause::Resources, "{error}");
            assert_eq!(again.kind(), error.kind());
            let text = again.to_string();
            assert!(text.starts_with(&error.to_string()) && text.ends_with("; and more"), "{text}");
            assert_eq!(hint(&Error::Connect("x".into(), again)), None, "it is said once");
        }
    }

    #[test]
    fn http_where_tls_should_be_is_said_in_words() {
        let tls = |error| Error::Connect("x".into(), io::Error::new(ErrorKind::InvalidData, error));
        let no_tls = tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        assert!(hint(&no_tls).unwrap().ends_with("begin with http://"));
        let eof = io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof");
        assert!(hint(&Error::Connect("x".into(), eof)).unwrap().ends_with("begin with http://"));
        for error in [
            tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)),
            Error::Connect("x".into(), of_system(Errno::CONNREFUSED)),
            Error::Timeout(std::time::Duration::from_secs(1)),
        ] {
            assert_eq!(hint(&error), None, "{error}");
        }
    }
}
