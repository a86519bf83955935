use std::task::{Context, Waker};

use futures_util::FutureExt as _;

use super::super::registry::{ConnectionHandle, Registered};
use super::*;

/// A listener with its connections, all of them idle, the first for the longest.
struct Listener {
    capacity: Arc<Capacity>,
    registry: Arc<Registry>,
    open: Vec<Registered>,
}

impl Listener {
    fn new(most: usize, is_open_to_others: bool) -> Self {
        let (capacity, registry) = (Capacity::new("test", most, is_open_to_others), Arc::default());
        capacity.is_shared_by(&registry);
        Self { capacity, registry, open: Vec::new() }
    }

    /// Whether one can come in, of those that are open `who` having to leave for it.
    async fn comes(&mut self, is_local: bool, who: Option<usize>) -> bool {
        // A look at all of them is not repeated at once.
        tokio::time::advance(LOOK_EVERY).await;
        let capacity = Arc::clone(&self.capacity);
        let mut admitted = Box::pin(capacity.admit(is_local));
        if let Some(place) = admitted.as_mut().now_or_never() {
            assert_eq!(who, None, "there is a place");
            self.open.push(self.registry.register(place, is_local));
            return true;
        }
        let leaving: Vec<bool> = self.open.iter().map(|one| one.state().has_to_leave()).collect();
        assert!(leaving.iter().filter(|leaves| **leaves).count() <= 1, "{leaving:?}");
        let leaves = leaving.iter().position(|leaves| *leaves);
        assert_eq!(leaves, who);
        let Some(leaves) = leaves else { return false };
        drop(self.open.remove(leaves));
        let place = admitted.await;
        self.open.push(self.registry.register(place, is_local));
        true
    }

    async fn fill(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.comes(false, None).await);
        }
    }

    fn trust(&self, index: usize) {
        ConnectionHandle::new(self.open[index].state()).trust();
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_leaves_and_a_quarter_is_kept() {
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    for _ in 0..10 {
        assert!(listener.comes(false, Some(0)).await);
    }
    assert_eq!((listener.capacity.open(), listener.capacity.evicted()), (6, 10));
    // Who was answered last leaves last.
    listener.open[0].state().request_begins();
    tokio::time::advance(Duration::from_secs(1)).await;
    listener.open[0].state().request_ends();
    for _ in 0..5 {
        assert!(listener.comes(false, Some(1)).await);
    }
    assert!(listener.comes(false, Some(0)).await);
}

#[tokio::test(start_paused = true)]
async fn who_is_trusted_leaves_last() {
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    listener.trust(0);
    listener.trust(1);
    // Four strangers, so two more may come.
    listener.fill(2).await;
    for _ in 0..10 {
        assert!(listener.comes(false, Some(2)).await);
    }
    // All of them trusted.
    for index in 0..8 {
        listener.trust(index);
    }
    assert!(listener.comes(false, Some(0)).await);
    // From now on there is a stranger who can leave.
    for _ in 0..10 {
        assert!(listener.comes(false, Some(7)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn local_peers_are_trusted_where_others_can_connect() {
    let mut listener = Listener::new(8, true);
    listener.fill(6).await;
    assert!(listener.comes(true, None).await && listener.comes(true, None).await);
    assert!(listener.comes(true, Some(0)).await, "a stranger leaves for it");
    assert!(listener.comes(false, Some(0)).await);
    // Where only local peers can connect, that says nothing.
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    assert!(listener.comes(true, Some(0)).await);
}

/// Else it could keep all places that strangers may have, for as long as it likes.
#[tokio::test(start_paused = true)]
async fn a_stranger_that_is_waited_for_keeps_no_place_by_that() {
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.open[0].state().set_unsent(true);
    listener.open[1].state().request_begins();
    assert!(listener.comes(false, Some(0)).await, "it does not read");
    listener.open[1].state().set_awaits_body(true);
    listener.open[0].state().request_begins();
    listener.open[2].state().request_begins();
    assert!(listener.comes(false, Some(1)).await, "it does not send");
    // Taking a little of what it is sent makes it no younger.
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    listener.open[0].state().touch();
    assert!(listener.comes(false, Some(0)).await);
}

#[tokio::test(start_paused = true)]
async fn who_has_something_to_do_stays() {
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.trust(1);
    listener.fill(1).await;
    listener.open[0].state().request_begins();
    listener.open[1].state().set_unsent(true);
    assert!(listener.comes(false, Some(2)).await);
    listener.open[2].state().request_begins();
    listener.open[3].state().request_begins();
    assert!(!listener.comes(false, None).await, "none is idle");
    listener.open[1].state().set_unsent(false);
    tokio::time::advance(LOOK_EVERY).await;
    assert!(!listener.comes(false, None).await, "one that is trusted leaves for none that may not come");
    assert!(!listener.open[1].state().has_to_leave());
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.open[0].state().request_begins();
    listener.open[2].state().request_begins();
    // It was asked to leave, and a request has come before it did.
    tokio::time::advance(LOOK_EVERY).await;
    let capacity = Arc::clone(&listener.capacity);
    let mut admitted = Box::pin(capacity.admit(false));
    assert!(admitted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    listener.open[1].state().request_begins();
    assert!(!listener.open[1].state().has_to_leave());
    listener.open[1].state().request_ends();
    tokio::time::advance(LOOK_EVERY).await;
    assert!(admitted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(listener.open[1].state().has_to_leave(), "it is asked again");
}

/// What a look has shown does not hold for ever.
#[tokio::test(start_paused = true)]
async fn strangers_do_not_come_by_a_count_of_long_ago() {
    let mut listener = Listener::new(100, false);
    listener.fill(75).await;
    for index in 0..70 {
        listener.trust(index);
    }
    // Five strangers: seventy more might come.
    listener.fill(1).await;
    listener.open.drain(..70);
    listener.fill(69).await;
    assert_eq!(listener.capacity.open(), 75);
    assert!(listener.comes(false, Some(0)).await, "there are as many as may be");
}

#[test]
fn only_the_longest_idle_are_remembered() {
    let many: Vec<(u64, u64)> = (0..1_000).rev().map(|since| (since, since)).collect();
    let longest = longest_idle(many, REMEMBERED);
    let expected: Vec<_> = (0..REMEMBERED as u64).rev().map(|since| (since, since)).collect();
    assert_eq!(longest, expected);
    assert_eq!(longest_idle(vec![(1, 'b'), (0, 'a')], REMEMBERED), [(1, 'b'), (0, 'a')]);
}
