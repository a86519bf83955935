//! The answers that the gateways of a fleet share, so that each question costs Rails one request in all.
//!
//! A gateway that has asked Rails stores the answer in Valkey, sealed together with its key and the life of the server, and with
//! its [`Origin`]. One that misses an answer looks there first, for as long as
//! [`timeout`](SharedSettings::timeout); and if it is not there, one of those who look gets a lock and asks Rails, while the
//! others wait a short time for its answer. Nothing but efficiency hangs on the lock, so it is only ever set, and left to
//! expire.
//!
//! A writer of Valkey can cause misses, and nothing else: an answer in a wrong place does not open, and one that is
//! brought back after a purge is refused by the [`ring`](super::ring). What was shared before a gateway began is used by it
//! once another one has [reported](super::report) which purges it knows.

pub mod answer;
pub mod counters;
pub(super) mod link;
pub(super) mod looks;
mod reports;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::future::join;
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout};

pub use self::answer::{Answer, Terms, UsableAnswer};
use self::counters::{LockResult, SharedCounters, SharedResult};
use self::link::{Link, Linked, Write};
use self::looks::looks;
use super::connection::ConnectionError;
use super::keys::{FleetKeys, Opener, Sealer};
use super::message::Purge;
use super::ring::{Origin, Ring};
use super::settings::SharedSettings;
use super::stream::{Identity, StreamId};
use crate::cache::purge::Selector;
use crate::cache::{Cache, Key, Lifetimes};
use crate::clock::Clock;

/// After this long, another gateway may have the lock: it is not removed any more.
const LOCK_MARGIN: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub struct SharedAnswers {
    settings: SharedSettings,
    keys: FleetKeys,
    sealer: Sealer,
    opener: Opener,
    cache: Arc<Cache>,
    ring: Mutex<Ring>,
    /// Of the server whose stream is followed.
    followed: ArcSwapOption<Identity>,
    pub(super) link: Link,
    /// The keys are those of a GitLab that is not asked any more.
    is_ended: AtomicBool,
    counters: SharedCounters,
}

/// What a look for a shared answer has brought.
#[derive(Debug)]
pub enum Found {
    /// The answer.
    Answer(UsableAnswer),
    /// None: Rails has to be asked, and its answer to be shared by this.
    Nothing(Share),
}

/// The right to share the answer to a question that Rails is asked after it was made. Dropping it lets another gateway ask.
#[derive(Debug)]
pub struct Share {
    shared: Arc<SharedAnswers>,
    key: Key,
    /// Where the answer and the lock are.
    pub(super) names: [String; 2],
    identity: Identity,
    origin: Origin,
    pub(super) has_lock: bool,
    clock: Clock,
    begun: Instant,
}

impl SharedAnswers {
    /// For the fleet that has these keys, and whose gateways use and share nothing once they have heard nothing for
    /// `alone_after`. `None` if the system has no random numbers.
    pub(super) fn new(
        (settings, alone_after): (SharedSettings, Duration),
        keys: &FleetKeys,
        cache: &Arc<Cache>,
    ) -> Option<Self> {
        Some(Self {
            settings,
            keys: keys.clone(),
            sealer: Sealer::new(keys.answer_seal())?,
            opener: Opener::new(keys.answer_seal()),
            cache: Arc::clone(cache),
            ring: Mutex::new(Ring::new(settings.ttl, alone_after)),
            followed: ArcSwapOption::empty(),
            link: Link::new(),
            is_ended: AtomicBool::new(false),
            counters: SharedCounters::default(),
        })
    }

    /// What is counted.
    pub fn counters(&self) -> &SharedCounters {
        &self.counters
    }

    /// Looks for the answer for `key`, once a flight for it is registered. `None` if answers for it, or any, are not shared
    /// now. Takes no longer than one look and the wait for another gateway.
    pub async fn find(self: &Arc<Self>, key: &Key, lifetimes: &Lifetimes, clock: &Clock) -> Option<Found> {
        if !self.may_find(key) {
            return None;
        }
        let Some(linked) = self.linked() else {
            self.counters.results.increment(SharedResult::Error);
            return None;
        };
        let mut share = self.share_for(key, &linked.identity, clock)?;
        let answer = self.look(&linked, &share, (lifetimes, clock)).await;
        self.counters.results.increment(answer.as_ref().map_or_else(|result| *result, |_| SharedResult::Hit));
        match answer {
            Ok(answer) => return Some(Found::Answer(answer)),
            Err(SharedResult::Late | SharedResult::Error) => return Some(Found::Nothing(share)),
            Err(_) => {}
        }
        // In this order, in one write. The owner of the lock may have shared the answer just before.
        let (lock, answer) =
            join(self.lock(&linked, &share), self.look(&linked, &share, (lifetimes, clock))).await;
        share.has_lock = lock == LockResult::Won;
        let answer = match (lock, answer) {
            (_, Ok(answer)) => Some(answer),
            (LockResult::Waited, Err(_)) => self.wait(&linked, &share, (lifetimes, clock)).await,
            (_, Err(_)) => None,
        };
        self.counters.locks.increment(if answer.is_some() { LockResult::Shared } else { lock });
        Some(answer.map_or(Found::Nothing(share), Found::Answer))
    }

    /// Whether answers for `key`, and any, are shared now.
    pub(super) fn may_find(&self, key: &Key) -> bool {
        *key != Key::Instance && !self.is_ended.load(Ordering::Acquire) && !self.cache.is_alone()
    }

    /// The right to share the answer to a question that is asked from now on, at a server in this life.
    pub(super) fn share_for(
        self: &Arc<Self>,
        key: &Key,
        identity: &Identity,
        clock: &Clock,
    ) -> Option<Share> {
        Some(Share {
            shared: Arc::clone(self),
            key: key.clone(),
            names: self.keys.answer_and_lock(key)?,
            identity: identity.clone(),
            origin: self.ring.lock().origin(unix_ms(clock)),
            has_lock: false,
            clock: clock.clone(),
            begun: clock.now(),
        })
    }

    /// The connection, if it leads to the server whose stream is followed.
    fn linked(&self) -> Option<Arc<Linked>> {
        self.link.current().filter(|linked| self.is_followed(&linked.identity))
    }

    async fn look(
        &self,
        linked: &Linked,
        share: &Share,
        (lifetimes, clock): (&Lifetimes, &Clock),
    ) -> Result<UsableAnswer, SharedResult> {
        let [name, _] = &share.names;
        self.open(share, self.in_time(linked.connection.get(name)).await?, (lifetimes, clock))
    }

    /// What was found in the place of the answer, if it may be used.
    pub(super) fn open(
        &self,
        share: &Share,
        sealed: Option<Vec<u8>>,
        (lifetimes, clock): (&Lifetimes, &Clock),
    ) -> Result<UsableAnswer, SharedResult> {
        let sealed = sealed.ok_or(SharedResult::Miss)?;
        let plain = self.opener.open(&share.bound_to(), &sealed).ok_or(SharedResult::Refused)?;
        let terms = Terms { lifetimes, max_age: self.settings.ttl, now: clock.unix_time() };
        answer::usable(&plain, &share.key, &self.ring.lock(), &terms).ok_or(SharedResult::Refused)
    }

    async fn lock(&self, linked: &Linked, share: &Share) -> LockResult {
        let [_, lock] = &share.names;
        match self.in_time(linked.connection.set_nx_px(lock, b"1", self.settings.lock)).await {
            Ok(true) => LockResult::Won,
            Ok(false) => LockResult::Waited,
            Err(_) => LockResult::Error,
        }
    }

    /// Looks again and again for what another gateway asks Rails.
    async fn wait(
        &self,
        linked: &Linked,
        share: &Share,
        context: (&Lifetimes, &Clock),
    ) -> Option<UsableAnswer> {
        for next in looks(Clock::System.now(), self.settings.wait) {
            sleep_until(next.into()).await;
            match self.look(linked, share, context).await {
                Ok(answer) => return Some(answer),
                Err(SharedResult::Late | SharedResult::Error) => return None,
                Err(_) => {}
            }
        }
        None
    }

    async fn in_time<T>(
        &self,
        reply: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, SharedResult> {
        match timeout(self.settings.timeout, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                if !error.is_refusal() {
                    self.link.suspect();
                }
                Err(SharedResult::Error)
            }
            Err(_) => {
                self.link.suspect();
                Err(SharedResult::Late)
            }
        }
    }

    /// From now on the stream of this server is followed. Without an identity, nothing is shared: it could be another one
    /// at any time.
    pub(super) fn follow(&self, identity: Option<Identity>) {
        self.followed.store(identity.map(Arc::new));
    }

    /// Whether the connection leads to the server whose stream is followed.
    pub(super) fn is_followed(&self, identity: &Identity) -> bool {
        self.followed.load().as_deref() == Some(identity)
    }

    /// A purge was heard. To be called before its flights are fenced off.
    pub(super) fn heard(&self, id: StreamId, purge: &Purge, clock: &Clock) {
        self.ring.lock().heard(id, purge, unix_ms(clock));
    }

    /// Everything up to there was heard, and its flights fenced off.
    pub(super) fn advance(&self, position: StreamId) {
        self.ring.lock().advance(position);
    }

    /// Purges may have been missed before `position`; without one, they may still be.
    pub(super) fn lose(&self, position: Option<StreamId>, clock: &Clock) {
        self.ring.lock().lose(position, unix_ms(clock));
    }

    /// A purge was accepted here. To be called before its entries are looked for. Removes what is shared under the very keys
    /// that it names; nothing hangs on that.
    pub(super) fn accepted(&self, purge: &Purge, clock: &Clock) {
        self.ring.lock().accepted(purge, unix_ms(clock));
        let keys = purge.selectors.iter().filter_map(|selector| match selector {
            Selector::SshKey(digest) => Some(Key::SshKey(*digest)),
            Selector::KeyId(id) => Some(Key::UserOfKey(*id)),
            Selector::UserId(id) => Some(Key::UserById(*id)),
            Selector::Username(name) => Some(Key::UserByName(name.as_str().into())),
            Selector::Route(_) | Selector::All => None,
        });
        let names = keys.filter_map(|key| self.keys.answer_and_lock(&key)).map(|[name, _]| name);
        self.link.write(Write::Remove(names.collect()));
    }

    /// Nothing is shared any more.
    pub(super) fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
    }
}

impl Share {
    /// Shares the answer that Rails has given. To be called once it is stored here, and was not fenced off.
    pub fn share(mut self, answer: Answer<'_>, clock: &Clock) {
        let shared = Arc::clone(&self.shared);
        if shared.cache.is_alone() || shared.is_ended.load(Ordering::Acquire) {
            return;
        }
        let meaning = answer::meaning(&self.key, &answer.storable, answer.body);
        // A replica behind Rails may still have told the old story.
        if !shared.ring.lock().allows(self.origin, &meaning) {
            return;
        }
        let age = clock.unix_time().saturating_sub(Duration::from_millis(self.origin.asked_at_ms));
        let ttl = answer.storable.age_limits.fresh_for(age).min(shared.settings.ttl);
        let encoded = answer.encode(self.origin).filter(|_| !ttl.is_zero());
        let Some(sealed) = encoded.and_then(|plain| shared.sealer.seal(&self.bound_to(), plain)) else {
            return;
        };
        let lock = self.take_lock();
        let [name, _] = self.names.clone();
        shared.link.write(Write::Share { name, sealed, ttl, lock });
    }

    /// What the seal binds an answer to: the format, the fleet, the life of the server, and the key.
    fn bound_to(&self) -> Vec<u8> {
        let Identity { run_id, replid } = &self.identity;
        let fleet = self.shared.keys.fleet();
        let place = format!("railgate answer 1\0{fleet}\0{run_id}\0{replid}\0").into_bytes();
        [place, postcard::to_allocvec(&self.key).unwrap_or_default()].concat()
    }

    /// The name of the lock, if it is still this gateway's.
    fn take_lock(&mut self) -> Option<String> {
        let is_own = std::mem::take(&mut self.has_lock)
            && self.clock.now() + LOCK_MARGIN < self.begun + self.shared.settings.lock;
        let [_, lock] = &self.names;
        is_own.then(|| lock.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(lock) = self.take_lock() {
            self.shared.link.write(Write::Remove(vec![lock]));
        }
    }
}

fn unix_ms(clock: &Clock) -> u64 {
    u64::try_from(clock.unix_time().as_millis()).unwrap_or(u64::MAX)
}
