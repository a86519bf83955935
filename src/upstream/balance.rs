//! Which of several servers a request is sent to: of two at random, the one that has less to do
//! ("power of two choices"), among those that take part.

use std::time::Instant;

use super::health::Standing;
use super::server::Server;
use crate::route::Class;

/// As many servers as there may be.
pub const MOST_SERVERS: usize = 64;

/// Some of the servers, by their places in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerSet(u64);

impl ServerSet {
    pub(super) fn insert(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    fn has(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The `nth` of them, counted from 0.
    fn nth(self, nth: u32) -> usize {
        (0..nth).fold(self.0, |left, _| left & left.wrapping_sub(1)).trailing_zeros() as usize
    }
}

/// Chooses a server for a request that those in `tried` have not taken: one that takes part, a backup
/// if there is none, and if nobody takes part, anybody whom no operator has drained: those of which only the
/// health checks fail before those that fail requests, backups last. They may fail, but without a server
/// the request certainly would.
pub(super) fn choose(servers: &[Server], class: Class, tried: ServerSet, now: Instant) -> Option<&Server> {
    if let [only] = servers {
        return (tried == ServerSet::default() && !only.state.health.is_drained()).then_some(only);
    }
    let mut tiers = [Tier::default(), Tier::default()];
    for (place, server) in servers.iter().enumerate().filter(|(place, _)| !tried.has(*place)) {
        let [first, backups] = &mut tiers;
        let tier = if server.state.is_backup { backups } else { first };
        match server.state.health.standing(now) {
            Standing::Due => tier.due.insert(place),
            // Below its share as often as that says, so that it gets no more, however idle it is.
            Standing::In(share) if share < 1.0 && fastrand::f32() >= share => tier.slow.insert(place),
            Standing::In(_) => tier.well.insert(place),
            Standing::Unhealthy => tier.unhealthy.insert(place),
            Standing::Ejected => tier.ejected.insert(place),
            Standing::Drained => {}
        }
    }
    for tier in tiers {
        // A try with what anybody may ask for would prove nothing.
        let due = if class == Class::Other { ServerSet::default() } else { tier.due };
        let due = (0..due.len()).filter_map(|nth| servers.get(due.nth(nth)));
        let tried = { due }.find(|server| server.state.health.claim_try(now));
        let chosen = tried
            .or_else(|| better_of_two(servers, class, tier.well))
            .or_else(|| better_of_two(servers, class, tier.slow));
        if chosen.is_some() {
            return chosen;
        }
    }
    let [first, backups] = tiers;
    [first.unhealthy, backups.unhealthy, first.ejected, first.due, backups.ejected, backups.due]
        .into_iter()
        .find_map(|among| better_of_two(servers, class, among))
}

/// Servers that are no backups, or those that are, by their standing.
#[derive(Clone, Copy, Debug, Default)]
struct Tier {
    well: ServerSet,
    slow: ServerSet,
    due: ServerSet,
    unhealthy: ServerSet,
    ejected: ServerSet,
}

fn better_of_two(servers: &[Server], class: Class, among: ServerSet) -> Option<&Server> {
    let count = among.len();
    if count == 0 {
        return None;
    }
    let one = fastrand::u32(..count);
    let first = servers.get(among.nth(one))?;
    if count == 1 {
        return Some(first);
    }
    // Any but the first, each as likely.
    let other = (one + fastrand::u32(1..count)) % count;
    let second = servers.get(among.nth(other))?;
    let is_better = second.state.load.of(class) < first.state.load.of(class);
    Some(if is_better { second } else { first })
}

/// Whether there is a server that has not been tried, and is as good as this.
pub(super) fn has_another(
    servers: &[Server],
    tried: ServerSet,
    is_good: impl Fn(Standing) -> bool,
    now: Instant,
) -> bool {
    let mut others = servers.iter().enumerate().filter(|(place, _)| !tried.has(*place));
    others.any(|(_, server)| is_good(server.state.health.standing(now)))
}

#[cfg(test)]
mod tests;
