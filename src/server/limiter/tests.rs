use std::task::{Context, Waker};

use futures_util::FutureExt as _;

use super::super::connection_handle::ConnectionHandle;
use super::super::registry::Registration;
use super::*;

/// A listener with its connections, all of them idle, the first one for the longest.
struct Listener {
    limiter: Arc<ConnectionLimiter>,
    registry: Arc<ConnectionRegistry>,
    open: Vec<Registration>,
}

impl Listener {
    fn new(most: usize, accepts_remote_peers: bool) -> Self {
        let (limiter, registry) =
            (ConnectionLimiter::new(Capacity::new("test", most, accepts_remote_peers)), Arc::default());
        limiter.add_registry(&registry);
        Self { limiter, registry, open: Vec::new() }
    }

    /// Whether a new connection is accepted, and the open one with the index `evicted` is evicted for it.
    async fn accepts(&mut self, is_local: bool, evicted: Option<usize>) -> bool {
        // Scans are not repeated at once.
        tokio::time::advance(SCAN_INTERVAL).await;
        let limiter = Arc::clone(&self.limiter);
        let mut acquired = Box::pin(limiter.acquire(is_local));
        if let Some(permit) = acquired.as_mut().now_or_never() {
            assert_eq!(evicted, None, "there is a permit");
            self.open.push(self.registry.register(permit, is_local));
            return true;
        }
        let closing: Vec<bool> = self.open.iter().map(|one| one.state().must_close()).collect();
        assert!(closing.iter().filter(|must_close| **must_close).count() <= 1, "{closing:?}");
        let index = closing.iter().position(|must_close| *must_close);
        assert_eq!(index, evicted);
        let Some(index) = index else { return false };
        drop(self.open.remove(index));
        let permit = acquired.await;
        self.open.push(self.registry.register(permit, is_local));
        true
    }

    async fn fill(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.accepts(false, None).await);
        }
    }

    fn trust(&self, index: usize) {
        ConnectionHandle::new(self.open[index].state()).trust();
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_connection_is_evicted_and_a_quarter_is_reserved() {
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    for _ in 0..10 {
        assert!(listener.accepts(false, Some(0)).await);
    }
    assert_eq!((listener.limiter.capacity().open(), listener.limiter.capacity().evicted()), (6, 10));
    // The connection that was answered last is evicted last.
    listener.open[0].state().request_started();
    tokio::time::advance(Duration::from_secs(1)).await;
    listener.open[0].state().request_finished();
    for _ in 0..5 {
        assert!(listener.accepts(false, Some(1)).await);
    }
    assert!(listener.accepts(false, Some(0)).await);
}

#[tokio::test(start_paused = true)]
async fn trusted_connections_are_evicted_last() {
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    listener.trust(0);
    listener.trust(1);
    // Four are untrusted, so two more are accepted.
    listener.fill(2).await;
    for _ in 0..10 {
        assert!(listener.accepts(false, Some(2)).await);
    }
    // All of them trusted.
    for index in 0..8 {
        listener.trust(index);
    }
    assert!(listener.accepts(false, Some(0)).await);
    // From now on there is an untrusted one to evict.
    for _ in 0..10 {
        assert!(listener.accepts(false, Some(7)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn local_peers_are_trusted_where_others_can_connect() {
    let mut listener = Listener::new(8, true);
    listener.fill(6).await;
    assert!(listener.accepts(true, None).await && listener.accepts(true, None).await);
    assert!(listener.accepts(true, Some(0)).await, "an untrusted one is evicted for it");
    assert!(listener.accepts(false, Some(0)).await);
    // Where only local peers can connect, being local gives no trust.
    let mut listener = Listener::new(8, false);
    listener.fill(6).await;
    assert!(listener.accepts(true, Some(0)).await);
}

/// Else untrusted peers could hold all their permits for as long as they like.
#[tokio::test(start_paused = true)]
async fn an_untrusted_peer_keeps_no_permit_by_being_slow() {
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.open[0].state().set_unsent(true);
    listener.open[1].state().request_started();
    assert!(listener.accepts(false, Some(0)).await, "it does not read");
    listener.open[1].state().set_awaits_peer(true);
    listener.open[0].state().request_started();
    listener.open[2].state().request_started();
    assert!(listener.accepts(false, Some(1)).await, "it does not send");
    // Reading a little of a response does not reset its age.
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    listener.open[0].state().reset_idle();
    assert!(listener.accepts(false, Some(0)).await);
}

#[tokio::test(start_paused = true)]
async fn busy_connections_are_not_evicted() {
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.trust(1);
    listener.fill(1).await;
    listener.open[0].state().request_started();
    listener.open[1].state().set_unsent(true);
    assert!(listener.accepts(false, Some(2)).await);
    listener.open[2].state().request_started();
    listener.open[3].state().request_started();
    assert!(!listener.accepts(false, None).await, "none is idle");
    listener.open[1].state().set_unsent(false);
    tokio::time::advance(SCAN_INTERVAL).await;
    assert!(!listener.accepts(false, None).await, "no trusted one is evicted for one that may not enter");
    assert!(!listener.open[1].state().must_close());
    let mut listener = Listener::new(4, false);
    listener.fill(3).await;
    listener.open[0].state().request_started();
    listener.open[2].state().request_started();
    // It was asked to close, and a request has arrived before it did.
    tokio::time::advance(SCAN_INTERVAL).await;
    let limiter = Arc::clone(&listener.limiter);
    let mut acquired = Box::pin(limiter.acquire(false));
    assert!(acquired.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    listener.open[1].state().request_started();
    assert!(!listener.open[1].state().must_close());
    listener.open[1].state().request_finished();
    tokio::time::advance(SCAN_INTERVAL).await;
    assert!(acquired.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(listener.open[1].state().must_close(), "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn streams_count_as_connections_but_have_no_socket_to_give() {
    let mut listener = Listener::new(8, false);
    listener.fill(1).await;
    listener.open[0].state().request_started();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let permit = listener.limiter.try_acquire().unwrap();
        streams.push(ConnectionRegistry::register_stream(listener.open[0].state(), permit));
    }
    streams[1].state().set_awaits_peer(true);
    tokio::time::advance(Duration::from_secs(1)).await;
    listener.fill(1).await;
    // Six are untrusted.
    assert_eq!(listener.limiter.capacity().open(), 6);
    listener.limiter.evict_one();
    assert!(listener.open[1].state().must_close() && !streams[1].state().must_close());
    tokio::time::advance(SCAN_INTERVAL).await;
    assert!(listener.limiter.try_acquire().is_none());
    let asked: Vec<bool> = streams.iter().map(|stream| stream.state().must_close()).collect();
    assert_eq!(asked, [false, true, false, false]);
    // With a credential of one of them, all of them are trusted.
    listener.trust(0);
    assert!(!streams[1].state().must_close() && streams[2].state().is_trusted());
    tokio::time::advance(SCAN_INTERVAL).await;
    assert!(listener.accepts(false, None).await, "one is untrusted");
}

#[tokio::test(start_paused = true)]
async fn untrusted_connections_are_not_accepted_by_an_outdated_scan() {
    let mut listener = Listener::new(100, false);
    listener.fill(75).await;
    for index in 0..70 {
        listener.trust(index);
    }
    // Five are untrusted: seventy more could be accepted.
    listener.fill(1).await;
    listener.open.drain(..70);
    listener.fill(69).await;
    assert_eq!(listener.limiter.capacity().open(), 75);
    assert!(listener.accepts(false, Some(0)).await, "the limit of untrusted connections is reached");
}

#[test]
fn only_the_longest_idle_are_candidates() {
    let many: Vec<(u64, u64)> = (0..1_000).rev().map(|since| (since, since)).collect();
    let longest = longest_idle(many, MAX_CANDIDATES);
    let expected: Vec<_> = (0..MAX_CANDIDATES as u64).rev().map(|since| (since, since)).collect();
    assert_eq!(longest, expected);
    assert_eq!(longest_idle(vec![(1, 'b'), (0, 'a')], MAX_CANDIDATES), [(1, 'b'), (0, 'a')]);
}
