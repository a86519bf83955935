//! Where requests wait: for a permit of their class, and for an unreachable Rails.

pub(super) mod admission;
mod burst;
pub(super) mod hold;
pub(super) mod reachability;
