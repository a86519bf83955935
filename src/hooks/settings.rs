//! `[hooks]` of the configuration.

use std::time::Duration;

use crate::secret::{BearerToken, SigningToken};
use crate::server::ListenAddress;

/// Secrets that are still accepted.
#[derive(Clone, Debug, Default)]
pub struct PreviousHookSecrets {
    /// As [`HooksSettings::token`].
    pub tokens: Vec<BearerToken>,
    /// As [`HooksSettings::signing_token`].
    pub signing_tokens: Vec<SigningToken>,
}

impl HooksSettings {
    /// All tokens that are accepted.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &BearerToken> {
        self.token.iter().chain(&self.previous.tokens)
    }

    /// All keys whose signatures are accepted.
    pub(super) fn signing_tokens(&self) -> impl Iterator<Item = &SigningToken> {
        self.signing_token.iter().chain(&self.previous.signing_tokens)
    }
}

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
    /// Secrets that were replaced a moment ago, and are still accepted.
    pub previous: PreviousHookSecrets,
    /// The time from the first purge for an event to the second; zero for none.
    pub settle: Duration,
}
