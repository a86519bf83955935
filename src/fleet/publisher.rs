//! Tells the others what is in the outbox, in order, and says again what was lost.

pub(super) mod step;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::step::{ANOTHER_SERVER, Publisher, REFUSAL_PAUSE, Step, is_lasting};
use super::backoff::{Backoff, LONGEST};
use super::bus::{ANOTHER_MASTER, Bus, End};
use super::connection::{Connection, ConnectionError};
use super::counters::Told;
use super::message::{Message, Purge};
use super::stream::StreamId;

/// Between two tries to tell what is left when the process ends.
const ENDING_PAUSE: Duration = Duration::from_millis(50);

/// How many entries are looked for in one write. No more are kept at one time: a writer of Valkey can make them large.
const LOOKED_FOR_AT_ONCE: usize = 256;

/// Tells, until the process ends, all is told, and Valkey has taken its leave: a process that ends without that is waited for
/// by the others. [`Fleet::end`](super::Fleet::end) bounds how long that is tried.
pub(super) async fn publish(bus: Arc<Bus>) {
    let mut publisher = Publisher::new(bus);
    let mut backoff = Backoff::new(LONGEST);
    loop {
        let Err(end) = publisher.tell(&mut backoff).await else { return };
        let pause = publisher.bus.count_failure("publisher", &end, &mut backoff);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = publisher.bus.ending.cancelled() => tokio::time::sleep(ENDING_PAUSE).await,
        }
    }
}

impl Publisher {
    /// Over one connection, until that ends or all is told at the end of the process.
    async fn tell(&mut self, backoff: &mut Backoff) -> Result<(), End> {
        let bus = Arc::clone(&self.bus);
        let has_followed = self.begin();
        let opened = bus.connect("railgate-publisher", backoff).await?;
        let connection = opened.connection;
        let told = self.opened(has_followed, opened.identity.as_ref());
        let are_there = self.look_for(&connection, &told).await?;
        self.looked_for(&are_there);
        loop {
            match self.next_step()? {
                Step::Gather(until) => {
                    tokio::time::sleep_until(until.into()).await;
                    continue;
                }
                Step::Send(number, purge, is_again) => {
                    self.send(&connection, number, purge, is_again).await?;
                    backoff.worked(bus.clock.now());
                    continue;
                }
                Step::SayHello(question) => {
                    let said = self.say(&connection, &bus.hello(question)).await;
                    self.said_hello(question, said)?;
                    continue;
                }
                Step::SayReport(report) => {
                    self.said_report(self.say(&connection, &Message::Report(report)).await)?;
                    continue;
                }
                Step::SayBye => return Ok(self.say(&connection, &Message::Bye).await?),
                Step::Rest => {}
            }
            let rest = self.rest();
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
                () = tokio::time::sleep(rest) => {
                    connection.ping().await?;
                    backoff.worked(bus.clock.now());
                    bus.outbox.lock().forget(bus.clock.now());
                }
            }
        }
    }

    /// The numbers of what was told, and whether each is still there.
    async fn look_for(
        &self,
        connection: &Connection,
        told: &[(u64, StreamId)],
    ) -> Result<Vec<(u64, bool)>, ConnectionError> {
        let mut are_there = Vec::with_capacity(told.len());
        for part in told.chunks(LOOKED_FOR_AT_ONCE) {
            let ids: Vec<StreamId> = part.iter().map(|(_, id)| *id).collect();
            let found = connection.entries_at(&self.bus.stream, &ids).await?;
            are_there.extend(self.are_there(part, &found));
        }
        Ok(are_there)
    }

    /// Sends a message. One that is refused is left in the outbox.
    async fn send(
        &self,
        connection: &Connection,
        number: u64,
        purge: Purge,
        is_again: bool,
    ) -> Result<(), End> {
        let bus = &self.bus;
        match self.add(connection, number, &Message::Purge(purge)).await {
            Ok(id) => {
                let told = self.confirm(connection).await;
                bus.outbox.lock().taken(number, id, told);
                bus.counters.again.fetch_add(is_again.into(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) if is_lasting(&error) => {
                bus.outbox.lock().refused();
                bus.warn_of_refusal(&error);
                tokio::select! {
                    () = tokio::time::sleep(REFUSAL_PAUSE) => Ok(()),
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
        let bus = &self.bus;
        let envelope = self.seal(number, message).ok_or(ConnectionError::Unexpected("seal"))?;
        let id = connection.add(&bus.stream, &envelope, bus.settings.bus_entries).await?;
        let Err(above) = self.taken(id) else { return Ok(id) };
        // There is nothing behind the greatest ID: the stream would take no other any more.
        if above < StreamId::MAX {
            match connection.add_at(&bus.stream, above, &envelope).await {
                // Another gateway was faster, or Valkey is full: that shows over the next connection.
                Err(error) if !error.is_refusal() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Err(ConnectionError::Backwards)
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

    /// Something that has no number of its own.
    async fn say(&self, connection: &Connection, message: &Message) -> Result<(), ConnectionError> {
        let number = self.bus.outbox.lock().last_number();
        self.add(connection, number, message).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests;
