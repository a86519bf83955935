//! The way to Rails: one request in, one response out, over a pool of kept connections.
//!
//! Rails may be several servers. A request goes to a server in rotation with little load (`servers::balance`), or to
//! another one if no connection can be made. If no server accepts connections, it waits (`queue::hold`). An admitted
//! request holds a permit of its class (`queue::admission`) until its response has ended.
//! It is sent once. `ErrorKind::resend` says after which failures it may be sent again; `request::send` adds how
//! often, and when.
//!
//! Errors say which side failed; what the client is told about it is not decided here.

mod client;
mod connection;
mod error;
mod queue;
mod request;
mod response;
mod servers;
mod settings;
mod state;

pub use self::client::Upstream;
pub use self::connection::cause::UnreachableCause;
pub use self::connection::error::ConnectError;
pub use self::connection::exchange_error::ExchangeError;
pub(crate) use self::connection::happy_eyeballs;
pub use self::connection::plain_client::PlainClient;
pub use self::connection::protocol::Protocol;
pub use self::connection::target::{
    MAX_SOCKET_PATH, TargetError, UpstreamAddress, UpstreamTarget, without_zone,
};
pub use self::connection::tls;
pub use self::error::{Error, ErrorKind, Fault, Resend, TimeLimit};
pub use self::queue::admission::{ClassAdmission, ShedReason};
pub use self::queue::reachability::Reachability;
pub use self::request::options::{SendOptions, SendReport, SendStage, Signer, WaitPolicy};
pub use self::servers::health::{CheckResult, EjectionReason, ServerStatus};
pub use self::servers::health_check::HealthChecker;
pub use self::servers::state::{ResendReason, UpstreamServerState};
pub use self::settings::*;
pub use self::state::UpstreamState;
