//! The order in which the tasks of a gateway send commands. What they decide is the product's.

use std::rc::Rc;

use futures_util::FutureExt as _;

use super::gateway::{DEADLINE, Task};
use super::plan::ms;
use super::valkey::{Connection, Opened};
use super::world::World;
use crate::fleet::connection::ConnectionError;
use crate::fleet::message::Message;
use crate::fleet::publisher::step::{REFUSAL_PAUSE, Step, is_lasting};
use crate::fleet::stream::{Envelope, Poll, StreamId};

/// The first poll does not wait.
const NO_WAIT: u64 = 1;

/// Between polls that bring all there is.
const COALESCE: u64 = 2;

/// Between two looks whether the server is the same.
const CHECK_INTERVAL: u64 = 10_000;

impl World {
    /// The reader is connected.
    pub(super) fn read(&mut self, gateway: usize, opened: Opened) {
        let process = self.gateway(gateway);
        let is_anew = process.bus.follower.lock().connected(Some(opened.identity.clone()));
        if is_anew && !self.begin_reading(gateway, &opened.connection, opened.last_id) {
            return;
        }
        if let Some(shared) = &self.gateway(gateway).bus.shared {
            shared.follow(Some(opened.identity));
        }
        self.poll_next(gateway, opened.connection, NO_WAIT);
        self.heard(gateway);
    }

    /// Returns whether that worked.
    fn begin_reading(&mut self, gateway: usize, connection: &Rc<Connection>, last: Option<StreamId>) -> bool {
        self.begins_anew();
        let is_reached = !self.gateways[gateway].is_cut() && !connection.is_dead.get();
        self.gateway(gateway);
        let (process, node) = (&self.gateways[gateway].process, &self.nodes[connection.node]);
        let range = |from, count| {
            let entries = (is_reached && node.answers(connection)).then(|| node.range(from, count));
            std::future::ready(entries.ok_or_else(|| ConnectionError::Closed("XRANGE", String::new())))
        };
        let begun = process.reader.begin(&range, last).now_or_never().unwrap();
        if begun.is_err() {
            self.lose_connection(gateway, Task::Reader);
            self.heard(gateway);
        }
        begun.is_ok()
    }

    fn poll_next(&mut self, gateway: usize, connection: Rc<Connection>, wait_ms: u64) {
        let from = self.gateway(gateway).bus.follower.lock().read_from();
        let (begin, wait) = (self.now, self.wait(gateway, Task::Reader));
        self.limit(wait, wait_ms + 500);
        let polled = Rc::clone(&connection);
        self.poll(&connection, (from, wait_ms), move |world, poll| {
            if world.is_awaited(wait) {
                world.polled(gateway, polled, (from, begin), &poll);
            }
        });
    }

    fn polled(
        &mut self,
        gateway: usize,
        connection: Rc<Connection>,
        (from, begin): (StreamId, u64),
        poll: &Poll,
    ) {
        if !poll.is_master {
            return self.lose_connection(gateway, Task::Reader);
        }
        let process = self.gateway(gateway);
        let is_complete = process.reader.hear(poll);
        let is_lost = process.bus.follower.lock().anchor().is_none();
        if is_lost && from != StreamId::default() {
            let last = self.nodes[connection.node].last_entry();
            if !self.begin_reading(gateway, &connection, last) {
                return;
            }
        }
        self.worked(gateway, Task::Reader);
        let wait_ms = if is_complete { ms(self.plan.settings.poll) } else { NO_WAIT };
        let pause = if is_complete { (begin + COALESCE).saturating_sub(self.now) } else { 0 };
        let wait = self.wait(gateway, Task::Reader);
        if pause == 0 {
            self.poll_next(gateway, connection, wait_ms);
        } else {
            self.after(pause, move |world| {
                if world.is_awaited(wait) {
                    world.poll_next(gateway, connection, wait_ms);
                }
            });
        }
        self.heard(gateway);
    }

    /// The other tasks do what follows from what was heard.
    fn heard(&mut self, gateway: usize) {
        self.purge(gateway);
        self.wake_publisher(gateway);
        self.follow_resets(gateway);
    }

    /// The reader connects anew if it may be at another server than the publisher.
    fn follow_resets(&mut self, gateway: usize) {
        let process = &self.gateways[gateway].process;
        let is_reset = process.resets.has_changed().unwrap();
        if is_reset && process.connections[Task::Reader as usize].is_some() {
            self.lose_connection(gateway, Task::Reader);
        }
    }

    /// The publisher is connected.
    pub(super) fn tell(&mut self, gateway: usize, opened: Opened, has_followed: bool) {
        let told = self.gateway(gateway).publisher.opened(has_followed, Some(&opened.identity));
        self.follow_resets(gateway);
        if told.is_empty() {
            self.gateway(gateway).publisher.looked_for(&[]);
            return self.tell_next(gateway);
        }
        let wait = self.wait(gateway, Task::Publisher);
        self.limit(wait, DEADLINE);
        let ids: Vec<StreamId> = told.iter().map(|(_, id)| *id).collect();
        let look = move |world: &mut World, node: usize| {
            ids.iter().map(|id| world.nodes[node].entry_at(*id)).collect::<Vec<_>>()
        };
        self.call(&opened.connection, look, move |world, found| {
            if world.is_awaited(wait) {
                let publisher = &mut world.gateway(gateway).publisher;
                publisher.looked_for(&publisher.are_there(&told, &found));
                world.tell_next(gateway);
            }
        });
    }

    pub(super) fn wake_publisher(&mut self, gateway: usize) {
        let is_up = self.gateways[gateway].is_up();
        if is_up && std::mem::take(&mut self.gateway(gateway).is_publisher_resting) {
            self.tell_next(gateway);
        }
    }

    fn tell_next(&mut self, gateway: usize) {
        let step = self.gateway(gateway).publisher.next_step();
        match step {
            Err(_) => {
                self.lose_connection(gateway, Task::Publisher);
                self.follow_resets(gateway);
            }
            Ok(Step::Gather(until)) => {
                let pause = self.until(gateway, until);
                self.tell_after(gateway, pause.max(1));
            }
            Ok(Step::Send(number, purge, _)) => {
                self.add(gateway, (number, Message::Purge(purge)), move |world, taken, is_at_master| {
                    world.sent(gateway, number, taken, is_at_master);
                });
            }
            Ok(Step::SayHello(question)) => {
                let hello = self.gateway(gateway).bus.hello(question);
                self.say(gateway, hello, move |world, said| {
                    let said = world.gateway(gateway).publisher.said_hello(question, said);
                    world.go_on_telling(gateway, &said);
                });
            }
            Ok(Step::SayReport(report)) => self.say(gateway, Message::Report(report), move |world, said| {
                let said = world.gateway(gateway).publisher.said_report(said);
                world.go_on_telling(gateway, &said);
            }),
            Ok(Step::SayBye) => self.say(gateway, Message::Bye, move |world, said| match said {
                Ok(()) => world.stop(gateway),
                Err(_) => world.lose_connection(gateway, Task::Publisher),
            }),
            Ok(Step::Rest) => self.rest(gateway),
        }
    }

    fn go_on_telling(&mut self, gateway: usize, said: &Result<(), ConnectionError>) {
        match said {
            Ok(()) => self.tell_next(gateway),
            Err(_) => self.lose_connection(gateway, Task::Publisher),
        }
    }

    fn tell_after(&mut self, gateway: usize, pause: u64) {
        let wait = self.wait(gateway, Task::Publisher);
        self.after(pause, move |world| {
            if world.is_awaited(wait) {
                world.tell_next(gateway);
            }
        });
    }

    fn sent(
        &mut self,
        gateway: usize,
        number: u64,
        taken: Result<StreamId, ConnectionError>,
        is_at_master: bool,
    ) {
        let bus = std::sync::Arc::clone(&self.gateway(gateway).bus);
        match taken {
            Ok(id) => {
                bus.outbox.lock().taken(number, id, crate::fleet::counters::Told::Told);
                self.learn_outcomes(gateway, is_at_master);
                self.worked(gateway, Task::Publisher);
                self.tell_next(gateway);
            }
            Err(error) if is_lasting(&error) => {
                bus.outbox.lock().refused();
                self.learn_outcomes(gateway, is_at_master);
                self.tell_after(gateway, ms(REFUSAL_PAUSE));
            }
            Err(_) => self.lose_connection(gateway, Task::Publisher),
        }
    }

    fn say(
        &mut self,
        gateway: usize,
        message: Message,
        then: impl FnOnce(&mut World, Result<(), ConnectionError>) + 'static,
    ) {
        let number = self.gateway(gateway).bus.outbox.lock().last_number();
        self.add(gateway, (number, message), |world, said, _| then(world, said.map(|_| ())));
    }

    /// `XADD`.
    fn add(
        &mut self,
        gateway: usize,
        (number, message): (u64, Message),
        then: impl FnOnce(&mut World, Result<StreamId, ConnectionError>, bool) + 'static,
    ) {
        let envelope = self.gateway(gateway).publisher.seal(number, &message).unwrap();
        let connection = self.gateways[gateway].process.connections[Task::Publisher as usize].clone();
        let Some(connection) = connection else { return };
        let wait = self.wait(gateway, Task::Publisher);
        self.limit(wait, DEADLINE);
        let sent = envelope.clone();
        let add =
            move |world: &mut World, node: usize| (world.add_at(node, (None, sent)), node == world.master);
        let again = Rc::clone(&connection);
        self.call(&connection, add, move |world, (added, is_at_master)| {
            if !world.is_awaited(wait) {
                return;
            }
            let taken = added.as_ref().map_or(Ok(()), |id| world.gateway(gateway).publisher.taken(*id));
            match taken {
                Ok(()) => then(world, added, is_at_master),
                Err(above) => world.call(
                    &again,
                    move |world, node| world.add_at(node, (Some(above), envelope)),
                    move |world, _| {
                        if world.is_awaited(wait) {
                            then(world, Err(ConnectionError::Backwards), is_at_master);
                        }
                    },
                ),
            }
        });
    }

    fn add_at(
        &mut self,
        node: usize,
        (id, envelope): (Option<StreamId>, Envelope),
    ) -> Result<StreamId, ConnectionError> {
        let publisher = envelope.publisher;
        let added = self.nodes[node].add(self.now, (id, envelope));
        if let Ok(id) = added
            && self.hidden == Some(publisher)
        {
            self.nodes[node].remove_entry(id);
        }
        self.wake_blocked(node);
        let refused = |code: &str| ConnectionError::Refused {
            command: "XADD",
            code: code.to_owned(),
            detail: String::new(),
        };
        added.map_err(refused)
    }

    fn rest(&mut self, gateway: usize) {
        self.gateway(gateway).is_publisher_resting = true;
        let (wait, pause) = (self.wait(gateway, Task::Publisher), ms(self.gateway(gateway).publisher.rest()));
        self.after(pause.max(1), move |world| {
            let connection = world.gateways[gateway].process.connections[Task::Publisher as usize].clone();
            let Some(connection) = connection.filter(|_| world.is_awaited(wait)) else { return };
            // Nothing else is sent meanwhile.
            world.gateway(gateway).is_publisher_resting = false;
            let wait = world.wait(gateway, Task::Publisher);
            world.limit(wait, DEADLINE);
            world.call(
                &connection,
                |_, _| (),
                move |world, ()| {
                    if world.is_awaited(wait) {
                        let process = world.gateway(gateway);
                        process.bus.outbox.lock().forget(process.clock.now());
                        world.worked(gateway, Task::Publisher);
                        world.tell_next(gateway);
                    }
                },
            );
        });
    }

    /// What shares answers is connected.
    pub(super) fn link(&mut self, gateway: usize, opened: &Opened) {
        self.gateway(gateway).linked = Some(opened.identity.clone());
        self.worked(gateway, Task::Sharer);
        self.check_link(gateway);
    }

    fn check_link(&mut self, gateway: usize) {
        let wait = self.wait(gateway, Task::Sharer);
        self.after(CHECK_INTERVAL, move |world| {
            if world.is_awaited(wait) {
                world.ask_link(gateway);
            }
        });
    }

    /// Is it still there, and the same?
    fn ask_link(&mut self, gateway: usize) {
        let connection = self.gateways[gateway].process.connections[Task::Sharer as usize].clone();
        let Some(connection) = connection else { return };
        let wait = self.wait(gateway, Task::Sharer);
        self.limit(wait, DEADLINE);
        let ask = |world: &mut World, node: usize| world.nodes[node].identity();
        self.call(&connection, ask, move |world, identity| {
            if !world.is_awaited(wait) {
                return;
            }
            let bus = std::sync::Arc::clone(&world.gateway(gateway).bus);
            let is_followed = bus.shared.as_ref().is_some_and(|shared| shared.is_followed(&identity));
            if is_followed {
                world.gateway(gateway).linked = Some(identity);
                world.check_link(gateway);
            } else {
                bus.resets.send_modify(|resets| *resets += 1);
                world.lose_connection(gateway, Task::Sharer);
                world.follow_resets(gateway);
            }
        });
    }

    /// A reply was late: the connection is not used until it has shown that it works.
    pub(super) fn suspect_link(&mut self, gateway: usize) {
        if self.gateway(gateway).linked.take().is_some() {
            self.ask_link(gateway);
        }
    }

    /// The process is to end, and tells what is left before.
    pub(super) fn take_leave(&mut self, gateway: usize) {
        let life = self.gateways[gateway].life;
        let process = self.gateway(gateway);
        process.bus.ending.cancel();
        self.wake_publisher(gateway);
        self.after(3_000, move |world| {
            if world.gateways[gateway].life == life {
                world.stop(gateway);
            }
        });
    }
}
