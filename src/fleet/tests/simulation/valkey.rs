//! A model of Valkey: a stream, keys that expire, and what becomes of both when a server fails.

use std::collections::HashMap;
use std::rc::Rc;

use super::world::{Action, World};
use crate::fleet::stream::{Entry, Envelope, Identity, Poll, StreamId};

/// When the simulation begins, in milliseconds since the Unix epoch.
pub(super) const EPOCH_MS: u64 = 1_700_000_000_000;

/// A connection of a gateway, which outlives neither the process at its other end nor its own.
pub(super) struct Connection {
    pub(super) gateway: usize,
    pub(super) node: usize,
    /// The process of the server that it leads to.
    run: u64,
    /// Whether what is sent over it is lost without a sign.
    pub(super) is_dead: std::cell::Cell<bool>,
}

/// One server.
pub(super) struct Node {
    run: u64,
    replication: u64,
    pub(super) is_master: bool,
    is_down: bool,
    is_frozen: bool,
    /// What has come while it was frozen.
    pending: Vec<Action>,
    /// With the time at which each was added.
    stream: Vec<(u64, Entry)>,
    /// Of the stream, even if its entry is gone.
    last_id: StreamId,
    keys: HashMap<String, Value>,
    blocked: Vec<Blocked>,
    /// It refuses to write.
    pub(super) is_full: bool,
    /// By how many milliseconds its clock is off.
    pub(super) clock_error: i64,
}

struct Value {
    content: Vec<u8>,
    set_at: u64,
    expires_at: u64,
}

type PollReply = Box<dyn FnOnce(&mut World, Poll)>;

/// A poll that waits for an entry.
struct Blocked {
    number: u64,
    from: StreamId,
    reply: PollReply,
}

/// What was asked for when the connection was made.
pub(super) struct Opened {
    pub(super) connection: Rc<Connection>,
    pub(super) identity: Identity,
    pub(super) last_id: Option<StreamId>,
}

impl Node {
    pub(super) fn new(run: u64, is_master: bool) -> Self {
        Self {
            run,
            replication: run,
            is_master,
            is_down: false,
            is_frozen: false,
            pending: Vec::new(),
            stream: Vec::new(),
            last_id: StreamId::default(),
            keys: HashMap::new(),
            blocked: Vec::new(),
            is_full: false,
            clock_error: 0,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { run_id: self.run.to_string(), replid: self.replication.to_string() }
    }

    /// There is no process to connect to.
    pub(super) fn is_down(&self) -> bool {
        self.is_down
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Whether it answers over a connection of this process.
    pub(super) fn answers(&self, connection: &Connection) -> bool {
        !self.is_down && !self.is_frozen && self.run == connection.run
    }

    pub(super) fn last_entry(&self) -> Option<StreamId> {
        self.stream.last().map(|(_, entry)| entry.id)
    }

    pub(super) fn range(&self, from: StreamId, count: usize) -> Vec<Entry> {
        self.behind(from, true).take(count).cloned().collect()
    }

    fn behind(&self, from: StreamId, inclusive: bool) -> impl Iterator<Item = &Entry> {
        let begin =
            self.stream.partition_point(|(_, entry)| entry.id < from || (!inclusive && entry.id == from));
        self.stream.iter().skip(begin).map(|(_, entry)| entry)
    }

    pub(super) fn entry_at(&self, id: StreamId) -> Option<Entry> {
        let at = self.stream.binary_search_by_key(&id, |(_, entry)| entry.id).ok()?;
        Some(self.stream[at].1.clone())
    }

    fn poll(&self, from: StreamId) -> Poll {
        let entries = self.behind(from, false).take(256).cloned().collect();
        Poll { is_master: self.is_master, anchor_found: self.entry_at(from).is_some(), entries }
    }

    /// Or the code of the error.
    pub(super) fn add(
        &mut self,
        now: u64,
        (id, envelope): (Option<StreamId>, Envelope),
    ) -> Result<StreamId, &'static str> {
        match (self.is_master, self.is_full) {
            (false, _) => return Err("READONLY"),
            (true, true) => return Err("OOM"),
            (true, false) => {}
        }
        let by_clock = StreamId::from_milliseconds((EPOCH_MS + now).saturating_add_signed(self.clock_error));
        let next = self.last_id.next();
        let id = id.unwrap_or_else(|| by_clock.max(next));
        if id < next {
            return Err("ERR");
        }
        self.last_id = id;
        let place = self.stream.partition_point(|(_, entry)| entry.id < id);
        self.stream.insert(place, (now, Entry { id, envelope: Some(envelope) }));
        Ok(id)
    }

    /// A program adds an entry of its own with an ID that is ahead of the clock. `None` if it may not.
    pub(super) fn add_ahead(&mut self, now: u64, milliseconds: u64) -> Option<StreamId> {
        let id = StreamId::from_milliseconds(EPOCH_MS + now + milliseconds);
        if id <= self.last_id || !self.is_master || self.is_full {
            return None;
        }
        self.last_id = id;
        self.stream.push((now, Entry { id, envelope: None }));
        Some(id)
    }

    pub(super) fn remove_entry(&mut self, id: StreamId) {
        self.stream.retain(|(_, entry)| entry.id != id);
    }

    /// What is added from now on is put below the last entry.
    pub(super) fn lower_last_id(&mut self, now: u64) {
        self.last_id = StreamId::from_milliseconds(EPOCH_MS + now);
    }

    pub(super) fn get(&self, now: u64, key: &str) -> Option<Vec<u8>> {
        self.keys.get(key).filter(|value| value.expires_at > now).map(|value| value.content.clone())
    }

    pub(super) fn set(&mut self, now: u64, key: String, content: Vec<u8>, ttl: u64) {
        if !self.is_full && self.is_master {
            self.keys.insert(key, Value { content, set_at: now, expires_at: now + ttl });
        }
    }

    /// `None` if it refuses.
    pub(super) fn set_if_absent(&mut self, now: u64, key: String, ttl: u64) -> Option<bool> {
        let is_absent = self.get(now, &key).is_none();
        if self.is_full || !self.is_master {
            return None;
        }
        if is_absent {
            self.set(now, key, b"1".to_vec(), ttl);
        }
        Some(is_absent)
    }

    pub(super) fn remove(&mut self, keys: &[String]) {
        for key in keys {
            self.keys.remove(key);
        }
    }

    /// Removes the stream, and the next one begins anew.
    pub(super) fn remove_stream(&mut self) {
        self.stream.clear();
        self.last_id = StreamId::default();
    }

    pub(super) fn flush(&mut self) {
        self.remove_stream();
        self.keys.clear();
    }

    /// Only the last entries are left.
    pub(super) fn trim(&mut self, left: usize) {
        self.stream.drain(..self.stream.len().saturating_sub(left));
    }

    /// What was written from then on is lost.
    fn lose_since(&mut self, time: u64) {
        self.stream.retain(|(added_at, _)| *added_at < time);
        self.last_id = self.last_entry().unwrap_or_default();
        self.keys.retain(|_, value| value.set_at < time);
    }

    /// Another process has its data, up to that time; none of it for 0.
    pub(super) fn restart(&mut self, run: u64, kept_until: u64) {
        (self.run, self.replication) = (run, run);
        (self.is_down, self.is_frozen) = (false, false);
        self.pending.clear();
        self.blocked.clear();
        self.lose_since(kept_until);
    }

    /// A replica that is promoted has the data of `old`, up to that time.
    pub(super) fn promote(&mut self, old: &Self, replication: u64, kept_until: u64) {
        self.replication = replication;
        (self.is_master, self.is_full) = (true, false);
        self.stream.clone_from(&old.stream);
        let copy = |value: &Value| Value { content: value.content.clone(), ..*value };
        self.keys = old.keys.iter().map(|(key, value)| (key.clone(), copy(value))).collect();
        self.lose_since(kept_until);
    }
}

impl World {
    pub(super) fn connection_to(&self, gateway: usize, node: usize) -> Rc<Connection> {
        let run = self.nodes[node].run;
        Rc::new(Connection { gateway, node, run, is_dead: std::cell::Cell::new(false) })
    }

    /// Has a command run at the server, and its reply come back; neither of which may happen.
    pub(super) fn call<R: 'static>(
        &mut self,
        connection: &Rc<Connection>,
        command: impl FnOnce(&mut World, usize) -> R + 'static,
        reply: impl FnOnce(&mut World, R) + 'static,
    ) {
        let there = Rc::clone(connection);
        self.transmit(connection, move |world| {
            let back = Rc::clone(&there);
            world.execute(&there, move |world| {
                let result = command(world, back.node);
                world.transmit(&back, move |world| reply(world, result));
            });
        });
    }

    fn transmit(&mut self, connection: &Rc<Connection>, action: impl FnOnce(&mut World) + 'static) {
        let gateway = &mut self.gateways[connection.gateway];
        if connection.is_dead.get() {
            return;
        }
        if gateway.is_cut() {
            gateway.held.push(Box::new(action));
            return;
        }
        let latency = self.latency();
        self.after(latency, action);
    }

    fn execute(&mut self, connection: &Connection, action: impl FnOnce(&mut World) + 'static) {
        let node = &mut self.nodes[connection.node];
        if node.is_frozen {
            node.pending.push(Box::new(action));
        } else if !node.is_down && node.run == connection.run {
            action(self);
        }
    }

    /// `XREAD BLOCK` and `XRANGE` of the anchor.
    pub(super) fn poll(
        &mut self,
        connection: &Rc<Connection>,
        (from, wait): (StreamId, u64),
        reply: impl FnOnce(&mut World, Poll) + 'static,
    ) {
        let (there, number) = (Rc::clone(connection), self.next_number());
        // Valkey looks now and then whether a wait is over.
        let wait = wait + self.rng.u64(0..=100).min(wait / 2);
        self.transmit(connection, move |world| {
            let back = Rc::clone(&there);
            world.execute(&there, move |world| {
                let node = &mut world.nodes[back.node];
                let poll = node.poll(from);
                let (index, run) = (back.node, back.run);
                let reply = move |world: &mut World, poll| {
                    world.transmit(&back, move |world| reply(world, poll));
                };
                if poll.entries.is_empty() && node.is_master {
                    node.blocked.push(Blocked { number, from, reply: Box::new(reply) });
                    world.after(wait, move |world| world.end_wait(index, run, number));
                } else {
                    reply(world, poll);
                }
            });
        });
    }

    fn end_wait(&mut self, node: usize, run: u64, number: u64) {
        let server = &mut self.nodes[node];
        if server.is_frozen {
            server.pending.push(Box::new(move |world| world.end_wait(node, run, number)));
        } else if server.run == run
            && let Some(at) = server.blocked.iter().position(|blocked| blocked.number == number)
        {
            let blocked = server.blocked.remove(at);
            let poll = server.poll(blocked.from);
            (blocked.reply)(self, poll);
        }
    }

    /// Wakes those that wait for what was just added.
    pub(super) fn wake_blocked(&mut self, node: usize) {
        let server = &mut self.nodes[node];
        let (ready, blocked) = std::mem::take(&mut server.blocked)
            .into_iter()
            .partition(|blocked| !server.is_master || server.last_id > blocked.from);
        server.blocked = blocked;
        let ready: Vec<Blocked> = ready;
        for blocked in ready {
            let poll = self.nodes[node].poll(blocked.from);
            (blocked.reply)(self, poll);
        }
    }

    pub(super) fn freeze(&mut self, node: usize) {
        self.nodes[node].is_frozen = true;
    }

    /// It goes on where it was, with all that has come meanwhile.
    pub(super) fn wake(&mut self, node: usize) {
        let server = &mut self.nodes[node];
        if std::mem::take(&mut server.is_frozen) {
            for action in std::mem::take(&mut server.pending) {
                action(self);
            }
        }
    }

    /// The process ends, and its connections with it.
    pub(super) fn kill(&mut self, node: usize) {
        let server = &mut self.nodes[node];
        (server.is_down, server.is_frozen) = (true, false);
        server.pending.clear();
        server.blocked.clear();
        self.close_connections(node);
    }

    /// It is a replica from now on.
    pub(super) fn demote(&mut self, node: usize) {
        self.nodes[node].is_master = false;
        self.wake_blocked(node);
    }
}
