//! Connections to a server: where it listens, how it is reached, and the exchange of one request.

pub(super) mod connector;
pub(super) mod error;
pub(super) mod happy_eyeballs;
pub(super) mod head_state;
pub(super) mod http1;
pub(super) mod http2;
pub(super) mod target;
pub mod tls;
