//! What all workers' clones of the layer share.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::task::TaskTracker;

use crate::body::{Body, Collected};
use crate::cache::{Cache, CacheSettings, Hit, Key};
use crate::clock::Clock;
use crate::fleet::shared::SharedAnswers;
use crate::route::Caching;
use crate::upstream;

/// See [`ServeCachedLayer::new`](super::ServeCachedLayer::new).
#[derive(Debug)]
pub(super) struct ServeCachedShared {
    pub(super) cache: Arc<Cache>,
    /// What other gateways share.
    pub(super) fleet: Option<Arc<SharedAnswers>>,
    pub(super) settings: CacheSettings,
    pub(super) clock: Clock,
    /// Owns the fills, which outlive the callers that began them.
    pub(super) fills: TaskTracker,
}

impl ServeCachedShared {
    /// Not the instance, whose state is out of date within a second; nor during an outage; nor more than the
    /// budget allows.
    pub(super) fn may_shadow_check(&self, key: &Key, now: Instant) -> bool {
        let is_checkable =
            key.caching() != Caching::Check && !self.cache.outage(key.caching()).is_active(now);
        is_checkable && self.cache.shadow().try_spend(now)
    }

    pub(super) fn lookup_in_outage(&self, key: &Key) -> Option<Hit> {
        let (now, outage) = (self.clock.now(), self.cache.outage(key.caching()));
        self.cache.lookup(key, now).filter(|hit| outage.serves_at_once(hit.freshness, now))
    }
}

/// The body of an answer, up to `max_body` bytes.
pub(super) async fn collect(body: Body, max_body: usize) -> Result<Collected, upstream::Error> {
    body.collect_up_to(max_body).await.map_err(upstream::Error::ResponseBody)
}
