//! The limit of open files: raised as far as it may be, and what follows from it for the listeners.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the configuration may need at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Connections of each listener for clients.
    pub clients: Vec<usize>,
    /// Connections of the listeners for operators and hooks.
    pub operators: usize,
    /// Requests that may be with Rails at one time, each over a connection: of one client at most.
    pub requests: usize,
    /// Connections to Rails without a request.
    pub kept: usize,
    /// Everything else: listeners, the log, files that are read.
    pub reserve: usize,
}

/// Raises the limit to the highest that this process may give itself, and says what it is now; `None` if
/// there is none.
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

impl Demand {
    /// Files that may be open at one time.
    pub fn total(&self) -> usize {
        let clients = self.clients.iter().sum::<usize>();
        clients + clients.min(self.requests) + self.operators + self.kept + self.reserve
    }

    /// How many connections each listener for clients may have, so that no file is wanting: all that it
    /// is to have, or less in proportion, and one at least.
    pub fn clients_within(&self, limit: u64) -> Vec<usize> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if self.total() <= limit {
            return self.clients.clone();
        }
        let others = self.operators + self.kept + self.reserve;
        let left = limit.saturating_sub(others);
        // Each client's request may need one more; all of them together no more than may be with Rails.
        let all = left.saturating_sub(self.requests).max(left / 2);
        let wanted = self.clients.iter().sum::<usize>().max(1);
        let share = |wants: &usize| {
            let share = *wants as u128 * all as u128 / wanted as u128;
            usize::try_from(share).unwrap_or(usize::MAX).clamp(1, (*wants).max(1))
        };
        self.clients.iter().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_get_what_is_left_in_proportion() {
        let demand = |clients: &[usize], requests| Demand {
            clients: clients.to_vec(),
            operators: 512,
            requests,
            kept: 64,
            reserve: 100,
        };
        for (clients, requests, limit, expected) in [
            (&[10_000][..], usize::MAX, 20_676, &[10_000][..]),
            (&[10_000], usize::MAX, 20_675, &[9_999]),
            (&[10_000, 10_000], usize::MAX, 20_676, &[5_000, 5_000]),
            (&[3_000, 1_000], usize::MAX, 676 + 4_000, &[1_500, 500]),
            // Few may be with Rails, so nearly all that is left is for clients.
            (&[10_000], 16, 10_676, &[9_984]),
            (&[10_000], 16, 10_692, &[10_000]),
            (&[10_000, 1], usize::MAX, 1_024, &[173, 1]),
            // Hopeless, but not without anything.
            (&[10_000, 10], usize::MAX, 256, &[1, 1]),
            (&[10_000], 0, u64::MAX, &[10_000]),
        ] {
            let demand = demand(clients, requests);
            let within = demand.clients_within(limit);
            assert_eq!(within, expected, "{demand:?} within {limit}");
            let fits = Demand { clients: within.clone(), ..demand }.total();
            assert!(fits as u64 <= limit || within.contains(&1), "{fits}");
        }
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let limit = raise_limit();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
        assert_eq!(limit, getrlimit(Resource::Nofile).current);
    }
}
