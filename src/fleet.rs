//! Several gateways of one GitLab, which tell each other what to drop, by way of a Valkey or Redis.
//!
//! What one accepts, from an operator or from GitLab, is appended to a stream that all read. Nothing that Valkey says is
//! taken for complete:
//!
//! - [`follower`] proves with each poll that nothing was missed. Without a proof, the gateway doubts what it keeps: that is
//!   used only if Rails fails.
//! - [`outbox`] keeps what was told, and tells it again where a server has lost it.
//! - [`report`] tells a gateway that begins what was told before.
//! - While nothing is heard, the gateway is alone: answers are kept for `alone_ttl` only.
//!
//! Differs from publish and subscribe, from the tracking of keys, and from reading the stream alone: those lose messages
//! without a word when a connection is cut, a server fails over, or a stream is made anew.
//!
//! [`keys`] derives names and seals; [`message`] is what travels. `reader`, `publisher` and `purger` are the tasks.

pub mod acl;
pub mod address;
mod backoff;
mod bus;
mod condition;
pub mod connection;
pub mod counters;
mod echoes;
pub mod follower;
pub mod keys;
pub mod members;
pub mod message;
pub mod outbox;
mod publisher;
mod purger;
pub mod questions;
mod reader;
pub mod report;
pub mod ring;
mod sentinel;
pub mod server;
pub mod settings;
pub mod shared;
mod sharer;
pub mod stream;
pub mod ticket;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::bus::Bus;
pub use self::condition::FleetPhase;
use self::counters::FleetCounters;
use self::keys::FleetKeys;
use self::members::Member;
use self::message::{MessageSeal, Publisher, Purge};
use self::settings::FleetSettings;
use self::shared::SharedAnswers;
use self::ticket::Ticket;
use crate::cache::Cache;
use crate::cache::purge::{PurgeMode, Selector};
use crate::clock::Clock;

/// How long the end of the process waits until what was accepted is told: for a connection that turns out to be dead,
/// another one, and the message.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The part of this gateway in its fleet; by default, it is in none. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Fleet(Option<Arc<Membership>>);

#[derive(Debug)]
struct Membership {
    name: String,
    bus: Arc<Bus>,
    /// All but the publisher, which ends by itself.
    tasks: Mutex<JoinSet<()>>,
    publisher: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// How a gateway is in its fleet, for metrics and operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetState {
    /// The name of the fleet, as in the keys in Valkey: gateways with another one are in another fleet.
    pub fleet: String,
    /// The name of this process on the bus.
    pub publisher: Publisher,
    /// What the gateway can promise.
    pub phase: FleetPhase,
    /// How long ago all that was told was heard; `None` if never.
    pub silent_for: Option<Duration>,
    /// How many messages Valkey has not taken yet.
    pub outbox: usize,
    /// How long the oldest of them has waited.
    pub untold_for: Option<Duration>,
    /// The other processes, each with how long ago it was heard.
    pub members: Vec<(Member, Duration)>,
}

impl Fleet {
    /// Not started yet. `None` if the system has no random numbers.
    pub fn new(settings: Arc<FleetSettings>, keys: &FleetKeys, cache: Arc<Cache>) -> Option<Self> {
        let seal = MessageSeal::new(keys)?;
        let shared = match settings.shared {
            None => None,
            Some(shared) => Some(Arc::new(SharedAnswers::new((shared, settings.alone_after), keys, &cache)?)),
        };
        let bus = Arc::new(Bus::new((settings, Clock::System), (keys.bus(), seal), cache, shared));
        let (name, tasks) = (keys.fleet().to_owned(), Mutex::default());
        Some(Self(Some(Arc::new(Membership { name, bus, tasks, publisher: Mutex::default() }))))
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins to listen and to tell, in tasks of the runtime. To be called before anything is answered, but behind what is
    /// loaded into the cache: that is doubted, since purges may have been missed meanwhile.
    pub fn start(&self) {
        let Some(Membership { name, bus, tasks, publisher }) = self.0.as_deref() else { return };
        tracing::info!(fleet = %name, "in a fleet with all gateways that have this one's secret and GitLab");
        bus.join();
        let mut tasks = tasks.lock();
        tasks.spawn(reader::read(Arc::clone(bus)));
        let [purger, watcher, sentinels] = [(); 3].map(|()| Arc::clone(bus));
        tasks.spawn(async move { purger.purger.run().await });
        tasks.spawn(async move { watcher.watch_condition().await });
        tasks.spawn(async move { sentinels.servers.watch().await });
        if let Some(shared) = &bus.shared {
            tasks.spawn(sharer::share(Arc::clone(bus), Arc::clone(shared)));
        }
        *publisher.lock() = Some(AbortOnDropHandle::new(tokio::spawn(publisher::publish(Arc::clone(bus)))));
    }

    /// Has the other gateways drop what these select, and once more after `settle`, if that is not zero. What is here has
    /// to be fenced off before. Does not wait: see [`Ticket::outcome`].
    pub fn tell(&self, selectors: &[Selector], mode: PurgeMode, settle: Duration) -> Ticket {
        let Some(membership) = &self.0 else { return Ticket::OFF };
        membership.bus.accept(Purge::new(selectors, mode, settle, Clock::System.unix_time()))
    }

    /// The answers that the gateways share, if they do.
    pub fn shared(&self) -> Option<&Arc<SharedAnswers>> {
        self.0.as_ref()?.bus.shared.as_ref()
    }

    /// No answers are shared any more, since the gateway is not in front of the GitLab of its fleet any more.
    pub fn end_sharing(&self) {
        if let Some(shared) = self.shared() {
            shared.end();
        }
    }

    /// Tells what is left, takes leave and ends, within three seconds. Nothing may be told afterwards.
    pub async fn end(&self) {
        let Some(Membership { bus, tasks, publisher, .. }) = self.0.as_deref() else { return };
        bus.ending.cancel();
        let publishing = publisher.lock().take();
        if let Some(publishing) = publishing {
            // It fails only by a panic.
            let _ = tokio::time::timeout(END_TIMEOUT, publishing).await;
        }
        let (untold, _) = bus.outbox.lock().untold();
        if untold > 0 {
            tracing::error!(
                messages = untold,
                "purges were not told to the other gateways: Valkey has not taken them"
            );
        }
        let mut tasks = std::mem::take(&mut *tasks.lock());
        tasks.shutdown().await;
    }

    /// How it is now; `None` without a fleet.
    pub fn state(&self) -> Option<FleetState> {
        let Membership { name, bus, .. } = self.0.as_deref()?;
        let now = Clock::System.now();
        let (outbox, _) = bus.outbox.lock().untold();
        let untold_for = bus.untold_for(now);
        let members = bus.follower.lock().members.list().into_iter();
        let condition = bus.condition.lock();
        Some(FleetState {
            fleet: name.clone(),
            publisher: bus.seal.publisher(),
            phase: condition.phase(untold_for, bus.settings.alone_after),
            silent_for: condition.silent_for(now),
            outbox,
            untold_for,
            members: members
                .map(|member| (now.saturating_duration_since(member.heard_at), member))
                .map(|(ago, member)| (member, ago))
                .collect(),
        })
    }

    /// What is counted; `None` without a fleet.
    pub fn counters(&self) -> Option<&Arc<FleetCounters>> {
        self.0.as_ref().map(|membership| &membership.bus.counters)
    }
}

#[cfg(test)]
mod tests;
