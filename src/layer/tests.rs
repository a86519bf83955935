//! Readiness: every layer passes it on, and the limits of tower work wherever they are put into the stack.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::load_shed::error::Overloaded;
use tower::util::MapErrLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt as _};

use super::authenticate::AuthenticateLayer;
use super::find_route::FindRouteLayer;
use super::observe::ObserveLayer;
use super::rescue::RescueLayer;
use super::sanitize::SanitizeLayer;
use super::serve_cached::ServeCachedLayer;
use super::testing::{MockHandle, MockReply, MockService, is_idle, mock_service, settle};
use crate::auth::{AuthSettings, Authenticator};
use crate::body::Body;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::{Cache, CacheSettings};
use crate::clock::Clock;
use crate::exchange::{Authenticated, Exchange, Routed};
use crate::failure::Failure;
use crate::header::via::Pseudonym;
use crate::secret::ShellSecret;
use crate::server::{ConnectionHandle, Inbound};

fn is_ready<S: Service<Req>, Req>(service: &mut S) -> bool {
    matches!(service.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
}

fn authenticate_layer() -> AuthenticateLayer {
    let auth = Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(b"s3cret").unwrap(),
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: 64,
        max_unverified: 64,
        kas: None,
    });
    let bodies = Arc::new(UnverifiedBodies::new(64));
    AuthenticateLayer::new(
        Arc::new(ArcSwap::from_pointee(auth)),
        Clock::System,
        bodies,
        crate::secret::refresh::SecretRefresher::default(),
    )
}

fn sanitize_layer() -> SanitizeLayer {
    SanitizeLayer::new("", Pseudonym::random())
}

fn find_route_layer() -> FindRouteLayer {
    FindRouteLayer::new("", Vec::new())
}

fn serve_cached_layer() -> ServeCachedLayer {
    let settings = CacheSettings::default();
    let cache = Cache::with_clock(&settings, Clock::System);
    ServeCachedLayer::new((cache, None), settings, Clock::System, TaskTracker::new())
}

/// Whether the layer is ready when its inner service is not, and when it is.
fn readiness<L, Inner, Outer>(layer: L) -> [bool; 2]
where
    L: Layer<MockService<Inner>>,
    L::Service: Service<Outer>,
    Inner: Debug,
{
    let (inner, mut handle) = mock_service();
    let mut service = layer.layer(inner);
    [0, 1].map(|count| {
        handle.allow(count);
        is_ready(&mut service)
    })
}

#[tokio::test]
async fn all_layers_but_two_are_ready_when_the_next_one_is() {
    let observe = ObserveLayer::new(Arc::default(), Clock::System, false, None);
    let observe = layer_fn(|inner: MockService<Exchange>| {
        observe.layer(inner.map_err(|failure| -> Infallible { unreachable!("{failure}") }))
    });
    assert_eq!(readiness::<_, _, Inbound>(observe), [false, true]);
    assert_eq!(readiness::<_, Exchange, Exchange>(sanitize_layer()), [false, true]);
    assert_eq!(readiness::<_, Routed, Exchange>(find_route_layer()), [false, true]);
    assert_eq!(readiness::<_, Authenticated, Routed>(authenticate_layer()), [false, true]);
    assert_eq!(readiness::<_, Authenticated, Authenticated>(serve_cached_layer()), [true, true]);
    assert_eq!(readiness::<_, Exchange, Exchange>(RescueLayer), [true, true]);
}

const SECRET: &str = "czNjcmV0";

/// A request for the user of this key: its status, and the failure that is logged.
type Sent = JoinHandle<(StatusCode, Option<&'static str>)>;

fn send<S>(service: &mut S, key_id: u32) -> Sent
where
    S: Service<Exchange, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let request = Request::get(format!("/api/v4/internal/discover?key_id={key_id}"));
    send_request(service, request.header("gitlab-shared-secret", SECRET).body(Body::empty()).unwrap())
}

/// As a connection does it.
fn send_request<S>(service: &mut S, mut request: Request<Body>) -> Sent
where
    S: Service<Exchange, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    request.headers_mut().insert("host", "gateway.example".parse().unwrap());
    let exchange = Exchange::new(request, None, ConnectionHandle::default());
    let info = exchange.info.clone();
    assert!(is_ready(service));
    let response = service.call(exchange);
    tokio::spawn(async move {
        let Ok(response) = response.await;
        (response.status(), info.lock().failure)
    })
}

async fn arrives(rails: &mut MockHandle<Authenticated>) -> MockReply {
    // The clock stands still as long as a task can run.
    let next = tokio::time::timeout(Duration::from_secs(1), rails.next_request()).await;
    next.expect("no request arrives").unwrap().1
}

fn answer(reply: MockReply) {
    let body = Body::from(Bytes::from_static(br#"{"id":7,"username":"rubi","name":"R"}"#));
    let response = Response::builder().header("content-type", "application/json").body(body).unwrap();
    reply.send_response(Ok(response));
}

const OK: (StatusCode, Option<&str>) = (StatusCode::OK, None);
const OVERLOADED: (StatusCode, Option<&str>) = (StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"));

/// `LoadShed`, with its error in the type of the stack.
fn load_shed() -> impl Layer<
    tower::limit::ConcurrencyLimit<MockService<Authenticated>>,
    Service: Service<Authenticated, Response = Response<Body>, Error = Failure, Future: Send>
                 + Clone
                 + Send
                 + 'static,
> {
    let to_failure = |error: BoxError| {
        assert!(error.is::<Overloaded>(), "{error}");
        Failure::Overloaded
    };
    ServiceBuilder::new().layer(MapErrLayer::new(to_failure)).layer(LoadShedLayer::new()).into_inner()
}

#[tokio::test(start_paused = true)]
async fn a_limit_below_the_cache_keeps_back_only_what_goes_to_rails() {
    let (rails, mut handle) = mock_service();
    let mut service = ServiceBuilder::new()
        .layer(RescueLayer)
        .layer(sanitize_layer())
        .layer(find_route_layer())
        .layer(authenticate_layer())
        .layer(serve_cached_layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(rails);
    let cached = send(&mut service, 7);
    answer(arrives(&mut handle).await);
    assert_eq!(cached.await.unwrap(), OK);

    let first = send(&mut service, 1);
    let reply = arrives(&mut handle).await;
    let second = send(&mut service, 2);
    assert!(is_idle(&mut handle).await, "it waits for the first");
    assert_eq!(send(&mut service, 7).await.unwrap(), OK, "a hit");
    let uncredentialed = Request::get("/api/v4/internal/discover?key_id=7").body(Body::empty()).unwrap();
    assert_eq!(send_request(&mut service, uncredentialed).await.unwrap().1, Some("unauthorized"));
    assert!(!second.is_finished());
    answer(reply);
    answer(arrives(&mut handle).await);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (OK, OK));
}

#[tokio::test(start_paused = true)]
async fn load_shedding_below_the_cache_rejects_only_what_goes_to_rails() {
    let (rails, mut handle) = mock_service();
    let mut service = ServiceBuilder::new()
        .layer(RescueLayer)
        .layer(sanitize_layer())
        .layer(find_route_layer())
        .layer(authenticate_layer())
        .layer(serve_cached_layer())
        .layer(load_shed())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(rails);
    let cached = send(&mut service, 7);
    answer(arrives(&mut handle).await);
    assert_eq!(cached.await.unwrap(), OK);

    let first = send(&mut service, 1);
    let reply = arrives(&mut handle).await;
    assert_eq!(send(&mut service, 2).await.unwrap(), OVERLOADED);
    assert_eq!(send(&mut service, 7).await.unwrap(), OK, "a hit");
    answer(reply);
    assert_eq!(first.await.unwrap(), OK);
    let third = send(&mut service, 3);
    answer(arrives(&mut handle).await);
    assert_eq!(third.await.unwrap(), OK);
}

#[tokio::test(start_paused = true)]
async fn a_limit_above_the_cache_rejects_everything() {
    let (rails, mut handle) = mock_service();
    let mut service = ServiceBuilder::new()
        .layer(RescueLayer)
        .layer(sanitize_layer())
        .layer(ConcurrencyLimitLayer::new(2))
        .layer(find_route_layer())
        .layer(authenticate_layer())
        .layer(serve_cached_layer())
        .service(rails);
    for _ in 0..3 {
        let first = [send(&mut service, 1), send(&mut service, 2)];
        let replies = [arrives(&mut handle).await, arrives(&mut handle).await];
        assert_eq!(send(&mut service, 1).await.unwrap(), OVERLOADED);
        assert_eq!(send(&mut service, 3).await.unwrap(), OVERLOADED);
        for reply in replies {
            // Not stored, so that it is asked for again.
            reply.send_response(Err(Failure::Loop));
        }
        for first in first {
            assert_eq!(first.await.unwrap().1, Some("loop"));
        }
    }
    // A request that got a permit and no further gives it to the next one.
    let uncredentialed = || Request::get("/api/v4/internal/discover?key_id=7").body(Body::empty()).unwrap();
    for _ in 0..3 {
        assert_eq!(send_request(&mut service, uncredentialed()).await.unwrap().1, Some("unauthorized"));
    }
}

/// What was reserved for it is free meanwhile: it reserves for itself when it goes on.
#[tokio::test(start_paused = true)]
async fn a_request_whose_body_is_read_reserves_nothing() {
    let (rails, mut handle) = mock_service();
    let mut service = ServiceBuilder::new()
        .layer(RescueLayer)
        .layer(sanitize_layer())
        .layer(find_route_layer())
        .layer(authenticate_layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(serve_cached_layer())
        .service(rails);
    for key_id in 0..3 {
        let request = Request::post(format!("/api/v4/internal/allowed?key_id={key_id}"));
        let body = Body::from(Bytes::from_static(b"secret_token=s3cret"));
        let sent = send_request(&mut service, request.body(body).unwrap());
        settle().await;
        answer(arrives(&mut handle).await);
        assert_eq!(sent.await.unwrap(), OK);
    }
}
