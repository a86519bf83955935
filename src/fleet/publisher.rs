//! Tells the others what is in the outbox, in order, and says again what was lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::backoff::Backoff;
use super::bus::{ANOTHER_MASTER, Bus, End};
use super::connection::{Connection, ConnectionError};
use super::counters::Told;
use super::message::{HELLO_INTERVAL, Message};
use super::stream::StreamId;
use crate::clock::Clock;

/// Messages with something new are no closer together, so that purges which come together share one: each costs every
/// gateway a wake-up.
const GATHER: Duration = Duration::from_millis(2);

/// How often the server is asked whether it is still there. So a dead connection is known before something is to be
/// told.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before something that Valkey has refused is tried again.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Between two tries to tell what is left when the process ends.
const ENDING_PAUSE: Duration = Duration::from_millis(50);

/// This connection may be one to the server of before.
const ANOTHER_SERVER: End = End::GivenUp("the reader has found another server, or another stream");

/// Tells, until the process ends and all is told.
pub(super) async fn publish(bus: Arc<Bus>) {
    let breaks = bus.breaks.subscribe();
    let (sent_at, hello_at, hello_refused_at) = (None, None, None);
    let mut publisher = Publisher {
        bus,
        breaks,
        has_connected: false,
        may_have_lost: false,
        sent_at,
        hello_at,
        hello_refused_at,
    };
    let mut backoff = Backoff::default();
    loop {
        let Err(end) = publisher.tell(&mut backoff).await else { return };
        let is_done = publisher.bus.outbox.lock().untold().0 == 0;
        if publisher.bus.ending.is_cancelled() && is_done {
            // It goes without a word.
            return;
        }
        let pause = publisher.bus.count_failure("publisher", &end, &mut backoff);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = publisher.bus.ending.cancelled() => tokio::time::sleep(ENDING_PAUSE).await,
        }
    }
}

struct Publisher {
    bus: Arc<Bus>,
    breaks: watch::Receiver<u64>,
    has_connected: bool,
    /// What was told has to be looked for.
    may_have_lost: bool,
    sent_at: Option<Instant>,
    hello_at: Option<Instant>,
    hello_refused_at: Option<Instant>,
}

impl Publisher {
    /// Over one connection, until that ends or all is told at the end of the process.
    async fn tell(&mut self, backoff: &mut Backoff) -> Result<(), End> {
        let bus = Arc::clone(&self.bus);
        let has_followed = self.breaks.has_changed().unwrap_or_default() || self.may_have_lost;
        self.may_have_lost = has_followed;
        self.breaks.mark_unchanged();
        let opened = bus.connect("railgate-publisher", backoff).await?;
        let is_first = !std::mem::replace(&mut self.has_connected, true);
        let (connection, identity) = (opened.connection, opened.identity.as_ref());
        // A server that does not say which one it is has to be believed to be the reader's: else each would follow the
        // other for ever.
        let is_believed = identity.is_none() && (has_followed || is_first);
        if !is_believed && bus.follower.lock().may_be_elsewhere(identity) {
            bus.resets.send_modify(|resets| *resets += 1);
        }
        if self.may_have_lost {
            self.look_for_lost(&connection).await?;
            self.may_have_lost = false;
        }
        loop {
            if self.send_next(&connection).await? {
                backoff.worked();
                continue;
            }
            if bus.ending.is_cancelled() {
                self.say(&connection, &Message::Bye).await?;
                return Ok(());
            }
            if self.is_hello_due() {
                self.say_hello(&connection).await?;
            }
            if bus.outbox.lock().is_unheard(bus.polls()) {
                // Both to the same server, and look there.
                self.may_have_lost = true;
                bus.resets.send_modify(|resets| *resets += 1);
                return Err(End::GivenUp("what was told does not come back"));
            }
            tokio::select! {
                () = bus.to_send.notified() => {}
                () = bus.ending.cancelled() => {}
                // The sender is in the bus.
                _ = self.breaks.changed() => {
                    self.may_have_lost = true;
                    return Err(ANOTHER_SERVER);
                }
                () = bus.servers.replaced(&opened.address) => return Err(ANOTHER_MASTER),
                () = connection.ended() => return Err(End::GivenUp("the server has closed the connection")),
                () = tokio::time::sleep(PING_INTERVAL) => {
                    connection.ping().await?;
                    backoff.worked();
                    bus.outbox.lock().forget(Clock::System.now());
                }
            }
        }
    }

    /// Sends the next message, if there is one.
    async fn send_next(&mut self, connection: &Connection) -> Result<bool, End> {
        let bus = Arc::clone(&self.bus);
        if self.breaks.has_changed().unwrap_or_default() {
            return Err(ANOTHER_SERVER);
        }
        let is_new = bus.outbox.lock().is_next_new();
        if let Some(sent_at) = self.sent_at.filter(|_| is_new) {
            tokio::time::sleep_until((sent_at + GATHER).into()).await;
        }
        let Some((number, purge, is_again)) = bus.outbox.lock().next_to_send(Clock::System.now()) else {
            return Ok(false);
        };
        self.sent_at = Some(Clock::System.now());
        match self.add(connection, number, &Message::Purge(purge)).await {
            Ok(id) => {
                let told = self.confirm(connection).await;
                bus.outbox.lock().taken(number, id, bus.polls(), told);
                bus.counters.again.fetch_add(is_again.into(), Ordering::Relaxed);
                Ok(true)
            }
            Err(error) if is_lasting(&error) => {
                bus.outbox.lock().refused();
                bus.warn_of_refusal(&error);
                tokio::select! {
                    () = tokio::time::sleep(REFUSAL_PAUSE) => Ok(true),
                    () = bus.ending.cancelled() => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn add(
        &self,
        connection: &Connection,
        number: u64,
        message: &Message,
    ) -> Result<StreamId, ConnectionError> {
        let envelope = self.bus.seal.seal(number, message).ok_or(ConnectionError::Unexpected("seal"))?;
        connection.add(&self.bus.stream, &envelope, self.bus.settings.bus_entries).await
    }

    /// Whether as many replicas as are asked for have it.
    async fn confirm(&self, connection: &Connection) -> Told {
        let replicas = self.bus.settings.replicas;
        if replicas == 0 {
            return Told::Told;
        }
        match connection.wait(replicas).await {
            Ok(count) if count >= replicas.into() => Told::Told,
            Ok(_) | Err(_) => Told::Unconfirmed,
        }
    }

    /// At another server, or in another stream.
    async fn look_for_lost(&self, connection: &Connection) -> Result<(), ConnectionError> {
        let told = self.bus.outbox.lock().to_look_for(Clock::System.now());
        let ids: Vec<StreamId> = told.iter().map(|(_, id)| *id).collect();
        let found = connection.exist(&self.bus.stream, &ids).await?;
        let mut outbox = self.bus.outbox.lock();
        let lost = told.iter().zip(found).filter(|((number, _), is_found)| {
            outbox.looked_for(*number, *is_found);
            !is_found
        });
        let lost = lost.count();
        drop(outbox);
        if lost > 0 {
            tracing::warn!(messages = lost, "Valkey has lost what was told; it is told again");
        }
        Ok(())
    }

    fn is_hello_due(&self) -> bool {
        let now = Clock::System.now();
        let is_over = |at: Option<Instant>, pause| at.is_none_or(|at| now >= at + pause);
        let is_needed = self.bus.needs_hello.load(Ordering::Acquire);
        (is_needed || is_over(self.hello_at, HELLO_INTERVAL)) && is_over(self.hello_refused_at, REFUSAL_PAUSE)
    }

    async fn say_hello(&mut self, connection: &Connection) -> Result<(), ConnectionError> {
        let said = self.say(connection, &Message::Hello).await;
        match said {
            Ok(()) => {
                self.bus.needs_hello.store(false, Ordering::Release);
                self.hello_at = Some(Clock::System.now());
                Ok(())
            }
            Err(error) if is_lasting(&error) => {
                self.hello_refused_at = Some(Clock::System.now());
                self.bus.warn_of_refusal(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Something that has no number of its own.
    async fn say(&self, connection: &Connection, message: &Message) -> Result<(), ConnectionError> {
        let number = self.bus.outbox.lock().last_number();
        self.add(connection, number, message).await.map(|_| ())
    }
}

/// Whether the server will say the same over another connection. A server that has become a replica is another one
/// next time.
fn is_lasting(error: &ConnectionError) -> bool {
    error.is_refusal() && error.code() != Some("READONLY")
}
