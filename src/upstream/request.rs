//! One request to Rails: how it is sent, waits, and is sent again.

pub(super) mod attempt;
pub(super) mod options;
pub(super) mod replay;
mod send;
mod wait;
