//! What takes the whole fleet.

pub(super) mod scripted;
mod simulation;
