//! A gateway that the others hear no more: it is killed, or a program removes all that it says before any of them reads it. For
//! them, both are the same.

use super::world::World;
use crate::fleet::counters::DoubtReason;

impl World {
    pub(super) fn plan_silence(&mut self) {
        if !self.plan.has_silence {
            return;
        }
        let (teller, begin, is_killed) = (self.any_gateway(), self.rng.u64(5_000..=60_000), self.rng.bool());
        self.after(begin, move |world| world.hide(teller));
        if is_killed {
            self.after(begin + 1, move |world| world.change_told_to(Some(teller)));
            self.after(begin + 2_000, move |world| world.stop(teller));
        } else {
            for _ in 0..4 {
                let at = begin + self.rng.u64(1..=70_000);
                self.after(at, move |world| world.change_told_to(Some(teller)));
            }
        }
        // What another one keeps while it is alone is used for a short time only, and then again.
        let (other, at) = (self.any_gateway(), begin + self.rng.u64(0..=120_000));
        self.after(at, move |world| {
            let duration = world.any_duration();
            world.cut(other, duration);
            world.fail(other, duration);
        });
    }

    fn hide(&mut self, gateway: usize) {
        self.hidden = Some(self.gateways[gateway].process.bus.seal.publisher());
        self.disturb(self.plan.duration, format!("{gateway} is heard no more"));
    }

    /// How often any gateway has doubted what it keeps since another one is silent.
    pub(super) fn silences(&self) -> u64 {
        let of =
            |gateway: &super::gateway::Gateway| gateway.process.bus.counters.doubts.get(DoubtReason::Silence);
        self.gateways.iter().map(of).sum()
    }
}
