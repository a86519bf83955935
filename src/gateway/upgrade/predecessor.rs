//! The side of the process that takes over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::channel::{
    ANSWER_TIMEOUT, BOUND, Channel, END, ENDING, Hangup, Line, SAVED, SERVING, VERSION, WORK_TIMEOUT, YOURS,
    unexpected,
};

/// Workers, times listeners.
const MAX_SOCKETS: usize = 10_000;

/// A socket, and the name by which it is known.
type NamedSocket = (String, OwnedFd);

/// The process before, which still serves. It hears at once if this is dropped.
#[derive(Debug)]
pub(in crate::gateway) struct Predecessor {
    channel: Channel,
    hangup: Hangup,
    /// For one answer.
    pub(super) timeout: Duration,
}

impl Predecessor {
    /// The process at this socket with its sockets, if there is one. Blocks, for an answer and an end of that process at
    /// most.
    pub(in crate::gateway) fn find(path: &Path) -> io::Result<Option<(Self, Vec<NamedSocket>)>> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Binding says what else is wrong with the path.
            Err(error) => {
                tracing::debug!(%error, "no other process is at upgrade.socket");
                return Ok(None);
            }
        };
        let mut channel = Channel::new(stream)?;
        match ask(&mut channel) {
            Ok(sockets) => Ok(Some((Self::new(channel)?, sockets))),
            Err(error) if UnixStream::connect(path).is_err() => {
                tracing::info!(%error, "the process at upgrade.socket ends just now");
                // It may have other sockets until then.
                channel.wait_for_exit(ANSWER_TIMEOUT);
                Ok(None)
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!(
                    "cannot take over from the process at upgrade.socket, {}: {error}; stop that process, or choose \
                     another path",
                    path.display()
                ),
            )),
        }
    }

    pub(super) fn new(channel: Channel) -> io::Result<Self> {
        let hangup = channel.hangup()?;
        Ok(Self { channel, hangup, timeout: WORK_TIMEOUT })
    }

    /// All is read and bound. Waits until the process before has saved its cache. `None` if it has ended, or is about to:
    /// then this one just serves. An error if it goes on, or if `shutdown` comes first.
    pub(in crate::gateway) async fn wait_until_saved(
        self,
        shutdown: &CancellationToken,
    ) -> io::Result<Option<Self>> {
        self.exchange((BOUND, SAVED), shutdown).await
    }

    /// This process is ready. Waits until the one before answers nothing from its cache any more. An error if it goes on, or
    /// if `shutdown` comes first.
    pub(in crate::gateway) async fn replace(self, shutdown: &CancellationToken) -> io::Result<()> {
        self.exchange((SERVING, YOURS), shutdown).await.map(drop)
    }

    /// Says one word, and waits for another one.
    async fn exchange(
        self,
        (said, due): (&'static str, &'static str),
        shutdown: &CancellationToken,
    ) -> io::Result<Option<Self>> {
        let Self { channel, hangup, timeout } = self;
        let process = channel.process;
        let answered = channel.run(move |channel| {
            // One that ends listens no more, and has said so.
            let _ = channel.send(said);
            channel.receive_last(due, timeout)
        });
        let Some((channel, answer)) = shutdown.run_until_cancelled(answered).await.transpose()? else {
            return Err(goes_on(process, "this process was told to end before it had taken over"));
        };
        let why = match answer {
            Ok(Line::Word(word)) if word == due => return Ok(Some(Self { channel, hangup, timeout })),
            Ok(Line::Word(word)) if word == ENDING => {
                tracing::info!(process, "the process before ends; this one goes on alone");
                return Ok(None);
            }
            Ok(other) => format!("it has said {other:?} in place of {due:?}"),
            Err(error) => {
                let patience = timeout.min(ANSWER_TIMEOUT);
                if channel.run(move |channel| channel.has_peer_ended(patience)).await?.1 {
                    tracing::warn!(process, %error, "the process before is gone; this one goes on alone");
                    return Ok(None);
                }
                format!("it has not said {due:?}: {error}")
            }
        };
        Err(goes_on(process, &why))
    }
}

/// Asks for the sockets.
pub(super) fn ask(channel: &mut Channel) -> io::Result<Vec<NamedSocket>> {
    channel.watch_peer()?;
    channel.send(VERSION)?;
    let mut sockets = Vec::new();
    loop {
        match channel.receive(ANSWER_TIMEOUT)? {
            Line::Socket(name, socket) if sockets.len() < MAX_SOCKETS => sockets.push((name, socket)),
            Line::Word(word) if word == END => break,
            Line::Word(word) if word == ENDING => {
                let message = "it ends just now; start this process again";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, message));
            }
            other => return Err(unexpected(&format!("{other:?}"))),
        }
    }
    tracing::info!(process = channel.process, sockets = sockets.len(), "takes over from another process");
    Ok(sockets)
}

fn goes_on(process: i32, why: &str) -> io::Error {
    io::Error::other(format!(
        "cannot take over from process {process} at upgrade.socket: {why}; if it still runs, it goes on: its log says \
         more. If it hangs, end it (kill -9 {process}); then start this process again"
    ))
}
