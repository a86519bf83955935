//! Which purges a gateway knows, for one that has just begun.
//!
//! What others have shared before its start may be of before a purge that it has never heard of. It cannot learn of that
//! from the stream: a writer of Valkey can remove all that a process has told there, and write down again, under any ID,
//! what it likes to keep. So it asks, and a gateway that was there tells what it has heard itself.
//!
//! A question is random and made once the asker follows the stream. So a report that names it was told by a gateway that
//! had heard everything that was in the stream when the asker began, and the asker itself hears what comes later. An old
//! report names another question.
//!
//! What was removed before a gateway heard it is missing from its report. So a report says how many purges of each process
//! it knows of, and one that has missed any that the asker has heard of does not count for all that there are.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::stream::{Identity, StreamId};
use crate::cache::purge::Selector;

/// What tells a question from all others.
pub type Question = [u8; 16];

/// How many purges each process has told, by its name on the bus.
pub type PurgeCounts = Vec<([u8; 8], u64)>;

/// How long a report may be. Every gateway hears each.
const MAX_BYTES: usize = 64 * 1024;

/// What a gateway tells those who have asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What it answers.
    pub questions: Vec<Question>,
    /// Whose stream it is about.
    pub server: Identity,
    /// How many purges of each process the gateway knew of when it was asked, its own among them. Of others, of none.
    pub heard: PurgeCounts,
    /// What the gateway knows.
    pub known: KnownPurges,
}

/// All purges that forbid to use an answer of this place in the stream, or a later one, for which Rails was asked at this
/// time, or later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPurges {
    /// The place.
    pub floor: StreamId,
    /// The time, in milliseconds since the Unix epoch.
    pub asked_from_ms: u64,
    /// The last purge by each selector.
    pub purges: Vec<(Selector, LastPurge)>,
}

/// When a selector was purged last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPurge {
    /// The greatest ID; 0 if it is not in the stream yet.
    pub id: StreamId,
    /// Until when Rails may have told the old story, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// Whether who has heard so many purges has heard all of these.
pub fn covers(heard: &[([u8; 8], u64)], needed: impl IntoIterator<Item = ([u8; 8], u64)>) -> bool {
    let heard: HashMap<[u8; 8], u64> = heard.iter().copied().collect();
    needed.into_iter().all(|(name, count)| heard.get(&name).copied().unwrap_or_default() >= count)
}

impl Report {
    /// Whether it is short enough to be told. A longer one is not: those who ask go without.
    pub fn fits(&self) -> bool {
        postcard::to_allocvec(self).is_ok_and(|plain| plain.len() <= MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_purges_fit_into_a_report_and_no_more_than_64_kib() {
        for (count, fits) in [(0, true), (1_000, true), (1_500, false)] {
            let last = LastPurge {
                id: StreamId { milliseconds: 1_800_000_000_000, sequence: 300 },
                until_ms: 1_800_000_005_000,
            };
            let purges = (0..count).map(|number: u32| {
                let mut digest = [0xff; 32];
                digest[..4].copy_from_slice(&number.to_be_bytes());
                (Selector::SshKey(digest), last)
            });
            let known =
                KnownPurges { floor: last.id, asked_from_ms: last.until_ms, purges: purges.collect() };
            let server = Identity { run_id: "1".repeat(40), replid: "2".repeat(40) };
            let (questions, heard) = (vec![[0xff; 16]; 100], vec![([0xff; 8], 1_000_000); 100]);
            let report = Report { questions, server, heard, known };
            assert_eq!(report.fits(), fits, "{count} purges");
        }
    }
}
