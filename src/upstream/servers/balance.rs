//! Which of several servers a request is sent to: of two random ones, the less loaded one ("power of two
//! choices"), among those in rotation.

use std::time::Instant;

use super::health::Availability;
use super::server::UpstreamServer;
use crate::route::Class;

/// A set of servers, by their indexes in the list: a bit for each of `MAX_SERVERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::upstream) struct ServerSet(u64);

impl ServerSet {
    pub(in crate::upstream) fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The `nth` of them, counted from 0.
    fn nth(self, nth: u32) -> usize {
        (0..nth).fold(self.0, |left, _| left & left.wrapping_sub(1)).trailing_zeros() as usize
    }
}

/// Chooses a server for a request, none of those in `tried`: a server in rotation, or a backup if there is none. If
/// none is in rotation, any that no operator has drained: those of which only the health checks fail before those
/// that fail requests, backups last. They may fail, but without a server the request certainly would.
pub(in crate::upstream) fn choose(
    servers: &[UpstreamServer],
    class: Class,
    tried: ServerSet,
    now: Instant,
) -> Option<&UpstreamServer> {
    if let [only] = servers {
        return (tried == ServerSet::default() && !only.state.health.is_drained()).then_some(only);
    }
    let mut tiers = [Tier::default(), Tier::default()];
    for (index, server) in servers.iter().enumerate().filter(|(index, _)| !tried.contains(*index)) {
        let [first, backups] = &mut tiers;
        let tier = if server.state.is_backup() { backups } else { first };
        match server.state.health.availability(now) {
            Availability::TrialDue => tier.trial_due.insert(index),
            // As seldom as its share demands, so that it gets no more, however idle it is.
            Availability::InRotation(share) if share < 1.0 && fastrand::f32() >= share => {
                tier.slow.insert(index);
            }
            Availability::InRotation(_) => tier.full.insert(index),
            Availability::Unhealthy => tier.unhealthy.insert(index),
            Availability::Ejected => tier.ejected.insert(index),
            Availability::Drained => {}
        }
    }
    for tier in tiers {
        // A trial with a request without a credential would prove nothing.
        let due = if class == Class::Other { ServerSet::default() } else { tier.trial_due };
        let due = (0..due.len()).filter_map(|nth| servers.get(due.nth(nth)));
        let on_trial = { due }.find(|server| server.state.health.claim_trial(now));
        let chosen = on_trial
            .or_else(|| less_loaded_of_two(servers, class, tier.full))
            .or_else(|| less_loaded_of_two(servers, class, tier.slow));
        if chosen.is_some() {
            return chosen;
        }
    }
    let [first, backups] = tiers;
    [first.unhealthy, backups.unhealthy, first.ejected, first.trial_due, backups.ejected, backups.trial_due]
        .into_iter()
        .find_map(|among| less_loaded_of_two(servers, class, among))
}

/// The servers that are not backups, or those that are, by availability.
#[derive(Clone, Copy, Debug, Default)]
struct Tier {
    full: ServerSet,
    slow: ServerSet,
    trial_due: ServerSet,
    unhealthy: ServerSet,
    ejected: ServerSet,
}

fn less_loaded_of_two(servers: &[UpstreamServer], class: Class, among: ServerSet) -> Option<&UpstreamServer> {
    let count = among.len();
    if count == 0 {
        return None;
    }
    let one = fastrand::u32(..count);
    let first = servers.get(among.nth(one))?;
    if count == 1 {
        return Some(first);
    }
    // Any but the first, each with the same probability.
    let other = (one + fastrand::u32(1..count)) % count;
    let second = servers.get(among.nth(other))?;
    let is_better = second.state.load.cost(class) < first.state.load.cost(class);
    Some(if is_better { second } else { first })
}

/// Whether there is a server that has not been tried, and whose availability `is_good`.
pub(in crate::upstream) fn has_untried(
    servers: &[UpstreamServer],
    tried: ServerSet,
    is_good: impl Fn(Availability) -> bool,
    now: Instant,
) -> bool {
    let mut others = servers.iter().enumerate().filter(|(index, _)| !tried.contains(*index));
    others.any(|(_, server)| is_good(server.state.health.availability(now)))
}

#[cfg(test)]
mod tests;
