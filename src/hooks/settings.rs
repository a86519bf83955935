//! `[hooks]` of the configuration.

use std::time::Duration;

use crate::secret::{BearerToken, SigningToken};
use crate::server::ListenAddress;

/// The address, the credentials and the delay of the second purge.
#[derive(Clone, Debug)]
pub struct HooksSettings {
    /// The address of the listener.
    pub address: ListenAddress,
    /// Connections open at one time.
    pub connections: usize,
    /// The token that GitLab sends as `X-Gitlab-Token`.
    pub token: Option<BearerToken>,
    /// The key with which GitLab signs events.
    pub signing_token: Option<SigningToken>,
    /// The time from the first purge for an event to the second; zero for none.
    pub settle: Duration,
}
