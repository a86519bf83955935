//! Answers health checks and scrapes, refuses what is not for operators of this listener, and passes authorized
//! operations on.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tower::{Layer, Service, ServiceExt as _};

use super::{AUDIT, Admin, EventStream, host, page, reload};
use crate::json_response::{json, message};
use crate::refusal::Refusal;
use crate::server::Peer;

/// Puts `Dispatch` in front of a service.
#[derive(Clone, Debug)]
pub struct DispatchLayer(Admin);

/// Answers all requests but operations.
#[derive(Clone, Debug)]
pub struct Dispatch<S> {
    admin: Admin,
    operations: S,
}

impl DispatchLayer {
    /// Answers from the state in `admin`.
    pub fn new(admin: Admin) -> Self {
        Self(admin)
    }
}

impl<S> Layer<S> for DispatchLayer {
    type Service = Dispatch<S>;

    fn layer(&self, operations: S) -> Dispatch<S> {
        Dispatch { admin: self.0.clone(), operations }
    }
}

impl<S, B> Service<Request<Incoming>> for Dispatch<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Either<Either<Full<Bytes>, EventStream>, B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// Always ready: health checks must not wait for operations. Those wait below, for themselves.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Self { admin, operations } = self.clone();
        let (head, body) = request.into_parts();
        Box::pin(async move {
            if let Some(response) = admin.answer(&head).await {
                return Ok(response.map(Either::Left));
            }
            let response = operations.oneshot(Request::from_parts(head, body)).await?;
            Ok(response.map(Either::Right))
        })
    }
}

/// The body of a response of this layer.
type AnswerBody = Either<Full<Bytes>, EventStream>;

/// A response of this layer.
type Answer = Response<Full<Bytes>>;

impl Admin {
    /// `None` for an operation whose caller is authorized.
    async fn answer(&self, head: &Parts) -> Option<Response<AnswerBody>> {
        let (method, path, headers) = (&head.method, head.uri.path(), &head.headers);
        if let Some(refusal) = head.extensions.get::<Refusal>() {
            return Some(message(refusal.status(), refusal.message()).map(Either::Left));
        }
        let peer = head.extensions.get::<Peer>().cloned().unwrap_or_default();
        let is_open_to_all = matches!(path, "/live" | "/ready") || is_health_check(method, path);
        // A browser cannot connect to a unix socket.
        if peer.ip.is_some() && !is_open_to_all && !host::is_known(headers, &self.access.load().hosts) {
            tracing::warn!("the admin listener was asked for by a name that is not in admin.hosts");
            return Some(message(StatusCode::MISDIRECTED_REQUEST, MISDIRECTED).map(Either::Left));
        }
        if path == "/events" && method == Method::GET {
            return Some(self.events());
        }
        if !is_operation(path) || method != Method::POST {
            // A scrape is collected by another thread. One by `nc -N` has closed its sending side by then.
            let _guard = peer.connection.working_locally();
            return Some(self.answer_query(method, path, headers).await.map(Either::Left));
        }
        if let Err((status, text)) = self.authorize_operator(headers, &peer) {
            tracing::warn!(target: AUDIT, status = status.as_u16(), "an operator was refused");
            return Some(message(status, text).map(Either::Left));
        }
        if self.access.load().token.is_some() {
            peer.connection.trust();
        }
        None
    }

    /// The figures of the status page, again and again.
    fn events(&self) -> Response<AnswerBody> {
        let Some(events) = self.status.listen() else {
            let text = "503 Service Unavailable: as many listen as may listen; read /status.json instead";
            let mut response = message(StatusCode::SERVICE_UNAVAILABLE, text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            return response.map(Either::Left);
        };
        event_stream(Either::Right(events))
    }

    async fn answer_query(&self, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        if is_health_check(method, path) {
            let health = if path == "/live" { self.liveness() } else { self.readiness() };
            return if health.status() == StatusCode::OK { no_content() } else { health };
        }
        let file = page::file(path);
        let is_query = matches!(path, "/metrics" | "/live" | "/ready" | "/status.json" | "/events");
        if !is_operation(path) && !is_query && file.is_none() {
            let text =
                "404 Not Found: try /, /metrics, /live, /ready, /log, /reload, /servers, /inspect or /purge";
            return message(StatusCode::NOT_FOUND, text);
        }
        let is_read = !is_operation(path) || path == "/log";
        if !is_read || !matches!(*method, Method::GET | Method::HEAD) {
            let right = if is_read { "GET" } else { "POST" };
            let text = format!("405 Method Not Allowed: use {right}");
            return message(StatusCode::METHOD_NOT_ALLOWED, &text);
        }
        match path {
            "/metrics" => self.scrape(headers).await,
            "/live" => self.liveness(),
            "/log" => json(StatusCode::OK, reload::log(&self.log, b"").1.to_string()),
            "/ready" => self.readiness(),
            // Only the head, which HEAD asks for.
            "/events" => event_stream(Full::default()),
            _ => {
                let mut response = match file {
                    Some(file) => file,
                    None => self.status().await,
                };
                page::restrict(response.headers_mut());
                response
            }
        }
    }

    /// A web page can make a browser on this machine send requests unnoticed. The browser adds the
    /// page's `Origin` (Fetch §3.2), and does not send JSON to other sites without a preflight. Only the status page
    /// of this listener may, whose name is known by now; on a unix socket it was not asked for.
    fn authorize_operator(&self, headers: &HeaderMap, peer: &Peer) -> Result<(), (StatusCode, &'static str)> {
        let access = self.access.load();
        let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let shown = value(header::AUTHORIZATION);
        if access.token.as_ref().is_some_and(|token| !token.matches_authorization(shown)) {
            let message = "401 Unauthorized: show the token of admin.token_file as Authorization: Bearer …";
            return Err((StatusCode::UNAUTHORIZED, message));
        }
        if access.token.is_none() && !access.is_local_only {
            let message =
                "403 Forbidden: admin.address can be reached from elsewhere; name an admin.token_file";
            return Err((StatusCode::FORBIDDEN, message));
        }
        let is_own_page = peer.ip.is_some() && host::is_same_origin(headers);
        if headers.contains_key(header::ORIGIN) && !is_own_page {
            return Err((
                StatusCode::FORBIDDEN,
                "403 Forbidden: not for other pages in a browser than the status page (there is an Origin)",
            ));
        }
        let media_type = value(header::CONTENT_TYPE).split(|b| *b == b';').next().unwrap_or_default();
        if !media_type.trim_ascii().eq_ignore_ascii_case(b"application/json") {
            let message = "415 Unsupported Media Type: send JSON as Content-Type: application/json";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        Ok(())
    }
}

/// A response whose body is a stream of events.
fn event_stream<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    page::restrict(response.headers_mut());
    response
}

const MISDIRECTED: &str = "421 Misdirected Request: this listener is asked for by an address, localhost or a name of \
                           admin.hosts; is this one missing there?";

fn is_operation(path: &str) -> bool {
    matches!(path, "/inspect" | "/log" | "/purge" | "/reload" | "/servers")
}

/// The default request of load balancers: `option httpchk` of `HAProxy` sends `OPTIONS / HTTP/1.0`. `/` is answered as
/// `/ready` then.
fn is_health_check(method: &Method, path: &str) -> bool {
    method == Method::OPTIONS && matches!(path, "/" | "/live" | "/ready")
}

fn no_content() -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}
