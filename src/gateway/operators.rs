//! What is answered beside the requests of clients: operators, and GitLab's hooks.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::live::Live;
use super::upgrade::NextProcess;
use super::worker::HooksThread;
use crate::admin::Admin;
use crate::server::{BoundSocket, HttpServer, Listener, ServerLimits};
use crate::stack;

/// The sockets, and what answers there.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) socket: BoundSocket,
    pub(super) admin: Admin,
    pub(super) hooks: Option<HooksThread>,
}

/// Its threads.
pub(super) struct RunningOperators {
    admin: HttpServer,
    hooks: Option<oneshot::Receiver<bool>>,
    hooks_end: DropGuard,
}

/// Why it ended.
pub(super) enum EndOfService {
    /// As it was told. The admin listener outlives the others, to say that they are draining.
    Stopped(RunningOperators),
    /// Another process goes on with the sockets, and answers operators and hooks.
    Replaced,
}

impl Operators {
    /// Answers operators and hooks until the end.
    pub(super) async fn serve(
        self,
        (live, next): (&Live, &NextProcess),
        mut started: impl FnMut(),
        shutdown: &CancellationToken,
    ) -> io::Result<EndOfService> {
        loop {
            let running = self.start()?;
            started();
            let successor = tokio::select! {
                () = shutdown.cancelled() => {
                    if !next.is_asked() {
                        return Ok(EndOfService::Stopped(running));
                    }
                    running.stop().await;
                    next.end(live);
                    return Ok(EndOfService::Replaced);
                }
                successor = next.wait() => successor,
            };
            running.stop().await;
            if next.hand_over(live, successor, shutdown).await {
                return Ok(EndOfService::Replaced);
            }
        }
    }

    fn start(&self) -> io::Result<RunningOperators> {
        let limits = ServerLimits { drain_timeout: ADMIN_DRAIN_TIMEOUT, ..ServerLimits::default() };
        let admin = HttpServer::new(limits);
        admin.serve(Listener::new(self.socket.try_clone()?)?, stack::admin::build(self.admin.clone()));
        // With a server of its own: a client of one listener must not be able to block the other.
        let end = CancellationToken::new();
        let start = |hooks: &HooksThread| hooks.try_clone()?.start(HttpServer::new(limits), end.clone());
        let hooks = self.hooks.as_ref().map(start).transpose()?;
        Ok(RunningOperators { admin, hooks, hooks_end: end.drop_guard() })
    }
}

impl RunningOperators {
    pub(super) async fn stop(self) {
        drop(self.hooks_end);
        if let Some(ended) = self.hooks {
            let _ = tokio::time::timeout(DRAIN_GRACE, ended).await;
        }
        self.admin.drain().await;
    }
}

const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// How much longer than `limits.drain_timeout` a thread may take to end before it is taken for one that hangs.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);
