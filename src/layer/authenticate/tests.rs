use super::*;
use crate::auth::{AuthSettings, CallerKind};
use crate::clock::ManualClock;
use crate::exchange::Exchange;
use crate::layer::testing::{MockHandle, is_idle, mock_service};
use crate::route;
use crate::secret::ShellSecret;
use crate::secret::refresh::RefreshSecrets;
use crate::server::ConnectionHandle;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

const MAX_BODY: usize = 64;

fn layer() -> AuthenticateLayer {
    let auth = Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(b"s3cret").unwrap(),
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: MAX_BODY,
        max_unverified: MAX_BODY,
        kas: None,
    });
    let bodies = Arc::new(UnverifiedBodies::new(MAX_BODY));
    AuthenticateLayer::new(
        Arc::new(ArcSwap::from_pointee(auth)),
        Clock::Manual(ManualClock::at(0)),
        bodies,
        SecretRefresher::default(),
    )
}

/// Hangs until the test has ended, or for so long that it fails.
#[derive(Debug)]
struct HangingDisk {
    end: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    has_ended: AtomicBool,
}

impl RefreshSecrets for HangingDisk {
    fn refresh(&self) {
        let _ = self.end.lock().unwrap().recv_timeout(std::time::Duration::from_secs(10));
        self.has_ended.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_wrong_secret_is_refused_while_the_disk_with_the_right_one_hangs() {
    let (_goes_on, end) = std::sync::mpsc::channel();
    let disk = Arc::new(HangingDisk { end: std::sync::Mutex::new(end), has_ended: AtomicBool::new(false) });
    let mut layer = layer();
    let watcher: std::sync::Weak<dyn RefreshSecrets> = Arc::<HangingDisk>::downgrade(&disk);
    layer.checker.secrets = SecretRefresher::new(watcher);
    let wrong = ("gitlab-shared-secret", "YW5vdGhlcg==");
    for call in [
        routed(Method::GET, "/check", &[wrong], ""),
        routed(Method::POST, "/allowed", &[FORM], "secret_token=bad"),
    ] {
        let (inner, _handle): (_, MockHandle<Authenticated>) = mock_service();
        let outcome = layer.layer(inner).oneshot(call).await;
        assert!(matches!(outcome, Err(Failure::Unauthorized(Rejection::Wrong))), "{outcome:?}");
    }
    assert!(!disk.has_ended.load(Ordering::Relaxed));
}

fn routed(method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Routed {
    let mut request = Request::builder().method(&method).uri(format!("{}{path}", route::PREFIX));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(Bytes::from(body.to_owned()))).unwrap();
    let route_match = route::find(&method, path.split('?').next().unwrap(), false);
    Routed { exchange: Exchange::new(request, None, ConnectionHandle::default()), route_match }
}

/// What the inner service gets, or the failure.
async fn through(routed: Routed) -> Result<Authenticated, Failure> {
    let (inner, mut handle): (_, MockHandle<Authenticated>) = mock_service();
    let call = tokio::spawn(layer().layer(inner).oneshot(routed));
    tokio::select! {
        Some((request, _)) = handle.next_request() => Ok(request),
        outcome = call => Err(outcome.unwrap().unwrap_err()),
    }
}

const SECRET: (&str, &str) = ("gitlab-shared-secret", "czNjcmV0");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

#[tokio::test]
async fn a_credential_in_the_head_leaves_the_body_unread() {
    let body = "secret_token=bad";
    let call = through(routed(Method::POST, "/allowed", &[SECRET, FORM], body)).await.unwrap();
    assert_eq!((call.known_body, call.caller.kind()), (KnownBody::Unknown, CallerKind::SharedSecret));
    let call = through(routed(Method::GET, "/check", &[SECRET], "")).await.unwrap();
    assert_eq!(call.known_body, KnownBody::None);
}

#[tokio::test]
async fn a_credential_in_the_body_is_found_and_the_body_is_forwarded_unchanged() {
    for (method, path, kind, body) in [
        (Method::GET, "/check", Some(FORM), "secret_token=s3cret%0A"),
        (Method::POST, "/allowed", Some(FORM), "key_id=1&secret_token=s3cret"),
        (Method::POST, "/allowed", None, "key_id=1&secret_token=s3cret"),
        (Method::POST, "/allowed", Some(JSON), r#"{"key_id":1,"secret_token":"s3cret"}"#),
    ] {
        let headers: Vec<_> = kind.into_iter().collect();
        let call = through(routed(method, path, &headers, body)).await.unwrap();
        assert_eq!(call.caller.kind(), CallerKind::SharedSecret, "{body}");
        let forwarded = call.exchange.request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(forwarded, body);
    }
}

#[tokio::test]
async fn a_credential_that_rails_would_not_read_does_not_count() {
    use Rejection::{Ambiguous, Missing, Wrong};
    let multipart = ("content-type", "multipart/form-data; boundary=x");
    for (method, path, headers, body, expected) in [
        (Method::GET, "/check", vec![], "", Missing),
        (Method::GET, "/check", vec![JSON], r#"{"secret_token":"s3cret"}"#, Missing),
        (Method::GET, "/check", vec![], "secret_token=s3cret", Missing),
        (Method::HEAD, "/check", vec![JSON], r#"{"secret_token":"s3cret"}"#, Missing),
        (Method::POST, "/allowed", vec![multipart], "secret_token=s3cret", Missing),
        (Method::POST, "/allowed", vec![FORM], "secret_token=bad", Wrong),
        (Method::POST, "/allowed", vec![FORM], "secret_token[]=s3cret", Ambiguous),
        (Method::POST, "/allowed", vec![JSON], "{", Ambiguous),
        (Method::POST, "/allowed", vec![JSON], "", Missing),
        (Method::GET, "/check.json", vec![], "", Missing),
    ] {
        match through(routed(method, path, &headers, body)).await {
            Err(Failure::Unauthorized(rejection)) => assert_eq!(rejection, expected, "{body}"),
            other => unreachable!("{path} {body}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_body_is_read_up_to_the_limit_only() {
    let body = format!("secret_token=s3cret&a={}", "b".repeat(MAX_BODY));
    let outcome = through(routed(Method::POST, "/allowed", &[FORM], &body)).await;
    assert!(matches!(outcome, Err(Failure::BodyTooLarge)), "{outcome:?}");
    // With a credential in a header it may be of any size.
    assert!(through(routed(Method::POST, "/allowed", &[FORM, SECRET], &body)).await.is_ok());
}

#[tokio::test]
async fn endpoints_that_rails_guards_itself_pass_without_a_credential() {
    for (method, path) in [(Method::GET, "/pages"), (Method::GET, "/new/thing"), (Method::PUT, "/check")] {
        let call = through(routed(method, path, &[], "")).await.unwrap();
        assert_eq!(call.caller.kind(), CallerKind::LeftToRails);
    }
}

#[tokio::test]
async fn secrets_can_be_exchanged_between_requests() {
    let layer = layer();
    let (inner, mut handle): (_, MockHandle<Authenticated>) = mock_service();
    let service = layer.layer(inner);
    let auth = Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(b"another").unwrap(),
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: MAX_BODY,
        max_unverified: MAX_BODY,
        kas: None,
    });
    layer.checker.auth.store(Arc::new(auth));
    let outcome = service.clone().oneshot(routed(Method::GET, "/check", &[SECRET], "")).await;
    assert!(matches!(outcome, Err(Failure::Unauthorized(Rejection::Wrong))));
    let new = ("gitlab-shared-secret", "YW5vdGhlcg==");
    let _call = tokio::spawn(service.oneshot(routed(Method::GET, "/check", &[new], "")));
    assert!(!is_idle(&mut handle).await);
}
