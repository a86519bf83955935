//! The other processes, as they are known from what they say. Pure: time comes in as an argument.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::message::{HELLO_INTERVAL, Message, Origin, Publisher, process_name};
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
pub const MAX_SILENCE: Duration = HELLO_INTERVAL.saturating_add(Duration::from_secs(30));

/// How often it is looked for silent ones at most: that goes through all.
const SILENCE_INTERVAL: Duration = Duration::from_secs(1);

/// How many gaps are remembered of one process. With more, what lies between two is heard twice.
const MAX_GAPS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Members {
    heard: HashMap<Publisher, Heard>,
    /// When silent ones were looked for last.
    silence_checked_at: Option<Instant>,
}

/// A process that does not say any more that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    /// The name of its process.
    pub publisher: Publisher,
    /// Where it runs, or ran; empty if it has never said so.
    pub host: String,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", process_name(self.publisher))?;
        if self.host.is_empty() { Ok(()) } else { write!(f, " on {}", self.host) }
    }
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
    /// first, if it has said none, or when the stream was begun anew, if it was heard of then.
    hello_ms: u64,
    /// When that has changed last: a step of this process' clock hides no silence.
    hello_at: Instant,
    /// When its silence was noticed last; `None` if it has not been silent since that hello.
    silence_noticed_at: Option<Instant>,
    /// As it has said.
    origin: Origin,
    /// It has taken leave, and says nothing more. What it has told still counts.
    has_left: bool,
}

impl Members {
    /// A message was heard. A process of which nothing was heard, not even when the stream was read again, has told no purge,
    /// or its words were removed. If it takes leave without having told any, there is nothing to know of it.
    pub fn note(
        &mut self,
        publisher: Publisher,
        (number, message): (u64, &Message),
        (now, now_ms): (Instant, u64),
    ) -> Noted {
        let is_stranger = !self.heard.contains_key(&publisher);
        if is_stranger && number == 0 && *message == Message::Bye {
            return Noted { is_new: false, has_gap: false, is_stranger };
        }
        let heard = self.heard.entry(publisher).or_insert_with(|| {
            let hello_ms = if matches!(message, Message::Hello { .. }) { 0 } else { now_ms };
            Heard::new(now, hello_ms)
        });
        heard.at = now;
        if let Message::Hello { said_at_ms, origin, .. } = message {
            heard.origin.clone_from(origin);
            // No later than now: a clock that is ahead would hide a silence. A hello that is said again is none.
            let hello_ms = heard.hello_ms.max(*said_at_ms).min(now_ms);
            if hello_ms != heard.hello_ms {
                heard.was_there((now, hello_ms));
            }
        }
        heard.has_left |= *message == Message::Bye;
        let (is_new, has_gap) = heard.note(number, matches!(message, Message::Purge(_)));
        Noted { is_new, has_gap, is_stranger }
    }

    /// What was heard of a process so far was told before the anchor. All is doubted, whether it was silent or not: it has to
    /// say hello from now on. What was read again may end before its last one.
    pub fn was_before_anchor(&mut self, publisher: Publisher, now: (Instant, u64)) {
        if let Some(heard) = self.heard.get_mut(&publisher) {
            heard.to_cover = heard.last;
            heard.was_there(now);
        }
    }

    /// Some that were told since the anchor were not heard.
    pub fn have_gaps(&mut self) {
        self.heard.values_mut().for_each(|heard| heard.to_cover = heard.last);
    }

    /// Those that have not said hello for so long that they have ended without a word, or are not heard any more: each when that
    /// begins, and, as long as it lasts, once a minute, together with all others. One that was killed is not waited for any
    /// longer once another has begun in its place.
    pub fn notice_silence(&mut self, (now, now_ms): (Instant, u64)) -> Vec<Silent> {
        let is_over =
            |at: Option<Instant>, pause| at.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        if !is_over(self.silence_checked_at, SILENCE_INTERVAL) {
            return Vec::new();
        }
        self.silence_checked_at = Some(now);
        let began_last = self.began_last();
        let is_waited_for = |heard: &Heard| {
            heard.is_silent((now, now_ms))
                && (heard.silence_noticed_at.is_none() || !heard.is_replaced(&began_last))
        };
        let waited_for: Vec<_> = self.there().filter(|(_, heard)| is_waited_for(heard)).collect();
        if !waited_for.iter().any(|(_, heard)| is_over(heard.silence_noticed_at, HELLO_INTERVAL)) {
            return Vec::new();
        }
        let silent = waited_for
            .into_iter()
            .map(|(publisher, heard)| Silent { publisher: *publisher, host: heard.origin.host.clone() });
        let silent: Vec<Silent> = silent.collect();
        for one in &silent {
            if let Some(heard) = self.heard.get_mut(&one.publisher) {
                heard.silence_noticed_at = Some(now);
            }
        }
        silent
    }

    /// When the last process on each machine has begun that has not left.
    fn began_last(&self) -> HashMap<&str, u64> {
        let mut began_last = HashMap::<&str, u64>::new();
        for (_, heard) in self.there() {
            let began = began_last.entry(&heard.origin.host).or_default();
            *began = heard.origin.began_at_ms.max(*began);
        }
        began_last
    }

    /// Forgets those of which nothing was heard for long. If there are too many, those go first that have left.
    pub fn forget(&mut self, now: Instant) {
        self.heard.retain(|_, heard| now.saturating_duration_since(heard.at) <= MEMBER_TIMEOUT);
        while self.heard.len() > MAX_MEMBERS {
            let first = self.heard.iter().min_by_key(|(_, heard)| (!heard.has_left, heard.at));
            let Some(first) = first.map(|(name, _)| *name) else { break };
            self.heard.remove(&first);
        }
    }

    /// How many purges each process has told, as far as it has said so. Those that are not named have told none.
    pub fn counts(&self) -> PurgeCounts {
        let told = self.heard.iter().filter(|(_, heard)| heard.last > 0);
        told.map(|(publisher, heard)| (*publisher, heard.last)).collect()
    }

    /// Whether who has heard so many has heard of all purges that were told before the anchor, as far as they are known here,
    /// and of those that were not heard since. Of all others, this process knows itself. What a silent one has told is known to no
    /// other.
    pub fn are_covered_by(&self, counts: &[(Publisher, u64)]) -> bool {
        let began_last = self.began_last();
        let is_waited_for =
            |heard: &Heard| heard.silence_noticed_at.is_some() && !heard.is_replaced(&began_last);
        let is_silent = self.there().any(|(_, heard)| is_waited_for(heard));
        !is_silent && covers(counts, self.heard.iter().map(|(publisher, heard)| (*publisher, heard.to_cover)))
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
        Self {
            last: 0,
            to_cover: 0,
            missing: Vec::new(),
            at,
            hello_ms,
            hello_at: at,
            silence_noticed_at: None,
            origin: Origin::default(),
            has_left: false,
        }
    }

    /// By what was heard, it was there at that time.
    fn was_there(&mut self, (now, hello_ms): (Instant, u64)) {
        (self.hello_at, self.hello_ms, self.silence_noticed_at) = (now, hello_ms, None);
    }

    fn is_silent(&self, (now, now_ms): (Instant, u64)) -> bool {
        let age = Duration::from_millis(now_ms.saturating_sub(self.hello_ms));
        age.max(now.saturating_duration_since(self.hello_at)) > MAX_SILENCE
    }

    /// Whether another process has begun later on the same machine, by when the last one there has.
    fn is_replaced(&self, began_last: &HashMap<&str, u64>) -> bool {
        let Origin { host, began_at_ms } = &self.origin;
        !host.is_empty() && began_last.get(host.as_str()).is_some_and(|began| began > began_at_ms)
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
