//! The other processes, as they are known from what they say. Pure: time comes in as an argument.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::message::{HELLO_INTERVAL, Message, Origin, Publisher};
use super::report::{PurgeCounts, covers};

/// Another gateway, as it is known from what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name of its process.
    pub publisher: Publisher,
    /// When it was heard last.
    pub heard_at: Instant,
    /// How many purges it has told since it began.
    pub purges: u64,
    /// Where it runs; empty until it has said so.
    pub host: String,
}

/// How long a process is remembered after its last word. It says hello once a minute.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(3_600);

/// How many processes are remembered: each start of a gateway adds one for an hour.
const MAX_MEMBERS: usize = 10_000;

/// How old the last hello of a process may be: it says one each minute, clocks may differ by half of that.
const MAX_SILENCE: Duration = HELLO_INTERVAL.saturating_add(Duration::from_secs(30));

/// How many gaps are remembered of one process. With more, what lies between two is heard twice.
const MAX_GAPS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Members {
    heard: HashMap<Publisher, Heard>,
    /// When the silence of one was noticed last.
    silence_noticed_at: Option<Instant>,
}

/// What a message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// It is a purge that was not heard before.
    pub is_new: bool,
    /// Others of its process were not heard, of which it is the first to tell.
    pub has_gap: bool,
    /// Nothing was known of its process.
    pub is_stranger: bool,
}

/// What was heard of a process.
#[derive(Debug)]
struct Heard {
    /// The greatest number.
    last: u64,
    /// The greatest number that others have to have heard, too, to know all that this process has not heard.
    to_cover: u64,
    /// The lower ones that were not heard.
    missing: Vec<RangeInclusive<u64>>,
    /// When it was heard last.
    at: Instant,
    /// When it has said the last hello that was heard, by its clock, in milliseconds since the Unix epoch; when it was heard
    /// first, if it has said none.
    hello_ms: u64,
    /// As it has said.
    origin: Origin,
    /// It has taken leave, and says nothing more. What it has told still counts.
    has_left: bool,
}

impl Members {
    /// A message was heard. A process of which nothing was heard, not even when the stream was read again, has told no purge,
    /// or its words were removed.
    pub fn note(
        &mut self,
        publisher: Publisher,
        (number, message): (u64, &Message),
        (now, now_ms): (Instant, u64),
    ) -> Noted {
        let is_stranger = !self.heard.contains_key(&publisher);
        let heard = self.heard.entry(publisher).or_insert_with(|| {
            let hello_ms = if matches!(message, Message::Hello { .. }) { 0 } else { now_ms };
            Heard::new(now, hello_ms)
        });
        heard.at = now;
        if let Message::Hello { said_at_ms, origin, .. } = message {
            heard.origin.clone_from(origin);
            // No later than now: a clock that is ahead would hide a silence. A hello that is said again is none.
            heard.hello_ms = heard.hello_ms.max(*said_at_ms).min(now_ms);
        }
        heard.has_left |= *message == Message::Bye;
        let (is_new, has_gap) = heard.note(number, matches!(message, Message::Purge(_)));
        Noted { is_new, has_gap, is_stranger }
    }

    /// What was heard of a process so far was told before the anchor.
    pub fn was_before_anchor(&mut self, publisher: Publisher) {
        if let Some(heard) = self.heard.get_mut(&publisher) {
            heard.to_cover = heard.last;
        }
    }

    /// Some that were told since the anchor were not heard.
    pub fn have_gaps(&mut self) {
        self.heard.values_mut().for_each(|heard| heard.to_cover = heard.last);
    }

    /// Whether one has not said hello for so long that it has ended without a word, or is not heard any more. Once a minute, as
    /// long as that lasts. One that was killed is not waited for once another has begun in its place.
    pub fn notice_silence(&mut self, (now, now_ms): (Instant, u64)) -> bool {
        let noticed_at = self.silence_noticed_at;
        let is_due = noticed_at.is_none_or(|at| now.saturating_duration_since(at) >= HELLO_INTERVAL);
        let max_ms = u64::try_from(MAX_SILENCE.as_millis()).unwrap_or(u64::MAX);
        let is_silent =
            |heard: &Heard| now_ms.saturating_sub(heard.hello_ms) > max_ms && !self.is_replaced(heard);
        let is_silent = is_due && self.there().any(|(_, heard)| is_silent(heard));
        if is_silent {
            self.silence_noticed_at = Some(now);
        }
        is_silent
    }

    /// Whether another process has begun on the same machine since this one was heard.
    fn is_replaced(&self, silent: &Heard) -> bool {
        self.heard.values().any(|other| {
            !silent.origin.host.is_empty()
                && other.origin.host == silent.origin.host
                && other.origin.began_at_ms > silent.hello_ms
        })
    }

    /// Forgets those of which nothing was heard for long.
    pub fn forget(&mut self, now: Instant) {
        self.heard.retain(|_, heard| now.saturating_duration_since(heard.at) <= MEMBER_TIMEOUT);
        while self.heard.len() > MAX_MEMBERS {
            let Some(oldest) = self.heard.iter().min_by_key(|(_, heard)| heard.at).map(|(name, _)| *name)
            else {
                break;
            };
            self.heard.remove(&oldest);
        }
    }

    /// How many purges each process has told, as far as it has said so. Those that are not named have told none.
    pub fn counts(&self) -> PurgeCounts {
        let told = self.heard.iter().filter(|(_, heard)| heard.last > 0);
        told.map(|(publisher, heard)| (*publisher, heard.last)).collect()
    }

    /// Whether who has heard so many has heard of all purges that were told before the anchor, as far as they are known here,
    /// and of those that were not heard since. Of all others, this process knows itself.
    pub fn are_covered_by(&self, counts: &[(Publisher, u64)]) -> bool {
        covers(counts, self.heard.iter().map(|(publisher, heard)| (*publisher, heard.to_cover)))
    }

    /// How many have said something and not taken their leave.
    pub fn count(&self) -> usize {
        self.there().count()
    }

    fn there(&self) -> impl Iterator<Item = (&Publisher, &Heard)> {
        self.heard.iter().filter(|(_, heard)| !heard.has_left)
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Member> {
        let member = |(publisher, heard): (&Publisher, &Heard)| Member {
            publisher: *publisher,
            heard_at: heard.at,
            purges: heard.last,
            host: heard.origin.host.clone(),
        };
        let mut members: Vec<Member> = self.there().map(member).collect();
        members.sort_by_key(|member| member.publisher);
        members
    }
}

impl Heard {
    fn new(at: Instant, hello_ms: u64) -> Self {
        let (missing, origin) = (Vec::new(), Origin::default());
        Self { last: 0, to_cover: 0, missing, at, hello_ms, origin, has_left: false }
    }

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
