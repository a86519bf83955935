//! Tells the others what is in the outbox, in order, and says again what was lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::backoff::Backoff;
use super::bus::{ANOTHER_MASTER, Bus, End};
use super::connection::{Connection, ConnectionError};
use super::counters::Told;
use super::message::{HELLO_INTERVAL, Message, Purge};
use super::report::{Question, Report};
use super::shared::counters::ReportEvent;
use super::stream::{Identity, StreamId};

/// Messages with something new are no closer together, so that purges which come together share one: each costs every
/// gateway a wake-up.
const GATHER: Duration = Duration::from_millis(2);

/// How often the server is asked whether it is still there. So a dead connection is known before something is to be
/// told.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before something that Valkey has refused is tried again.
pub(super) const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Between two tries to tell what is left when the process ends.
const ENDING_PAUSE: Duration = Duration::from_millis(50);

/// This connection may be one to the server of before.
const ANOTHER_SERVER: End = End::GivenUp("the reader has found another server, or another stream");

/// Tells, until the process ends and all is told.
pub(super) async fn publish(bus: Arc<Bus>) {
    let mut publisher = Publisher::new(bus);
    let mut backoff = Backoff::default();
    loop {
        let Err(end) = publisher.tell(&mut backoff).await else { return };
        let is_done = publisher.bus.outbox.lock().untold().0 == 0;
        if publisher.bus.ending.is_cancelled() && is_done {
            // It goes without a word.
            return;
        }
        let pause = publisher.bus.count_failure("publisher", &end, &mut backoff);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = publisher.bus.ending.cancelled() => tokio::time::sleep(ENDING_PAUSE).await,
        }
    }
}

/// What to do next over a connection.
#[derive(Debug)]
pub(super) enum Step {
    /// Wait until then, so that what comes meanwhile shares the next message.
    Gather(Instant),
    /// Send a purge, with its number; and whether it was sent before.
    Send(u64, Purge, bool),
    /// Say that the process is there, by its question if it has one.
    SayHello(Option<Question>),
    /// Tell those who have just begun which purges are known here.
    SayReport(Report),
    /// Take leave: all is told, and the process ends.
    SayBye,
    /// There is nothing to do.
    Rest,
}

pub(super) struct Publisher {
    bus: Arc<Bus>,
    breaks: watch::Receiver<u64>,
    has_connected: bool,
    /// What was told has to be looked for.
    may_have_lost: bool,
    sent_at: Option<Instant>,
    hello_at: Option<Instant>,
    hello_refused_at: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(bus: Arc<Bus>) -> Self {
        let (sent_at, hello_at, hello_refused_at) = (None, None, None);
        Self {
            breaks: bus.breaks.subscribe(),
            bus,
            has_connected: false,
            may_have_lost: false,
            sent_at,
            hello_at,
            hello_refused_at,
        }
    }

    /// Before a connection is made. Returns whether that follows the reader.
    pub(super) fn begin(&mut self) -> bool {
        self.may_have_lost |= self.breaks.has_changed().unwrap_or_default();
        self.breaks.mark_unchanged();
        self.may_have_lost
    }

    /// A connection is made, to the server that says to be this one. Returns what may be lost there.
    pub(super) fn opened(&mut self, has_followed: bool, identity: Option<&Identity>) -> Vec<(u64, StreamId)> {
        let is_first = !std::mem::replace(&mut self.has_connected, true);
        // A server that does not say which one it is has to be believed to be the reader's: else each would follow the
        // other for ever.
        let is_believed = identity.is_none() && (has_followed || is_first);
        if !is_believed && self.bus.follower.lock().may_be_elsewhere(identity) {
            self.bus.resets.send_modify(|resets| *resets += 1);
        }
        if self.may_have_lost { self.bus.outbox.lock().to_look_for(self.bus.clock.now()) } else { Vec::new() }
    }

    /// What may be lost was looked for, and each found or not.
    pub(super) fn looked_for(&mut self, told: &[(u64, StreamId)], found: &[bool]) {
        self.may_have_lost = false;
        let mut outbox = self.bus.outbox.lock();
        let lost = told.iter().zip(found).filter(|((number, _), is_found)| {
            outbox.looked_for(*number, **is_found);
            !**is_found
        });
        let lost = lost.count();
        drop(outbox);
        if lost > 0 {
            tracing::warn!(messages = lost, "Valkey has lost what was told; it is told again");
        }
    }

    /// What to do next, unless another connection has to be made.
    pub(super) fn next_step(&mut self) -> Result<Step, End> {
        let (bus, now) = (&self.bus, self.bus.clock.now());
        if self.breaks.has_changed().unwrap_or_default() {
            return Err(ANOTHER_SERVER);
        }
        let mut outbox = bus.outbox.lock();
        if !bus.ending.is_cancelled() && outbox.is_unheard(bus.polls()) {
            // Both to the same server, and look there.
            self.may_have_lost = true;
            bus.resets.send_modify(|resets| *resets += 1);
            return Err(End::GivenUp("what was told does not come back"));
        }
        // Who hears the last number misses what is not taken yet.
        if outbox.is_all_taken() {
            if self.is_hello_due(now) {
                // Before it is said: the reader may need another one behind it.
                bus.needs_hello.store(false, Ordering::Release);
                return Ok(Step::SayHello(bus.question.lock().take()));
            }
            if let Some(report) = bus.due_report(now) {
                return Ok(Step::SayReport(report));
            }
        }
        let gathers_until = self.sent_at.map(|at| at + GATHER).filter(|at| now < *at);
        if let Some(until) = gathers_until.filter(|_| outbox.is_next_new()) {
            return Ok(Step::Gather(until));
        }
        if let Some((number, purge, is_again)) = outbox.next_to_send(now) {
            self.sent_at = Some(now);
            return Ok(Step::Send(number, purge, is_again));
        }
        if bus.ending.is_cancelled() {
            return Ok(Step::SayBye);
        }
        Ok(Step::Rest)
    }

    /// Over one connection, until that ends or all is told at the end of the process.
    async fn tell(&mut self, backoff: &mut Backoff) -> Result<(), End> {
        let bus = Arc::clone(&self.bus);
        let has_followed = self.begin();
        let opened = bus.connect("railgate-publisher", backoff).await?;
        let connection = opened.connection;
        let told = self.opened(has_followed, opened.identity.as_ref());
        let ids: Vec<StreamId> = told.iter().map(|(_, id)| *id).collect();
        let found = connection.exist(&bus.stream, &ids).await?;
        self.looked_for(&told, &found);
        loop {
            match self.next_step()? {
                Step::Gather(until) => {
                    tokio::time::sleep_until(until.into()).await;
                    continue;
                }
                Step::Send(number, purge, is_again) => {
                    self.send(&connection, number, purge, is_again).await?;
                    backoff.worked();
                    continue;
                }
                Step::SayHello(question) => {
                    let message = question.map_or(Message::Hello, Message::Ask);
                    let said = self.say(&connection, &message).await;
                    self.said_hello(question, said)?;
                    continue;
                }
                Step::SayReport(report) => {
                    self.said_report(self.say(&connection, &Message::Report(report)).await)?;
                    continue;
                }
                Step::SayBye => return Ok(self.say(&connection, &Message::Bye).await?),
                Step::Rest => {}
            }
            let rest = self.rest();
            tokio::select! {
                () = bus.to_send.notified() => {}
                () = bus.ending.cancelled() => {}
                // The sender is in the bus.
                _ = self.breaks.changed() => {
                    self.may_have_lost = true;
                    return Err(ANOTHER_SERVER);
                }
                () = bus.servers.replaced(&opened.address) => return Err(ANOTHER_MASTER),
                () = connection.ended() => return Err(End::GivenUp("the server has closed the connection")),
                () = tokio::time::sleep(rest) => {
                    connection.ping().await?;
                    backoff.worked();
                    bus.outbox.lock().forget(bus.clock.now());
                }
            }
        }
    }

    /// Sends a message. One that is refused is left in the outbox.
    async fn send(
        &self,
        connection: &Connection,
        number: u64,
        purge: Purge,
        is_again: bool,
    ) -> Result<(), End> {
        let bus = &self.bus;
        match self.add(connection, number, &Message::Purge(purge)).await {
            Ok(id) => {
                let told = self.confirm(connection).await;
                bus.outbox.lock().taken(number, id, bus.polls(), told);
                bus.counters.again.fetch_add(is_again.into(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) if is_lasting(&error) => {
                bus.outbox.lock().refused();
                bus.warn_of_refusal(&error);
                tokio::select! {
                    () = tokio::time::sleep(REFUSAL_PAUSE) => Ok(()),
                    () = bus.ending.cancelled() => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn add(
        &self,
        connection: &Connection,
        number: u64,
        message: &Message,
    ) -> Result<StreamId, ConnectionError> {
        let envelope = self.bus.seal.seal(number, message).ok_or(ConnectionError::Unexpected("seal"))?;
        connection.add(&self.bus.stream, &envelope, self.bus.settings.bus_entries).await
    }

    /// Whether as many replicas as are asked for have it.
    async fn confirm(&self, connection: &Connection) -> Told {
        let replicas = self.bus.settings.replicas;
        if replicas == 0 {
            return Told::Told;
        }
        match connection.wait(replicas).await {
            Ok(count) if count >= replicas.into() => Told::Told,
            Ok(_) | Err(_) => Told::Unconfirmed,
        }
    }

    /// How long nothing is done, if nothing comes.
    pub(super) fn rest(&self) -> Duration {
        let answer_at = self.bus.questions.lock().answer_at();
        let until_answer = answer_at.map(|at| at.saturating_duration_since(self.bus.clock.now()));
        until_answer.unwrap_or(PING_INTERVAL).min(PING_INTERVAL)
    }

    fn is_hello_due(&self, now: Instant) -> bool {
        let is_over = |at: Option<Instant>, pause| at.is_none_or(|at| now >= at + pause);
        let is_needed = self.bus.needs_hello.load(Ordering::Acquire) || self.bus.question.lock().is_some();
        (is_needed || is_over(self.hello_at, HELLO_INTERVAL)) && is_over(self.hello_refused_at, REFUSAL_PAUSE)
    }

    /// Hello was said, or could not be: then it is still needed.
    pub(super) fn said_hello(
        &mut self,
        question: Option<Question>,
        said: Result<(), ConnectionError>,
    ) -> Result<(), ConnectionError> {
        let Err(error) = said else {
            self.hello_at = Some(self.bus.clock.now());
            return Ok(());
        };
        self.bus.needs_hello.store(true, Ordering::Release);
        if let Some(question) = question {
            self.bus.question.lock().get_or_insert(question);
        }
        if !is_lasting(&error) {
            return Err(error);
        }
        self.hello_refused_at = Some(self.bus.clock.now());
        self.bus.warn_of_refusal(&error);
        Ok(())
    }

    /// A report was told, or not: then those who have asked ask Rails, or another gateway has more luck.
    pub(super) fn said_report(&self, said: Result<(), ConnectionError>) -> Result<(), ConnectionError> {
        match said {
            Ok(()) => {
                if let Some(shared) = &self.bus.shared {
                    shared.counters().reports.increment(ReportEvent::Told);
                }
                Ok(())
            }
            Err(error) if is_lasting(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Something that has no number of its own.
    async fn say(&self, connection: &Connection, message: &Message) -> Result<(), ConnectionError> {
        let number = self.bus.outbox.lock().last_number();
        self.add(connection, number, message).await.map(|_| ())
    }
}

/// Whether the server will say the same over another connection. A server that has become a replica is another one
/// next time.
pub(super) fn is_lasting(error: &ConnectionError) -> bool {
    error.is_refusal() && error.code() != Some("READONLY")
}

#[cfg(test)]
mod tests;
