//! An upgrade without a refused connection, where no service manager holds the sockets: the next process takes them
//! over from this one while this one serves.
//!
//! | the next process | this process |
//! |---|---|
//! | says its version | passes its listening sockets |
//! | `bound`: it has read and bound all that it needs | ends to answer operators and hooks, so that nothing is purged any more; saves the cache; `saved` |
//! | loads the cache, accepts clients; `serving` | answers nothing from its cache any more; `yours` |
//! | answers operators and hooks | accepts no more, and drains |
//!
//! Up to `bound` a failure of the next process changes nothing. Until `serving` this process serves clients, and takes
//! operators and hooks back if the next one fails. After that, the next one needs it for nothing.
//!
//! Differs from a second process that binds the same addresses with `SO_REUSEPORT`: there each socket has a queue of
//! its own, and connections that wait in that of the process which ends are reset.

mod channel;

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::channel::{ANSWER_TIMEOUT, Channel, Line, unexpected};
use super::live::Live;
use super::restart::WarmRestart;
use crate::server::{BoundSocket, Listener, PassedSockets};

const VERSION: &str = "railgate upgrade 1";
const END: &str = "end";
const BOUND: &str = "bound";
const SAVED: &str = "saved";
const SERVING: &str = "serving";
const YOURS: &str = "yours";

/// How long the next process may take to read its configuration and to bind, and each to save or load a cache of
/// millions of answers.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);
/// Workers, times listeners.
const MAX_SOCKETS: usize = 10_000;

/// Where the next process asks for the sockets.
#[derive(Debug)]
pub(crate) struct UpgradeListener {
    listener: Listener,
    sockets: Arc<PassedSockets>,
}

/// The next process, which has bound all that it needs.
#[derive(Debug)]
pub(crate) struct Successor(Channel);

/// A socket, and the name by which it is known.
type NamedSocket = (String, OwnedFd);

/// The process before, which still serves.
#[derive(Debug)]
pub(crate) struct Predecessor(Channel);

impl UpgradeListener {
    pub(crate) fn new(listener: Listener, sockets: Arc<PassedSockets>) -> Self {
        Self { listener, sockets }
    }

    /// Waits for a process that has got the sockets, and has bound all that it needs.
    pub(crate) async fn next(&self) -> Successor {
        loop {
            match self.accept().await {
                Ok(successor) => return successor,
                Err(error) => {
                    tracing::warn!(%error, "another process has asked for the sockets, and has not taken over");
                    // Not at once again, whatever it is.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Successor> {
        let stream = self.listener.accept_unix().await?.into_std()?;
        let sockets = Arc::clone(&self.sockets);
        let pass = move || {
            let mut channel = Channel::new(stream)?;
            channel.expect(VERSION, ANSWER_TIMEOUT)?;
            for (name, sockets) in sockets.iter() {
                for socket in sockets {
                    channel.send_socket(name, socket)?;
                }
            }
            channel.send(END)?;
            channel.expect(BOUND, WORK_TIMEOUT)?;
            Ok(Successor(channel))
        };
        run_blocking(pass).await
    }
}

impl Successor {
    pub(crate) fn process(&self) -> i32 {
        self.0.process
    }

    /// The cache is saved, and nothing will be purged here any more. Waits until the next process accepts clients.
    pub(crate) async fn wait_until_serving(mut self) -> io::Result<Self> {
        run_blocking(move || {
            self.0.send(SAVED)?;
            self.0.expect(SERVING, WORK_TIMEOUT)?;
            Ok(self)
        })
        .await
    }

    /// This process answers nothing from its cache any more.
    pub(crate) async fn release(self) {
        if let Err(error) = run_blocking(move || self.0.send(YOURS)).await {
            // It serves, and goes on without a word.
            tracing::warn!(%error, "the next process has not heard that this one drains");
        }
    }
}

/// Where the next process asks for the sockets, if it may.
#[derive(Debug)]
pub(super) struct NextProcess {
    /// As long as it is here, no client finds the sockets closed.
    upgrades: Option<(UpgradeListener, Arc<PassedSockets>)>,
}

impl NextProcess {
    pub(super) fn new(socket: Option<BoundSocket>, passed: PassedSockets) -> io::Result<Self> {
        let Some(socket) = socket else { return Ok(Self { upgrades: None }) };
        let passed = Arc::new(passed);
        let listener = UpgradeListener::new(Listener::new(socket)?, Arc::clone(&passed));
        Ok(Self { upgrades: Some((listener, passed)) })
    }

    pub(super) async fn wait(&self) -> Successor {
        match &self.upgrades {
            Some((listener, _)) => listener.next().await,
            None => pending().await,
        }
    }

    /// Whether the next process serves now; then the files of the sockets are left to it. Nobody can purge anything here
    /// meanwhile.
    pub(super) async fn hand_over(
        &self,
        live: &Live,
        successor: Successor,
        shutdown: &CancellationToken,
    ) -> bool {
        let is_replaced = hand_over(live, successor, shutdown).await;
        if is_replaced {
            self.upgrades.iter().for_each(|(_, passed)| passed.leave_files());
        }
        is_replaced
    }
}

async fn hand_over(live: &Live, successor: Successor, shutdown: &CancellationToken) -> bool {
    let (cache, process) = (&live.shared.cache, successor.process());
    cache.wait_for_blocking_tasks().await;
    let warm = live.config().as_ref().and_then(WarmRestart::new);
    if let Some(warm) = warm.clone() {
        warm.save(Arc::clone(cache)).await;
    }
    let serving = tokio::select! {
        // The other one goes on without it.
        () = shutdown.cancelled() => return true,
        serving = successor.wait_until_serving() => serving,
    };
    match serving {
        Ok(successor) => {
            live.end_caching();
            successor.release().await;
            tracing::info!(process, "another process has taken over; this one drains");
            true
        }
        Err(error) => {
            tracing::error!(process, %error, "another process has failed to take over; this one goes on");
            if let Some(warm) = warm {
                warm.discard().await;
            }
            false
        }
    }
}

impl Predecessor {
    /// The process at this socket with its sockets, if there is one. Blocks, for ten seconds at most.
    pub(crate) fn find(path: &Path) -> io::Result<Option<(Self, Vec<NamedSocket>)>> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Binding says what else is wrong with the path.
            Err(error) => {
                tracing::debug!(%error, "no other process is at upgrade.socket");
                return Ok(None);
            }
        };
        let found = Self::ask(stream);
        let explained = |error: io::Error| {
            let message = format!(
                "cannot take over from the process at upgrade.socket, {}: {error}; stop that process, or choose another \
                 path",
                path.display()
            );
            io::Error::new(error.kind(), message)
        };
        found.map(Some).map_err(explained)
    }

    fn ask(stream: UnixStream) -> io::Result<(Self, Vec<NamedSocket>)> {
        let mut channel = Channel::new(stream)?;
        channel.send(VERSION)?;
        let mut sockets = Vec::new();
        loop {
            match channel.receive(ANSWER_TIMEOUT)? {
                Line::Socket(name, socket) if sockets.len() < MAX_SOCKETS => sockets.push((name, socket)),
                Line::Word(word) if word == END => break,
                other => return Err(unexpected(&format!("{other:?}"))),
            }
        }
        tracing::info!(process = channel.process, sockets = sockets.len(), "takes over from another process");
        Ok((Self(channel), sockets))
    }

    /// All is read and bound. Waits until the process before has saved its cache. `None` if it has ended: then this one
    /// just serves.
    pub(crate) async fn wait_until_saved(mut self) -> Option<Self> {
        let said = run_blocking(move || {
            self.0.send(BOUND)?;
            self.0.expect(SAVED, WORK_TIMEOUT)?;
            Ok(self)
        })
        .await;
        said.inspect_err(log_gone).ok()
    }

    /// Clients are accepted. Waits until the process before answers nothing from its cache any more.
    pub(crate) async fn replace(mut self) {
        let said = run_blocking(move || {
            self.0.send(SERVING)?;
            self.0.expect(YOURS, ANSWER_TIMEOUT)
        });
        let _ = said.await.inspect_err(log_gone);
    }
}

fn log_gone(error: &io::Error) {
    tracing::warn!(%error, "the process before does not answer any more; this one goes on without it");
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
