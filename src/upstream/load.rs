//! How much each server has to do, for each class of route by itself: that one takes long for
//! `/allowed` says nothing of how long it takes to know a key.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tower::load::completion::TrackCompletion;
use tower::load::peak_ewma::{Cost, Handle};
use tower::load::{Load as _, PeakEwma};
use tower::util::ServiceFn;
use tower::{Service as _, service_fn};

use crate::route::Class;

/// What one is thought to take that has not been asked yet.
const AT_FIRST: Duration = Duration::from_millis(30);

/// tower's measure of a service: its slowest answers of late, times what it has to answer now. Our
/// requests are no calls of a service, so each is given the handle that a call would hold.
pub(super) struct Load([Mutex<PeakEwma<Nothing, HandedOver>>; Class::ALL.len()]);

type Nothing = ServiceFn<fn(()) -> Ready<Result<(), Infallible>>>;

#[derive(Clone, Copy)]
struct HandedOver;

impl TrackCompletion<Handle, ()> for HandedOver {
    type Output = Handle;

    fn track_completion(&self, handle: Handle, (): ()) -> Handle {
        handle
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Load")
    }
}

impl Load {
    /// Slow answers are remembered for so long, more or less.
    pub(super) fn new(memory: Duration) -> Self {
        let nothing: fn(()) -> Ready<Result<(), Infallible>> = |()| ready(Ok(()));
        let decay_ns = memory.as_secs_f64() * 1e9;
        Self(
            Class::ALL
                .map(|_| Mutex::new(PeakEwma::new(service_fn(nothing), AT_FIRST, decay_ns, HandedOver))),
        )
    }

    /// To be kept until there is an answer.
    pub(super) fn begin(&self, class: Class) -> Option<Handle> {
        class.of(&self.0).lock().call(()).now_or_never()?.ok()
    }

    /// What it would cost to ask this server too; less is better.
    pub(super) fn of(&self, class: Class) -> Cost {
        class.of(&self.0).lock().load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_or_busy_costs_more_until_that_is_forgotten() {
        const MEMORY: Duration = Duration::from_secs(10);
        let (load, other) = (Load::new(MEMORY), Load::new(MEMORY));
        let asked = load.begin(Class::Lookup).unwrap();
        assert!(load.of(Class::Lookup) > other.of(Class::Lookup), "it has something to do");
        assert_eq!(
            load.of(Class::Access).partial_cmp(&other.of(Class::Access)),
            Some(std::cmp::Ordering::Equal)
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(asked);
        let slow = load.of(Class::Lookup);
        assert!(slow > other.of(Class::Lookup), "it was slow");
        tokio::time::advance(MEMORY).await;
        assert!(load.of(Class::Lookup) < slow, "which is not remembered for ever");
    }
}
