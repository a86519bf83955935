//! One thread with a runtime of its own: its share of the listeners, its stack, its connections to
//! Rails.
//!
//! A request lives on the thread that accepted its connection, from the first byte to the last, so
//! that nobody has to be woken for it and hardly anything has a lock. What workers share is the
//! cache, with the flights that fill it, and what is counted.

use std::io;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::server::{Listener, Server, Socket};
use crate::stack;

/// What a worker needs to run.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) server: Server,
    pub(crate) parts: stack::Parts,
}

impl Worker {
    /// Starts the thread, which serves until `shutdown`, then drains. What it says at its end: true
    /// if nothing had to be dropped.
    pub(crate) fn start(self, shutdown: CancellationToken) -> io::Result<oneshot::Receiver<bool>> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = {
            let _entered = runtime.enter();
            self.sockets.into_iter().map(Listener::new).collect::<io::Result<Vec<_>>>()?
        };
        let (end, ended) = oneshot::channel();
        let (server, parts) = (self.server, self.parts);
        std::thread::Builder::new().name(format!("worker-{}", self.number)).spawn(move || {
            let in_time = runtime.block_on(serve(listeners, server, parts, shutdown));
            // With it go the sockets and whatever still runs.
            drop(runtime);
            // Nobody is left to tell if the gateway was dropped.
            let _ = end.send(in_time);
        })?;
        Ok(ended)
    }
}

async fn serve(
    listeners: Vec<Listener>,
    server: Server,
    parts: stack::Parts,
    shutdown: CancellationToken,
) -> bool {
    let fills = parts.fills.clone();
    let stack = stack::build(parts);
    for listener in listeners {
        server.serve(listener, stack.clone());
    }
    shutdown.cancelled().await;
    let in_time = server.drain().await;
    // Whoever waited for them has an answer or is gone.
    fills.close();
    let _ = tokio::time::timeout(FILLS_DRAIN, fills.wait()).await;
    in_time
}

const FILLS_DRAIN: Duration = Duration::from_millis(200);
