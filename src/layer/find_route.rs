//! Finds the row of the route table. Strips the relative URL root from the path, if the caller sent
//! it, so that below this layer every path begins with `/api/v4`.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::uri::{PathAndQuery, Uri};
use http_body::Body as _;
use tower::{Layer, Service};

use super::{ImmediateOr, immediate};
use crate::body::Body;
use crate::exchange::{Exchange, Routed};
use crate::failure::Failure;
use crate::route::{self, FORWARDED_PREFIX, RouteMatch};

/// Puts [`FindRoute`] in front of a service.
#[derive(Clone, Debug)]
pub struct FindRouteLayer {
    paths: Arc<Paths>,
}

#[derive(Debug)]
struct Paths {
    /// The relative URL root of Rails; callers may send it or leave it out.
    root: String,
    /// Prefixes outside the internal API that are forwarded, too.
    forwarded: Vec<String>,
}

/// Finds the row of the route table, or refuses the path.
#[derive(Clone, Debug)]
pub struct FindRoute<S> {
    inner: S,
    paths: Arc<Paths>,
}

impl FindRouteLayer {
    /// Serves the internal API and the prefixes in `forwarded`, with and without `root`.
    pub fn new(root: &str, forwarded: Vec<String>) -> Self {
        Self { paths: Arc::new(Paths { root: root.to_owned(), forwarded }) }
    }
}

impl<S> Layer<S> for FindRouteLayer {
    type Service = FindRoute<S>;

    fn layer(&self, inner: S) -> FindRoute<S> {
        FindRoute { inner, paths: Arc::clone(&self.paths) }
    }
}

impl<S> Service<Exchange> for FindRoute<S>
where
    S: Service<Routed, Response = http::Response<Body>, Error = Failure>,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = ImmediateOr<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, mut exchange: Exchange) -> Self::Future {
        let request = &mut exchange.request;
        if let Some(stripped) = self.paths.without_root(request.uri()) {
            *request.uri_mut() = stripped;
        }
        let has_body = !request.body().is_end_stream();
        let Some(route_match) = self.paths.find(request.method(), request.uri().path(), has_body) else {
            return immediate(Err(Failure::OutsideInternalApi));
        };
        exchange.info.update(|info| info.route = Some(route_match.route.id));
        Either::Right(self.inner.call(Routed { exchange, route_match }))
    }
}

impl Paths {
    /// The URI without the root, with one slash in its place; `None` if the URI does not begin with the root, or
    /// the root is empty.
    fn without_root(&self, uri: &Uri) -> Option<Uri> {
        if self.root.is_empty() {
            return None;
        }
        let target = uri.path_and_query().map(PathAndQuery::as_str)?;
        let rest = target.strip_prefix(&self.root).filter(|rest| rest.starts_with('/'))?;
        let slashes = rest.bytes().take_while(|byte| *byte == b'/').count();
        rest.get(slashes.saturating_sub(1)..)?.parse().ok()
    }

    fn find(&self, method: &http::Method, path: &str, has_body: bool) -> Option<RouteMatch> {
        match path.strip_prefix(route::PREFIX) {
            Some(below) if below.is_empty() || below.starts_with('/') => {
                Some(route::find(method, below, has_body))
            }
            _ => self
                .forwarded
                .iter()
                .any(|prefix| path.starts_with(prefix.as_str()))
                .then_some(RouteMatch { route: &FORWARDED_PREFIX, is_exact: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(root: &str, forwarded: &[&str], uri: &str) -> Option<(&'static str, String)> {
        let layer = FindRouteLayer::new(root, forwarded.iter().map(ToString::to_string).collect());
        let uri: Uri = uri.parse().unwrap();
        let uri = layer.paths.without_root(&uri).unwrap_or(uri);
        let route_match = layer.paths.find(&http::Method::GET, uri.path(), false)?;
        Some((route_match.route.id, uri.to_string()))
    }

    #[test]
    fn the_internal_api_is_found_with_and_without_the_root() {
        for uri in [
            "/api/v4/internal/check?a=b",
            "/gitlab/api/v4/internal/check?a=b",
            "/gitlab///api/v4/internal/check?a=b",
        ] {
            let expected = Some(("check", "/api/v4/internal/check?a=b".to_owned()));
            assert_eq!(found("/gitlab", &[], uri), expected, "{uri}");
        }
        assert_eq!(found("", &[], "/gitlab/api/v4/internal/check"), None);
        assert_eq!(found("/gitlab", &[], "/gitlabapi/v4/internal/check"), None);
        assert_eq!(found("/gitlab", &[], "/gitlab/gitlab/api/v4/internal/check"), None);
    }

    #[test]
    fn other_paths_are_served_only_if_listed() {
        for uri in ["/", "/api/v4/internals", "/api/v4/projects", "/API/v4/internal/check", "/api/v4/geo/x"] {
            assert_eq!(found("", &[], uri), None, "{uri}");
        }
        let geo = found("", &["/api/v4/geo/"], "/api/v4/geo/x").unwrap();
        assert_eq!(geo.0, "forwarded_prefix");
        assert_eq!(found("", &["/api/v4/geo/"], "/api/v4/geox"), None);
        assert_eq!(found("", &[], "/api/v4/internal").unwrap().0, "other_internal");
        assert_eq!(found("", &["/api/"], "/api/v4/internal/check").unwrap().0, "check");
    }
}
