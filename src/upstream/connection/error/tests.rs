use super::*;

fn system_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

fn tls_error(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

#[test]
fn each_cause_has_a_label_and_an_index_of_its_own() {
    for (at, cause) in UnreachableCause::ALL.iter().enumerate() {
        assert_eq!(*cause as usize, at);
        assert_eq!(UnreachableCause::ALL.iter().filter(|other| other.as_str() == cause.as_str()).count(), 1);
    }
}

#[test]
fn errors_are_classified_and_keep_their_class_for_waiting_requests() {
    use UnreachableCause::{
        Denied, Drained, NoSocket, Other, Proxy, Refused, Resources, Timeout, Tls, Unroutable,
    };
    let system = |errno| ConnectError::from(system_error(errno));
    let tls = |error| ConnectError::from(tls_error(error));
    let eof = io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof");
    for (error, cause, is_transient) in [
        (ConnectError::resolving(&io::Error::other("no such name")), UnreachableCause::Dns, true),
        (ConnectError::resolving(&system_error(Errno::MFILE)), Resources, true),
        (ConnectError::unresolved("within 1s", true), UnreachableCause::Dns, true),
        (system(Errno::CONNREFUSED), Refused, true),
        (system(Errno::NOENT), NoSocket, true),
        (system(Errno::HOSTUNREACH), Unroutable, true),
        (system(Errno::NETUNREACH), Unroutable, true),
        (system(Errno::ADDRNOTAVAIL), Unroutable, true),
        (system(Errno::TIMEDOUT), Timeout, true),
        (ConnectError::timed_out("no connection within 1s"), Timeout, true),
        (tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Tls, false),
        (tls(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)), Tls, false),
        (ConnectError::from(eof), Tls, true),
        (ConnectError::handshake(system_error(Errno::CONNRESET)), Tls, true),
        (ConnectError::handshake(system_error(Errno::PIPE)), Tls, true),
        (ConnectError::handshake(system_error(Errno::TIMEDOUT)), Timeout, true),
        (system(Errno::CONNRESET), Other, true),
        (ConnectError::tls("no certificates are set up"), Tls, false),
        (system(Errno::ACCESS), Denied, false),
        (system(Errno::MFILE), Resources, true),
        (system(Errno::NFILE), Resources, true),
        (system(Errno::NOBUFS), Resources, true),
        (system(Errno::NOMEM), Resources, true),
        (ConnectError::not_attempted(Proxy, "a proxy reports it"), Proxy, true),
        (ConnectError::not_attempted(Drained, "all are drained"), Drained, true),
        (system(Errno::PROTO), Other, true),
    ] {
        for error in [error.clone(), error.for_waiters(Some("and more"))] {
            assert_eq!((error.cause(), error.is_transient()), (cause, is_transient), "{error}");
            assert_eq!(error.is_resource_exhaustion(), cause == Resources, "{error}");
        }
        let waiting = error.for_waiters(Some("and more"));
        assert_eq!(waiting.is_timeout(), error.is_timeout());
        assert!(!waiting.is_own_attempt() && waiting.hint().is_none(), "the text has the hint already");
        let text = waiting.to_string();
        assert!(text.starts_with(&error.to_string()) && text.ends_with("; and more"), "{text}");
        assert!(error.hint().is_none_or(|hint| text.contains(hint)), "{text}");
    }
}

#[test]
fn the_failure_of_several_attempts_is_as_hopeful_as_the_best_of_them() {
    use UnreachableCause::{Denied, Dns, Refused, Resources, Timeout, Tls};
    let refused = || ConnectError::from(system_error(Errno::CONNREFUSED));
    let denied = || ConnectError::from(system_error(Errno::ACCESS));
    let timed_out = || ConnectError::timed_out("1s");
    let of_tls = || ConnectError::tls("unknown issuer");
    for (attempts, cause, is_transient, is_timeout) in [
        (vec![], Dns, true, false),
        (vec![denied()], Denied, false, false),
        (vec![denied(), refused()], Refused, true, false),
        (vec![refused(), timed_out()], Timeout, true, true),
        (vec![refused(), of_tls()], Tls, true, false),
        (vec![timed_out(), ConnectError::from(system_error(Errno::MFILE))], Resources, true, true),
    ] {
        let error = ConnectError::of_all(attempts.iter(), "all".to_owned());
        assert_eq!((error.cause(), error.is_transient()), (cause, is_transient), "{attempts:?}");
        assert_eq!(error.is_timeout(), is_timeout, "{attempts:?}");
    }
}

#[test]
fn http_where_tls_is_expected_has_a_hint() {
    let no_tls = tls_error(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
    let eof = io::Error::new(ErrorKind::UnexpectedEof, "tls handshake eof");
    for error in [no_tls, eof] {
        assert!(ConnectError::from(error).hint().unwrap().ends_with("begin with http://"));
    }
    let untrusted = tls_error(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    for error in [untrusted, system_error(Errno::CONNREFUSED)] {
        assert_eq!(ConnectError::from(error).hint(), None);
    }
}
