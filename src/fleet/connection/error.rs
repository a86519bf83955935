//! Why a connection to Valkey, or a command over it, has failed.

use std::time::Duration;

use crate::upstream::{ConnectError, UpstreamAddress};

/// A failure. The connection has to be dropped after each but [`Self::Refused`]: what comes over it next may be the
/// reply to the command before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No connection was made.
    #[error("no connection to {0}: {1}")]
    Connect(UpstreamAddress, ConnectError),
    /// The file with the password cannot be used: its path, and why.
    #[error("the password file {0} {1}")]
    Password(String, String),
    /// The server does not accept the user and the password, or wants one. Its text is left out: some quote what they
    /// were sent.
    #[error("the server accepts neither user nor password ({0})")]
    Login(String),
    /// The reply did not come in time.
    #[error("no reply to {0} within {1:?}")]
    Late(&'static str, Duration),
    /// The reply has more bytes than one may have.
    #[error("the reply to {0} is too large: {1}")]
    TooLarge(&'static str, String),
    /// The connection has ended.
    #[error("the connection ended during {0}: {1}")]
    Closed(&'static str, String),
    /// The server has answered with an error; the connection can be used further.
    #[error("{command} was refused: {code} {detail}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The first word of the answer, such as `OOM`, `READONLY` or `NOPERM`.
        code: String,
        /// The rest of it.
        detail: String,
    },
    /// Another node of the cluster has the key.
    #[error("the key belongs to {0}")]
    Moved(UpstreamAddress),
    /// The server is a replica, or was made one.
    #[error("the server is not a master")]
    NotMaster,
    /// The Sentinels do not agree, or do not answer.
    #[error("the Sentinels name no master: {0}")]
    NoMaster(String),
    /// Something was put into the stream below what was read of it: no reader gets there.
    #[error("the stream has taken an entry below one that was read; a program has changed it")]
    Backwards,
    /// The reply is not one to the command.
    #[error("the reply to {0} makes no sense")]
    Unexpected(&'static str),
}

impl ConnectionError {
    /// Whether the server has answered, with an error, so that the connection can be used further.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether a shorter reply may have arrived.
    pub fn is_of_length(&self) -> bool {
        matches!(self, Self::Late(..) | Self::TooLarge(..))
    }

    /// The first word of the error that the server has answered with.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::Login(code) => Some(code),
            _ => None,
        }
    }
}
