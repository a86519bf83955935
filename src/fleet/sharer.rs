//! Keeps the connection over which answers are shared, and writes what no request waits for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::backoff::{Backoff, LONGEST};
use super::bus::{ANOTHER_MASTER, Bus, End};
use super::connection::{Connection, ConnectionError};
use super::shared::SharedAnswers;
use super::shared::link::{Linked, Write};

/// How many writes are under way at one time.
const MAX_WRITES: usize = 256;

/// How often the server is asked whether it is still the same. It is another one for those that come later, once its first
/// replica was attached.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Runs for as long as the gateway.
pub(super) async fn share(bus: Arc<Bus>, shared: Arc<SharedAnswers>) {
    let mut writes = shared.link.queue.lock().await;
    let mut backoff = Backoff::new(LONGEST);
    loop {
        let Err(end) = keep_connection(&bus, &shared, &mut writes, &mut backoff).await;
        shared.link.set(None);
        tokio::time::sleep(bus.count_failure("shared answers", &end, &mut backoff)).await;
        // They are of before.
        while writes.try_recv().is_ok() {}
    }
}

async fn keep_connection(
    bus: &Bus,
    shared: &SharedAnswers,
    writes: &mut mpsc::Receiver<Write>,
    backoff: &mut Backoff,
) -> Result<Infallible, End> {
    let opened = bus.connect("railgate-shared", backoff).await?;
    let Some(identity) = opened.identity else { return wait_for_identity(bus, &opened.connection).await };
    let linked = Arc::new(Linked { connection: opened.connection, identity });
    let connection = &linked.connection;
    shared.link.set(Some(Arc::clone(&linked)));
    backoff.worked(bus.clock.now());
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one comes at once.
    checks.tick().await;
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = writes.recv_many(&mut batch, MAX_WRITES) => {
                let written = join_all(batch.drain(..).map(|write| write.run(connection))).await;
                // One that is refused (Valkey is full, or may not be written to) leaves the connection as it is.
                let failed = written.into_iter().find_map(|result| result.err().filter(|error| !error.is_refusal()));
                if let Some(error) = failed {
                    return Err(error.into());
                }
            }
            () = shared.link.suspected.notified() => {
                connection.ping().await?;
                shared.link.acquit();
            }
            _ = checks.tick() => {
                if connection.identity().await?.as_ref() != Some(&linked.identity) {
                    return Err(ANOTHER_LIFE);
                }
                if !shared.is_followed(&linked.identity) {
                    // Both begin anew, and find the same.
                    bus.resets.send_modify(|resets| *resets += 1);
                    return Err(ANOTHER_LIFE);
                }
            }
            () = bus.servers.replaced(&opened.address) => return Err(ANOTHER_MASTER),
            () = connection.ended() => return Err(ConnectionError::Closed("PING", "by the server".to_owned()).into()),
        }
    }
}

const ANOTHER_LIFE: End =
    End::GivenUp("the server is not the one that is listened to, or not in the same life");

/// Managed services do not tell which server is behind their address, so no answer could be bound to it. Nor does one
/// whose operator has yet to allow it.
async fn wait_for_identity(bus: &Bus, connection: &Connection) -> Result<Infallible, End> {
    tracing::warn!(
        "Valkey does not tell which server it is (ROLE and INFO are refused): answers are not shared until it does"
    );
    while connection.identity().await?.is_none() {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
    // The reader asks as well, and follows the server by its name.
    bus.resets.send_modify(|resets| *resets += 1);
    Err(End::GivenUp("the server tells now which one it is"))
}
