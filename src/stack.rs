//! The only place that knows the order of the layers, each with the reason for its
//! position. A request passes them from top to bottom, its response from bottom to top.
//!
//! Here it is the stack of the listeners for clients; [`admin`] and [`hooks`] are those of the other two, where most
//! layers are of tower-http.

pub mod admin;
pub mod common;
pub mod hooks;
pub mod reloadable;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

use crate::auth::Authenticator;
use crate::auth::upstream_credential::UpstreamCredential;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::{self, Cache};
use crate::clock::Clock;
use crate::fleet::shared::SharedAnswers;
use crate::header::via::Pseudonym;
use crate::layer::authenticate::{Authenticate, AuthenticateLayer};
use crate::layer::find_route::{FindRoute, FindRouteLayer};
use crate::layer::forward::Forward;
use crate::layer::observe::{Observe, ObserveLayer};
use crate::layer::rescue::{Rescue, RescueLayer};
use crate::layer::sanitize::{Sanitize, SanitizeLayer};
use crate::layer::serve_cached::{ServeCached, ServeCachedLayer};
use crate::metrics::WorkerMetrics;
use crate::secret::refresh::SecretRefresher;
use crate::trace::Tracer;
use crate::upstream::Upstream;

/// The whole gateway as one service.
pub type Stack = Observe<Rescue<Sanitize<FindRoute<Authenticate<ServeCached<Forward>>>>>>;

/// The parts that the layers need.
#[derive(Clone, Debug)]
pub struct StackParts {
    /// Authenticates callers; exchanged when secrets change.
    pub auth: Arc<ArcSwap<Authenticator>>,
    /// Looks whether a secret has just changed.
    pub secrets: SecretRefresher,
    /// Reads the bodies that are searched for a credential; shared by all workers.
    pub bodies: Arc<UnverifiedBodies>,
    /// Shared by all workers.
    pub cache: Arc<Cache>,
    /// The answers that the gateways of the fleet share, if they do.
    pub shared_answers: Option<Arc<SharedAnswers>>,
    /// The settings of the layer that serves from both.
    pub cache_settings: cache::CacheSettings,
    /// Connections to Rails, of one worker.
    pub upstream: Arc<Upstream>,
    /// Replaces the credential of GitLab Shell, if Rails wants another one.
    pub upstream_credential: Option<UpstreamCredential>,
    /// Path prefixes outside the internal API that are forwarded, too.
    pub forward_prefixes: Vec<String>,
    /// The request counters of one worker.
    pub worker_metrics: Arc<WorkerMetrics>,
    /// Whether successful requests are logged, too.
    pub log_requests: bool,
    /// Decides which requests are traced, if any are.
    pub tracer: Option<Tracer>,
    /// Tells the requests that this gateway has sent itself.
    pub pseudonym: Pseudonym,
    /// [`Clock::System`], except in tests.
    pub clock: Clock,
    /// Owns what outlives its caller: fills, and requests of `other`.
    pub fills: TaskTracker,
}

/// Stacks the layers.
pub fn build(parts: StackParts) -> Stack {
    let StackParts {
        auth,
        secrets,
        bodies,
        cache,
        shared_answers,
        cache_settings,
        upstream,
        upstream_credential,
        forward_prefixes,
        worker_metrics,
        log_requests,
        tracer,
        pseudonym,
        clock,
        fills,
    } = parts;
    ServiceBuilder::new()
        // Outermost: sees every request and every response, including failed and abandoned ones.
        .layer(ObserveLayer::new(worker_metrics, clock.clone(), log_requests, tracer))
        // Right below, so that every failure further down becomes a response, and is observed.
        .layer(RescueLayer)
        // Before path and headers are interpreted: they must have one meaning.
        .layer(SanitizeLayer::new(upstream.relative_root(), pseudonym.clone()))
        // Before authentication, since the route says which credential is needed.
        .layer(FindRouteLayer::new(upstream.relative_root(), forward_prefixes))
        // Before the cache: no response, however old, for a caller that was not authenticated.
        .layer(AuthenticateLayer::new(auth, clock.clone(), bodies, secrets))
        // Last before Rails: a request that is answered here costs Rails nothing.
        .layer(ServeCachedLayer::new((cache, shared_answers), cache_settings, clock.clone(), fills.clone()))
        .service(Forward::new(upstream, clock, upstream_credential, pseudonym, fills))
}
