use std::io;

use super::*;
use crate::upstream::connection::cause::UnreachableCause;

fn timeout(limit: TimeLimit, is_silent: bool) -> Error {
    Error::Timeout { after: Duration::from_secs(1), limit, is_silent, unreachable: None }
}

/// The table that all rules about failures come from.
#[test]
fn each_failure_has_a_kind_a_fault_and_a_label() {
    let refused = || ConnectError::from(io::Error::from(io::ErrorKind::ConnectionRefused));
    let denied = || ConnectError::from(io::Error::from(io::ErrorKind::PermissionDenied));
    let no_files = || ConnectError::from(io::Error::from_raw_os_error(24));
    let silent = || ConnectError::timed_out("no connection within 1s");
    let proxy = || ConnectError::not_attempted(UnreachableCause::Proxy, "it is away");
    let connect = |error| Error::Connect("rails".into(), error);
    let full = |error| Error::HoldFull("rails".into(), error);
    let body = |error| Error::ResponseBody(error);
    for (error, kind, fault, resend, label) in [
        (connect(refused()), ErrorKind::Unreachable, Fault::Rails, Resend::Any, "upstream_unreachable"),
        (connect(silent()), ErrorKind::Unreachable, Fault::Rails, Resend::Any, "upstream_connect_timeout"),
        (connect(denied()), ErrorKind::Unconnectable, Fault::Rails, Resend::Any, "upstream_unreachable"),
        (connect(no_files()), ErrorKind::Exhausted, Fault::Machine, Resend::Any, "upstream_unreachable"),
        (full(refused()), ErrorKind::Unreachable, Fault::Rails, Resend::Any, "hold_full"),
        (full(proxy()), ErrorKind::Unreachable, Fault::Rails, Resend::Any, "hold_full"),
        (full(no_files()), ErrorKind::Exhausted, Fault::Machine, Resend::Any, "hold_full"),
        (
            Error::CredentialExpires("rails".into(), None),
            ErrorKind::CredentialExpires,
            Fault::Limits,
            Resend::Any,
            "credential_expires",
        ),
        (Error::Shed(ShedReason::QueueFull), ErrorKind::Shed, Fault::Limits, Resend::Any, "queue_full"),
        (
            timeout(TimeLimit::Response, true),
            ErrorKind::Silent,
            Fault::Rails,
            Resend::Never,
            "upstream_timeout",
        ),
        (
            timeout(TimeLimit::Response, false),
            ErrorKind::Slow,
            Fault::Load,
            Resend::Never,
            "upstream_timeout",
        ),
        (
            timeout(TimeLimit::Total, true),
            ErrorKind::Silent,
            Fault::Rails,
            Resend::Never,
            "upstream_total_timeout",
        ),
        (
            timeout(TimeLimit::Total, false),
            ErrorKind::OutOfTime,
            Fault::Load,
            Resend::Never,
            "upstream_total_timeout",
        ),
        (
            timeout(TimeLimit::Shortened, false),
            ErrorKind::OutOfTime,
            Fault::Load,
            Resend::Never,
            "upstream_timeout",
        ),
        (
            body(body::Error::Stalled(Duration::from_secs(1))),
            ErrorKind::BodyStalled,
            Fault::Rails,
            Resend::Never,
            "upstream_body_timeout",
        ),
        (
            body(body::Error::TooSlow),
            ErrorKind::BodyTooSlow,
            Fault::Load,
            Resend::Never,
            "upstream_total_timeout",
        ),
        (Error::Unusable("x"), ErrorKind::Unusable, Fault::Response, Resend::Never, "upstream_unusable"),
        (
            Error::NeedsWorkhorse("x".into()),
            ErrorKind::NeedsWorkhorse,
            Fault::Response,
            Resend::Never,
            "upstream_needs_workhorse",
        ),
        (
            Error::RequestBodyTimeout(Duration::from_secs(1)),
            ErrorKind::RequestBody,
            Fault::Client,
            Resend::Never,
            "body_broke_off",
        ),
    ] {
        assert_eq!((error.kind(), error.as_str()), (kind, label), "{error}");
        assert_eq!((kind.fault(), kind.resend()), (fault, resend), "{error}");
        // A request that was not sent may be sent again, whatever it is.
        assert!(kind.was_sent() || resend == Resend::Any, "{error}");
    }
}

#[test]
fn an_interrupted_read_may_be_sent_again_and_an_unread_request_too() {
    assert_eq!(ErrorKind::Interrupted.resend(), Resend::Reads);
    assert_eq!((ErrorKind::Unread.resend(), ErrorKind::Unread.was_sent()), (Resend::Any, true));
    assert_eq!(ErrorKind::Malformed.resend(), Resend::Never);
}
