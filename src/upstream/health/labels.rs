//! What logs, metrics and operators call what happens to a server.

/// How a request to a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// There was no connection.
    Unreachable = 0,
    /// There was no answer in time.
    Timeout = 1,
    /// The connection ended, or what came is no answer.
    Broken = 2,
    /// An answer that says that there is nobody behind it.
    Status = 3,
}

impl Reason {
    /// All of them, in the order of their numbers.
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

/// What operators are told of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It takes part.
    Up,
    /// It takes part, though the last request failed.
    Failing,
    /// It takes part, with less than its share so far.
    SlowStart,
    /// It failed requests, and takes part no more for a while.
    Ejected,
    /// It failed health checks.
    Unhealthy,
    /// An operator has said so.
    Drained,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Up, Self::Failing, Self::SlowStart, Self::Ejected, Self::Unhealthy, Self::Drained];

    /// The label in metrics, logs and answers.
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
