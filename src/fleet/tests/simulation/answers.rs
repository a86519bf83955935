//! How a gateway answers: from memory, with what others have shared, or by asking Rails.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::header::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;

use super::gateway::Task;
use super::plan::ms;
use super::rails::{Question, RailsAnswer};
use super::world::World;
use crate::cache::fill::{FillGuard, LeaderOrFollower, RefreshAttempt};
use crate::cache::storable::check_answer;
use crate::cache::{Entry, EntryKind, FillOutcome, Freshness};
use crate::fleet::shared::counters::SharedResult;
use crate::fleet::shared::link::Write;
use crate::fleet::shared::looks::looks;
use crate::fleet::shared::{Answer, Share, SharedAnswers, UsableAnswer};

/// A question on its way to an answer.
struct Fill {
    gateway: usize,
    life: u64,
    question: Question,
    guard: FillGuard,
    share: Option<Share>,
    /// Of a refresh.
    _permit: Option<OwnedSemaphorePermit>,
}

/// What was found in the place of an answer, if the server has replied in time.
type Found = Option<Option<Vec<u8>>>;

fn headers_of(entry: &Entry) -> HeaderMap {
    entry.to_response(std::time::Duration::ZERO, &[b"hit"]).headers().clone()
}

impl World {
    /// What the gateway would answer from memory now.
    pub(super) fn look(&mut self, gateway: usize, question: Question) {
        if !self.gateways[gateway].is_up() {
            return;
        }
        let process = self.gateway(gateway);
        let hit = process.cache.lookup(&question.key(), process.clock.now());
        if let Some(hit) = hit
            && matches!(hit.freshness, Freshness::Fresh | Freshness::StaleWhileRevalidate)
        {
            self.check(gateway, question, &headers_of(&hit.entry), self.now);
        }
    }

    /// A client asks.
    pub(super) fn request(&mut self, gateway: usize, question: Question) {
        let life = self.gateways[gateway].life;
        let process = self.gateway(gateway);
        if life == 0 || process.bus.ending.is_cancelled() {
            return;
        }
        let (key, now) = (question.key(), process.clock.now());
        let hit = process.cache.lookup(&key, now);
        let freshness = hit.as_ref().map(|hit| hit.freshness);
        let (guard, permit) = match (hit, freshness) {
            (Some(hit), Some(Freshness::Fresh)) => {
                return self.check(gateway, question, &headers_of(&hit.entry), self.now);
            }
            (Some(hit), Some(Freshness::StaleWhileRevalidate)) => {
                let attempt = process.cache.try_refresh(&key, now);
                self.check(gateway, question, &headers_of(&hit.entry), self.now);
                let RefreshAttempt::Started(guard, permit) = attempt else { return };
                (guard, Some(permit))
            }
            _ => match process.cache.lead_or_follow(&key, now) {
                LeaderOrFollower::Leader(guard) => (guard, None),
                LeaderOrFollower::Hit(hit) => {
                    return self.check(gateway, question, &headers_of(&hit.entry), self.now);
                }
                LeaderOrFollower::Follower(waiter) => {
                    let joined_at = self.now;
                    self.gateways[gateway].process.followers.push((question, joined_at, waiter));
                    return;
                }
            },
        };
        self.fill(Fill { gateway, life, question, guard, share: None, _permit: permit });
    }

    fn fill(&mut self, mut fill: Fill) {
        let process = self.gateway(fill.gateway);
        let key = fill.guard.key().clone();
        let shared = process.bus.shared.clone().filter(|shared| shared.may_find(&key));
        let linked = process.linked.clone();
        let Some((shared, identity)) =
            shared.zip(linked).filter(|(shared, identity)| shared.is_followed(identity))
        else {
            return self.ask_rails(fill);
        };
        fill.share = shared.share_for(&key, &identity, &process.clock);
        self.get(fill, move |world, fill, found| match world.open(&shared, &fill, found) {
            Ok(answer) => world.use_shared(fill, &answer),
            Err(SharedResult::Late | SharedResult::Error) => world.ask_rails(fill),
            Err(_) => world.lock(fill, shared),
        });
    }

    fn open(
        &mut self,
        shared: &Arc<SharedAnswers>,
        fill: &Fill,
        found: Found,
    ) -> Result<UsableAnswer, SharedResult> {
        let process = self.gateway(fill.gateway);
        let (share, context) = (fill.share.as_ref().unwrap(), (&process.lifetimes, &process.clock));
        shared.open(share, found.ok_or(SharedResult::Late)?, context)
    }

    /// The lock, and a look after it, in one write.
    fn lock(&mut self, fill: Fill, shared: Arc<SharedAnswers>) {
        let [name, lock] = fill.share.as_ref().unwrap().names.clone();
        let ttl = ms(self.plan.settings.shared.unwrap().lock);
        let command = move |world: &mut World, node: usize| {
            let (now, node) = (world.now, &mut world.nodes[node]);
            (node.set_if_absent(now, lock, ttl), node.get(now, &name))
        };
        self.in_time(fill, command, move |world, mut fill, reply| {
            let (locked, found) = reply.map_or((None, None), |(locked, found)| (locked, Some(found)));
            if let Some(share) = &mut fill.share {
                share.has_lock = locked == Some(true);
            }
            match world.open(&shared, &fill, found) {
                Ok(answer) => world.use_shared(fill, &answer),
                Err(_) if locked == Some(false) => {
                    let now = world.gateway(fill.gateway).clock.now();
                    let wait = world.plan.settings.shared.unwrap().wait;
                    let pauses = looks(now, wait).map(|at| ms(at - now) + world.now).collect();
                    world.look_again(fill, shared, pauses);
                }
                Err(_) => world.ask_rails(fill),
            }
        });
    }

    /// Looks for what another gateway asks Rails, at these times.
    fn look_again(&mut self, fill: Fill, shared: Arc<SharedAnswers>, mut times: Vec<u64>) {
        if times.is_empty() {
            return self.ask_rails(fill);
        }
        let pause = times.remove(0).saturating_sub(self.now);
        self.after(pause, move |world| {
            world.get(fill, move |world, fill, found| match world.open(&shared, &fill, found) {
                Ok(answer) => world.use_shared(fill, &answer),
                Err(SharedResult::Late | SharedResult::Error) => world.ask_rails(fill),
                Err(_) => world.look_again(fill, shared, times),
            });
        });
    }

    fn get(&mut self, fill: Fill, then: impl FnOnce(&mut World, Fill, Found) + 'static) {
        let [name, _] = fill.share.as_ref().unwrap().names.clone();
        let command = move |world: &mut World, node: usize| world.nodes[node].get(world.now, &name);
        self.in_time(fill, command, then);
    }

    /// Goes on with the reply, or without one if that is late.
    fn in_time<R: 'static>(
        &mut self,
        fill: Fill,
        command: impl FnOnce(&mut World, usize) -> R + 'static,
        then: impl FnOnce(&mut World, Fill, Option<R>) + 'static,
    ) {
        let gateway = fill.gateway;
        if self.gateways[gateway].life != fill.life {
            return;
        }
        let connection = self.gateways[gateway].process.connections[Task::Sharer as usize].clone();
        let Some(connection) = connection else { return then(self, fill, None) };
        let pending = Rc::new(RefCell::new(Some((fill, then))));
        let late = Rc::clone(&pending);
        self.call(&connection, command, move |world, reply| {
            let pending = pending.borrow_mut().take();
            if let Some((fill, then)) = pending.filter(|(fill, _)| world.gateways[gateway].life == fill.life)
            {
                then(world, fill, Some(reply));
            }
        });
        let timeout = ms(self.plan.settings.shared.unwrap().timeout);
        self.after(timeout, move |world| {
            let pending = late.borrow_mut().take();
            if let Some((fill, then)) = pending.filter(|(fill, _)| world.gateways[gateway].life == fill.life)
            {
                world.suspect_link(gateway);
                then(world, fill, None);
            }
        });
    }

    /// Answers with what another gateway has shared.
    fn use_shared(&mut self, fill: Fill, answer: &UsableAnswer) {
        let Fill { gateway, question, guard, .. } = fill;
        let process = self.gateway(gateway);
        let UsableAnswer { status, headers, body, storable, age } = answer;
        let requested_at = process.clock.now().checked_sub(*age).unwrap();
        let stored = guard.store_older(requested_at, (*status, headers, body), *storable);
        let entry = stored.ok().filter(|entry| process.cache.is_trusted(entry));
        if let Some(entry) = entry {
            self.promise.hits_of_others += 1;
            self.check(gateway, question, &headers_of(&entry), self.now);
        }
        // Else Rails answers this one request.
        self.end_fill(gateway, question);
    }

    fn ask_rails(&mut self, fill: Fill) {
        if self.gateways[fill.gateway].life != fill.life {
            return;
        }
        let (gateway, question) = (fill.gateway, fill.question);
        self.asks(gateway, question);
        let there = self.latency();
        self.after(there, move |world| {
            let lag = if world.rng.bool() { world.rng.u64(0..=world.plan.settle) } else { 0 };
            let answer = world.rails.answer(question, world.now.saturating_sub(lag));
            let is_slow = world.one_in(30);
            let longest = if is_slow { 500 } else { world.plan.rails_latency };
            let back = world.rng.u64(1..=longest);
            world.after(back, move |world| world.store(fill, &answer));
        });
    }

    fn store(&mut self, fill: Fill, answer: &RailsAnswer) {
        let Fill { gateway, life, question, guard, share, .. } = fill;
        if self.gateways[gateway].life != life {
            return;
        }
        let (draw, process) = (self.rng.u16(..), self.gateway(gateway));
        let RailsAnswer { status, headers, body } = answer;
        let (key, now) = (guard.key().clone(), process.clock.unix_seconds());
        let mut is_shared = false;
        match check_answer(key.caching(), &key, *status, body, &process.lifetimes, now) {
            Ok(mut storable) => {
                let percent = process.lifetimes.jitter_percent;
                storable.age_limits = storable.age_limits.with_jitter(percent, draw);
                let stored = guard.store(*status, headers, body, storable);
                if let (Ok(()), Some(share)) = (stored, share) {
                    is_shared = storable.kind == EntryKind::Positive;
                    share.share(Answer { status: *status, headers, body, storable }, &process.clock);
                }
            }
            Err(_) => guard.drop_entry(),
        }
        self.answered(gateway, question, is_shared);
        self.end_fill(gateway, question);
    }

    fn end_fill(&mut self, gateway: usize, question: Question) {
        self.write_shared(gateway);
        let mut followers = std::mem::take(&mut self.gateways[gateway].process.followers);
        followers.retain(|(asked, joined_at, waiter)| {
            if *asked != question {
                return true;
            }
            let outcome = waiter.clone().outcome().now_or_never();
            if let Some(FillOutcome::Stored(entry)) = &outcome {
                self.check(gateway, question, &headers_of(entry), *joined_at);
            }
            outcome.is_none()
        });
        self.gateways[gateway].process.followers = followers;
    }

    /// Has written what no request waits for.
    pub(super) fn write_shared(&mut self, gateway: usize) {
        let process = self.gateway(gateway);
        let Some(shared) = process.bus.shared.clone() else { return };
        let connection = process.connections[Task::Sharer as usize].clone();
        let mut queue = shared.link.queue.try_lock().unwrap();
        while let Ok(write) = queue.try_recv() {
            let Some(connection) = &connection else { continue };
            let command = move |world: &mut World, node: usize| {
                let (now, node) = (world.now, &mut world.nodes[node]);
                match write {
                    Write::Share { name, sealed, ttl, lock } => {
                        node.set(now, name, sealed, ms(ttl));
                        node.remove(lock.as_slice());
                    }
                    Write::Remove(names) => node.remove(&names),
                }
            };
            self.call(connection, command, |_, ()| {});
        }
    }
}
