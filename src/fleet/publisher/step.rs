//! What the publisher does next, and what follows from what became of it. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::fleet::bus::{Bus, End};
use crate::fleet::connection::ConnectionError;
use crate::fleet::message::{HELLO_INTERVAL, Message, Purge};
use crate::fleet::report::{Question, Report};
use crate::fleet::shared::counters::ReportEvent;
use crate::fleet::stream::{Entry, Envelope, Identity, StreamId};

/// Messages with something new are no closer together, so that purges which come together share one: each costs every
/// gateway a wake-up.
const GATHER: Duration = Duration::from_millis(2);

/// How often the server is asked whether it is still there. So a dead connection is known before something is to be
/// told.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before something that Valkey has refused is tried again.
pub(in crate::fleet) const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// This connection may be one to the server of before.
pub(super) const ANOTHER_SERVER: End = End::GivenUp("the reader has found another server, or another stream");

/// What to do next over a connection.
#[derive(Debug)]
pub(in crate::fleet) enum Step {
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

pub(in crate::fleet) struct Publisher {
    pub(super) bus: Arc<Bus>,
    pub(super) breaks: watch::Receiver<u64>,
    has_connected: bool,
    /// What was told has to be looked for.
    pub(super) may_have_lost: bool,
    sent_at: Option<Instant>,
    hello_at: Option<Instant>,
    hello_refused_at: Option<Instant>,
}

impl Publisher {
    pub(in crate::fleet) fn new(bus: Arc<Bus>) -> Self {
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
    pub(in crate::fleet) fn begin(&mut self) -> bool {
        self.may_have_lost |= self.breaks.has_changed().unwrap_or_default();
        self.breaks.mark_unchanged();
        self.may_have_lost
    }

    /// A connection is made, to the server that says to be this one. Returns what may be lost there.
    pub(in crate::fleet) fn opened(
        &mut self,
        has_followed: bool,
        identity: Option<&Identity>,
    ) -> Vec<(u64, StreamId)> {
        let is_first = !std::mem::replace(&mut self.has_connected, true);
        // A server that does not say which one it is has to be believed to be the reader's: else each would follow the
        // other for ever.
        let is_believed = identity.is_none() && (has_followed || is_first);
        if !is_believed && self.bus.follower.lock().may_be_elsewhere(identity) {
            self.bus.resets.send_modify(|resets| *resets += 1);
        }
        if self.may_have_lost { self.bus.outbox.lock().to_look_for(self.bus.clock.now()) } else { Vec::new() }
    }

    /// The numbers of what was told, and whether it is in its place, by what was found there.
    pub(in crate::fleet) fn are_there(
        &self,
        told: &[(u64, StreamId)],
        found: &[Option<Entry>],
    ) -> Vec<(u64, bool)> {
        let is_there = |((number, _), entry): (&(u64, StreamId), &Option<Entry>)| {
            (*number, entry.as_ref().is_some_and(|entry| self.is_own_purge(*number, entry)))
        };
        told.iter().zip(found).map(is_there).collect()
    }

    /// All that may be lost was looked for, and is there or not.
    pub(in crate::fleet) fn looked_for(&mut self, are_there: &[(u64, bool)]) {
        self.may_have_lost = false;
        let mut outbox = self.bus.outbox.lock();
        let lost =
            are_there.iter().filter(|(number, is_there)| outbox.looked_for(*number, *is_there)).count();
        drop(outbox);
        if lost > 0 {
            tracing::warn!(messages = lost, "Valkey has lost what was told; it is told again");
        }
    }

    /// Whether this is the purge of this process with that number. Once the last entries are lost, others can come to their
    /// places: a stream that is ahead of the server's clock counts on from what is left.
    fn is_own_purge(&self, number: u64, entry: &Entry) -> bool {
        let seal = &self.bus.seal;
        let envelope = entry.envelope.as_ref();
        // A hello has the number of the purge before.
        envelope
            .filter(|envelope| envelope.publisher == seal.publisher() && envelope.number == number)
            .is_some_and(|envelope| matches!(seal.open(envelope), Some(Message::Purge(_))))
    }

    /// What to do next, unless another connection has to be made.
    pub(in crate::fleet) fn next_step(&mut self) -> Result<Step, End> {
        let (bus, now) = (&self.bus, self.bus.clock.now());
        if self.breaks.has_changed().unwrap_or_default() {
            return Err(ANOTHER_SERVER);
        }
        // Who ends does not look again, or begin anew: what is left is to be told.
        if !bus.ending.is_cancelled() && bus.follower.lock().misses_echo(bus.polls()) {
            // Both to the same server, and look there.
            self.may_have_lost = true;
            bus.resets.send_modify(|resets| *resets += 1);
            return Err(End::GivenUp("what was told does not come back"));
        }
        let mut outbox = bus.outbox.lock();
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

    /// A message as it is to be sent now.
    pub(in crate::fleet) fn seal(&self, number: u64, message: &Message) -> Option<Envelope> {
        let envelope = self.bus.seal.seal(number, message)?;
        self.bus.follower.lock().echoes.sending(&envelope.sealed);
        Some(envelope)
    }

    /// Valkey has put there what was sent last. An error if no reader gets there, since the stream goes backwards: then both
    /// have to begin anew. The error has where to put it once more: there, all that have read no more than this process hear it,
    /// and what comes next. It is no place that can be foreseen: those that have read more, in a stream that is lost, would
    /// find the entry there that they have read last, and miss what is below it. Whether something of before does not come
    /// back is for the [next step](Self::next_step), once this one is known to be taken.
    pub(in crate::fleet) fn taken(&self, id: StreamId) -> Result<(), StreamId> {
        let bus = &self.bus;
        let taken = bus.follower.lock().taken(id, bus.polls());
        taken.map_err(|last_read| {
            bus.resets.send_modify(|resets| *resets += 1);
            last_read.behind(fastrand::u32(..))
        })
    }

    /// How long nothing is done, if nothing comes.
    pub(in crate::fleet) fn rest(&self) -> Duration {
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
    pub(in crate::fleet) fn said_hello(
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
    pub(in crate::fleet) fn said_report(
        &self,
        said: Result<(), ConnectionError>,
    ) -> Result<(), ConnectionError> {
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
}

/// Whether the server will say the same over another connection. A server that has become a replica is another one
/// next time.
pub(in crate::fleet) fn is_lasting(error: &ConnectionError) -> bool {
    error.is_refusal() && error.code() != Some("READONLY")
}

#[cfg(test)]
mod tests;
