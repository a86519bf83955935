//! Several gateways of one GitLab, which tell each other what to drop, by way of a Valkey or Redis.

pub mod acl;
pub mod connection;
pub mod counters;
pub mod follower;
pub mod keys;
pub mod message;
pub mod outbox;
mod sentinel;
pub mod server;
pub mod settings;
pub mod stream;
pub mod ticket;
