//! One thread with a runtime of its own: its share of the listeners, its stack, its connections to
//! Rails.
//!
//! A request lives on the thread that accepted its connection, from the first byte to the last, so
//! that no thread has to be woken for it and hardly any state has a lock. Workers share the
//! cache, with its fills. Each worker counts its requests for itself.
//!
//! # Why not one runtime with a thread for each core
//!
//! It hands tasks from thread to thread, and each time a thread is woken, which costs as much as a
//! small request. When workers took its place, with what they made possible (a stack and a pool
//! without locks, a timer for each connection instead of each wait), CPU time a request fell from
//! 18.8 to 13.4 µs for an answer from memory over a kept TCP connection, from 33 to 22.9 over a unix
//! socket for each, and from 27.6 to 21.5 for a request that is forwarded; all measured in turns on
//! one core. More workers than cores cost nothing: 8.9, 8.4 and 8.6 µs for one, two and four of them
//! on one core (`tests/bench/compare growth`).
//!
//! Responses that are ready together are sent together, one right after another ([`write_batch`]): beside a
//! load that sleeps between responses, one from memory cost 16.9 µs before that and 10.4 after, one that
//! is forwarded 22.6 and 21.0 (`tests/bench/compare --sleeping-load`, both on one day).
//!
//! The price: the kernel deals TCP connections out by a hash of their addresses (`SO_REUSEPORT`), so
//! a few long ones may meet on one worker while another has none. Callers have many short ones. A
//! unix socket cannot be shared like that: all workers wait for the same one, and an idle worker
//! accepts the next connection.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::heartbeat::Heartbeat;
use crate::hooks::Hooks;
use crate::server::{BoundSocket, HttpServer, Listener};
use crate::stack::reloadable::{Reloadable, StackCell};
use crate::stack::{self, Stack};
use crate::write_batch;

/// What tells the workers how far the gateway is.
#[derive(Debug, Default)]
pub(crate) struct WorkerPhases {
    /// They accept from then on.
    pub(crate) accept: CancellationToken,
    /// They drain from then on.
    pub(crate) end: CancellationToken,
    /// How long connections may have another request. Set before.
    pub(crate) grace: OnceLock<Duration>,
}

/// A worker that has not been started.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) sockets: Vec<BoundSocket>,
    pub(crate) server: HttpServer,
    pub(crate) cell: Arc<StackCell<Stack>>,
    /// The fills that may outlive their callers.
    pub(crate) fills: TaskTracker,
}

impl Worker {
    /// Where clients connect, with the ports that the system chose.
    pub(crate) fn addresses(&self) -> io::Result<Vec<String>> {
        let mut addresses = self.sockets.iter().map(BoundSocket::address).collect::<io::Result<Vec<_>>>()?;
        // Of a gateway with more workers before.
        addresses.dedup();
        Ok(addresses)
    }

    /// Starts the thread, which serves when it is told to until it is told to end, then drains. It sends true at its end
    /// if all requests were finished in time.
    pub(crate) fn start(self, phases: Arc<WorkerPhases>) -> io::Result<oneshot::Receiver<bool>> {
        let (server, cell, fills) = (self.server, self.cell, self.fills);
        start(self.heartbeat, self.sockets, |listeners| serve(listeners, server, cell, fills, phases))
    }
}

/// The thread for GitLab's hooks, so that requests, operators and signals do not wait for the CPU time that
/// the bodies of hooks cost.
#[derive(Debug)]
pub(crate) struct HooksThread {
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) socket: BoundSocket,
    pub(crate) hooks: Hooks,
}

impl HooksThread {
    /// The same once more, to be started again.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let (heartbeat, hooks) = (Arc::clone(&self.heartbeat), self.hooks.clone());
        Ok(Self { heartbeat, socket: self.socket.try_clone()?, hooks })
    }

    /// As [`Worker::start`], until `shutdown`.
    pub(crate) fn start(
        self,
        server: HttpServer,
        shutdown: CancellationToken,
    ) -> io::Result<oneshot::Receiver<bool>> {
        let hooks = self.hooks;
        start(self.heartbeat, vec![self.socket], |listeners| async move {
            for listener in listeners {
                server.serve(listener, stack::hooks::build(hooks.clone()));
            }
            shutdown.cancelled().await;
            server.drain().await
        })
    }
}

/// Starts a thread with a runtime that runs `serve` to its end.
fn start<F: Future<Output = bool>>(
    heartbeat: Arc<Heartbeat>,
    sockets: Vec<BoundSocket>,
    serve: impl FnOnce(Vec<Listener>) -> F + Send + 'static,
) -> io::Result<oneshot::Receiver<bool>> {
    let runtime = runtime()?;
    let listeners = {
        let _entered = runtime.enter();
        sockets.into_iter().map(Listener::new).collect::<io::Result<Vec<_>>>()?
    };
    let (end, ended) = oneshot::channel();
    heartbeat.start();
    std::thread::Builder::new().name(heartbeat.thread.clone()).spawn(move || {
        let in_time = runtime.block_on(async {
            tokio::select! {
                in_time = serve(listeners) => in_time,
                never = heartbeat.run() => match never {},
            }
        });
        heartbeat.stop();
        // Closes the sockets and drops the remaining tasks, except for a pending name look-up, which only the
        // system can end.
        runtime.shutdown_background();
        // No receiver is left if the gateway was dropped.
        let _ = end.send(in_time);
    })?;
    Ok(ended)
}

fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().on_thread_park(write_batch::end_iteration).build()
}

async fn serve(
    listeners: Vec<Listener>,
    server: HttpServer,
    cell: Arc<StackCell<Stack>>,
    fills: TaskTracker,
    phases: Arc<WorkerPhases>,
) -> bool {
    if phases.end.run_until_cancelled(phases.accept.cancelled()).await.is_none() {
        return true;
    }
    for listener in listeners {
        server.serve(listener, Reloadable::new(&cell));
    }
    phases.end.cancelled().await;
    let in_time = server.drain_after(phases.grace.get().copied().unwrap_or_default()).await;
    // The requests that waited for these fills are answered or dropped by now.
    fills.close();
    let _ = tokio::time::timeout(FILL_DRAIN_TIMEOUT, fills.wait()).await;
    in_time
}

const FILL_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_worker_reports_the_end_of_each_batch() {
        runtime().unwrap().block_on(async {
            // The thread parks, so a batch ends.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let (mut pacer, cx) = (write_batch::WritePacer::default(), Context::from_waker(Waker::noop()));
            assert!((0..10).any(|_| pacer.poll_ready(1, &cx).is_pending()));
        });
    }
}
