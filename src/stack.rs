//! The one place where the order of the layers is written, each line with the reason for its
//! place. Read from the outside in: a request passes them downwards, its answer upwards.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

use crate::auth::Authenticator;
use crate::auth::upstream_credential::UpstreamCredential;
use crate::body::unverified::UnverifiedBodies;
use crate::cache::{self, Cache};
use crate::clock::Clock;
use crate::header::via::Pseudonym;
use crate::layer::authenticate::{Authenticate, AuthenticateLayer};
use crate::layer::find_route::{FindRoute, FindRouteLayer};
use crate::layer::forward::Forward;
use crate::layer::hygiene::{Hygiene, HygieneLayer};
use crate::layer::observe::{Observe, ObserveLayer};
use crate::layer::rescue::{Rescue, RescueLayer};
use crate::layer::serve_cached::{ServeCached, ServeCachedLayer};
use crate::metrics::WorkerMetrics;
use crate::upstream::Upstream;

/// The whole gateway as one service.
pub type Stack = Observe<Rescue<Hygiene<FindRoute<Authenticate<ServeCached<Forward>>>>>>;

/// What the layers share.
#[derive(Clone, Debug)]
pub struct Parts {
    /// How callers are judged; exchanged when secrets change.
    pub auth: Arc<ArcSwap<Authenticator>>,
    /// Reads bodies that are searched for a credential, within the memory that they share.
    pub bodies: Arc<UnverifiedBodies>,
    /// The entries.
    pub cache: Arc<Cache>,
    /// What is cached, and for how long.
    pub cache_settings: cache::CacheSettings,
    /// Rails.
    pub upstream: Arc<Upstream>,
    /// What Rails is shown in place of what GitLab Shell has shown, if it wants something else.
    pub upstream_credential: Option<UpstreamCredential>,
    /// Path prefixes outside the internal API that are forwarded.
    pub forward_prefixes: Vec<String>,
    /// Where requests are counted.
    pub worker_metrics: Arc<WorkerMetrics>,
    /// Whether requests that went well are logged too.
    pub log_requests: bool,
    /// By what this gateway knows the requests that it has sent.
    pub name: Pseudonym,
    /// The time.
    pub clock: Clock,
    /// Owns the fills that outlive their callers.
    pub fills: TaskTracker,
}

/// Stacks the layers.
pub fn build(parts: Parts) -> Stack {
    let Parts {
        auth,
        bodies,
        cache,
        cache_settings,
        upstream,
        upstream_credential,
        forward_prefixes,
        worker_metrics,
        log_requests,
        name,
        clock,
        fills,
    } = parts;
    ServiceBuilder::new()
        // Outermost: sees every request and every answer, failed and abandoned ones included.
        .layer(ObserveLayer::new(worker_metrics, clock.clone(), log_requests))
        // Right below, so that whatever fails further down has one shape, and is observed.
        .layer(RescueLayer)
        // Before anyone looks at path or headers: they must have one meaning.
        .layer(HygieneLayer::new(upstream.relative_root(), name.clone()))
        // Before authentication, since the row says which credential is demanded.
        .layer(FindRouteLayer::new(upstream.relative_root(), forward_prefixes))
        // Before the cache: no answer, however old, for anyone who was not judged.
        .layer(AuthenticateLayer::new(auth, clock.clone(), bodies))
        // Last before Rails: what is answered here costs Rails nothing.
        .layer(ServeCachedLayer::new(cache, cache_settings, clock.clone(), fills))
        .service(Forward::new(upstream, clock, upstream_credential, name))
}
