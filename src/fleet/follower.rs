//! What this process knows of the stream, and what follows from what it reads. Pure: time comes in as an argument.
//!
//! Nothing that Valkey says is taken for complete. Five proofs are asked for, each where the others are blind:
//!
//! | proof | fails if |
//! |---|---|
//! | identity: the server is in the same life as before | it was restarted, replaced, or promoted, and what it had taken last is lost |
//! | anchor: the entry that was read last is still in the stream, when the next ones have come | the stream was flushed, removed, evicted, renamed, made anew, or trimmed past this reader |
//! | count: each process numbers what it says | an entry in the middle was removed |
//! | echo: what this process says comes back to it | the stream takes entries below the last one that was read, or some were removed |
//! | hello: each process says each minute that it is there | all was removed that one says, or it has ended without a word |
//!
//! Without one, the reader [doubts](crate::cache::Cache::doubt_all) what it keeps at once, and sets a new anchor. Once there
//! is one, it doubts again if it could not do both in one step: nothing proves what came between the two, for however long
//! the stream stayed empty.

use std::time::Instant;

use super::counters::{DoubtReason, Unreadable};
use super::echoes::Echoes;
use super::members::{MAX_SILENCE, Members, Noted, Silent};
use super::message::{Message, MessageSeal, Publisher, Purge};
use super::report::{Question, Report};
use super::stream::{Entry, Identity, StreamId};

/// What follows from entries of the stream, in their order.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Another gateway says that something is to be dropped.
    Purge(StreamId, Purge),
    /// The same, maybe for the second time: it was told before the anchor.
    Reread(StreamId, Purge),
    /// What this process has said itself, and dropped before.
    Echo(StreamId, u64, Purge),
    /// Something may have been missed.
    Doubt(DoubtReason),
    /// The same, since these do not say any more that they are there.
    Silence(Vec<Silent>),
    /// There is an anchor again. What came between the doubt and the anchor may have been missed, too.
    DoubtAgain,
    /// An entry is no message of the fleet.
    Unreadable(Unreadable),
    /// Another gateway has just begun, and asks which purges are known.
    Ask(Question),
    /// Another gateway tells which it knows. What it has heard of before this process began to listen is in it.
    Report(Report),
}

impl News {
    /// Whether something may have been missed.
    pub fn is_doubt(&self) -> bool {
        matches!(self, Self::Doubt(_) | Self::Silence(_) | Self::DoubtAgain)
    }
}

/// How far in the future an entry has to be so that it is no matter of clocks.
const FAR_AHEAD_MS: u64 = 3_600_000;

/// See the module.
#[derive(Debug)]
pub struct Follower {
    own: Publisher,
    /// Of the server that the anchor is on; `None` if it does not say.
    identity: Option<Identity>,
    has_connected: bool,
    /// The last entry that was read; `None` if the stream is empty.
    anchor: Option<StreamId>,
    /// What follows once there is an anchor: the doubt, or, if it did not wait for that, another one.
    pending: Option<News>,
    is_far_ahead: bool,
    /// What this process has said.
    pub(super) echoes: Echoes,
    /// Something of it has not come back.
    has_missed_echo: bool,
    /// The other processes.
    pub(super) members: Members,
    /// When the stream was begun last.
    begun_at: Option<Instant>,
    /// A process has said since that it had told something, of which nothing is known.
    has_strangers: bool,
}

impl Follower {
    /// For the process with this name, which has not read anything yet.
    pub fn new(own: Publisher) -> Self {
        let pending = Some(News::Doubt(DoubtReason::Start));
        Self {
            own,
            identity: None,
            has_connected: false,
            anchor: None,
            pending,
            is_far_ahead: false,
            echoes: Echoes::default(),
            has_missed_echo: false,
            members: Members::default(),
            begun_at: None,
            has_strangers: false,
        }
    }

    /// A connection is open. Returns whether the stream has to be [begun anew](Self::begin): else it goes on behind the anchor.
    pub fn connected(&mut self, identity: Option<Identity>) -> bool {
        let is_same = identity.is_some() && self.identity == identity;
        (self.identity, self.has_connected) = (identity, true);
        let has_missed_echo = std::mem::take(&mut self.has_missed_echo);
        if !is_same {
            self.lose_anchor(DoubtReason::Server);
        } else if has_missed_echo {
            self.lose_anchor(DoubtReason::Anchor);
        }
        self.pending.is_some()
    }

    /// Whether the publisher, which is at this server, may be at another one than the reader: behind a virtual address, a
    /// connection to the server of before may live on. Those that do not say which one they are cannot be told apart.
    pub fn may_be_elsewhere(&self, identity: Option<&Identity>) -> bool {
        self.has_connected && (identity.is_none() || self.identity.as_ref() != identity)
    }

    /// Valkey has put there what this process has said last, when so many polls were complete. An error if no reader gets there,
    /// since the stream goes backwards: the last entry that was read, behind which to put it once more.
    pub fn taken(&mut self, id: StreamId, polls: u64) -> Result<(), StreamId> {
        let is_readable = self.echoes.taken((id, polls), self.anchor);
        let Some(anchor) = self.anchor.filter(|_| !is_readable) else { return Ok(()) };
        self.miss_echo();
        Err(anchor)
    }

    /// Whether something that this process has said does not come back after so many polls. Then others may have been missed,
    /// too: the stream is [begun anew](Self::begin) over the next connection, which has to be made.
    pub fn misses_echo(&mut self, polls: u64) -> bool {
        let is_one_missing = self.echoes.is_one_missing(polls, self.anchor);
        if is_one_missing {
            self.miss_echo();
        }
        is_one_missing
    }

    fn miss_echo(&mut self) {
        self.echoes.clear();
        self.has_missed_echo = true;
    }

    fn lose_anchor(&mut self, reason: DoubtReason) {
        self.anchor = None;
        let doubt = self.pending.take().filter(|pending| *pending != News::DoubtAgain);
        self.pending = doubt.or(Some(News::Doubt(reason)));
    }

    /// The stream is read from behind `last` on, which is its last entry now. Returns what is to be doubted now. An empty
    /// stream has no anchor: then nothing is proven until its first entry has come, which Valkey may refuse to take for
    /// any time.
    pub fn begin(&mut self, last: Option<StreamId>, (now, now_ms): (Instant, u64)) -> Vec<News> {
        self.anchor = last;
        self.echoes.clear();
        (self.begun_at, self.has_strangers) = (Some(now), false);
        if last.is_none() { self.doubt_without_anchor() } else { self.doubt_pending(now_ms) }
    }

    fn doubt_without_anchor(&mut self) -> Vec<News> {
        let doubt = self.pending.replace(News::DoubtAgain);
        doubt.into_iter().filter(|doubt| *doubt != News::DoubtAgain).collect()
    }

    fn doubt_pending(&mut self, now_ms: u64) -> Vec<News> {
        let ahead = self.notice_far_ahead(now_ms).map(News::Doubt);
        self.pending.take().into_iter().chain(ahead).collect()
    }

    /// The last entry that was read, if it can prove that nothing was missed since.
    pub fn anchor(&self) -> Option<StreamId> {
        self.anchor
    }

    /// Behind which entry to read on. Reading from the first one on is no proof of anything.
    pub fn read_from(&self) -> StreamId {
        self.anchor.unwrap_or_default()
    }

    /// The next entries. Without `anchor_found`, the stream has to be [begun anew](Self::begin) after them. Questions and
    /// reports come last: a doubt is about what is known by then.
    pub fn polled(
        &mut self,
        (entries, anchor_found): (&[Entry], bool),
        seal: &MessageSeal,
        (now, now_ms): (Instant, u64),
    ) -> Vec<News> {
        let had_anchor = self.anchor.is_some();
        let mut news = Vec::new();
        let mut has_gap = false;
        for entry in entries {
            news.extend(self.hear(entry, seal, (now, now_ms), &mut has_gap));
            self.anchor = Some(entry.id);
        }
        if has_gap || self.is_stranger_due(now) {
            self.members.have_gaps();
            news.push(News::Doubt(DoubtReason::Counter));
        }
        if had_anchor && !anchor_found {
            self.lose_anchor(DoubtReason::Anchor);
            news.extend(self.doubt_without_anchor());
        } else if self.anchor.is_some() {
            news.extend(self.doubt_pending(now_ms));
        }
        news.sort_by_key(|one| matches!(one, News::Ask(_) | News::Report(_)));
        self.members.forget(now);
        news
    }

    /// Those that do not say any more that they are there. To be asked only once all was heard that there is: their words may be
    /// in what comes next.
    pub fn notice_silence(&mut self, times: (Instant, u64)) -> Option<News> {
        let silent = self.members.notice_silence(times);
        (!silent.is_empty()).then_some(News::Silence(silent))
    }

    /// Entries of before the anchor, which are doubted already, for what Rails may still tell wrongly, and for who is
    /// there.
    pub fn reread(&mut self, entries: &[Entry], seal: &MessageSeal, times: (Instant, u64)) -> Vec<News> {
        let mut purges = Vec::new();
        for entry in entries {
            let Some(envelope) = &entry.envelope else { continue };
            let Some(message) = seal.open(envelope) else { continue };
            if envelope.publisher == self.own {
                continue;
            }
            let noted = self.members.note(envelope.publisher, (envelope.number, &message), times);
            self.members.was_before_anchor(envelope.publisher, times);
            if let Message::Purge(purge) = message {
                let news = if noted.is_new && !noted.is_stranger { News::Purge } else { News::Reread };
                purges.push(news(entry.id, purge));
            }
        }
        purges
    }

    fn hear(
        &mut self,
        entry: &Entry,
        seal: &MessageSeal,
        times: (Instant, u64),
        has_gap: &mut bool,
    ) -> Option<News> {
        let Some(envelope) = &entry.envelope else { return Some(News::Unreadable(Unreadable::Fields)) };
        let Some(message) = seal.open(envelope) else { return Some(News::Unreadable(Unreadable::Seal)) };
        let (publisher, number) = (envelope.publisher, envelope.number);
        if publisher == self.own {
            self.echoes.read(entry.id, &envelope.sealed);
            let Message::Purge(purge) = message else { return None };
            return Some(News::Echo(entry.id, number, purge));
        }
        let noted = self.members.note(publisher, (number, &message), times);
        if self.is_early_stranger(noted, times.0) {
            self.has_strangers = true;
        } else {
            *has_gap |= noted.has_gap;
        }
        match message {
            Message::Purge(purge) if noted.is_new => Some(News::Purge(entry.id, purge)),
            Message::Hello { question, .. } => question.map(News::Ask),
            Message::Report(report) => Some(News::Report(report)),
            Message::Purge(_) | Message::Bye => None,
        }
    }

    /// Whether a process of which nothing is known says that it had told something, at a time at which that is no surprise:
    /// in a busy stream, its last hello may be trimmed already. What it had told before the anchor is doubted. What it has told
    /// since is heard, unless it was removed: for that, one more doubt is enough for all such processes, once each has
    /// said hello.
    fn is_early_stranger(&self, noted: Noted, now: Instant) -> bool {
        let is_early = self.begun_at.is_some_and(|at| now < at + MAX_SILENCE);
        noted.is_stranger && noted.has_gap && is_early
    }

    fn is_stranger_due(&mut self, now: Instant) -> bool {
        let is_due = self.has_strangers && self.begun_at.is_none_or(|at| now >= at + MAX_SILENCE);
        self.has_strangers &= !is_due;
        is_due
    }

    fn notice_far_ahead(&mut self, now_ms: u64) -> Option<DoubtReason> {
        let was = self.is_far_ahead;
        self.is_far_ahead =
            self.anchor.is_some_and(|last| last.milliseconds > now_ms.saturating_add(FAR_AHEAD_MS));
        (self.is_far_ahead && !was).then_some(DoubtReason::Future)
    }
}

#[cfg(test)]
mod tests;
