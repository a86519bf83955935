//! The receiver of GitLab's System Hooks: events about keys and users purge the entries about them.
//!
//! An event only ever purges entries, so events may arrive twice, late, in any order, or not at all: then
//! entries live until their `ttl`, as without hooks. Each event purges a second time after a while, since a
//! fill may have been answered by a read replica that was behind (contract §6).

mod check_head;
mod credential;
mod event;
mod settings;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{Instrument as _, Span};

pub use self::check_head::CheckHeadLayer;
use self::credential::PresentedCredential;
use self::event::Event;
pub use self::event::EventKind;
pub use self::settings::{HooksSettings, PreviousHookSecrets};
use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, Selector};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::fleet::Fleet;
use crate::fleet::counters::Told;
use crate::fleet::ticket::Ticket;
use crate::server::Peer;

/// The path of the hooks.
pub const PATH: &str = "/hooks/gitlab";

/// Bytes of the largest event that is read. Relevant events have a few hundred, or the 20 KiB of a
/// long SSH key.
pub const MAX_EVENT: usize = 1024 * 1024;

/// Bytes of a body that is read without a permit before its signature is verified: more than any relevant
/// event has.
const SMALL_EVENT: u64 = 64 * 1024;

/// How many larger unverified bodies are read at one time, and how long others wait for a permit. GitLab waits
/// for ten seconds.
const MAX_LARGE_READS: usize = 4;
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the body of an event may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the response waits for a purge that scans all entries: GitLab gives up after ten
/// seconds, and delays its other hooks meanwhile. Entries whose key is in the event are always purged before the
/// response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many events may wait at one time for their second purge.
const MAX_SETTLING: usize = 10_000;

/// Counters for the metrics.
#[derive(Debug, Default)]
pub struct HookCounters {
    /// Events, by kind.
    pub events: Counters<EventKind>,
    /// Requests without a valid token or signature.
    pub refused: AtomicU64,
    /// Requests that were not read, since too many large ones were being read.
    pub shed: AtomicU64,
}

/// Receives events whose heads have passed [`CheckHeadLayer`].
#[derive(Clone, Debug)]
pub struct Hooks {
    settings: Arc<ArcSwap<HooksSettings>>,
    cache: Arc<Cache>,
    fleet: Fleet,
    counts: Arc<HookCounters>,
    clock: Clock,
    /// Permits to read a large unverified body.
    large: Arc<Semaphore>,
    /// Owns the purges that go on after the response.
    tasks: TaskTracker,
}

type Reply = (StatusCode, &'static str);

const DONE: Reply = (StatusCode::OK, "ok");

/// GitLab shows it to administrators who look at what became of an event. It would send another status again.
const fn done(told: Told) -> Reply {
    let message = match told {
        Told::Off => return DONE,
        Told::Told => "ok, and told to the fleet",
        Told::Unconfirmed => "ok, and told to the fleet; not all replicas of Valkey have it yet",
        Told::Queued => "ok, and queued for the fleet: Valkey does not take it now",
    };
    (StatusCode::OK, message)
}

const UNREADABLE_EVENT: Reply =
    (StatusCode::BAD_REQUEST, "400 Bad Request: the event is incomplete, too slow or too large");

/// Without a `Content-Type`, which is the same for all responses of the listener.
fn to_response((status, message): Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!(r#"{{"message":"{message}"}}"#)));
    *response.status_mut() = status;
    response
}

impl Hooks {
    /// A service that purges entries of `cache`, and of all gateways of `fleet`.
    pub fn new(
        settings: HooksSettings,
        (cache, fleet): (Arc<Cache>, Fleet),
        counts: Arc<HookCounters>,
        clock: Clock,
    ) -> Self {
        let large = Arc::new(Semaphore::new(MAX_LARGE_READS));
        Self {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            cache,
            fleet,
            counts,
            clock,
            large,
            tasks: TaskTracker::new(),
        }
    }

    /// Takes over other secrets and times, for all copies; the address stays.
    pub fn reload(&self, settings: HooksSettings) {
        self.settings.store(Arc::new(settings));
    }

    async fn receive<B>(&self, request: Request<B>) -> Reply
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (mut head, body) = request.into_parts();
        let signature = match head.extensions.remove::<PresentedCredential>() {
            Some(PresentedCredential::Token) => None,
            Some(PresentedCredential::Signature(signature)) => Some(signature),
            None => return self.refuse(),
        };
        let is_large = body.size_hint().upper().is_none_or(|upper| upper > SMALL_EVENT);
        let Ok(permit) = self.permit(signature.is_some() && is_large).await else {
            return self.shed();
        };
        let body = match tokio::time::timeout(BODY_TIMEOUT, read(body)).await {
            Ok(Ok(body)) => body,
            // As the limit above answers if `Content-Length` says it already.
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return (StatusCode::PAYLOAD_TOO_LARGE, "413 Payload Too Large");
            }
            Ok(Err(_)) | Err(_) => return UNREADABLE_EVENT,
        };
        if let Some(signature) = &signature
            && !self.settings.load().signing_tokens().any(|token| signature.is_valid_for(&body, token))
        {
            return self.refuse();
        }
        drop(permit);
        if let Some(peer) = head.extensions.get::<Peer>() {
            peer.connection.trust();
        }
        match Event::parse(&body) {
            Some(event) => {
                drop(body);
                done(self.purge_outdated(event).await)
            }
            None => (StatusCode::BAD_REQUEST, "400 Bad Request: not an event of a System Hook in JSON"),
        }
    }

    /// Waits for a permit to read a large body, if one is needed; an error if that takes too long.
    async fn permit(&self, is_needed: bool) -> Result<Option<SemaphorePermit<'_>>, ()> {
        if !is_needed {
            return Ok(None);
        }
        match tokio::time::timeout(PERMIT_TIMEOUT, self.large.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => Err(()),
        }
    }

    fn shed(&self) -> Reply {
        self.counts.shed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            "a large signed hook was not read: too many are being read, none of them verified yet"
        );
        (StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable: too many large hooks at one time")
    }

    fn refuse(&self) -> Reply {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("a hook came with no right X-Gitlab-Token or webhook-signature; nothing was dropped");
        (
            StatusCode::UNAUTHORIZED,
            "401 Unauthorized: X-Gitlab-Token or webhook-signature is not the right one",
        )
    }

    async fn purge_outdated(&self, event: Event) -> Told {
        self.counts.events.increment(event.kind);
        if event.outdated.is_empty() {
            return Told::Off;
        }
        let (cache, mut settle) = (Arc::clone(&self.cache), self.settings.load().settle);
        let named = cache.purge_by_key(&event.outdated, PurgeMode::Hard);
        // At once: the others look through their entries themselves, and this task may end with its thread.
        let ticket = self.fleet.tell(&event.outdated, PurgeMode::Hard, settle);
        let fleet = Some((self.fleet.clone(), settle));
        if self.tasks.len() >= MAX_SETTLING && !settle.is_zero() {
            tracing::warn!("too many hooks at one time; what they make wrong is not dropped once more");
            settle = Duration::ZERO;
        }
        let (done, purged) = oneshot::channel();
        let purging = async move {
            let (again, more) = purge_all(&cache, fleet, event.kind, event.outdated, named).await;
            // The response may have been sent already.
            let _ = done.send(more);
            if !settle.is_zero() {
                tokio::time::sleep(settle).await;
                purge_all(&cache, None, event.kind, again, 0).await;
            }
        };
        self.tasks.spawn(purging.in_current_span());
        let more = tokio::time::timeout(RESPONSE_TIMEOUT, purged).await;
        // They are told in this order.
        more.ok().and_then(Result::ok).flatten().unwrap_or(ticket).outcome().await
    }
}

/// Purges on a thread of its own, since it may have to scan a million entries. Returns the selectors of the
/// second purge: the same, and the keys that were known to be a user's, which is no longer known once its entries
/// are purged. The fleet is told of those keys, on that thread: they are told whatever becomes of the task.
async fn purge_all(
    cache: &Arc<Cache>,
    fleet: Option<(Fleet, Duration)>,
    kind: EventKind,
    outdated: Vec<Selector>,
    named: usize,
) -> (Vec<Selector>, Option<Ticket>) {
    let span = Span::current();
    let purge = cache.run_blocking(move |cache| {
        let _entered = span.entered();
        let purged = cache.purge(&outdated, PurgeMode::Hard);
        tracing::info!(purged = named + purged.entries, event = kind.as_str(), "hook");
        let keys: Vec<Selector> = purged.key_row_ids.into_iter().map(Selector::KeyId).collect();
        let fleet = fleet.filter(|_| !keys.is_empty());
        let ticket = fleet.map(|(fleet, settle)| fleet.tell(&keys, PurgeMode::Hard, settle));
        (outdated.into_iter().chain(keys).collect(), ticket)
    });
    purge.await.unwrap_or_default()
}

/// Reads a body into one buffer: chunks of a byte would take many times as much memory.
async fn read<B>(mut body: B) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Into::into)?.into_data() else { continue };
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

impl<B> Service<Request<B>> for Hooks
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// Always ready: only large unverified bodies wait for permits.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let hooks = self.clone();
        Box::pin(async move { Ok(to_response(hooks.receive(request).await)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache;
    use crate::server::ListenAddress;

    /// The purge takes as long as the test blocks the only thread for it.
    #[test]
    fn the_response_does_not_wait_for_a_long_purge() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            let settings = HooksSettings {
                address: ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
                connections: 1,
                token: None,
                signing_token: None,
                previous: PreviousHookSecrets::default(),
                settle: Duration::ZERO,
            };
            let cache = Cache::new(&cache::CacheSettings::default());
            let hooks = Hooks::new(settings, (cache, Fleet::default()), Arc::default(), Clock::System);
            let event = Event { kind: EventKind::UserDestroy, outdated: vec![Selector::All] };
            let responded = tokio::time::timeout(Duration::from_secs(60), hooks.purge_outdated(event)).await;
            assert!(responded.is_ok() && hooks.tasks.len() == 1, "it goes on after the response");
            go.send(()).unwrap();
            busy.await.unwrap().unwrap();
            hooks.tasks.close();
            hooks.tasks.wait().await;
        });
    }
}
