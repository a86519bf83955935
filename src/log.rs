//! The library's part in the log: counters of lines that were not written, and a bound on texts from outside.
//! The library emits `tracing` events; where they go and how they look is up to the binary.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use tracing::Level;

use crate::counters::Counters;

/// By which level lines are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// `ERROR`.
    Error,
    /// `WARN`.
    Warn,
    /// `INFO`.
    Info,
    /// `DEBUG` and `TRACE`.
    Debug,
}

impl LogLevel {
    /// In the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

crate::counters::label!(LogLevel);

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warn,
            Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// Why a line was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full, since the lines are read too slowly or not at all.
    QueueFull,
    /// Standard output could not be written: its reader has exited, or the disk is full.
    Unwritable,
}

impl DropReason {
    /// In the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::QueueFull, Self::Unwritable];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unwritable => "unwritable",
        }
    }
}

/// Lines that were not written.
#[derive(Debug, Default)]
pub struct LogCounters {
    /// See [`DropReason::QueueFull`].
    queue_full: Counters<LogLevel>,
    /// See [`DropReason::Unwritable`].
    unwritable: Counters<LogLevel>,
    /// What is logged.
    pub switch: LogSwitch,
    /// Omitted on purpose: the same diagnostic had been written several times within a second.
    pub suppressed: AtomicU64,
}

impl LogCounters {
    /// Counts lines that were dropped.
    pub fn count_dropped(&self, reason: DropReason, level: LogLevel, lines: u64) {
        self.dropped_for(reason).add(level, lines);
    }

    /// Dropped lines so far, as reason, level, count.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, &'static str, u64)> {
        DropReason::ALL.into_iter().flat_map(|reason| {
            self.dropped_for(reason).iter().map(move |(level, lines)| (reason, level.as_str(), lines))
        })
    }

    fn dropped_for(&self, reason: DropReason) -> &Counters<LogLevel> {
        match reason {
            DropReason::QueueFull => &self.queue_full,
            DropReason::Unwritable => &self.unwritable,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Pretty,
}

/// From which level on lines are written, and how; both can be changed at any time.
#[derive(Debug)]
pub struct LogSwitch {
    /// A place in [`LEVELS`].
    level: AtomicU8,
    is_pretty: AtomicBool,
}

/// In the order of the numbers in [`LogSwitch`], of which 2 is the default.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

impl Default for LogSwitch {
    fn default() -> Self {
        Self { level: AtomicU8::new(2), is_pretty: AtomicBool::new(false) }
    }
}

impl LogSwitch {
    /// Less important events are not written.
    pub fn level(&self) -> Level {
        LEVELS.get(usize::from(self.level.load(Ordering::Relaxed))).copied().unwrap_or(Level::INFO)
    }

    /// Changes the level, of events that are written already, too.
    pub fn set_level(&self, level: Level) {
        let number = LEVELS.iter().position(|one| *one == level).unwrap_or_default();
        let number = u8::try_from(number).unwrap_or_default();
        if self.level.swap(number, Ordering::Relaxed) != number {
            // Each place that logs remembers whether its events are wanted.
            tracing::callsite::rebuild_interest_cache();
        }
    }

    /// How lines are written from now on.
    pub fn set_format(&self, format: LogFormat) {
        self.is_pretty.store(format == LogFormat::Pretty, Ordering::Relaxed);
    }

    /// How lines are written.
    pub fn format(&self) -> LogFormat {
        if self.is_pretty.load(Ordering::Relaxed) { LogFormat::Pretty } else { LogFormat::Json }
    }

    /// The level of this name, as the configuration writes it.
    pub fn parse(name: &str) -> Option<Level> {
        let named = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG];
        named.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(name))
    }

    /// The name of the level.
    pub fn name(&self) -> String {
        self.level().as_str().to_ascii_lowercase()
    }
}

/// A text of a caller or of Rails, cut to its first `max_bytes`, with a mark that says how many more
/// there were.
pub fn truncated(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let kept = text.get(..text.floor_char_boundary(max_bytes)).unwrap_or_default();
    Cow::Owned(format!("{kept}…[{} bytes cut]", text.len() - kept.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters_and_say_so() {
        for (text, max_bytes, shown) in [
            ("", 0, ""),
            ("curl/8", 6, "curl/8"),
            ("curl/8", 5, "curl/…[1 bytes cut]"),
            ("aéé", 2, "a…[4 bytes cut]"),
            ("aéé", 3, "aé…[2 bytes cut]"),
        ] {
            assert_eq!(truncated(text, max_bytes), shown, "{text:?} to {max_bytes}");
        }
    }

    #[test]
    fn dropped_lines_are_counted_by_reason_and_level() {
        let counts = LogCounters::default();
        counts.count_dropped(DropReason::QueueFull, Level::INFO.into(), 3);
        counts.count_dropped(DropReason::Unwritable, Level::TRACE.into(), 1);
        let dropped: Vec<_> = counts.dropped().filter(|(_, _, lines)| *lines > 0).collect();
        assert_eq!(dropped, [(DropReason::QueueFull, "info", 3), (DropReason::Unwritable, "debug", 1)]);
    }
}
