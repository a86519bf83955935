//! What the tasks of a fleet share: the reader, the publisher, and those who tell them something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::condition::{Condition, FleetPhase};
use super::connection::ConnectionError;
use super::counters::{ConnectionEvent, FleetCounters};
use super::follower::Follower;
use super::message::{Message, MessageSeal, Origin, Purge};
use super::outbox::Outbox;
use super::purger::Purger;
use super::questions::Questions;
use super::report::{Question, Report};
use super::server::{Opened, Servers};
use super::settings::FleetSettings;
use super::shared::SharedAnswers;
use super::ticket::Ticket;
use crate::cache::Cache;
use crate::clock::Clock;

/// See the module.
#[derive(Debug)]
pub(super) struct Bus {
    pub(super) settings: Arc<FleetSettings>,
    pub(super) clock: Clock,
    pub(super) servers: Servers,
    /// The key of the stream.
    pub(super) stream: String,
    pub(super) seal: MessageSeal,
    pub(super) origin: Origin,
    pub(super) cache: Arc<Cache>,
    pub(super) counters: Arc<FleetCounters>,
    pub(super) purger: Purger,
    pub(super) outbox: Mutex<Outbox>,
    pub(super) follower: Mutex<Follower>,
    pub(super) condition: Mutex<Condition>,
    /// `None` if answers are not shared.
    pub(super) shared: Option<Arc<SharedAnswers>>,
    /// Polls that were complete.
    pub(super) polls: AtomicU64,
    /// There is something to send.
    pub(super) to_send: Notify,
    /// The stream needs an entry that can be an anchor.
    pub(super) needs_hello: AtomicBool,
    /// What is to be asked of the others.
    pub(super) question: Mutex<Option<Question>>,
    /// What the others ask.
    pub(super) questions: Mutex<Questions>,
    /// How often the server was another one, or the stream another one: what was told may be lost.
    pub(super) breaks: watch::Sender<u64>,
    /// How often the publisher had reason to believe that the reader listens to another server.
    pub(super) resets: watch::Sender<u64>,
    /// The process ends: what is left is to be told now.
    pub(super) ending: CancellationToken,
}

impl Bus {
    pub(super) fn new(
        (settings, clock): (Arc<FleetSettings>, Clock),
        (stream, seal): (String, MessageSeal),
        cache: Arc<Cache>,
        shared: Option<Arc<SharedAnswers>>,
    ) -> Self {
        let counters = Arc::<FleetCounters>::default();
        let origin = Origin::of_this_process(unix_ms(&clock));
        Self {
            servers: Servers::new(Arc::clone(&settings)),
            settings,
            stream,
            purger: Purger::new(Arc::clone(&cache), Arc::clone(&counters), clock.clone()),
            clock,
            follower: Mutex::new(Follower::new(seal.publisher())),
            seal,
            origin,
            cache,
            counters,
            outbox: Mutex::default(),
            condition: Mutex::default(),
            shared,
            polls: AtomicU64::new(0),
            to_send: Notify::new(),
            needs_hello: AtomicBool::new(false),
            question: Mutex::default(),
            questions: Mutex::default(),
            breaks: watch::Sender::new(0),
            resets: watch::Sender::new(0),
            ending: CancellationToken::new(),
        }
    }

    /// Nothing is heard yet, and purges may have been missed while the process was not there.
    pub(super) fn join(&self) {
        self.cache.doubt_all();
        self.cache.set_alone(Some(self.settings.alone_ttl));
    }

    /// Connects to the server that takes writes. `name` tells operators what for.
    pub(super) async fn connect(&self, name: &str, backoff: &mut Backoff) -> Result<Opened, ConnectionError> {
        backoff.begins(self.clock.now());
        let opened = self.servers.open(name, &self.stream).await?;
        backoff.opened();
        self.counters.connections.increment(ConnectionEvent::Opened);
        tracing::debug!(name, server = %opened.address, "connected to Valkey");
        Ok(opened)
    }

    /// Takes over a purge for the other gateways.
    pub(super) fn accept(&self, purge: Purge) -> Ticket {
        if let Some(shared) = &self.shared {
            shared.accepted(&purge, &self.clock);
        }
        let (told, collapsed) = self.outbox.lock().accept(purge, self.clock.now());
        if collapsed > 0 {
            self.counters.collapsed.fetch_add(collapsed as u64, Ordering::Relaxed);
            tracing::warn!(
                purges = collapsed,
                "so many purges wait for Valkey that they became one of everything"
            );
        }
        self.to_send.notify_one();
        Ticket::new(told, Arc::clone(&self.counters))
    }

    /// What the process says when it says that it is there.
    pub(super) fn hello(&self, question: Option<Question>) -> Message {
        Message::Hello { said_at_ms: self.unix_ms(), origin: self.origin.clone(), question }
    }

    /// In milliseconds since the Unix epoch.
    pub(super) fn unix_ms(&self) -> u64 {
        unix_ms(&self.clock)
    }

    /// What is to be told to those who have asked, once no other gateway has told it for so long.
    pub(super) fn due_report(&self, now: Instant) -> Option<Report> {
        let due = self.questions.lock().take_due(now)?;
        self.shared.as_ref()?.report(due, &self.clock)
    }

    pub(super) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Acquire)
    }

    /// A poll has brought all that there is.
    pub(super) fn complete(&self) {
        self.polls.fetch_add(1, Ordering::AcqRel);
        let mut condition = self.condition.lock();
        if condition.complete(self.clock.now(), self.purger.progress()) {
            self.cache.set_alone(None);
            tracing::info!("the fleet is heard");
        }
    }

    /// Sees to it that answers are kept for a short time only while the fleet is not heard, and says when it does not
    /// hear this gateway.
    pub(super) async fn watch_condition(&self) {
        let mut phase = FleetPhase::Joining;
        loop {
            let now = self.clock.now();
            let before = std::mem::replace(&mut phase, self.check_condition(now));
            if before != phase && phase == FleetPhase::Untold {
                tracing::error!("Valkey does not take purges: other gateways may give old answers");
            } else if before == FleetPhase::Untold && phase == FleetPhase::Following {
                tracing::info!("Valkey takes purges again");
            }
            tokio::time::sleep(self.until_check(now)).await;
        }
    }

    /// How long to wait before the condition is checked again.
    pub(super) fn until_check(&self, now: Instant) -> Duration {
        let silent = self.condition.lock().silent_for(now).unwrap_or_default();
        let until_alone = self.settings.alone_after.saturating_sub(silent);
        // Who is alone already has nothing to wait for but a complete poll, and may be alone again as long after it.
        let rest = if until_alone.is_zero() { self.settings.alone_after } else { until_alone };
        rest.clamp(SHORTEST_REST, LONGEST_REST)
    }

    pub(super) fn check_condition(&self, now: Instant) -> FleetPhase {
        let mut condition = self.condition.lock();
        if condition.check(now, self.settings.alone_after) {
            self.cache.set_alone(Some(self.settings.alone_ttl));
            tracing::warn!(
                alone_ttl_s = self.settings.alone_ttl.as_secs(),
                "the fleet is not heard: answers are kept for alone_ttl only"
            );
        }
        condition.phase(self.untold_for(now), self.settings.alone_after)
    }

    pub(super) fn untold_for(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.outbox.lock().untold();
        since.map(|since| now.saturating_duration_since(since))
    }

    /// Counts and logs the end of a connection, or that none was made. Returns the pause before the next one.
    pub(super) fn count_failure(&self, task: &str, end: &End, backoff: &mut Backoff) -> Duration {
        let (event, pause) = backoff.failed(self.clock.now(), fastrand::f64());
        self.counters.connections.increment(event);
        // Again and again, while it lasts.
        if event == ConnectionEvent::Lost || backoff.is_first() {
            tracing::warn!(%end, task, "the connection to Valkey has ended, or was not made; it is tried again");
        } else {
            tracing::debug!(%end, task, "no connection to Valkey");
        }
        pause
    }

    /// Valkey answers, and does not take a message.
    pub(super) fn warn_of_refusal(&self, error: &ConnectionError) {
        tracing::warn!(
            %error,
            stream = self.stream,
            "Valkey does not take what is to be told; it waits here. If its IDs are exhausted, remove the stream"
        );
    }
}

fn unix_ms(clock: &Clock) -> u64 {
    u64::try_from(clock.unix_time().as_millis()).unwrap_or(u64::MAX)
}

/// Why a connection is not used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// It has failed.
    #[error(transparent)]
    Failed(#[from] ConnectionError),
    /// It works, and leads to where it should not.
    #[error("{0}")]
    GivenUp(&'static str),
}

/// The Sentinels name another master.
pub(super) const ANOTHER_MASTER: End = End::GivenUp("the Sentinels name another master");

const SHORTEST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);
