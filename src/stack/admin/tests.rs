use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tower::{ServiceExt as _, service_fn};

use super::*;
use crate::admin::{AdminAccess, OperatorPermits, Status};
use crate::auth::{AuthSettings, Authenticator};
use crate::body::unverified::UnverifiedBodies;
use crate::cache::{Cache, CacheSettings};
use crate::fleet::Fleet;
use crate::heartbeat::Heartbeats;
use crate::metrics::{MetricSources, Metrics};
use crate::reload::{Reload, ReloadError, ReloadStatus, Reloaded};
use crate::secret::{BearerToken, ShellSecret};
use crate::stack::testing::{EventLog, connect, exchange};
use crate::trace::SpanQueue;
use crate::upstream::{UpstreamSettings, UpstreamState, UpstreamTarget};

type OperationRequest = Request<Limited<Incoming>>;

const PURGE: &str = "POST /purge HTTP/1.1\r\nAuthorization: Bearer t0ken\r\nContent-Type: application/json";
const LIVE: &str = "GET /live HTTP/1.1";

fn admin() -> Admin {
    let settings = UpstreamSettings::new(UpstreamTarget::parse("http://rails").unwrap());
    let upstream = Arc::new(UpstreamState::new(&settings));
    let cache = Cache::new(&CacheSettings::default());
    let heartbeats = Arc::new(Heartbeats(Vec::new()));
    let auth = Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(b"s3cret").unwrap(),
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: 64,
        max_unverified: 64,
        kas: None,
    });
    let metrics = Metrics::new(MetricSources {
        certificates: Vec::new(),
        auth: Arc::new(ArcSwap::from_pointee(auth)),
        bodies: Arc::new(UnverifiedBodies::new(64)),
        cache: Arc::clone(&cache),
        upstream: Arc::clone(&upstream),
        hooks: Arc::default(),
        fleet: Fleet::default(),
        log: Arc::default(),
        reload: Arc::new(ReloadStatus::new(0)),
        secrets: Arc::default(),
        spans: Arc::new(SpanQueue::new(1)),
        heartbeats: Arc::clone(&heartbeats),
        clients: Vec::new(),
        others: Vec::new(),
    });
    let metrics = Arc::new(metrics);
    Admin {
        status: Arc::new(Status::new(Arc::clone(&metrics))),
        metrics,
        upstream,
        readiness: Arc::default(),
        cache,
        fleet: Fleet::default(),
        access: Arc::new(ArcSwap::from_pointee(AdminAccess {
            is_local_only: true,
            token: Some(BearerToken::from_text(b"t0ken").unwrap()),
            hosts: Vec::new(),
        })),
        reload: Arc::new(NoFile),
        log: Arc::default(),
        heartbeats,
        permits: OperatorPermits::default(),
    }
}

#[derive(Debug)]
struct NoFile;

impl Reload for NoFile {
    fn reload(&self) -> Result<Reloaded, ReloadError> {
        Err(ReloadError::NoFile)
    }
}

fn done() -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_goes_on() {
    let late = service_fn(|_: OperationRequest| async { panic!("late") });
    let early = service_fn(|_: OperationRequest| -> Ready<Result<_, _>> { panic!("early") });
    let log = EventLog::start();
    for stack in [build_around(admin(), late), build_around(admin(), early)] {
        let mut peer = connect(stack, &log).await;
        for _ in 0..2 {
            let (status, head, body) = exchange(&mut peer, PURGE, "").await;
            assert_eq!((status, body.as_str()), (500, r#"{"message":"500 Internal Server Error"}"#));
            assert!(head.contains("content-type: application/json\r\n"), "{head}");
            let (status, _, body) = exchange(&mut peer, LIVE, "").await;
            assert_eq!((status, body.as_str()), (200, r#"{"status":"live"}"#));
        }
    }
}

/// Operations that are never ready.
#[derive(Clone)]
struct NeverReady;

impl Service<OperationRequest> for NeverReady {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: OperationRequest) -> Self::Future {
        ready(done())
    }
}

#[tokio::test]
async fn health_checks_do_not_wait_for_operations() {
    let log = EventLog::start();
    let mut peer = connect(build_around(admin(), NeverReady), &log).await;
    assert_eq!(exchange(&mut peer, LIVE, "").await.0, 200);
    assert_eq!(exchange(&mut peer, "GET /ready HTTP/1.1", "").await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_is_a_503_in_json() {
    let stack = ServiceBuilder::new().map_response(timed_out).layer(timeout(REQUEST_TIMEOUT));
    let stack = stack
        .service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let response = stack.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers().get("content-type").unwrap(), "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"message":"503 Service Unavailable: it took too long"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_a_400_before_the_timeout_of_the_request() {
    let begun = tokio::time::Instant::now();
    let body =
        StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>());
    let response = Operations::new(admin()).oneshot(Request::new(body)).await.unwrap();
    let unreadable = unreadable_body();
    assert_eq!(response.status(), unreadable.status());
    let [body, expected] = [response, unreadable].map(|response| response.into_body().collect());
    assert_eq!(body.await.unwrap().to_bytes(), expected.await.unwrap().to_bytes());
    assert!(begun.elapsed() < REQUEST_TIMEOUT / 2);
}

#[tokio::test]
async fn what_is_logged_names_the_request_and_no_credential() {
    let log = EventLog::start();
    let sensitive = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sensitive);
    let operations = service_fn(move |request: OperationRequest| {
        seen.lock().extend(request.headers().values().filter(|value| value.is_sensitive()).cloned());
        tracing::warn!(headers = ?request.headers(), "seen");
        ready(done())
    });
    let mut peer = connect(build_around(admin(), operations), &log).await;
    for head in [LIVE, "GET /ready HTTP/1.1", "GET /t0ken HTTP/1.1"] {
        exchange(&mut peer, head, "").await;
    }
    assert_eq!(log.take(), "", "only what is worth a warning is logged");
    assert_eq!(exchange(&mut peer, &format!("{PURGE}\r\nCookie: c00kie"), "").await.0, 200);
    assert_eq!(*sensitive.lock(), ["Bearer t0ken", "c00kie"]);
    assert_eq!(exchange(&mut peer, &PURGE.replace("t0ken", "wr0ng"), "").await.0, 401);
    let logged = log.take();
    assert!(!["t0ken", "c00kie", "wr0ng"].iter().any(|secret| logged.contains(secret)), "{logged}");
    assert!(logged.contains("headers={\"authorization\": Sensitive"), "{logged}");
    let named = r#"method="POST" path="/purge" remote_ip=127.0.0.1"#;
    assert_eq!(logged.lines().filter(|line| line.ends_with(named)).count(), 2, "{logged}");
}
