//! A gateway: the product's own state and decisions, and which of its tasks waits for what.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::plan::ms;
use super::promise::REVALIDATE;
use super::rails::Question;
use super::valkey::{Connection, EPOCH_MS, Opened};
use super::world::{Action, World};
use crate::cache::purge::{PurgeMode, Selector};
use crate::cache::{Cache, CacheSettings, FillWaiter, Lifetime, Lifetimes};
use crate::clock::{Clock, ManualClock};
use crate::fleet::backoff::{Backoff, LONGEST, LONGEST_OF_READER};
use crate::fleet::bus::Bus;
use crate::fleet::counters::DoubtReason;
use crate::fleet::message::{MessageSeal, Purge};
use crate::fleet::publisher::step::Publisher;
use crate::fleet::purger::{Step, with_keys};
use crate::fleet::reader::Reader;
use crate::fleet::shared::SharedAnswers;
use crate::fleet::stream::Identity;

/// How long each command may take.
pub(super) const DEADLINE: u64 = 1_000;

/// What has a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Reader,
    Publisher,
    Sharer,
}

impl Task {
    const ALL: [Self; 3] = [Self::Reader, Self::Publisher, Self::Sharer];
}

/// Something that a task waits for. It is over once the task does something else.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    pub(super) gateway: usize,
    life: u64,
    task: Task,
    number: u64,
}

/// See the module.
pub(super) struct Gateway {
    /// Counts its processes; 0 while there is none.
    pub(super) life: u64,
    clock: ManualClock,
    /// The time by that clock.
    shown: u64,
    pub(super) process: Process,
    /// Packets are not delivered, while any fault says so.
    cuts: u32,
    pub(super) held: Vec<Action>,
    /// The node that the Sentinels have named.
    pub(super) named_master: usize,
    /// From when on it reaches Valkey, as far as it is known what happens.
    pub(super) reaches_from: u64,
}

/// What ends with a process.
pub(super) struct Process {
    pub(super) clock: Clock,
    pub(super) cache: Arc<Cache>,
    pub(super) lifetimes: Lifetimes,
    pub(super) bus: Arc<Bus>,
    pub(super) reader: Reader,
    pub(super) publisher: Publisher,
    pub(super) is_publisher_resting: bool,
    pub(super) resets: tokio::sync::watch::Receiver<u64>,
    is_purging: bool,
    backoffs: [Backoff; 3],
    pub(super) waits: [u64; 3],
    pub(super) connections: [Option<Rc<Connection>>; 3],
    /// Of the server at the other end of the sharer's connection.
    pub(super) linked: Option<Identity>,
    pub(super) followers: Vec<(Question, u64, FillWaiter)>,
}

impl Process {
    fn new(world: &World, gateway: usize, clock: Clock, cache: Option<Arc<Cache>>) -> Self {
        let lifetime = Lifetime {
            ttl: Duration::from_millis(world.plan.fresh),
            stale_while_revalidate: Duration::from_millis(REVALIDATE),
            ..Lifetimes::default().discover
        };
        let lifetimes = Lifetimes { authorized_keys: lifetime, discover: lifetime, ..Lifetimes::default() };
        let settings = CacheSettings { lifetimes: lifetimes.clone(), ..CacheSettings::default() };
        let cache = cache.unwrap_or_else(|| Cache::with_clock(&settings, clock.clone()));
        let (keys, fleet) = (&world.fleet_keys, Arc::clone(&world.plan.settings));
        let shared = fleet
            .shared
            .map(|shared| Arc::new(SharedAnswers::new((shared, fleet.alone_after), keys, &cache).unwrap()));
        let seal = MessageSeal::new(keys).unwrap();
        let mut bus = Bus::new((fleet, clock.clone()), (keys.bus(), seal), Arc::clone(&cache), shared);
        bus.origin.host = format!("gateway-{gateway}");
        let bus = Arc::new(bus);
        bus.join();
        Self {
            clock,
            cache,
            lifetimes,
            reader: Reader::new(Arc::clone(&bus)),
            publisher: Publisher::new(Arc::clone(&bus)),
            is_publisher_resting: false,
            resets: bus.resets.subscribe(),
            bus,
            is_purging: false,
            backoffs: [LONGEST_OF_READER, LONGEST, LONGEST].map(Backoff::new),
            waits: [0; 3],
            connections: [None, None, None],
            linked: None,
            followers: Vec::new(),
        }
    }
}

impl Gateway {
    pub(super) fn is_cut(&self) -> bool {
        self.cuts > 0
    }

    pub(super) fn is_up(&self) -> bool {
        self.life > 0
    }

    pub(super) fn step_clock(&self, seconds: i64) {
        self.clock.step_wall(seconds);
    }
}

impl World {
    pub(super) fn add_gateway(&mut self) {
        let clock = ManualClock::at(i64::try_from(EPOCH_MS / 1_000).unwrap());
        let gateway = self.gateways.len();
        let process = Process::new(self, gateway, Clock::Manual(clock.clone()), None);
        let shown = 0;
        self.gateways.push(Gateway {
            life: 0,
            clock,
            shown,
            process,
            cuts: 0,
            held: Vec::new(),
            named_master: 0,
            reaches_from: 0,
        });
        if self.plan.has_clock_errors && self.rng.bool() {
            self.gateways[gateway].step_clock(1);
        }
        let delay = self.rng.u64(0..=self.plan.start);
        self.after(delay, move |world| world.start(gateway, false));
    }

    /// The gateway, with its clock at the time of the world.
    pub(super) fn gateway(&mut self, gateway: usize) -> &mut Process {
        let (now, gateway) = (self.now, &mut self.gateways[gateway]);
        gateway.clock.advance(Duration::from_millis(now - gateway.shown));
        gateway.shown = now;
        &mut gateway.process
    }

    /// How many milliseconds from now on a time of a gateway's clock is.
    pub(super) fn until(&mut self, gateway: usize, time: Instant) -> u64 {
        ms(time.saturating_duration_since(self.gateway(gateway).clock.now()))
    }

    /// A process begins, with what the one before has kept, or with nothing.
    pub(super) fn start(&mut self, gateway: usize, keeps_answers: bool) {
        let process = self.gateway(gateway);
        let (clock, cache) = (process.clock.clone(), Arc::clone(&process.cache));
        let process = Process::new(self, gateway, clock, keeps_answers.then_some(cache));
        let (life, now, master) = (self.next_number(), self.now, self.master);
        let started = &mut self.gateways[gateway];
        started.process = process;
        started.life = life;
        started.named_master = master;
        started.reaches_from = started.reaches_from.max(now);
        for task in Task::ALL {
            self.connect(gateway, task);
        }
        self.check_condition(gateway, life);
    }

    fn check_condition(&mut self, gateway: usize, life: u64) {
        if self.gateways[gateway].life != life {
            return;
        }
        let process = self.gateway(gateway);
        let now = process.clock.now();
        process.bus.check_condition(now);
        let pause = ms(process.bus.until_check(now));
        self.after(pause.max(1), move |world| world.check_condition(gateway, life));
    }

    /// The process is gone, without a word if it has not taken leave.
    pub(super) fn stop(&mut self, gateway: usize) {
        let stopped = &mut self.gateways[gateway];
        stopped.life = 0;
        stopped.held.clear();
        stopped.process.followers.clear();
    }

    pub(super) fn cut(&mut self, gateway: usize, duration: u64) {
        self.gateways[gateway].cuts += 1;
        self.after(duration, move |world| {
            world.gateways[gateway].cuts -= 1;
            if world.gateways[gateway].is_cut() {
                return;
            }
            // Some of what was sent meanwhile is sent again.
            for action in std::mem::take(&mut world.gateways[gateway].held) {
                if world.rng.bool() {
                    let delay = world.rng.u64(0..=200);
                    world.after(delay, action);
                }
            }
        });
    }

    /// What the task waits for from now on.
    pub(super) fn wait(&mut self, gateway: usize, task: Task) -> Wait {
        let (number, life) = (self.next_number(), self.gateways[gateway].life);
        self.gateways[gateway].process.waits[task as usize] = number;
        Wait { gateway, life, task, number }
    }

    pub(super) fn is_awaited(&self, wait: Wait) -> bool {
        let gateway = &self.gateways[wait.gateway];
        gateway.is_up()
            && gateway.life == wait.life
            && gateway.process.waits[wait.task as usize] == wait.number
    }

    /// The task waits for no longer than that.
    pub(super) fn limit(&mut self, wait: Wait, deadline: u64) {
        self.after(deadline, move |world| {
            if world.is_awaited(wait) {
                world.lose_connection(wait.gateway, wait.task);
            }
        });
    }

    /// The connection of a task has ended, or is given up.
    pub(super) fn lose_connection(&mut self, gateway: usize, task: Task) {
        let jitter = self.rng.f64();
        let process = self.gateway(gateway);
        let (_, mut pause) = process.backoffs[task as usize].failed(process.clock.now(), jitter);
        process.connections[task as usize] = None;
        match task {
            Task::Reader => {}
            Task::Publisher => {
                process.is_publisher_resting = false;
                if process.bus.ending.is_cancelled() {
                    pause = pause.min(Duration::from_millis(50));
                }
            }
            Task::Sharer => process.linked = None,
        }
        let wait = self.wait(gateway, task);
        self.after(ms(pause), move |world| {
            if world.is_awaited(wait) {
                world.connect(gateway, task);
            }
        });
    }

    /// The connection does what it is for.
    pub(super) fn worked(&mut self, gateway: usize, task: Task) {
        let process = self.gateway(gateway);
        process.backoffs[task as usize].worked(process.clock.now());
    }

    fn connect(&mut self, gateway: usize, task: Task) {
        if task == Task::Sharer && self.plan.settings.shared.is_none() {
            return;
        }
        let has_followed = match task {
            Task::Reader => {
                self.gateway(gateway).resets.mark_unchanged();
                false
            }
            Task::Publisher => self.gateway(gateway).publisher.begin(),
            Task::Sharer => false,
        };
        let process = self.gateway(gateway);
        process.backoffs[task as usize].begins(process.clock.now());
        // The Sentinels are asked. While they are not reached, the attempt fails below, as one to the server does.
        if !self.gateways[gateway].is_cut() {
            self.name_master(gateway, self.master);
        }
        let wait = self.wait(gateway, task);
        let node = if self.plan.has_sentinels { self.gateways[gateway].named_master } else { self.master };
        let connection = self.connection_to(gateway, node);
        self.limit(wait, DEADLINE);
        let opened = Rc::clone(&connection);
        let command = |world: &mut World, node: usize| {
            let node = &world.nodes[node];
            node.is_master.then(|| (node.identity(), node.last_entry()))
        };
        if self.nodes[node].is_down() && !self.gateways[gateway].is_cut() {
            self.after(1, move |world| {
                if world.is_awaited(wait) {
                    world.lose_connection(gateway, task);
                }
            });
            return;
        }
        self.call(&connection, command, move |world, reply| {
            if !world.is_awaited(wait) {
                return;
            }
            let Some((identity, last_id)) = reply else { return world.lose_connection(gateway, task) };
            // The Sentinels may have named another master while the connection was made.
            if world.plan.has_sentinels && world.gateways[gateway].named_master != opened.node {
                return world.lose_connection(gateway, task);
            }
            let process = world.gateway(gateway);
            process.connections[task as usize] = Some(Rc::clone(&opened));
            process.backoffs[task as usize].opened();
            let opened = Opened { connection: opened, identity, last_id };
            match task {
                Task::Reader => world.read(gateway, opened),
                Task::Publisher => world.tell(gateway, opened, has_followed),
                Task::Sharer => world.link(gateway, &opened),
            }
        });
    }

    /// What is sent over the connections of a gateway is lost from now on; or they are closed.
    pub(super) fn end_connections(&mut self, gateway: usize, is_noticed: bool) {
        for task in Task::ALL {
            let connection = self.gateways[gateway].process.connections[task as usize].take();
            let Some(connection) = connection else { continue };
            connection.is_dead.set(true);
            if is_noticed && self.gateways[gateway].is_up() {
                self.lose_connection(gateway, task);
            } else {
                self.gateways[gateway].process.connections[task as usize] = Some(connection);
            }
        }
    }

    /// Those to a node are closed, or given up. Gateways that are cut off do not hear so.
    pub(super) fn close_connections(&mut self, node: usize) {
        for gateway in 0..self.gateways.len() {
            if !self.gateways[gateway].is_cut() {
                self.close_connections_of(gateway, |connected| connected == node);
            }
        }
    }

    pub(super) fn close_connections_of(&mut self, gateway: usize, is_meant: impl Fn(usize) -> bool) {
        let connections = self.gateways[gateway].process.connections.iter().flatten();
        let is_connected = connections.into_iter().any(|connection| is_meant(connection.node));
        if is_connected && self.gateways[gateway].is_up() {
            self.end_connections(gateway, true);
        }
    }

    /// The purger does what there is to do.
    pub(super) fn purge(&mut self, gateway: usize) {
        let life = self.gateways[gateway].life;
        if std::mem::replace(&mut self.gateway(gateway).is_purging, true) || life == 0 {
            return;
        }
        self.purge_next(gateway, life);
    }

    fn purge_next(&mut self, gateway: usize, life: u64) {
        if self.gateways[gateway].life != life {
            return;
        }
        let (scan, process) = (self.rng.u64(0..=20), self.gateway(gateway));
        match process.bus.purger.next_step() {
            Step::Rest(until) => {
                process.is_purging = false;
                let rest = self.until(gateway, until);
                if rest < self.plan.duration {
                    self.after(rest.max(1), move |world| {
                        if world.gateways[gateway].life == life {
                            world.purge(gateway);
                        }
                    });
                }
            }
            step => self.after(scan, move |world| {
                if world.gateways[gateway].life == life {
                    world.gateway(gateway).purged(step);
                    world.purge_next(gateway, life);
                }
            }),
        }
    }

    /// GitLab, or an operator, says that something has changed.
    pub(super) fn accept(
        &mut self,
        gateway: usize,
        selectors: Vec<Selector>,
    ) -> crate::fleet::ticket::Ticket {
        let (settle, scan) = (self.plan.settle, self.rng.u64(0..=20));
        let (process, mode) = (self.gateway(gateway), PurgeMode::Hard);
        process.cache.purge_by_key(&selectors, mode);
        let settles_after = Duration::from_millis(settle);
        let purge = Purge::new(&selectors, mode, settles_after, process.clock.unix_time());
        let ticket = process.bus.accept(purge);
        let life = self.gateways[gateway].life;
        self.after(scan, move |world| {
            if world.gateways[gateway].life != life {
                return;
            }
            let process = world.gateway(gateway);
            let found = process.cache.purge(&selectors, mode);
            let keys: Vec<Selector> = found.key_row_ids.iter().copied().map(Selector::KeyId).collect();
            if !keys.is_empty() {
                process.bus.accept(Purge::new(&keys, mode, settles_after, process.clock.unix_time()));
            }
            let again = with_keys(selectors, found);
            world.wake_publisher(gateway);
            world.after(settle, move |world| {
                if settle > 0 && world.gateways[gateway].life == life {
                    world.gateway(gateway).cache.purge(&again, mode);
                }
            });
        });
        self.wake_publisher(gateway);
        self.write_shared(gateway);
        ticket
    }
}

impl Process {
    fn purged(&mut self, step: Step) {
        let purger = &self.bus.purger;
        match step {
            Step::Drop(look) => purger.dropped(&look, self.cache.purge(&look.selectors(), look.mode)),
            Step::Doubt => purger.doubt(DoubtReason::Overflow),
            Step::Rest(_) => {}
        }
    }
}
