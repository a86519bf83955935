//! What takes the whole fleet.

mod simulation;
