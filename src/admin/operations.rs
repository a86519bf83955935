//! The operations: `POST /inspect`, `/log`, `/purge`, `/reload` and `/servers`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use tower::Service;

use super::{Admin, audit, inspect, purge, reload, servers};
use crate::clock::Clock;
use crate::json_response::{internal_error, json, message};

/// Bytes of the largest body; long SSH keys have 20 KiB.
pub const MAX_BODY: usize = 64 * 1024;

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs operations. Their callers are authorized by the layers above.
#[derive(Clone, Debug)]
pub struct Operations(Admin);

impl Operations {
    /// Operations on the state in `admin`.
    pub fn new(admin: Admin) -> Self {
        Self(admin)
    }
}

impl<B> Service<Request<B>> for Operations
where
    B: HttpBody<Data = Bytes> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// Always ready: an operation waits for its permit once its body is read.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admin = self.0.clone();
        Box::pin(async move { Ok(run(admin, request).await) })
    }
}

async fn run<B>(admin: Admin, request: Request<B>) -> Response<Full<Bytes>>
where
    B: HttpBody<Data = Bytes>,
{
    let (head, body) = request.into_parts();
    let Ok(Ok(body)) = tokio::time::timeout(BODY_TIMEOUT, body.collect()).await else {
        return unreadable_body();
    };
    let (body, upstream, fleet) = (body.to_bytes(), Arc::clone(&admin.upstream), admin.fleet.clone());
    // Where one is set, the layers above demand it.
    let has_token = admin.access.load().token.is_some();
    let (log, reloader) = (Arc::clone(&admin.log), Arc::clone(&admin.reload));
    let running = admin.run_blocking(&admin.permits.operations, move |cache| {
        let path = head.uri.path();
        let mut ticket = None;
        let (status, json) = match (path, body.is_empty()) {
            ("/servers", _) => servers::servers(&upstream, &body, Clock::System.now()),
            ("/reload", _) => reload::reload(&*reloader, &body),
            ("/log", _) => reload::log(&log, &body),
            ("/inspect", true) => (StatusCode::OK, inspect::inspect_all(cache)),
            ("/inspect", false) => inspect::inspect(cache, &body),
            _ => {
                let (status, json, told) = purge::purge(cache, &fleet, &body);
                ticket = told;
                (status, json)
            }
        };
        if audit::is_change(path, &body) {
            audit::log_change(has_token, &body, status);
        }
        (status, json, ticket)
    });
    let Some((status, mut body, ticket)) = running.await else { return internal_error() };
    if let Some(ticket) = ticket
        && let Some(fields) = body.as_object_mut()
    {
        fields.insert("fleet".to_owned(), ticket.outcome().await.as_str().into());
    }
    json(status, body.to_string())
}

/// The response to a request whose body could not be read to its end.
pub fn unreadable_body() -> Response<Full<Bytes>> {
    let text = "400 Bad Request: the body is incomplete, too slow, or has more than 64 KiB";
    message(StatusCode::BAD_REQUEST, text)
}
