//! What this process knows of the stream, and what follows from what it reads. Pure: time comes in as an argument.
//!
//! Nothing that Valkey says is taken for complete. Three proofs are asked for, each where the others are blind:
//!
//! | proof | fails if |
//! |---|---|
//! | identity: the server is in the same life as before | it was restarted, replaced, or promoted, and what it had taken last is lost |
//! | anchor: the entry that was read last is still in the stream, when the next ones have come | the stream was flushed, removed, evicted, renamed, made anew, or trimmed past this reader |
//! | count: each process numbers what it says | an entry in the middle was removed |
//!
//! Without one, the reader [doubts](crate::cache::Cache::doubt_all) what it keeps at once, and sets a new anchor. Once there
//! is one, it doubts again if it could not do both in one step: nothing proves what came between the two, for however long
//! the stream stayed empty.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::counters::{DoubtReason, Unreadable};
use super::message::{Message, MessageSeal, Publisher, Purge};
use super::report::{PurgeCounts, Question, Report};
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
    /// There is an anchor again. What came between the doubt and the anchor may have been missed, too.
    DoubtAgain,
    /// An entry is no message of the fleet.
    Unreadable(Unreadable),
    /// Another gateway has just begun, and asks which purges are known.
    Ask(Question),
    /// Another gateway tells which it knows. What it has heard of before this process began to listen is in it.
    Report(Report),
}

/// Another gateway, as it is known from what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name of its process.
    pub publisher: Publisher,
    /// When it was heard last.
    pub heard_at: Instant,
    /// How many purges it has told since it began.
    pub purges: u64,
}

/// How long a process is remembered after its last word. It says hello once a minute.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(3_600);

/// How many processes are remembered: each start of a gateway adds one for an hour.
const MAX_MEMBERS: usize = 10_000;

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
    members: HashMap<Publisher, Heard>,
}

/// What was heard of a process.
#[derive(Debug)]
struct Heard {
    /// The greatest number.
    last: u64,
    /// The greatest number that was read again: what it counts was told before the anchor.
    before_anchor: u64,
    /// The lower ones that were not heard.
    missing: Vec<RangeInclusive<u64>>,
    at: Instant,
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
            members: HashMap::new(),
        }
    }

    /// A connection is open. Returns whether the stream has to be [begun anew](Self::begin): else it goes on behind the anchor.
    pub fn connected(&mut self, identity: Option<Identity>) -> bool {
        let is_same = identity.is_some() && self.identity == identity;
        (self.identity, self.has_connected) = (identity, true);
        if !is_same {
            self.lose_anchor(DoubtReason::Server);
        }
        self.pending.is_some()
    }

    /// Whether the publisher, which is at this server, may be at another one than the reader: behind a virtual address, a
    /// connection to the server of before may live on. Those that do not say which one they are cannot be told apart.
    pub fn may_be_elsewhere(&self, identity: Option<&Identity>) -> bool {
        self.has_connected && (identity.is_none() || self.identity.as_ref() != identity)
    }

    fn lose_anchor(&mut self, reason: DoubtReason) {
        self.anchor = None;
        let doubt = self.pending.take().filter(|pending| *pending != News::DoubtAgain);
        self.pending = doubt.or(Some(News::Doubt(reason)));
    }

    /// The stream is read from behind `last` on, which is its last entry now. Returns what is to be doubted now. An empty
    /// stream has no anchor: then nothing is proven until its first entry has come, which Valkey may refuse to take for
    /// any time.
    pub fn begin(&mut self, last: Option<StreamId>, now_ms: u64) -> Vec<News> {
        self.anchor = last;
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
            news.extend(self.hear(entry, seal, now, &mut has_gap));
            self.anchor = Some(entry.id);
        }
        if has_gap {
            news.push(News::Doubt(DoubtReason::Counter));
        }
        if had_anchor && !anchor_found {
            self.lose_anchor(DoubtReason::Anchor);
            news.extend(self.doubt_without_anchor());
        } else if self.anchor.is_some() {
            news.extend(self.doubt_pending(now_ms));
        }
        news.sort_by_key(|one| matches!(one, News::Ask(_) | News::Report(_)));
        self.forget(now);
        news
    }

    /// Entries of before the anchor, which are doubted already, for what Rails may still tell wrongly, and for who is
    /// there.
    pub fn reread(&mut self, entries: &[Entry], seal: &MessageSeal, now: Instant) -> Vec<News> {
        let mut purges = Vec::new();
        for entry in entries {
            let Some(envelope) = &entry.envelope else { continue };
            let Some(message) = seal.open(envelope) else { continue };
            if envelope.publisher == self.own {
                continue;
            }
            let is_known = self.members.contains_key(&envelope.publisher);
            let (is_new, _) = self.note(envelope.publisher, envelope.number, &message, now);
            if let Some(heard) = self.members.get_mut(&envelope.publisher) {
                heard.before_anchor = heard.last;
            }
            if let Message::Purge(purge) = message {
                let news = if is_known && is_new { News::Purge } else { News::Reread };
                purges.push(news(entry.id, purge));
            }
        }
        purges
    }

    fn hear(&mut self, entry: &Entry, seal: &MessageSeal, now: Instant, has_gap: &mut bool) -> Option<News> {
        let Some(envelope) = &entry.envelope else { return Some(News::Unreadable(Unreadable::Fields)) };
        let Some(message) = seal.open(envelope) else { return Some(News::Unreadable(Unreadable::Seal)) };
        let (publisher, number) = (envelope.publisher, envelope.number);
        if publisher == self.own {
            let Message::Purge(purge) = message else { return None };
            return Some(News::Echo(entry.id, number, purge));
        }
        let (is_new, gap) = self.note(publisher, number, &message, now);
        *has_gap |= gap;
        match message {
            Message::Purge(purge) if is_new => Some(News::Purge(entry.id, purge)),
            Message::Ask(question) => Some(News::Ask(question)),
            Message::Report(report) => Some(News::Report(report)),
            Message::Purge(_) | Message::Hello | Message::Bye => None,
        }
    }

    /// Whether a purge is heard for the first time, and whether others of its process were not heard. A process of which
    /// nothing was heard, not even when the stream was read again, has told none, or its words were removed.
    fn note(&mut self, publisher: Publisher, number: u64, message: &Message, now: Instant) -> (bool, bool) {
        let unheard = || Heard { last: 0, before_anchor: 0, missing: Vec::new(), at: now };
        let heard = self.members.entry(publisher).or_insert_with(unheard);
        heard.at = now;
        let (is_new, gap) = heard.note(number, matches!(message, Message::Purge(_)));
        if *message == Message::Bye {
            self.members.remove(&publisher);
        }
        (is_new, gap)
    }

    fn notice_far_ahead(&mut self, now_ms: u64) -> Option<DoubtReason> {
        let was = self.is_far_ahead;
        self.is_far_ahead =
            self.anchor.is_some_and(|last| last.milliseconds > now_ms.saturating_add(FAR_AHEAD_MS));
        (self.is_far_ahead && !was).then_some(DoubtReason::Future)
    }

    fn forget(&mut self, now: Instant) {
        self.members.retain(|_, heard| now.saturating_duration_since(heard.at) <= MEMBER_TIMEOUT);
        while self.members.len() > MAX_MEMBERS {
            let Some(oldest) = self.members.iter().min_by_key(|(_, heard)| heard.at).map(|(name, _)| *name)
            else {
                break;
            };
            self.members.remove(&oldest);
        }
    }

    /// How many purges each other process has told, as far as it has said so. Those that are not named have told none.
    pub fn heard(&self) -> PurgeCounts {
        let told = self.members.iter().filter(|(_, heard)| heard.last > 0);
        told.map(|(publisher, heard)| (*publisher, heard.last)).collect()
    }

    /// Whether who has heard this has heard of all purges that were told before the anchor, as far as this process knows of
    /// them. Of those that were told since, it knows itself whether it has heard them.
    pub fn is_covered_by(&self, heard: &[(Publisher, u64)]) -> bool {
        let heard: HashMap<Publisher, u64> = heard.iter().copied().collect();
        let mut told = self.members.iter().map(|(publisher, told)| (publisher, told.before_anchor));
        told.all(|(publisher, count)| heard.get(publisher).copied().unwrap_or_default() >= count)
    }

    /// How many other processes have said something and not taken their leave.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// These processes, by name.
    pub fn members(&self) -> Vec<Member> {
        let member = |(publisher, heard): (&Publisher, &Heard)| Member {
            publisher: *publisher,
            heard_at: heard.at,
            purges: heard.last,
        };
        let mut members: Vec<Member> = self.members.iter().map(member).collect();
        members.sort_by_key(|member| member.publisher);
        members
    }
}

/// How many gaps are remembered of one process. With more, what lies between two is heard twice.
const MAX_GAPS: usize = 64;

impl Heard {
    /// Whether this number is heard for the first time, and whether there are lower ones that never were, though a greater one
    /// tells of them just now. A message that `is_counted` has the number itself; any other one the last number
    /// before it.
    fn note(&mut self, number: u64, is_counted: bool) -> (bool, bool) {
        if number <= self.last {
            return (is_counted && self.fill(number), false);
        }
        let before = if is_counted { number - 1 } else { number };
        let has_gap = before > self.last;
        if has_gap {
            self.missing.push(self.last + 1..=before);
        }
        if let [one, other, ..] = &self.missing[..]
            && self.missing.len() > MAX_GAPS
        {
            let both = *one.start()..=*other.end();
            self.missing.splice(..2, [both]);
        }
        self.last = number;
        (is_counted, has_gap)
    }

    /// Whether the number was missing; it is not any more.
    fn fill(&mut self, number: u64) -> bool {
        let Some(at) = self.missing.iter().position(|gap| gap.contains(&number)) else { return false };
        let gap = self.missing.remove(at);
        let parts = [*gap.start()..=number - 1, number + 1..=*gap.end()];
        self.missing.splice(at..at, parts.into_iter().filter(|part| !part.is_empty()));
        true
    }
}

#[cfg(test)]
mod tests;
