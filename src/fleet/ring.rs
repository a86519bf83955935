//! Which purges forbid to use an answer that another gateway has shared. Pure: time comes in as an argument.
//!
//! Nothing fences a shared answer off where it is kept: a purge may come while it is being written, or a server may bring
//! it back. So each carries its [`Origin`], and its reader compares that with the purges that it knows. There are two
//! reasons to refuse, either of which would do while all goes well:
//!
//! - A purge of it has a greater ID than the last one that was heard when Rails was asked. No clock is involved.
//! - A purge of it was accepted later than Rails was asked, or so shortly before that a replica behind Rails may still
//!   have told the old story, by the clocks of the gateways and the server. No order of IDs is involved, which
//!   a writer of the server can break.
//!
//! What is older than the oldest purge that the ring knows for certain is refused, too: at first, all from before the
//! gateway began to listen, until another one [reports](super::report) what it knows of that time.

use std::collections::HashMap;
use std::time::Duration;

use super::message::Purge;
use super::report::{KnownPurges, LastPurge, Question, Report};
use super::stream::StreamId;
use crate::cache::purge::Selector;

/// By how much the clocks of two gateways, or of one and the server, may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(2);

/// How many selectors are remembered.
const MAX_SELECTORS: usize = 100_000;

/// How many of them can be told. More do not fit into a report, however short they are.
const MAX_TOLD: usize = 4_000;

/// When Rails was asked for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// Milliseconds and sequence of the last ID of the stream whose flights had been fenced off by then.
    position: (u64, u64),
    /// In milliseconds since the Unix epoch, by the clock of the gateway that has asked.
    pub asked_at_ms: u64,
}

impl Origin {
    /// Asked at this place in the stream and time.
    pub fn new(position: StreamId, asked_at_ms: u64) -> Self {
        Self { position: (position.milliseconds, position.sequence), asked_at_ms }
    }

    fn position(self) -> StreamId {
        StreamId { milliseconds: self.position.0, sequence: self.position.1 }
    }
}

/// The last purges, by selector.
#[derive(Debug)]
pub struct Ring {
    /// User names are in lower case.
    purges: HashMap<Selector, LastPurge>,
    /// The last one of any user.
    of_users: LastPurge,
    /// All purges behind it are known, as far as they can still matter.
    floor: StreamId,
    /// What was asked for before is refused.
    asked_from_ms: u64,
    /// The last ID whose flights were fenced off.
    position: StreamId,
    /// What was asked of the others since something may have been missed last. Nothing else is learned from them.
    question: Option<Question>,
    /// For how long a purge can matter.
    kept_ms: u64,
    /// When it is time to forget old purges.
    prune_at: usize,
}

impl LastPurge {
    fn add(&mut self, other: Self) {
        self.id = self.id.max(other.id);
        self.until_ms = self.until_ms.max(other.until_ms);
    }

    fn forbids(self, origin: Origin) -> bool {
        self.id > origin.position() || self.until_ms.saturating_add(ms(CLOCK_SKEW)) > origin.asked_at_ms
    }

    fn is_needed(self, oldest_ms: u64) -> bool {
        self.until_ms >= oldest_ms
    }
}

impl Ring {
    /// Knows nothing, so it refuses everything. No answer is asked about that is older than `oldest_answer`; no gateway hears
    /// of a purge later than another one by more than `longest_delay`, or it does not share answers.
    pub fn new(oldest_answer: Duration, longest_delay: Duration) -> Self {
        Self {
            purges: HashMap::new(),
            of_users: LastPurge::default(),
            floor: StreamId::MAX,
            asked_from_ms: 0,
            position: StreamId::default(),
            question: None,
            kept_ms: ms(oldest_answer + longest_delay + 3 * CLOCK_SKEW),
            prune_at: 1_000,
        }
    }

    /// A purge was heard, or heard of. To be called before its flights are fenced off.
    pub fn heard(&mut self, id: StreamId, purge: &Purge, now_ms: u64) {
        // No clock is further ahead, unless it is wrong: what it says would outlive the purge by as much.
        let latest_ms = now_ms.saturating_add(ms(CLOCK_SKEW));
        let accepted_at_ms = purge.accepted_at_ms.max(id.milliseconds).min(latest_ms);
        self.add(purge, LastPurge { id, until_ms: accepted_at_ms }, now_ms);
    }

    /// This gateway has accepted a purge, which is not in the stream yet. To be called before its entries are looked for.
    pub fn accepted(&mut self, purge: &Purge, now_ms: u64) {
        self.add(purge, LastPurge { id: StreamId::default(), until_ms: purge.accepted_at_ms }, now_ms);
    }

    fn add(&mut self, purge: &Purge, mut last: LastPurge, now_ms: u64) {
        last.until_ms = last.until_ms.saturating_add(purge.settle_ms.into());
        for selector in &purge.selectors {
            let selector = match selector {
                Selector::Username(name) => Selector::Username(name.to_ascii_lowercase()),
                other => other.clone(),
            };
            self.remember(selector, last);
        }
        self.prune_if_many(now_ms);
    }

    fn remember(&mut self, selector: Selector, last: LastPurge) {
        if selector.is_of_user() {
            self.of_users.add(last);
        }
        self.purges.entry(selector).or_default().add(last);
    }

    /// Everything up to this ID was heard, and its flights fenced off.
    pub fn advance(&mut self, position: StreamId) {
        self.position = position;
    }

    /// Purges may have been missed, before `position`, or before now. Without a position, whatever comes may be missed as
    /// well: nothing is allowed.
    pub fn lose(&mut self, position: Option<StreamId>, now_ms: u64) {
        let until_ms = self.purges.values().map(|last| last.until_ms).max().unwrap_or_default();
        self.purges.clear();
        self.of_users = LastPurge::default();
        self.question = None;
        self.floor = position.unwrap_or(StreamId::MAX);
        self.position = position.unwrap_or_default();
        // What a loss before this one has forgotten may forbid more.
        self.asked_from_ms = self.asked_from_ms.max(until_ms.max(now_ms).saturating_add(ms(CLOCK_SKEW)));
    }

    /// The others are asked what they know. To be called before they are: they have to have heard all that was told before
    /// this ring's place in the stream.
    pub fn ask(&mut self, question: Question) {
        self.question = Some(question);
    }

    /// What is known here, for those who ask. `None` if nothing is of before now, or too much to be told.
    pub fn known(&mut self, now_ms: u64) -> Option<KnownPurges> {
        // What is left out does not matter from here on.
        self.prune(now_ms);
        if self.purges.len() > MAX_TOLD {
            return None;
        }
        let asked_from_ms = self.asked_from_ms.max(self.oldest_ms(now_ms).saturating_add(ms(CLOCK_SKEW)));
        let purges = self.purges.iter().map(|(selector, last)| (selector.clone(), *last));
        let known = KnownPurges { floor: self.floor, asked_from_ms, purges: purges.collect() };
        (self.floor < StreamId::MAX && asked_from_ms < now_ms).then_some(known)
    }

    /// Another gateway tells what it knows. Returns whether that is of use: it answers what was asked here, reaches further
    /// back, and `is_complete`. Then what it does not know of was told since, and heard here. What any answer tells of purges
    /// can only forbid more, so it is learned in any case.
    pub fn learn(&mut self, report: &Report, is_complete: bool, now_ms: u64) -> bool {
        let KnownPurges { floor, asked_from_ms, purges } = &report.known;
        let is_asked = self.question.is_some_and(|question| report.questions.contains(&question));
        let reaches_back = *floor <= self.floor && *asked_from_ms < self.asked_from_ms;
        let is_of_use = is_asked && is_complete && reaches_back;
        if is_of_use {
            (self.floor, self.asked_from_ms) = (*floor, *asked_from_ms);
        }
        if is_asked {
            for (selector, last) in purges {
                self.remember(selector.clone(), *last);
            }
            self.prune_if_many(now_ms);
        }
        is_of_use
    }

    /// Whether what another gateway knows leaves nothing of use to be told from here.
    pub fn is_covered_by(&self, known: &KnownPurges, now_ms: u64) -> bool {
        let own_from_ms = self.asked_from_ms.max(self.oldest_ms(now_ms));
        known.asked_from_ms <= own_from_ms.saturating_add(2 * ms(CLOCK_SKEW))
    }

    /// Where an answer has its origin for which Rails is asked now.
    pub fn origin(&self, now_ms: u64) -> Origin {
        Origin::new(self.position, now_ms)
    }

    /// Whether an answer may be used, or shared, that these selectors mean.
    pub fn allows(&self, origin: Origin, meaning: &[Selector]) -> bool {
        let is_known = origin.position() >= self.floor && origin.asked_at_ms >= self.asked_from_ms;
        let is_ssh_key = meaning.iter().any(|selector| matches!(selector, Selector::SshKey(_)));
        let mut purges = meaning.iter().filter_map(|selector| self.purges.get(selector));
        is_known && !(is_ssh_key && self.of_users.forbids(origin)) && !purges.any(|last| last.forbids(origin))
    }

    /// Of before that, no purge can matter.
    fn oldest_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.kept_ms)
    }

    fn prune_if_many(&mut self, now_ms: u64) {
        if self.purges.len() >= self.prune_at {
            self.prune(now_ms);
        }
    }

    /// Forgets purges that cannot matter any more.
    fn prune(&mut self, now_ms: u64) {
        let oldest_ms = self.oldest_ms(now_ms);
        let mut floor = self.floor;
        self.purges.retain(|_, last| {
            let is_needed = last.is_needed(oldest_ms);
            if !is_needed {
                floor = floor.max(last.id);
            }
            is_needed
        });
        self.floor = floor;
        if self.purges.len() >= MAX_SELECTORS {
            self.lose(Some(self.position), now_ms);
        }
        self.prune_at = (self.purges.len() * 2).clamp(1_000, MAX_SELECTORS);
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
