//! A service that can be exchanged for another one between two requests.
//!
//! Differs from a lock or an `ArcSwap` around the service in what it costs a request: one comparison.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tower::Service;

/// Where the service of the day is put.
#[derive(Debug)]
pub struct StackCell<S> {
    /// Counts the exchanges.
    generation: AtomicU64,
    stack: Mutex<S>,
}

/// Answers each request with the service that was in the cell when it came.
#[derive(Clone, Debug)]
pub struct Reloadable<S> {
    cell: Arc<StackCell<S>>,
    generation: u64,
    stack: S,
}

impl<S: Clone> StackCell<S> {
    /// With this service at first.
    pub fn new(stack: S) -> Arc<Self> {
        Arc::new(Self { generation: AtomicU64::new(0), stack: Mutex::new(stack) })
    }

    /// The next requests go to another service. Those that run end where they are.
    pub fn replace(&self, stack: S) {
        let mut current = self.stack.lock();
        *current = stack;
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl<S: Clone> Reloadable<S> {
    /// A service for one listener.
    pub fn new(cell: &Arc<StackCell<S>>) -> Self {
        let stack = cell.stack.lock();
        let generation = cell.generation.load(Ordering::Acquire);
        Self { cell: Arc::clone(cell), generation, stack: stack.clone() }
    }

    #[cold]
    fn renew(&mut self) {
        let stack = self.cell.stack.lock();
        self.generation = self.cell.generation.load(Ordering::Acquire);
        self.stack = stack.clone();
    }
}

impl<S, R> Service<R> for Reloadable<S>
where
    S: Service<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.cell.generation.load(Ordering::Relaxed) != self.generation {
            self.renew();
        }
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.stack.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};

    use futures_util::FutureExt as _;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    type Answer = fn(()) -> Ready<Result<u8, Infallible>>;

    #[test]
    fn requests_go_to_the_service_that_is_there_when_they_come() {
        let (one, two): (Answer, Answer) = (|()| ready(Ok(1)), |()| ready(Ok(2)));
        let cell = StackCell::new(service_fn(one));
        let mut services = [Reloadable::new(&cell), Reloadable::new(&cell)];
        let mut ask = || {
            let answers = services.each_mut().map(|service| {
                service.ready().now_or_never().unwrap().unwrap().call(()).now_or_never().unwrap()
            });
            answers.map(Result::unwrap)
        };
        assert_eq!(ask(), [1, 1]);
        cell.replace(service_fn(two));
        assert_eq!((ask(), ask()), ([2, 2], [2, 2]));
    }
}
