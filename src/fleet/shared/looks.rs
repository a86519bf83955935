//! When a gateway that does not have the lock looks for the answer of the one that has.

use std::iter;
use std::time::{Duration, Instant};

/// How long to wait before the first look for the answer of another gateway. Then twice as long each time.
const FIRST_LOOK: Duration = Duration::from_millis(5);

/// Until `wait` is over, and then for the last time.
pub(in crate::fleet) fn looks(begin: Instant, wait: Duration) -> impl Iterator<Item = Instant> {
    let end = begin + wait;
    let pauses = iter::successors(Some(FIRST_LOOK), |pause| Some(pause.saturating_mul(2)));
    pauses.scan(begin, move |next, pause| {
        let is_over = *next >= end;
        *next = (*next + pause).min(end);
        (!is_over).then_some(*next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_twice_as_long_as_the_one_before_and_the_last_look_is_at_the_end() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let at = |wait| looks(begin, ms(wait)).map(|at| (at - begin).as_millis()).collect::<Vec<_>>();
        assert_eq!(at(100), [5, 15, 35, 75, 100]);
        assert_eq!(at(5), [5]);
        assert_eq!(at(1), [1]);
        assert!(at(0).is_empty(), "without a wait, Rails is asked at once");
    }
}
