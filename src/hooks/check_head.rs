//! Refuses what its head alone shows to be no hook of GitLab, before the body is read.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use tower::{Layer, Service};

use super::credential::PresentedCredential;
use super::{DONE, Hooks, PATH, Reply, UNREADABLE_EVENT, to_response};
use crate::refusal::Refusal;

/// Puts `CheckHead` in front of a service.
#[derive(Clone, Debug)]
pub struct CheckHeadLayer(Hooks);

/// Passes requests on with their [`PresentedCredential`] as an extension.
#[derive(Clone, Debug)]
pub struct CheckHead<S> {
    hooks: Hooks,
    inner: S,
}

impl CheckHeadLayer {
    /// Checks what the settings of `hooks` ask for, and counts there.
    pub fn new(hooks: Hooks) -> Self {
        Self(hooks)
    }
}

impl<S> Layer<S> for CheckHeadLayer {
    type Service = CheckHead<S>;

    fn layer(&self, inner: S) -> CheckHead<S> {
        CheckHead { hooks: self.0.clone(), inner }
    }
}

impl<S, T, B> Service<Request<T>> for CheckHead<S>
where
    S: Service<Request<T>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Either<Full<Bytes>, B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<T>) -> Self::Future {
        let credential = match self.hooks.check_head(&request) {
            Ok(credential) => credential,
            Err(reply) => return Box::pin(async move { Ok(to_response(reply).map(Either::Left)) }),
        };
        let has_token = matches!(credential, PresentedCredential::Token);
        request.extensions_mut().insert(credential);
        let responding = self.inner.call(request);
        Box::pin(async move {
            let response = responding.await?;
            Ok(match response.status() {
                // No event about a key or a user is that large.
                StatusCode::PAYLOAD_TOO_LARGE if has_token => to_response(DONE).map(Either::Left),
                StatusCode::PAYLOAD_TOO_LARGE => to_response(UNREADABLE_EVENT).map(Either::Left),
                _ => response.map(Either::Right),
            })
        })
    }
}

impl Hooks {
    fn check_head<T>(&self, request: &Request<T>) -> Result<PresentedCredential, Reply> {
        if let Some(refusal) = request.extensions().get::<Refusal>() {
            return Err((refusal.status(), refusal.message()));
        }
        match (request.method(), request.uri().path()) {
            (&Method::POST, PATH) => {}
            (_, PATH) => {
                return Err((StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed: use POST"));
            }
            _ => {
                let text = "404 Not Found: GitLab's System Hooks go to /hooks/gitlab";
                return Err((StatusCode::NOT_FOUND, text));
            }
        }
        let now = self.clock.unix_seconds();
        PresentedCredential::from_headers(&self.settings.load(), request.headers(), now)
            .ok_or_else(|| self.refuse())
    }
}
