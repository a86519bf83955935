//! Why a file is not loaded.

use std::io;

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no file.
    #[error("there is none")]
    NotFound,
    /// It cannot be read, or not be removed.
    #[error("it cannot be used: {0}")]
    Io(#[from] io::Error),
    /// It is no snapshot, or one that was changed or cut off.
    #[error("it is damaged: {0}")]
    Damaged(#[from] Damage),
    /// A format that this release does not know.
    #[error("it is of another version of railgate")]
    OtherVersion,
    /// Saved with another secret, or in front of another Rails.
    #[error("it was saved with another secret, or in front of another upstream.url")]
    Foreign,
    /// By its own account it was saved after now.
    #[error("it is from the future: the clock was set back")]
    FromTheFuture,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is something else.
    #[error("it does not begin like a snapshot")]
    Magic,
    /// It was cut off.
    #[error("it ends too early")]
    Truncated,
    /// Something in it is not what was written.
    #[error("its MAC does not match its content")]
    Mac,
    /// The MAC is right, but the content makes no sense.
    #[error("its MAC is right, but its content cannot be read")]
    Frame,
}
