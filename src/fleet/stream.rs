//! What the stream of a fleet holds, and what a server says about itself.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The ID of an entry: the millisecond of the server at which it was added, and a number within it. Those of a stream
/// only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    /// Milliseconds since the Unix epoch, by the clock of the server.
    pub milliseconds: u64,
    /// Counts the entries of that millisecond, from 0.
    pub sequence: u64,
}

impl StreamId {
    /// The greatest ID that there can be. Behind it, nothing can be added.
    pub const MAX: Self = Self { milliseconds: u64::MAX, sequence: u64::MAX };

    /// Reads `1526919030474-55`. `None` if it is anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (milliseconds, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self { milliseconds: milliseconds.parse().ok()?, sequence: sequence.parse().ok()? })
    }

    /// The first ID from that millisecond on.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self { milliseconds, sequence: 0 }
    }

    /// The next greater ID. The greatest one is its own.
    #[must_use]
    pub fn next(self) -> Self {
        self.behind(0)
    }

    /// The one that has `between` others between this one and itself, if the millisecond has so many; else one of the next
    /// millisecond. Without any, the greatest one.
    #[must_use]
    pub fn behind(self, between: u32) -> Self {
        let between = u64::from(between);
        match self.sequence.checked_add(between + 1) {
            Some(sequence) => Self { sequence, ..self },
            None if self.milliseconds == u64::MAX => Self::MAX,
            None => Self { milliseconds: self.milliseconds + 1, sequence: between },
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

/// The fields of an entry: a message as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The process that has sent it.
    pub publisher: [u8; 8],
    /// Its number among the messages of that process, from 1.
    pub number: u64,
    /// The sealed content.
    pub sealed: Vec<u8>,
}

/// An entry of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the stream.
    pub id: StreamId,
    /// `None` if its fields are not those of a message, because another program has added it.
    pub envelope: Option<Envelope>,
}

/// What one poll of the stream has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Whether the server is a master, or a managed service that does not say.
    pub is_master: bool,
    /// Whether the entry that was asked for the next ones of is still there, once they had come. If not, any number of
    /// entries may have been lost with it.
    pub anchor_found: bool,
    /// The next entries, in the order of the stream. Complete if there are fewer than were asked for.
    pub entries: Vec<Entry>,
}

/// Tells one life of a server's data from another. A server that was a replica in between keeps its `run_id` and has
/// another `replid`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Of the process: another one after each start.
    pub run_id: String,
    /// Of the data: another one after each promotion, and after the first replica was attached.
    pub replid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_written_and_ordered_by_their_numbers() {
        let id = |milliseconds, sequence| StreamId { milliseconds, sequence };
        for (text, read) in [
            ("0-0", Some(id(0, 0))),
            ("1526919030474-55", Some(id(1_526_919_030_474, 55))),
            ("18446744073709551615-18446744073709551615", Some(StreamId::MAX)),
            ("18446744073709551616-0", None),
            ("1", None),
            ("-1", None),
            ("1-", None),
            ("1-2-3", None),
            ("", None),
        ] {
            assert_eq!(StreamId::parse(text.as_bytes()), read, "{text:?}");
            if let Some(id) = read {
                assert_eq!(id.to_string(), text);
            }
        }
        assert!(id(9, 5) < id(10, 0) && id(9, 5) < id(9, 6) && id(9, 10) > id(9, 9));
        assert_eq!(id(9, 5).next(), id(9, 6));
        assert_eq!(id(9, u64::MAX).next(), id(10, 0));
        assert_eq!(StreamId::MAX.next(), StreamId::MAX);
        assert_eq!(id(9, 5).behind(4), id(9, 10));
        assert_eq!(id(9, u64::MAX - 4).behind(4), id(10, 4));
        assert_eq!(id(u64::MAX, u64::MAX - 4).behind(4), StreamId::MAX);
        assert_eq!(StreamId::parse(b"\xff-1"), None);
    }
}
