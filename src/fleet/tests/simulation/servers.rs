//! What becomes of the server of Valkey, and of what it has.

use super::faults::{AHEAD, SENTINELS};
use super::valkey::Node;
use super::world::World;

impl World {
    /// Those that have not read the last entry would put theirs where the others do not get: only they themselves find that out,
    /// with their next hello.
    pub(super) fn lower_last_id(&mut self, node: usize) {
        let Some(last) = self.nodes[node].add_ahead(self.now, AHEAD) else { return };
        self.wake_blocked(node);
        self.after(200, move |world| {
            let mut positions = (0..world.gateways.len())
                .filter(|gateway| world.gateways[*gateway].is_up())
                .map(|gateway| world.gateways[gateway].process.bus.follower.lock().read_from());
            let is_read = positions.all(|position| position == last);
            drop(positions);
            if is_read && world.nodes[node].last_entry() == Some(last) {
                world.nodes[node].lower_last_id(world.now);
            }
        });
    }

    /// Valkey loses what was told since then, with or without all the rest.
    pub(super) fn lose_since(&mut self, time: u64) {
        let (master, duration) = (self.master, self.any_duration());
        match self.rng.u8(0..5) {
            0 => self.nodes[master].flush(),
            1 => self.nodes[master].remove_stream(),
            2 => self.nodes[master].trim(0),
            3 => self.fail_over(duration, time),
            _ => self.restart_server(duration / 8, time),
        }
    }

    pub(super) fn fill_server(&mut self, node: usize, duration: u64) {
        // What was lost is told again once the server takes it. Until then, what a Rails that lags tells wrongly is kept, by
        // the promise.
        if self.has_lost_unread && self.plan.settle > 0 {
            return;
        }
        self.nodes[node].is_full = true;
        self.after(duration, move |world| world.nodes[node].is_full = false);
    }

    pub(super) fn restart_server(&mut self, duration: u64, kept_until: u64) {
        let (master, run) = (self.master, self.next_number() + 100);
        self.kill(master);
        self.after(duration, move |world| {
            let is_master = world.master == master;
            world.nodes[master].restart(run, kept_until);
            world.nodes[master].is_master = is_master;
        });
        self.fail_all(duration);
    }

    /// The other node becomes the master after a time. The one before is gone, or it was only frozen: then it wakes, calls
    /// itself master for some time, and becomes a replica.
    pub(super) fn fail_over(&mut self, duration: u64, kept_until: u64) {
        let (old, new) = (self.master, 1 - self.master);
        if self.nodes[old].is_down() {
            return;
        }
        let is_frozen = self.plan.has_sentinels && self.rng.bool();
        if is_frozen {
            self.freeze(old);
        } else {
            self.kill(old);
        }
        let until_promoted = self.rng.u64(500..=4_000);
        self.after(until_promoted, move |world| world.promote(old, new, kept_until));
        if is_frozen {
            let wakes = until_promoted + duration;
            self.after(wakes, move |world| world.wake(old));
            self.after(wakes + 5_000, move |world| {
                if world.master != old {
                    world.demote(old);
                }
            });
        }
        self.fail_all(until_promoted);
    }

    pub(super) fn promote(&mut self, old: usize, new: usize, kept_until: u64) {
        if self.master != old {
            return;
        }
        let run = self.next_number() + 100;
        let before = std::mem::replace(&mut self.nodes[old], Node::new(0, false));
        // It had died, or lost its role, and has been a replica since.
        self.kill(new);
        self.nodes[new].restart(run, 0);
        self.nodes[new].promote(&before, run + 1, kept_until);
        self.nodes[new].clock_error = before.clock_error;
        self.nodes[old] = before;
        if !self.nodes[old].is_frozen() {
            self.kill(old);
            self.nodes[old].is_master = false;
        }
        self.master = new;
        for gateway in 0..self.gateways.len() {
            let delay = self.rng.u64(0..SENTINELS - 100);
            self.after(delay, move |world| world.name_master(gateway, new));
        }
    }

    /// The Sentinels tell a gateway, once it reaches them.
    pub(super) fn name_master(&mut self, gateway: usize, master: usize) {
        if self.gateways[gateway].is_cut() {
            return self.after(1_000, move |world| world.name_master(gateway, master));
        }
        if self.plan.has_sentinels && self.master == master {
            self.gateways[gateway].named_master = master;
            self.close_connections_of(gateway, |node| node != master);
        }
    }
}
