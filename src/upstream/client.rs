//! The client of Rails, one for each worker thread. `request` sends its requests.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Uri;

use super::connection::protocol::Protocol;
use super::servers::server::UpstreamServer;
use super::settings::UpstreamSettings;
use super::state::{UpstreamLimits, UpstreamState};

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
    pub(super) limits: Arc<UpstreamLimits>,
    pub(super) state: Arc<UpstreamState>,
    /// With the settings that are in effect now, if these are others.
    successor: OnceLock<Arc<Self>>,
}

impl Upstream {
    /// Prepares the pools; connects when the first request comes. Counters are in `state`, which must be made
    /// from the same settings.
    pub fn new(settings: &UpstreamSettings, state: Arc<UpstreamState>) -> Self {
        let servers = UpstreamServer::all(settings, &state.servers());
        Self::with_servers(servers, settings, state)
    }

    /// The same with other settings, which the state has taken over. Connections to a server that stays are kept,
    /// unless it is to be reached in another way now. Requests that wait for Rails go to the servers of the new one.
    #[must_use]
    pub fn reloaded(&self, settings: &UpstreamSettings) -> Arc<Self> {
        let mut servers = UpstreamServer::all(settings, &self.state.servers());
        for server in &mut servers {
            if let Some(known) = self.servers.iter().find(|known| known.name == server.name) {
                server.take_connections_of(known);
            }
        }
        let new = Arc::new(Self::with_servers(servers, settings, Arc::clone(&self.state)));
        // It is replaced once.
        let _ = self.successor.set(Arc::clone(&new));
        new
    }

    /// The one whose settings are in effect now, unless it has another relative URL root, which is in the targets of
    /// requests already.
    pub(super) fn current(&self) -> &Self {
        let mut current = self;
        while let Some(next) = current.successor.get() {
            if next.root != self.root {
                break;
            }
            current = next;
        }
        current
    }

    fn with_servers(
        servers: Vec<UpstreamServer>,
        settings: &UpstreamSettings,
        state: Arc<UpstreamState>,
    ) -> Self {
        Self {
            may_resend_unread: settings.protocol == Protocol::Http2
                || servers.iter().any(|server| server.may_resend_unread),
            servers,
            root: settings.relative_root().to_owned(),
            probe: (settings.health_checks.uri(settings.relative_root()), settings.health_checks.timeout),
            body_timeout: settings.body_timeout,
            max_held: settings.max_held,
            limits: state.limits(),
            state,
            successor: OnceLock::new(),
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
