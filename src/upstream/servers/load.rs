//! The load of each server, for each class of route by itself: that a server is slow with `/allowed` says
//! nothing of its time for a look-up.

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

/// The response time assumed of a server without requests so far.
const INITIAL_ESTIMATE: Duration = Duration::from_millis(30);

/// tower's measure of a service: its slow responses of late, times the requests that it has now. Our requests
/// are not calls of a service, so each holds the handle that a call would hold.
pub(in crate::upstream) struct ServerLoad([Mutex<PeakEwma<NoService, ReturnHandle>>; Class::ALL.len()]);

type NoService = ServiceFn<fn(()) -> Ready<Result<(), Infallible>>>;

#[derive(Clone, Copy)]
struct ReturnHandle;

impl TrackCompletion<Handle, ()> for ReturnHandle {
    type Output = Handle;

    fn track_completion(&self, handle: Handle, (): ()) -> Handle {
        handle
    }
}

impl fmt::Debug for ServerLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerLoad")
    }
}

impl ServerLoad {
    /// A slow response counts for about `decay`.
    pub(in crate::upstream) fn new(decay: Duration) -> Self {
        let no_service: fn(()) -> Ready<Result<(), Infallible>> = |()| ready(Ok(()));
        let decay_ns = decay.as_secs_f64() * 1e9;
        Self(Class::ALL.map(|_| {
            Mutex::new(PeakEwma::new(service_fn(no_service), INITIAL_ESTIMATE, decay_ns, ReturnHandle))
        }))
    }

    /// The handle is to be kept until there is a response.
    pub(in crate::upstream) fn start(&self, class: Class) -> Option<Handle> {
        class.of(&self.0).lock().call(()).now_or_never()?.ok()
    }

    /// The cost of sending this server one more request; less is better.
    pub(in crate::upstream) fn cost(&self, class: Class) -> Cost {
        class.of(&self.0).lock().load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_or_busy_server_costs_more_until_that_is_forgotten() {
        const DECAY: Duration = Duration::from_secs(10);
        let (load, other) = (ServerLoad::new(DECAY), ServerLoad::new(DECAY));
        let handle = load.start(Class::Lookup).unwrap();
        assert!(load.cost(Class::Lookup) > other.cost(Class::Lookup), "it has something to do");
        assert_eq!(
            load.cost(Class::Access).partial_cmp(&other.cost(Class::Access)),
            Some(std::cmp::Ordering::Equal)
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(handle);
        let slow = load.cost(Class::Lookup);
        assert!(slow > other.cost(Class::Lookup), "it was slow");
        tokio::time::advance(DECAY).await;
        assert!(load.cost(Class::Lookup) < slow, "which is not remembered for ever");
    }
}
