//! The client of Rails, one for each worker thread. `request` sends its requests.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::connection::protocol::Protocol;
use super::servers::server::UpstreamServer;
use super::settings::UpstreamSettings;
use super::state::UpstreamState;

/// The servers of Rails, as one worker thread sees them.
#[derive(Debug)]
pub struct Upstream {
    pub(super) servers: Vec<UpstreamServer>,
    /// The relative URL root, the same on all servers.
    pub(super) root: String,
    /// What the request at the head of the queue asks for, and for how long, while a proxy reports an outage.
    pub(super) probe: (Option<Uri>, Duration),
    pub(super) body_timeout: Duration,
    pub(super) max_held: usize,
    /// Whether a server may prove that it has not read a request, so that it can be sent again.
    pub(super) may_resend_unread: bool,
    pub(super) state: Arc<UpstreamState>,
}

impl Upstream {
    /// Prepares the pools; connects when the first request comes. Counters are in `state`, which must be made
    /// from the same settings.
    pub fn new(settings: &UpstreamSettings, state: Arc<UpstreamState>) -> Self {
        let servers = UpstreamServer::all(settings, &state.servers);
        Self {
            may_resend_unread: settings.protocol == Protocol::Http2
                || servers.iter().any(|server| server.may_resend_unread),
            servers,
            root: settings.relative_root().to_owned(),
            probe: (settings.health_checks.uri(settings.relative_root()), settings.health_checks.timeout),
            body_timeout: settings.body_timeout,
            max_held: settings.max_held,
            state,
        }
    }

    /// Without other workers to share the state with.
    pub fn standalone(settings: UpstreamSettings) -> Self {
        let state = Arc::new(UpstreamState::new(&settings));
        Self::new(&settings, state)
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        &self.root
    }
}
