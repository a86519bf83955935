//! GitLab's System Hooks: what GitLab tells of keys and users ends what is kept of them.
//!
//! An event only ever drops answers, so events may come twice, late, in any order, or not at all: then
//! the `ttl` ends what is kept, as without hooks. Each drops once more after a while, since a fill may
//! have been answered by a read replica that had not heard yet (contract §6).

mod credential;
mod event;

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;
use tower::Service;

use self::credential::Shown;
use self::event::Event;
pub use self::event::Kind;
use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, Selector};
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::secret::{BearerToken, SigningToken};
use crate::server::wire::REFUSED;
use crate::server::{ConnectionHandle, Endpoint, Inbound};

/// What `[hooks]` of the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where GitLab sends its events.
    pub endpoint: Endpoint,
    /// Connections open there at one time.
    pub connections: usize,
    /// What GitLab sends as `X-Gitlab-Token`.
    pub token: Option<BearerToken>,
    /// What GitLab signs with.
    pub signing_token: Option<SigningToken>,
    /// How long after an event what it makes wrong is dropped once more.
    pub settle: Duration,
}

/// Where GitLab sends them.
pub const PATH: &str = "/hooks/gitlab";

/// Bytes of the largest event that is read. Those that matter have a few hundred, or the 20 KiB of a
/// long SSH key.
const MOST: usize = 1024 * 1024;

/// Bytes of a body that is read without further ado, though only then its signature can be verified: more
/// than any event has that matters.
const SMALL: u64 = 64 * 1024;

/// How many larger ones are read at one time that may turn out to be a stranger's, and how long the others
/// wait. GitLab waits for ten seconds.
const LARGE_AT_A_TIME: usize = 4;
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an event may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long GitLab waits for what has to be looked for among all entries: it gives up after ten
/// seconds, and has others to tell. What an event names is dropped before it has its answer in any
/// case.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How many events may wait at one time for what they make wrong to be dropped once more.
const MOST_SETTLING: usize = 10_000;

/// What came, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events, by kind.
    pub events: [AtomicU64; Kind::ALL.len()],
    /// Requests with no right token or signature.
    pub refused: AtomicU64,
    /// Requests that were not read, since too many others were being read.
    pub shed: AtomicU64,
}

/// Answers the listener for hooks.
#[derive(Clone, Debug)]
pub struct Hooks {
    settings: Arc<Settings>,
    cache: Arc<Cache>,
    counts: Arc<Counts>,
    clock: Clock,
    /// For each reader of a large body that may be a stranger's.
    large: Arc<Semaphore>,
    /// Owns what goes on once GitLab has its answer.
    tasks: TaskTracker,
}

type Answer = (StatusCode, &'static str);

const DONE: Answer = (StatusCode::OK, "ok");

impl Hooks {
    /// Drops from `cache`.
    pub fn new(settings: Settings, cache: Arc<Cache>, counts: Arc<Counts>, clock: Clock) -> Self {
        let large = Arc::new(Semaphore::new(LARGE_AT_A_TIME));
        Self { settings: Arc::new(settings), cache, counts, clock, large, tasks: TaskTracker::new() }
    }

    async fn answer<B>(
        &self,
        (peer, connection): (Option<IpAddr>, &ConnectionHandle),
        head: &Parts,
        body: B,
    ) -> Answer
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (method, path) = (&head.method, head.uri.path());
        if method.as_str() == REFUSED {
            let refusal = Refusal::from_label(path.trim_start_matches('/')).unwrap_or(Refusal::RequestLine);
            return (refusal.status(), refusal.message());
        }
        match (method, path) {
            (&Method::POST, PATH) => self.take((peer, connection), &head.headers, body).await,
            (_, PATH) => (StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed: use POST"),
            _ => (StatusCode::NOT_FOUND, "404 Not Found: GitLab's System Hooks go to /hooks/gitlab"),
        }
    }

    async fn take<B>(
        &self,
        (peer, connection): (Option<IpAddr>, &ConnectionHandle),
        headers: &HeaderMap,
        body: B,
    ) -> Answer
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let signed = match Shown::of(&self.settings, headers, self.clock.unix_seconds()) {
            Shown::Token => None,
            Shown::Signature(signed) => Some(signed),
            Shown::Nothing => return self.refuse(peer),
        };
        let (least, most) = (body.size_hint().lower(), body.size_hint().upper());
        let is_large = least <= MOST as u64 && most.is_none_or(|most| most > SMALL);
        let Ok(turn) = self.turn(signed.is_some() && is_large).await else {
            return self.shed(peer);
        };
        let body = match tokio::time::timeout(BODY_TIMEOUT, read(body)).await {
            Ok(Read::Whole(body)) => body,
            // Nothing that large is about a key or a user.
            Ok(Read::TooLarge) if signed.is_none() => return DONE,
            Ok(Read::TooLarge | Read::Broken) | Err(_) => {
                return (
                    StatusCode::BAD_REQUEST,
                    "400 Bad Request: the event is incomplete, too slow or too large",
                );
            }
        };
        if let (Some(signed), Some(token)) = (&signed, &self.settings.signing_token)
            && !signed.is_of(&body, token)
        {
            return self.refuse(peer);
        }
        drop(turn);
        connection.trust();
        match Event::read(&body) {
            Some(event) => {
                drop(body);
                self.drop_what_is_wrong(event).await;
                DONE
            }
            None => (StatusCode::BAD_REQUEST, "400 Bad Request: not an event of a System Hook in JSON"),
        }
    }

    /// Waits for a place among those who read a large body, if one is needed; an error if that takes too
    /// long.
    async fn turn(&self, is_needed: bool) -> Result<Option<SemaphorePermit<'_>>, ()> {
        if !is_needed {
            return Ok(None);
        }
        match tokio::time::timeout(TURN_TIMEOUT, self.large.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(_)) | Err(_) => Err(()),
        }
    }

    fn shed(&self, peer: Option<IpAddr>) -> Answer {
        self.counts.shed.fetch_add(1, Ordering::Relaxed);
        let remote_ip = peer.map(tracing::field::display);
        tracing::warn!(
            remote_ip,
            "a large signed hook was not read: too many are being read, none of them verified yet"
        );
        (StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable: too many large hooks at one time")
    }

    fn refuse(&self, peer: Option<IpAddr>) -> Answer {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        let remote_ip = peer.map(tracing::field::display);
        tracing::warn!(
            remote_ip,
            "a hook came with no right X-Gitlab-Token or webhook-signature; nothing was dropped"
        );
        (
            StatusCode::UNAUTHORIZED,
            "401 Unauthorized: X-Gitlab-Token or webhook-signature is not the right one",
        )
    }

    async fn drop_what_is_wrong(&self, event: Event) {
        if let Some(count) = self.counts.events.get(event.kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if event.wrong.is_empty() {
            return;
        }
        let (cache, mut settle) = (Arc::clone(&self.cache), self.settings.settle);
        let named = cache.purge_by_key(&event.wrong);
        if self.tasks.len() >= MOST_SETTLING && !settle.is_zero() {
            tracing::warn!("too many hooks at one time; what they make wrong is not dropped once more");
            settle = Duration::ZERO;
        }
        let (done, dropped) = oneshot::channel();
        self.tasks.spawn(async move {
            let again = drop_all(&cache, event.kind, event.wrong, named).await;
            // Nobody may be waiting any more.
            let _ = done.send(());
            if !settle.is_zero() {
                tokio::time::sleep(settle).await;
                drop_all(&cache, event.kind, again, 0).await;
            }
        });
        let _ = tokio::time::timeout(ANSWER_WITHIN, dropped).await;
    }
}

/// On a thread of its own, since it may have to look through a million entries. What is to be dropped
/// once more: the same, and the keys that were known to be a user's, which nothing says any more once it
/// is gone.
async fn drop_all(cache: &Arc<Cache>, kind: Kind, wrong: Vec<Selector>, named: usize) -> Vec<Selector> {
    let dropping = cache.run_blocking(move |cache| {
        let purged = cache.purge(&wrong, PurgeMode::Hard);
        tracing::info!(purged = named + purged.entries, event = kind.as_str(), "hook");
        wrong.into_iter().chain(purged.key_row_ids.into_iter().map(Selector::KeyId)).collect()
    });
    dropping.await.unwrap_or_default()
}

/// What came of a body.
enum Read {
    Whole(Vec<u8>),
    TooLarge,
    Broken,
}

/// Reads a body into one piece: chunks of a byte would take many times as much by themselves.
async fn read<B>(mut body: B) -> Read
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > MOST as u64 {
        return Read::TooLarge;
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Read::Broken };
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MOST {
            return Read::TooLarge;
        }
        whole.extend_from_slice(&data);
    }
    Read::Whole(whole)
}

impl Service<Inbound> for Hooks {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let (from, (head, body)) = ((inbound.peer, inbound.connection), inbound.request.into_parts());
        let hooks = self.clone();
        Box::pin(async move {
            let (status, message) = hooks.answer((from.0, &from.1), &head, body).await;
            let body = format!(r#"{{"message":"{message}"}}"#);
            let mut answer = Response::new(Full::new(Bytes::from(body)));
            *answer.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, json);
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache;

    /// However long it takes to look through all entries: here, for as long as the test likes.
    #[test]
    fn gitlab_is_not_kept_waiting() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            let settings = Settings {
                endpoint: Endpoint::Tcp(([127, 0, 0, 1], 0).into()),
                connections: 1,
                token: None,
                signing_token: None,
                settle: Duration::ZERO,
            };
            let cache = Cache::new(&cache::CacheSettings::default());
            let hooks = Hooks::new(settings, cache, Arc::default(), Clock::System);
            let event = Event { kind: Kind::UserDestroy, wrong: vec![Selector::All] };
            let answered =
                tokio::time::timeout(Duration::from_secs(60), hooks.drop_what_is_wrong(event)).await;
            assert!(answered.is_ok() && hooks.tasks.len() == 1, "it goes on behind the answer");
            go.send(()).unwrap();
            busy.await.unwrap().unwrap();
            hooks.tasks.close();
            hooks.tasks.wait().await;
        });
    }
}
