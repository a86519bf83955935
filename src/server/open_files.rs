//! The limit of open files: raised as far as possible, and the limits of connections that follow from it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files the configuration may need at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileDemand {
    /// Connections of each listener for clients.
    pub clients: Vec<usize>,
    /// Connections of the listeners for operators and hooks.
    pub operators: usize,
    /// Requests that may be sent to Rails at one time, each on a connection of its own; at most one per client.
    pub requests: usize,
    /// Idle connections to Rails.
    pub idle_upstream: usize,
    /// All other files: listeners, the log, files that are read.
    pub reserve: usize,
}

/// Raises the soft limit to the hard limit, and returns the limit that holds then; `None` if there is none.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            current
        }
    }
}

impl FileDemand {
    /// Files that may be open at one time.
    pub fn total(&self) -> usize {
        let clients = self.clients.iter().sum::<usize>();
        clients + clients.min(self.requests) + self.operators + self.idle_upstream + self.reserve
    }

    /// How many connections each listener for clients may have within `limit`: as configured, or fewer in
    /// proportion, but at least one.
    pub fn clients_within(&self, limit: u64) -> Vec<usize> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if self.total() <= limit {
            return self.clients.clone();
        }
        let others = self.operators + self.idle_upstream + self.reserve;
        let left = limit.saturating_sub(others);
        // Each client's request may need a second file, but all of them together no more than `requests`.
        let all = left.saturating_sub(self.requests).max(left / 2);
        let total = self.clients.iter().sum::<usize>().max(1);
        let share = |configured: &usize| {
            let share = *configured as u128 * all as u128 / total as u128;
            usize::try_from(share).unwrap_or(usize::MAX).clamp(1, (*configured).max(1))
        };
        self.clients.iter().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_the_remaining_files_in_proportion() {
        let demand = |clients: &[usize], requests| FileDemand {
            clients: clients.to_vec(),
            operators: 512,
            requests,
            idle_upstream: 64,
            reserve: 100,
        };
        for (clients, requests, limit, expected) in [
            (&[10_000][..], usize::MAX, 20_676, &[10_000][..]),
            (&[10_000], usize::MAX, 20_675, &[9_999]),
            (&[10_000, 10_000], usize::MAX, 20_676, &[5_000, 5_000]),
            (&[3_000, 1_000], usize::MAX, 676 + 4_000, &[1_500, 500]),
            // Few requests go to Rails, so nearly all files are for clients.
            (&[10_000], 16, 10_676, &[9_984]),
            (&[10_000], 16, 10_692, &[10_000]),
            (&[10_000, 1], usize::MAX, 1_024, &[173, 1]),
            // Too few for anything, but each gets one.
            (&[10_000, 10], usize::MAX, 256, &[1, 1]),
            (&[10_000], 0, u64::MAX, &[10_000]),
        ] {
            let demand = demand(clients, requests);
            let within = demand.clients_within(limit);
            assert_eq!(within, expected, "{demand:?} within {limit}");
            let fits = FileDemand { clients: within.clone(), ..demand }.total();
            assert!(fits as u64 <= limit || within.contains(&1), "{fits}");
        }
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_limit() {
        let limit = raise_limit();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
        assert_eq!(limit, getrlimit(Resource::Nofile).current);
    }
}
