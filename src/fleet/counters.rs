//! What is counted of a fleet, for the metrics and for `railgate fleet`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::counters::{Counters, label};
use crate::histogram::{Bounds, Histogram, micros};

/// What became of a purge that was accepted here, as its caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Told {
    /// Valkey has it, and as many replicas as are asked for: every gateway that can reach Valkey hears it.
    Told = 0,
    /// Valkey has it, but not as many replicas as are asked for. It is told again if it gets lost.
    Unconfirmed = 1,
    /// Valkey does not have it yet. It is told as soon as Valkey takes it.
    Queued = 2,
    /// There is no fleet.
    Off = 3,
}

impl Told {
    /// In the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Told, Self::Unconfirmed, Self::Queued, Self::Off];

    /// In responses, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Unconfirmed => "unconfirmed",
            Self::Queued => "queued",
            Self::Off => "off",
        }
    }
}

label!(Told);

/// Why a gateway doubts what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DoubtReason {
    /// It has just begun to listen.
    Start = 0,
    /// The server is another one, has been restarted or promoted, or does not say which one it is.
    Server = 1,
    /// The last entry that was read is gone from the stream, and others may be with it.
    Anchor = 2,
    /// Messages of a gateway are missing.
    Counter = 3,
    /// More is to be dropped than can be remembered.
    Overflow = 4,
    /// The stream has entries from far in the future.
    Future = 5,
    /// A gateway has not said for long that it is there, and not taken leave.
    Silence = 6,
}

impl DoubtReason {
    /// In the order of their discriminants.
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Server, Self::Anchor, Self::Counter, Self::Overflow, Self::Future, Self::Silence];

    /// In logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Server => "server",
            Self::Anchor => "anchor",
            Self::Counter => "counter",
            Self::Overflow => "overflow",
            Self::Future => "future",
            Self::Silence => "silence",
        }
    }
}

label!(DoubtReason);

/// How a connection to Valkey went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ConnectionEvent {
    /// It was opened, and the server is one to follow.
    Opened = 0,
    /// It could not be opened, or the server is none to follow.
    Failed = 1,
    /// It was open, and has ended by an error or was given up.
    Lost = 2,
}

impl ConnectionEvent {
    /// In the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Opened, Self::Failed, Self::Lost];

    /// In metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

label!(ConnectionEvent);

/// An entry of the stream that is no message of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Unreadable {
    /// It has other fields.
    Fields = 0,
    /// No gateway of the fleet has sealed it.
    Seal = 1,
}

impl Unreadable {
    /// In the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Fields, Self::Seal];

    /// In metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fields => "fields",
            Self::Seal => "seal",
        }
    }
}

label!(Unreadable);

/// Upper bounds of [`FleetCounters::delay`].
pub const DELAY_BOUNDS: Bounds<12> = micros([
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000,
]);

/// The counters of one gateway's part in its fleet.
#[derive(Debug, Default)]
pub struct FleetCounters {
    /// Connections to Valkey.
    pub connections: Counters<ConnectionEvent>,
    /// Purges that were accepted here, by what their callers were told.
    pub told: Counters<Told>,
    /// Messages with purges of other gateways that were heard for the first time.
    pub heard: AtomicU64,
    /// Messages that this gateway has told again, since they were lost.
    pub again: AtomicU64,
    /// Purges that became part of one of everything, since Valkey was away for long.
    pub collapsed: AtomicU64,
    /// By reason.
    pub doubts: Counters<DoubtReason>,
    /// Entries of the stream that are no messages.
    pub unreadable: Counters<Unreadable>,
    /// From the acceptance of a purge at another gateway, by its clock, until its answers were dropped here.
    pub delay: Histogram<12>,
}

impl FleetCounters {
    /// Counts a purge that took so long from there to here.
    pub fn count_heard(&self, delay: Duration) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.delay.observe(delay, &DELAY_BOUNDS);
    }
}
