//! Hears what the others tell, over a connection of its own: whatever else is sent over one that waits has to wait, too.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::backoff::{Backoff, LONGEST_OF_READER};
use super::bus::{ANOTHER_MASTER, Bus, End};
use super::connection::ConnectionError;
use super::counters::DoubtReason;
use super::follower::News;
use super::members::Silent;
use super::message::{HELLO_INTERVAL, Purge};
use super::report::{Question, Report};
use super::stream::{Entry, Poll, StreamId};

/// How many entries one poll brings at most. With fewer, it is complete. Halved when a reply is late or too large: many of
/// the largest messages take their time, and a writer of Valkey can add larger ones.
const MAX_ENTRIES: usize = 256;

/// How much of the stream is read again after a doubt. What Rails is asked for after the doubt may still be old, if what
/// changed it was told before: it is dropped once more after its settle time, as by those who heard it at once. And each
/// process has said something in that time, by which its purges are counted.
const REREAD: Duration = HELLO_INTERVAL.saturating_mul(2);
const MAX_REREAD_PAGES: usize = 64;

/// Polls that bring all there is are no closer together: under load, one brings what many publishers have told, and there are
/// servers that do not wait.
const COALESCE: Duration = Duration::from_millis(2);

/// How many silent gateways one line of the log names.
const MAX_NAMED: usize = 10;

/// The first poll asks what there is, and does not wait.
const NO_WAIT: Duration = Duration::from_millis(1);

/// Listens for as long as the gateway runs.
pub(super) async fn read(bus: Arc<Bus>) {
    let mut reader = Reader::new(bus);
    let mut backoff = Backoff::new(LONGEST_OF_READER);
    loop {
        let Err(end) = reader.follow(&mut backoff).await;
        if matches!(&end, End::Failed(error) if error.is_of_length()) {
            reader.max_entries = (reader.max_entries / 2).max(1);
        }
        tokio::time::sleep(reader.bus.count_failure("reader", &end, &mut backoff)).await;
    }
}

/// Entries of the stream that are on their way.
pub(super) trait Range: Future<Output = Result<Vec<Entry>, ConnectionError>> {}

impl<F: Future<Output = Result<Vec<Entry>, ConnectionError>>> Range for F {}

pub(super) struct Reader {
    bus: Arc<Bus>,
    resets: watch::Receiver<u64>,
    max_entries: usize,
}

impl Reader {
    pub(super) fn new(bus: Arc<Bus>) -> Self {
        Self { resets: bus.resets.subscribe(), bus, max_entries: MAX_ENTRIES }
    }

    /// Over one connection, until that ends.
    async fn follow(&mut self, backoff: &mut Backoff) -> Result<Infallible, End> {
        let bus = Arc::clone(&self.bus);
        self.resets.mark_unchanged();
        let opened = bus.connect("railgate-reader", backoff).await?;
        let connection = opened.connection;
        let range = |from, count| connection.range(&bus.stream, from, count);
        let is_anew = bus.follower.lock().connected(opened.identity.clone());
        if is_anew {
            self.begin(&range, opened.last_id).await?;
        }
        if let Some(shared) = &bus.shared {
            shared.follow(opened.identity);
        }
        let mut wait = NO_WAIT;
        loop {
            let (from, begin) = (bus.follower.lock().read_from(), bus.clock.now());
            let poll = tokio::select! {
                poll = connection.poll(&bus.stream, from, (wait, self.max_entries)) => poll?,
                () = bus.servers.replaced(&opened.address) => return Err(ANOTHER_MASTER),
                // The sender is in the bus.
                _ = self.resets.changed() => return Err(End::GivenUp("the publisher is not heard")),
            };
            if !poll.is_master {
                return Err(ConnectionError::NotMaster.into());
            }
            let is_complete = self.hear(&poll);
            if bus.follower.lock().anchor().is_none() && from != StreamId::default() {
                let last = connection.last_id(&bus.stream).await?;
                self.begin(&range, last).await?;
            }
            backoff.worked(bus.clock.now());
            self.max_entries = (self.max_entries * 2).min(MAX_ENTRIES);
            wait = if is_complete { bus.settings.poll } else { NO_WAIT };
            if is_complete {
                tokio::time::sleep_until((begin + COALESCE).into()).await;
            }
        }
    }

    /// Returns whether these were all entries that there were.
    pub(super) fn hear(&self, poll: &Poll) -> bool {
        let bus = &self.bus;
        let (now, now_ms) = (bus.clock.now(), bus.unix_ms());
        let is_complete = poll.entries.len() < self.max_entries;
        let judges_silence = is_complete && bus.condition.lock().judges_silence(now);
        let (news, has_anchor) = {
            let mut follower = bus.follower.lock();
            let read = (&poll.entries[..], poll.anchor_found);
            let mut news = follower.polled(read, &bus.seal, (now, now_ms));
            let has_anchor = follower.anchor().is_some();
            if judges_silence && has_anchor {
                // Before questions and reports.
                news.splice(..0, follower.notice_silence((now, now_ms)));
            }
            (news, has_anchor)
        };
        self.apply(news, now);
        if let Some(shared) = &bus.shared
            && let Some(entry) = poll.entries.last()
        {
            shared.advance(entry.id);
        }
        if is_complete && has_anchor {
            bus.complete();
        }
        is_complete
    }

    /// Sets `last` as the new anchor, if there is one, doubts what is kept, and hears what was told a short time before.
    pub(super) async fn begin<F: Range>(
        &self,
        range: impl Fn(StreamId, usize) -> F,
        last: Option<StreamId>,
    ) -> Result<(), ConnectionError> {
        let bus = &self.bus;
        let news = bus.follower.lock().begin(last, (bus.clock.now(), bus.unix_ms()));
        let is_start = news.contains(&News::Doubt(DoubtReason::Start));
        self.apply(news, bus.clock.now());
        bus.breaks.send_modify(|breaks| *breaks += 1);
        let Some(last) = last else {
            bus.needs_hello.store(true, Ordering::Release);
            bus.to_send.notify_one();
            return Ok(());
        };
        if is_start {
            self.ask();
        }
        let reread = self.reread(range, last).await;
        if !matches!(reread, Ok(true)) {
            // Not all of it: whatever Rails tells meanwhile is doubted. The next connection goes on behind the anchor.
            bus.purger.doubt_later(bus.clock.now() + REREAD);
        }
        reread.map(|_| ())
    }

    /// Returns whether that was all: there may be more purges than can be read again.
    async fn reread<F: Range>(
        &self,
        range: impl Fn(StreamId, usize) -> F,
        last: StreamId,
    ) -> Result<bool, ConnectionError> {
        let back_ms = u64::try_from(REREAD.as_millis()).unwrap_or(u64::MAX);
        let mut from = StreamId::from_milliseconds(last.milliseconds.saturating_sub(back_ms));
        for _ in 0..MAX_REREAD_PAGES {
            let mut entries = range(from, self.max_entries).await?;
            let is_last = entries.len() < self.max_entries;
            entries.retain(|entry| entry.id <= last);
            let now = self.bus.clock.now();
            let news = self.bus.follower.lock().reread(&entries, &self.bus.seal, (now, self.bus.unix_ms()));
            self.apply(news, now);
            match entries.last() {
                Some(entry) if !is_last && entry.id < last => from = entry.id.next(),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// It forbids to use shared answers, before anything else is done with it.
    fn note(&self, id: StreamId, purge: &Purge) {
        if let Some(shared) = &self.bus.shared {
            shared.heard(id, purge, &self.bus.clock);
        }
    }

    fn lose_purges(&self) {
        let bus = &self.bus;
        if let Some(shared) = &bus.shared {
            shared.lose(bus.follower.lock().anchor(), &bus.clock);
        }
    }

    /// Asks the others which purges they know.
    fn ask(&self) {
        let bus = &self.bus;
        if let Some(shared) = &bus.shared {
            *bus.question.lock() = shared.ask();
            bus.to_send.notify_one();
        }
    }

    fn take_question(&self, question: Question, now: Instant) {
        let bus = &self.bus;
        if bus.shared.is_some() {
            let own = (bus.seal.publisher(), bus.outbox.lock().last_number());
            let follower = bus.follower.lock();
            let (members, mut heard) = (follower.members.count(), follower.members.counts());
            drop(follower);
            heard.push(own);
            bus.questions.lock().asked(question, now, heard, (members, fastrand::f64()));
            bus.to_send.notify_one();
        }
    }

    fn take_report(&self, report: &Report, now: Instant) {
        let bus = &self.bus;
        let Some(shared) = &bus.shared else { return };
        let is_complete = bus.follower.lock().members.are_covered_by(&report.heard);
        let answers_all = shared.learn(report, is_complete, &bus.clock);
        let mut questions = bus.questions.lock();
        questions.reported(now);
        if answers_all {
            questions.answered(&report.questions, &report.heard);
        }
    }

    /// Several doubts are one for what is shared, whose purges would be forgotten the second time. The others are asked behind
    /// the last one, which would make their answers worthless.
    fn apply(&self, news: Vec<News>, now: Instant) {
        let bus = &self.bus;
        let (mut has_lost, mut asks) = (false, false);
        for one in news {
            if one.is_doubt() && !std::mem::replace(&mut has_lost, true) {
                self.lose_purges();
            }
            match one {
                News::Purge(id, purge) => {
                    self.note(id, &purge);
                    bus.purger.push(purge, true, now);
                }
                News::Reread(id, purge) => {
                    self.note(id, &purge);
                    bus.purger.push(purge, false, now);
                }
                News::Echo(id, number, purge) => {
                    self.note(id, &purge);
                    bus.outbox.lock().heard(number, id);
                }
                News::Doubt(reason) => {
                    bus.purger.doubt(reason);
                    if reason == DoubtReason::Counter {
                        // Nor is what was missed dropped once more after its settle time.
                        bus.purger.doubt_later(now + REREAD);
                        // What is shared may be used again once another gateway has told what was missed.
                        asks = true;
                    }
                }
                News::Silence(silent) => {
                    warn_of_silence(&silent);
                    bus.purger.doubt(DoubtReason::Silence);
                }
                News::DoubtAgain => bus.cache.doubt_all(),
                News::Ask(question) => self.take_question(question, now),
                News::Report(report) => self.take_report(&report, now),
                News::Unreadable(what) => bus.counters.unreadable.increment(what),
            }
        }
        if asks && bus.follower.lock().anchor().is_some() {
            self.ask();
        }
    }
}

fn warn_of_silence(silent: &[Silent]) {
    let named: Vec<String> = silent.iter().take(MAX_NAMED).map(Silent::to_string).collect();
    tracing::warn!(
        gateways = silent.len(),
        processes = named.join(", "),
        "gateways have not said for 90 s that they are there, and have not taken leave"
    );
}

#[cfg(test)]
mod tests;
