//! The side of the process that serves: it passes its sockets on.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::channel::{
    ANSWER_TIMEOUT, BOUND, Channel, END, ENDING, Hangup, SAVED, SERVING, VERSION, WORK_TIMEOUT, YOURS,
};
use crate::gateway::live::Live;
use crate::gateway::restart::WarmRestart;
use crate::server::{BoundSocket, Listener, PassedSockets};

/// Where the next process asks for the sockets, if it may.
#[derive(Debug)]
pub(in crate::gateway) struct NextProcess {
    upgrades: Option<Upgrades>,
    /// The process that speaks railgate's version of the protocol, until it has failed or taken over.
    asked_by: Mutex<Option<Hangup>>,
}

#[derive(Debug)]
struct Upgrades {
    listener: Listener,
    /// As long as they are here, no client finds the sockets closed.
    sockets: Arc<PassedSockets>,
}

/// The next process, which has bound all that it needs.
#[derive(Debug)]
pub(in crate::gateway) struct Successor(Channel);

impl NextProcess {
    pub(in crate::gateway) fn new(socket: Option<BoundSocket>, passed: PassedSockets) -> io::Result<Self> {
        let sockets = Arc::new(passed);
        let open = |socket| Ok::<_, io::Error>(Upgrades { listener: Listener::new(socket)?, sockets });
        Ok(Self { upgrades: socket.map(open).transpose()?, asked_by: Mutex::default() })
    }

    /// Waits for a process that has got the sockets, and has bound all that it needs.
    pub(in crate::gateway) async fn wait(&self) -> Successor {
        let Some(upgrades) = &self.upgrades else { return pending().await };
        loop {
            match self.accept(upgrades).await {
                Ok(successor) => return successor,
                Err(error) => {
                    self.asked_by.lock().take();
                    tracing::warn!(%error, "another process has asked for the sockets, and has not taken over");
                    // Not at once again, whatever it is.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn accept(&self, upgrades: &Upgrades) -> io::Result<Successor> {
        let stream = upgrades.listener.accept_unix().await?.into_std()?;
        let channel = Channel::new(stream)?;
        let hangup = channel.hangup()?;
        let channel = channel.try_run(|channel| channel.expect(VERSION, ANSWER_TIMEOUT)).await?;
        *self.asked_by.lock() = Some(hangup);
        let sockets = Arc::clone(&upgrades.sockets);
        let channel = channel.try_run(move |channel| pass(channel, &sockets)).await?;
        Ok(Successor(channel.try_run(|channel| channel.expect(BOUND, WORK_TIMEOUT)).await?))
    }

    /// Whether a process has asked for the sockets, and may have them by now.
    pub(in crate::gateway) fn is_asked(&self) -> bool {
        self.asked_by.lock().is_some()
    }

    /// Tells the process that has asked for the sockets that this one ends: it need not wait for it.
    pub(in crate::gateway) fn end(&self, live: &Live) {
        let Some(hangup) = self.asked_by.lock().take() else { return };
        // As if it had taken over, which it does now.
        match live.set_replaced(true) {
            Ok(()) => {
                hangup.say(ENDING);
                tracing::info!(
                    "another process has asked for the sockets, and goes on with them; this one drains"
                );
            }
            Err(error) => {
                tracing::error!(%error, "another process has asked for the sockets, and is not told that this one drains");
            }
        }
    }

    /// Whether the next process takes over, or this one has to end. Nothing can be purged here meanwhile.
    pub(in crate::gateway) async fn hand_over(
        &self,
        live: &Live,
        successor: Successor,
        shutdown: &CancellationToken,
    ) -> bool {
        let (cache, process) = (&live.shared.cache, successor.0.process);
        cache.wait_for_blocking_tasks().await;
        let warm = live.config().as_ref().and_then(WarmRestart::new);
        if let Some(warm) = warm.clone() {
            warm.save(Arc::clone(cache)).await;
        }
        let serving = tokio::select! {
            () = shutdown.cancelled() => {
                self.end(live);
                return true;
            }
            serving = successor.wait_until_serving() => serving,
        };
        match release(live, serving).await {
            Ok(()) => {
                tracing::info!(process, "another process has taken over; this one drains");
                true
            }
            Err(error) => {
                self.asked_by.lock().take();
                tracing::error!(process, %error, "another process has failed to take over; this one goes on");
                if let Some(warm) = warm {
                    warm.discard().await;
                }
                false
            }
        }
    }
}

fn pass(channel: &mut Channel, sockets: &PassedSockets) -> io::Result<()> {
    for (name, sockets) in sockets.iter() {
        for socket in sockets {
            channel.send_socket(name, socket)?;
        }
    }
    channel.send(END)
}

/// Leaves the clients to the next process. After an error they are served here.
async fn release(live: &Live, serving: io::Result<Successor>) -> io::Result<()> {
    let successor = serving?;
    // First, since the other one answers operators once it has heard that.
    live.set_replaced(true)?;
    let released = successor.0.try_run(|channel| channel.send(YOURS)).await;
    if released.is_err() {
        live.set_replaced(false)?;
    }
    released.map(drop)
}

impl Successor {
    /// The cache is saved, and nothing will be purged here any more. Waits until the next process is ready.
    async fn wait_until_serving(self) -> io::Result<Self> {
        let serving = self.0.try_run(|channel| {
            channel.send(SAVED)?;
            channel.expect(SERVING, WORK_TIMEOUT)
        });
        serving.await.map(Self)
    }
}
