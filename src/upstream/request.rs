//! One request to Rails: how it is sent, waits, and is sent again.

mod attempt;
mod connect_failure;
mod deadlines;
pub(super) mod options;
pub(super) mod replay;
mod send;
mod spans;
mod target;
mod wait;
