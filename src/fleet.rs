//! Several gateways of one GitLab, which tell each other what to drop, by way of a Valkey or Redis.

pub mod connection;
pub mod settings;
pub mod stream;
