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
pub(super) struct Few(u64);

impl Few {
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
/// if there is none, and if nobody takes part, anybody whom no operator has drained. Those may fail,
/// but without a server the request certainly would.
pub(super) fn choose(servers: &[Server], class: Class, tried: Few, now: Instant) -> Option<&Server> {
    if let [only] = servers {
        return (tried == Few::default() && !only.state.health.is_drained()).then_some(only);
    }
    let (mut well, mut slow, mut due, mut out) =
        ([Few::default(); 2], [Few::default(); 2], [Few::default(); 2], Few::default());
    for (place, server) in servers.iter().enumerate().filter(|(place, _)| !tried.has(*place)) {
        let tier = usize::from(server.state.is_backup);
        let group = match server.state.health.standing(now) {
            // Below its share as often as that says, so that it gets no more, however idle it is.
            Standing::In(share) if share < 1.0 && fastrand::f32() >= share => slow.get_mut(tier),
            Standing::In(_) => well.get_mut(tier),
            Standing::Due => due.get_mut(tier),
            Standing::Out => Some(&mut out),
            Standing::Drained => None,
        };
        if let Some(group) = group {
            group.insert(place);
        }
    }
    for ((well, slow), due) in well.into_iter().zip(slow).zip(due) {
        if due.len() > 0
            && let Some(server) = servers.get(due.nth(0))
            && server.state.health.claim_try(now)
        {
            return Some(server);
        }
        let chosen = better_of_two(servers, class, well).or_else(|| better_of_two(servers, class, slow));
        if chosen.is_some() {
            return chosen;
        }
    }
    better_of_two(servers, class, out)
}

fn better_of_two(servers: &[Server], class: Class, among: Few) -> Option<&Server> {
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

/// Whether one takes part that has not been tried.
pub(super) fn takes_part(servers: &[Server], tried: Few, now: Instant) -> bool {
    let mut others = servers.iter().enumerate().filter(|(place, _)| !tried.has(*place));
    others.any(|(_, server)| matches!(server.state.health.standing(now), Standing::In(_)))
}

/// Whether there is a server that has not been tried and may be.
pub(super) fn has_another(servers: &[Server], tried: Few) -> bool {
    let mut others = servers.iter().enumerate().filter(|(place, _)| !tried.has(*place));
    others.any(|(_, server)| !server.state.health.is_drained())
}

#[cfg(test)]
mod tests;
