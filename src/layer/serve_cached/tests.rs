mod shadow;
mod stale;

use super::*;
use crate::auth::{self, AuthBody, AuthOutcome, Authenticator};
use crate::cache::FillError;
use crate::clock::ManualClock;
use crate::exchange::{Exchange, KnownBody};
use crate::layer::testing::{MockHandle, MockReply, MockService, is_idle, mock_service};
use crate::params::Params;
use crate::route;
use crate::secret::ShellSecret;
use crate::server::ConnectionHandle;
use crate::upstream;
use bytes::Bytes;
use http::header::HeaderName;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::task::JoinHandle;

struct Fixture {
    service: ServeCached<MockService<Authenticated>>,
    rails: MockHandle<Authenticated>,
    cache: Arc<Cache>,
    time: ManualClock,
}

fn fixture() -> Fixture {
    fixture_with(calm())
}

/// The defaults, without anything random.
fn calm() -> CacheSettings {
    let mut settings = CacheSettings::default();
    settings.lifetimes.jitter_percent = 0;
    settings.shadow.one_in = 0;
    settings
}

fn fixture_with(settings: CacheSettings) -> Fixture {
    let time = ManualClock::at(1_700_000_000);
    let clock = Clock::Manual(time.clone());
    let cache = Cache::with_clock(&settings, clock.clone());
    let layer = ServeCachedLayer::new((Arc::clone(&cache), None), settings, clock, TaskTracker::new());
    let (inner, rails) = mock_service();
    Fixture { service: layer.layer(inner), rails, cache, time }
}

/// A request whose caller has been authenticated.
fn call(method: Method, path: &str, headers: &[(&str, &str)]) -> Authenticated {
    let auth = Authenticator::new(auth::AuthSettings {
        shell_secret: ShellSecret::from_text(b"x").unwrap(),
        accept_jwt: false,
        accept_shared_secret: true,
        max_body: 0,
        max_unverified: 0,
        kas: None,
    });
    let mut request = Request::builder().method(&method).uri(format!("{}{path}", route::PREFIX));
    for (name, value) in [("gitlab-shared-secret", "eA=="), ("x-request-id", "mine")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let route_match = route::find(&method, path.split('?').next().unwrap(), false);
    let access = route_match.route.access;
    let query = Params::parse(request.uri().query().unwrap_or_default().as_bytes());
    let key = Key::new(route_match.route.caching, &query);
    let no_query = Params::parse(b"");
    let verdict = auth.authenticate(access, request.headers(), &no_query, AuthBody::Irrelevant, || 0);
    let AuthOutcome::Accepted(caller) = verdict else {
        unreachable!("the credential is right");
    };
    let exchange = Exchange::new(request, None, ConnectionHandle::default());
    Authenticated {
        exchange,
        route_match,
        caller,
        key,
        known_body: KnownBody::None,
        wait_policy: WaitPolicy::ForRails,
        buffer_up_to: None,
        progress: None,
        received_at: None,
    }
}

const USER: &str = r#"{"id":7,"username":"rubi","name":"R"}"#;

impl Fixture {
    fn ask(&self, path: &str) -> JoinHandle<LayerResult> {
        tokio::spawn(self.service.clone().oneshot(call(Method::GET, path, &[])))
    }

    async fn taken(&mut self) -> (Authenticated, MockReply) {
        self.rails.next_request().await.unwrap()
    }

    /// Fills an entry as a first caller does.
    async fn warm(&mut self, path: &str, body: &str) {
        let first = self.ask(path);
        let (_, reply) = self.taken().await;
        reply.send_response(Ok(json(200, body)));
        first.await.unwrap().unwrap();
    }
}

fn json(status: u16, body: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("etag", "W/\"1\"")
        .header("x-runtime", "0.1")
        .header("set-cookie", "a=b")
        .header("x-request-id", "of-the-first")
        .body(Body::from(Bytes::from(body.to_owned())))
        .unwrap()
}

async fn text(answer: Response<Body>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn status_of(answer: &Response<Body>) -> &str {
    answer.headers()["cache-status"].to_str().unwrap()
}

#[tokio::test]
async fn the_second_caller_is_answered_from_memory() {
    let mut s = fixture();
    let first = s.ask("/discover?key_id=7");
    let (_, reply) = s.taken().await;
    reply.send_response(Ok(json(200, USER)));
    let first = first.await.unwrap().unwrap();
    assert_eq!(status_of(&first), "railgate; fwd=miss; stored");
    assert_eq!(first.headers()["x-runtime"], "0.1");

    s.time.advance(Duration::from_secs(18));
    let second = s.ask("/discover?key_id=7").await.unwrap().unwrap();
    assert_eq!(status_of(&second), "railgate; hit; ttl=42");
    assert_eq!(second.headers()["age"], "18");
    assert_eq!(second.headers()["etag"], "W/\"1\"");
    for per_request in ["x-runtime", "set-cookie", "date"] {
        assert!(!second.headers().contains_key(per_request), "{per_request} was replayed");
    }
    assert_eq!(second.headers()["x-request-id"], "", "only a placeholder");
    assert_eq!(text(second).await, USER);
    assert!(is_idle(&mut s.rails).await);
}

/// Or it could wait for the leader first, and then for as long again for its own answer.
#[tokio::test]
async fn the_time_of_a_follower_counts_from_its_arrival() {
    let mut s = fixture();
    let path = "/discover?key_id=7";
    let leader = s.ask(path);
    let (asked, reply) = s.taken().await;
    assert_eq!(asked.received_at, None);
    s.time.advance(Duration::from_secs(2));
    let came = Clock::Manual(s.time.clone()).now();
    let follower = s.ask(path);
    assert!(is_idle(&mut s.rails).await, "it waits");
    s.time.advance(Duration::from_secs(1));
    reply.send_response(Ok(json(429, "{}")));
    leader.await.unwrap().unwrap();
    let (asked, reply) = s.taken().await;
    assert_eq!(asked.received_at, Some(came));
    reply.send_response(Ok(json(200, USER)));
    assert_eq!(status_of(&follower.await.unwrap().unwrap()), "railgate; fwd=miss; detail=alone");
}

#[tokio::test]
async fn head_and_options_pass_through_and_do_not_affect_the_entry() {
    let mut s = fixture();
    s.warm("/discover?key_id=7", USER).await;
    let methods = [Method::HEAD, Method::OPTIONS];
    for (method, status) in
        methods.into_iter().flat_map(|method| [200, 401, 404].map(|status| (method.clone(), status)))
    {
        let asked = tokio::spawn(s.service.clone().oneshot(call(method.clone(), "/discover?key_id=7", &[])));
        let (seen, reply) = s.taken().await;
        assert_eq!(*seen.exchange.request.method(), method);
        reply.send_response(Ok(json(status, "")));
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(
            (answer.status().as_u16(), status_of(&answer)),
            (status, "railgate; fwd=bypass; detail=request")
        );
        let cached = s.ask("/discover?key_id=7").await.unwrap().unwrap();
        assert_eq!(status_of(&cached), "railgate; hit; ttl=60");
    }
}

#[tokio::test]
async fn requests_that_are_not_canonical_bypass_the_cache() {
    let mut s = fixture();
    s.warm("/discover?key_id=7", USER).await;
    s.warm("/check", r#"{"api_version":"v4","redis":true}"#).await;
    let conditional = [("if-none-match", "W/\"1\"")];
    let range = [("range", "bytes=0-1")];
    for (path, headers) in [
        ("/discover?key_id=7&a=b", &[][..]),
        ("/discover?key_id=07", &[]),
        ("/discover?key_id=7&key_id=7", &[]),
        ("/discover?key_id=7;a=b", &[]),
        ("/discover.json?key_id=7", &[]),
        ("/discover/?key_id=7", &[]),
        ("/discover?key_id=7", &conditional),
        ("/discover?key_id=7", &range),
        ("/check?a=b", &[]),
    ] {
        let asked = call(Method::GET, path, headers);
        let answer = tokio::spawn(s.service.clone().oneshot(asked));
        let (_, reply) = s.taken().await;
        reply.send_response(Ok(json(200, USER)));
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(status_of(&answer), "railgate; fwd=bypass; detail=request", "{path}");
    }
    let mut with_body = call(Method::GET, "/discover?key_id=7", &[]);
    with_body.known_body = KnownBody::Unknown;
    let _pending = tokio::spawn(s.service.clone().oneshot(with_body));
    assert!(!is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn a_form_with_nothing_but_the_credential_is_canonical() {
    let mut s = fixture();
    s.warm("/discover?key_id=7", USER).await;
    for (form, is_hit) in [
        ("secret_token=x", true),
        ("secret_token=x&key_id=8", false),
        ("secret_token=x&secret_token=y", false),
    ] {
        let mut asked = call(Method::GET, "/discover?key_id=7", &[]);
        asked.known_body = KnownBody::Form(Bytes::from_static(form.as_bytes()));
        let _answer = tokio::spawn(s.service.clone().oneshot(asked));
        assert_eq!(is_idle(&mut s.rails).await, is_hit, "{form}");
    }
}

#[tokio::test]
async fn a_fill_sends_no_header_that_could_change_the_answer() {
    let mut s = fixture();
    let headers =
        [("accept-encoding", "gzip"), ("origin", "a"), ("cookie", "b"), ("x-forwarded-for", "1.2.3.4")];
    let asked = call(Method::GET, "/discover?key_id=7", &headers);
    let _first = tokio::spawn(s.service.clone().oneshot(asked));
    let (sent, _reply) = s.taken().await;
    let mut names: Vec<_> = sent.exchange.request.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["gitlab-shared-secret", "x-forwarded-for"]);
    assert_eq!(sent.exchange.request_id.as_str(), "mine");
}

/// It would hide what the answer says of the entry.
#[tokio::test]
async fn a_follower_that_asks_by_itself_asks_for_a_plain_answer() {
    let mut s = fixture();
    let with_gzip = || call(Method::GET, "/discover?key_id=7", &[("accept-encoding", "gzip")]);
    let _leads = tokio::spawn(s.service.clone().oneshot(with_gzip()));
    let (_, to_leader) = s.taken().await;
    let _follows = tokio::spawn(s.service.clone().oneshot(with_gzip()));
    assert!(is_idle(&mut s.rails).await);
    to_leader.send_response(Ok(json(404, "{}")));
    let (sent, _reply) = s.taken().await;
    let headers = sent.exchange.request.headers();
    assert!(headers.contains_key("x-request-id") && !headers.contains_key("accept-encoding"), "{headers:?}");
}

#[tokio::test]
async fn a_thousand_callers_cause_one_request_even_if_the_first_hang_up() {
    let mut s = fixture();
    let callers: Vec<_> = (0..1_000).map(|_| s.ask("/discover?key_id=7")).collect();
    let (_, reply) = s.taken().await;
    assert!(is_idle(&mut s.rails).await);
    for caller in callers.iter().take(100) {
        caller.abort();
    }
    assert!(is_idle(&mut s.rails).await);
    reply.send_response(Ok(json(200, USER)));
    let mut shared = 0;
    for caller in callers.into_iter().skip(100) {
        let answer = caller.await.unwrap().unwrap();
        shared += usize::from(status_of(&answer) == "railgate; fwd=miss; collapsed");
        assert_eq!(text(answer).await, USER);
    }
    assert_eq!(shared, 900);
    assert!(is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn an_answer_that_is_not_stored_is_not_shared() {
    for (status, body) in [(401, "{}"), (500, "{}"), (503, "{}"), (200, "[]"), (302, "{}"), (404, "{}")] {
        let mut s = fixture();
        let first = s.ask("/discover?key_id=7");
        let (_, to_first) = s.taken().await;
        let second = s.ask("/discover?key_id=7");
        assert!(is_idle(&mut s.rails).await);
        to_first.send_response(Ok(json(status, body)));
        assert_eq!(first.await.unwrap().unwrap().status().as_u16(), status);
        let (_, to_second) = s.taken().await;
        to_second.send_response(Ok(json(200, USER)));
        let second = second.await.unwrap().unwrap();
        assert_eq!(status_of(&second), "railgate; fwd=miss; detail=alone");
        assert_eq!(text(second).await, USER);
    }
}

#[tokio::test]
async fn followers_fail_at_once_if_rails_cannot_be_reached() {
    let mut s = fixture();
    let first = s.ask("/discover?key_id=7");
    let (_, to_first) = s.taken().await;
    let second = s.ask("/discover?key_id=7");
    assert!(is_idle(&mut s.rails).await);
    let refused = upstream::Error::Connect(
        "rails".into(),
        std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(),
    );
    to_first.send_response(Err(Failure::Upstream(refused)));
    assert_eq!(first.await.unwrap().unwrap_err().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(matches!(second.await.unwrap(), Err(Failure::SharedFill(FillError::Unreachable, _))));
    // The next caller tries again.
    let _third = s.ask("/discover?key_id=7");
    assert!(!is_idle(&mut s.rails).await);
}

/// With the defaults, a slow Rails is asked once: the leader learns of the time-out no later than the
/// followers give up waiting.
#[test]
fn followers_wait_as_long_as_rails_may_take() {
    assert!(CacheSettings::default().wait >= upstream::DEFAULT_RESPONSE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_no_longer_than_the_limit() {
    let mut s = fixture();
    let _first = s.ask("/discover?key_id=7");
    let (_, _to_first) = s.taken().await;
    let begun = tokio::time::Instant::now();
    let second = s.ask("/discover?key_id=7");
    let (_, to_second) = s.taken().await;
    assert_eq!(begun.elapsed(), CacheSettings::default().wait);
    to_second.send_response(Ok(json(200, USER)));
    assert_eq!(status_of(&second.await.unwrap().unwrap()), "railgate; fwd=miss; detail=alone");
}

#[tokio::test]
async fn an_invalidation_during_the_fill_wins() {
    let mut s = fixture();
    let first = s.ask("/discover?key_id=7");
    let (_, reply) = s.taken().await;
    s.cache.invalidate(&Key::UserOfKey(7));
    reply.send_response(Ok(json(200, USER)));
    let first = first.await.unwrap().unwrap();
    assert_eq!(status_of(&first), "railgate; fwd=miss; detail=fenced");
    let _second = s.ask("/discover?key_id=7");
    assert!(!is_idle(&mut s.rails).await);
}

#[tokio::test]
async fn a_body_too_large_to_store_is_passed_on_whole() {
    let mut s = fixture();
    let large =
        format!(r#"{{"id":7,"username":"rubi","name":"{}"}}"#, "x".repeat(CacheSettings::default().max_body));
    let first = s.ask("/discover?key_id=7");
    let (_, reply) = s.taken().await;
    let mut answer = json(200, &large);
    answer.headers_mut().insert("content-length", large.len().into());
    reply.send_response(Ok(answer));
    let first = first.await.unwrap().unwrap();
    assert_eq!(status_of(&first), "railgate; fwd=miss; detail=too_large");
    assert_eq!(text(first).await, large);
}

#[tokio::test]
async fn routes_that_are_never_cached_pass_through() {
    let mut s = fixture();
    for _ in 0..2 {
        let asked = call(Method::POST, "/allowed", &[]);
        let answer = tokio::spawn(s.service.clone().oneshot(asked));
        let (_, reply) = s.taken().await;
        reply.send_response(Ok(json(200, "{}")));
        assert_eq!(status_of(&answer.await.unwrap().unwrap()), "railgate; fwd=bypass; detail=route");
    }
}
