//! A failure to connect, with the server that it concerns.

use crate::upstream::connection::cause::UnreachableCause;
use crate::upstream::connection::error::ConnectError;
use crate::upstream::error::Error;

/// Why a server could not be connected to.
pub(super) struct ConnectFailure {
    name: String,
    error: ConnectError,
}

impl ConnectFailure {
    pub(super) fn new(name: &str, error: ConnectError) -> Self {
        Self { name: name.to_owned(), error }
    }

    /// All servers are drained by an operator.
    pub(super) fn all_drained() -> Self {
        Self::new("any server", ConnectError::not_attempted(UnreachableCause::Drained, "all are drained"))
    }

    /// Of two failures, the one to keep: a transient one is worth waiting for.
    pub(super) fn prefer_transient(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.is_transient() && !self.is_transient() => earlier,
            _ => self,
        }
    }

    /// Whether it may be over in a while.
    pub(super) fn is_transient(&self) -> bool {
        self.error.is_transient()
    }

    pub(super) fn error(&self) -> &ConnectError {
        &self.error
    }
}

impl From<ConnectFailure> for Error {
    fn from(ConnectFailure { name, error }: ConnectFailure) -> Self {
        Self::Connect(name, error)
    }
}
