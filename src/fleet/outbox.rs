//! What this process tells the fleet, until it is sure that it was heard. Pure: time comes in as an argument.
//!
//! Valkey may lose what it has taken: a server that is killed, the last second of its file; a fail-over, what its
//! replica did not have yet. No reader can see that, and only the publisher still has the content. So what was told stays here for
//! [`KEPT_FOR`], and what is missing at another server is told again, with the same number, before anything new.
//!
//! What has no number yet may still share a message with what comes later, or become part of one purge of everything, if Valkey is away
//! for long. So numbers have no gaps, whatever happens here.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::counters::Told;
use super::message::Purge;
use super::stream::StreamId;

/// How many purges can wait for Valkey; and how many can be kept after it has taken them.
pub const MAX_PURGES: usize = 10_000;

/// How long what was told is kept. Servers lose the last seconds. What is older is on disk, at the replicas, or
/// trimmed: telling that again would drop good answers at every gateway, and those that could not listen for so long
/// doubt what they keep anyway.
pub const KEPT_FOR: Duration = Duration::from_secs(300);

/// A purge, when it was accepted, and who waits for its outcome.
#[derive(Debug)]
struct Accepted {
    purge: Purge,
    since: Instant,
    callers: Vec<oneshot::Sender<Told>>,
}

/// A purge that has got a number, and so may be known to others.
#[derive(Debug)]
struct Numbered {
    number: u64,
    accepted: Accepted,
    /// Where it is in the stream; `None` if it has to be sent.
    id: Option<StreamId>,
    /// When it was sent last: from then on it may be lost.
    sent_at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    /// In the order of their numbers, which have no gaps.
    numbered: VecDeque<Numbered>,
    /// Those of them that have no ID.
    untaken: BTreeSet<u64>,
    /// Those of them that have not come back from the stream since they were sent last.
    unheard: BTreeSet<u64>,
    waiting: VecDeque<Accepted>,
    last_number: u64,
}

impl Outbox {
    /// Takes over a purge. Returns what will tell its outcome, and how many became one of everything for want of room.
    pub fn accept(&mut self, purge: Purge, now: Instant) -> (oneshot::Receiver<Told>, usize) {
        // Here, since a gateway that tells all the time has no other time for it.
        self.forget(now);
        let (caller, told) = oneshot::channel();
        let collapsed = if self.waiting.len() >= MAX_PURGES { self.collapse() } else { 0 };
        if let Some(last) = self.waiting.back_mut()
            && last.purge.absorb(&purge)
        {
            last.callers.push(caller);
        } else {
            self.waiting.push_back(Accepted { purge, since: now, callers: vec![caller] });
        }
        (told, collapsed)
    }

    /// The older half becomes one. Its callers learn that it waits: as many as come while Valkey is away cannot be kept.
    fn collapse(&mut self) -> usize {
        let newer = self.waiting.split_off(self.waiting.len() / 2);
        let older = std::mem::replace(&mut self.waiting, newer);
        let count = older.len();
        let mut one = older.into_iter().reduce(|mut one, mut later| {
            one.purge.collapse(&later.purge);
            later.answer(Told::Queued);
            one
        });
        if let Some(one) = &mut one {
            one.answer(Told::Queued);
        }
        self.waiting.extend(one);
        self.waiting.rotate_right(1);
        count
    }

    /// Whether there is something to send, and all of it new.
    pub fn is_next_new(&self) -> bool {
        !self.waiting.is_empty() && self.is_all_taken()
    }

    /// Whether Valkey has taken all that has a number.
    pub fn is_all_taken(&self) -> bool {
        self.untaken.is_empty()
    }

    /// The message to send now, with its number, and whether it was sent before. To be called for each try: whatever
    /// comes back from the stream from now on is the echo of this one.
    pub fn next_to_send(&mut self, now: Instant) -> Option<(u64, Purge, bool)> {
        if let Some(number) = self.untaken.first().copied() {
            self.unheard.insert(number);
            let again = self.numbered_mut(number)?;
            again.sent_at = now;
            return Some((number, again.accepted.purge.clone(), true));
        }
        let accepted = self.waiting.pop_front()?;
        self.last_number += 1;
        let (number, purge) = (self.last_number, accepted.purge.clone());
        self.numbered.push_back(Numbered { number, accepted, id: None, sent_at: now });
        self.untaken.insert(number);
        self.unheard.insert(number);
        if self.numbered.len() > MAX_PURGES {
            self.forget_first();
        }
        Some((number, purge, false))
    }

    /// Valkey has taken it. `told` says whether as many replicas as are asked for have it.
    pub fn taken(&mut self, number: u64, id: StreamId, told: Told) {
        let Some(one) = self.numbered_mut(number) else { return };
        one.id = Some(id);
        one.accepted.answer(told);
        self.untaken.remove(&number);
    }

    /// It has come back from the stream: Valkey has it, whether its reply has arrived or not.
    pub fn heard(&mut self, number: u64, id: StreamId) {
        let Some(one) = self.numbered_mut(number) else { return };
        one.id.get_or_insert(id);
        self.untaken.remove(&number);
        self.unheard.remove(&number);
    }

    /// Valkey has refused what was to be sent: no caller has to wait for it.
    pub fn refused(&mut self) {
        for one in self.numbered.iter_mut().filter(|one| one.id.is_none()) {
            one.accepted.answer(Told::Queued);
        }
        self.waiting.iter_mut().for_each(|one| one.answer(Told::Queued));
    }

    /// What has to be looked for at another server. Forgets what is too old for that.
    pub fn to_look_for(&mut self, now: Instant) -> Vec<(u64, StreamId)> {
        self.forget(now);
        self.numbered.iter().filter_map(|one| Some((one.number, one.id?))).collect()
    }

    /// It was looked for, and found or not. Returns whether it is to be sent again: what is there and was not heard may be
    /// where no reader gets.
    pub fn looked_for(&mut self, number: u64, is_found: bool) -> bool {
        let is_lost = !is_found || self.unheard.contains(&number);
        if is_lost && let Some(one) = self.numbered_mut(number) {
            one.id = None;
            self.untaken.insert(number);
        }
        is_lost
    }

    /// Forgets what cannot be lost any more.
    pub fn forget(&mut self, now: Instant) {
        let is_old = |one: &Numbered| now.saturating_duration_since(one.sent_at) > KEPT_FOR;
        while self.numbered.front().is_some_and(is_old) && self.forget_first() {}
    }

    /// Unless Valkey has not taken it. Returns whether it did.
    fn forget_first(&mut self) -> bool {
        let first = self.numbered.pop_front_if(|first| first.id.is_some());
        first.is_some_and(|first| {
            self.unheard.remove(&first.number);
            true
        })
    }

    /// The number of the last purge that others may know of.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// How many messages Valkey has not taken, and since when the oldest waits.
    pub fn untold(&self) -> (usize, Option<Instant>) {
        let numbered = self.untaken.iter().filter_map(|number| self.numbered(*number));
        // Each is in the order of its acceptance.
        let oldest =
            [numbered.map(|one| one.accepted.since).next(), self.waiting.front().map(|one| one.since)];
        (self.untaken.len() + self.waiting.len(), oldest.into_iter().flatten().min())
    }

    fn numbered(&self, number: u64) -> Option<&Numbered> {
        self.numbered.get(self.index_of(number)?)
    }

    fn numbered_mut(&mut self, number: u64) -> Option<&mut Numbered> {
        let index = self.index_of(number)?;
        self.numbered.get_mut(index)
    }

    fn index_of(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.numbered.front()?.number)?).ok()
    }
}

impl Accepted {
    fn answer(&mut self, told: Told) {
        for caller in self.callers.drain(..) {
            // It may have gone.
            let _ = caller.send(told);
        }
    }
}

#[cfg(test)]
mod tests;
