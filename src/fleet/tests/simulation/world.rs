//! One run: what happens when, in virtual milliseconds. Whatever is left to chance is drawn from the seed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::gateway::Gateway;
use super::plan::Plan;
use super::promise::Promise;
use super::rails::Rails;
use super::valkey::Node;
use crate::fleet::keys::FleetKeys;
use crate::fleet::message::Publisher;
use crate::secret::ShellSecret;

/// What happens at one time.
pub(super) type Action = Box<dyn FnOnce(&mut World)>;

/// See the module.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) plan: Plan,
    pub(super) fleet_keys: FleetKeys,
    pub(super) gateways: Vec<Gateway>,
    pub(super) nodes: Vec<Node>,
    /// The node that takes writes. An old master that wakes may still believe that it does.
    pub(super) master: usize,
    pub(super) rails: Rails,
    pub(super) promise: Promise,
    /// Something was lost that some gateways had not read.
    pub(super) has_lost_unread: bool,
    /// When it was last that something told was about to be gone from the stream, and not to be told again.
    pub(super) gone_at: Option<u64>,
    /// All that this process says is removed before any gateway reads it.
    pub(super) hidden: Option<Publisher>,
    pub(super) events: u64,
    queue: BinaryHeap<Reverse<Event>>,
    last_number: u64,
}

struct Event {
    at: u64,
    /// What happens at the same time does so in any order.
    draw: u32,
    number: u64,
    action: Action,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with_plan(seed, |plan| plan)
    }

    /// With another plan than the seed has.
    pub(super) fn with_plan(seed: u64, change: impl FnOnce(Plan) -> Plan) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // The product draws from that of the thread.
        fastrand::seed(seed);
        let plan = change(Plan::new(seed, &mut rng));
        let secret = ShellSecret::from_text(b"secret").unwrap();
        let mut world = Self {
            now: 0,
            rng,
            plan,
            fleet_keys: FleetKeys::new(&secret, "rails", "").unwrap(),
            gateways: Vec::new(),
            nodes: vec![Node::new(1, true), Node::new(2, false)],
            master: 0,
            rails: Rails::default(),
            promise: Promise::default(),
            has_lost_unread: false,
            gone_at: None,
            hidden: None,
            events: 0,
            queue: BinaryHeap::new(),
            last_number: 0,
        };
        for _ in 0..world.plan.gateways {
            world.add_gateway();
        }
        world.plan_requests();
        world.plan_faults();
        world.plan_silence();
        world
    }

    /// Until the end, or until something promised is not kept: then, what.
    pub(super) fn run(mut self) -> Result<Self, String> {
        while let Some(Reverse(event)) = self.queue.pop() {
            if event.at > self.plan.duration {
                break;
            }
            self.now = event.at;
            self.events += 1;
            (event.action)(&mut self);
            if let Some(broken) = self.promise.broken.take() {
                let (now, settle, faults) = (self.now, self.plan.settle, &self.promise.faults);
                return Err(format!(
                    "at {now} ms, Rails lags up to {settle} ms: {broken}\nfaults: {faults:#?}"
                ));
            }
        }
        Ok(self)
    }

    pub(super) fn after(&mut self, delay: u64, action: impl FnOnce(&mut World) + 'static) {
        let (at, draw, number) = (self.now + delay, self.rng.u32(..), self.next_number());
        self.queue.push(Reverse(Event { at, draw, number, action: Box::new(action) }));
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// One way.
    pub(super) fn latency(&mut self) -> u64 {
        if self.rng.u8(..) == 0 { self.rng.u64(0..=8) } else { self.rng.u64(0..=1) }
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.draw, self.number).cmp(&(other.at, other.draw, other.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}
