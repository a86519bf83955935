//! The labels for what happens to a server, in metrics, logs and the admin API.

/// Why a request to a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum EjectionReason {
    /// No connection could be made.
    Unreachable = 0,
    /// There was no response in time.
    Timeout = 1,
    /// The connection ended, or the response is malformed.
    Broken = 2,
    /// A proxy responded that Rails is unreachable.
    Status = 3,
}

impl EjectionReason {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Unreachable, Self::Timeout, Self::Broken, Self::Status];

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status => "status",
        }
    }
}

crate::counters::label!(EjectionReason);

/// The status of a server, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// In rotation.
    Up,
    /// In rotation, though the last request failed.
    Failing,
    /// In rotation, with less than its share so far.
    SlowStart,
    /// It failed requests, and is out of rotation for a while.
    Ejected,
    /// It failed health checks, and is out of rotation.
    Unhealthy,
    /// An operator has drained it.
    Drained,
}

impl ServerStatus {
    /// All variants.
    pub const ALL: [Self; 6] =
        [Self::Up, Self::Failing, Self::SlowStart, Self::Ejected, Self::Unhealthy, Self::Drained];

    /// The label in metrics, logs and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Failing => "failing",
            Self::SlowStart => "slow_start",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
            Self::Drained => "drained",
        }
    }
}

/// The outcome of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Rails answered as it should.
    Good,
    /// It did not.
    Bad,
}

impl CheckResult {
    /// In the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Good, Self::Bad];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

crate::counters::label!(CheckResult);
