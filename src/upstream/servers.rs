//! The servers of Rails: which of them are in rotation, and which one gets a request.

pub(super) mod balance;
pub(super) mod health;
pub(super) mod health_check;
pub(super) mod load;
pub(super) mod server;
pub(super) mod state;
