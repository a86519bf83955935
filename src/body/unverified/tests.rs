use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::Frame;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// A body that arrives as the test sends it.
struct Arriving(mpsc::UnboundedReceiver<Bytes>);

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

/// A client in the middle of a body, and the task that reads it.
struct Client {
    send: mpsc::UnboundedSender<Bytes>,
    read: JoinHandle<Result<Bytes, ReadBodyError>>,
}

const LIMIT: usize = 64 * WINDOW;

impl Client {
    fn new(bodies: &Arc<UnverifiedBodies>) -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        let bodies = Arc::clone(bodies);
        let read = tokio::spawn(async move { bodies.read(Arriving(receive), LIMIT).await });
        Self { send, read }
    }

    /// Sends `count` bytes and lets the reader read them.
    async fn send(&self, count: usize) {
        let _ = self.send.send(vec![b'a'; count].into());
        settle().await;
    }

    async fn started(bodies: &Arc<UnverifiedBodies>, count: usize) -> Self {
        let client = Self::new(bodies);
        client.send(count).await;
        client
    }

    /// Ends the body.
    async fn finish(self) -> Result<Bytes, ReadBodyError> {
        drop(self.send);
        self.read.await.unwrap()
    }

    async fn is_finished(&self) -> bool {
        settle().await;
        self.read.is_finished()
    }
}

async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn bodies(windows: usize) -> Arc<UnverifiedBodies> {
    Arc::new(UnverifiedBodies::new(windows * WINDOW))
}

#[tokio::test(start_paused = true)]
async fn received_bytes_are_reserved_until_the_body_is_read() {
    let bodies = bodies(64);
    let client = Client::started(&bodies, 1).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.send(WINDOW - 1).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.send(1).await;
    assert_eq!(bodies.bytes(), 2 * WINDOW);
    client.send(10 * WINDOW).await;
    assert_eq!(bodies.bytes(), 12 * WINDOW);
    assert_eq!(client.finish().await.unwrap().len(), 11 * WINDOW + 1);
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
    // The client disconnects, and hyper drops its request.
    let client = Client::started(&bodies, WINDOW).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.read.abort();
    settle().await;
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_in_one_piece_needs_no_reservation() {
    let bodies = bodies(2);
    let stalled = [Client::started(&bodies, WINDOW).await, Client::started(&bodies, WINDOW).await];
    for count in [0, 1, WINDOW, 2 * WINDOW] {
        let (send, receive) = mpsc::unbounded_channel();
        send.send(vec![b'a'; count].into()).unwrap();
        drop(send);
        let body = Arriving(receive);
        assert_eq!(bodies.read(body, LIMIT).await.unwrap().len(), count);
    }
    assert!(!stalled[0].is_finished().await && !stalled[1].is_finished().await);
}

#[tokio::test(start_paused = true)]
async fn the_body_with_the_oldest_window_is_evicted() {
    let bodies = bodies(4);
    let (first, second, third) = (
        Client::started(&bodies, 1).await,
        Client::started(&bodies, 1).await,
        Client::started(&bodies, 1).await,
    );
    // It is slow, but it makes progress.
    first.send(WINDOW).await;
    // This one sends single bytes.
    second.send(1).await;
    assert_eq!((bodies.bytes(), bodies.evicted()), (4 * WINDOW, 0));
    let fourth = Client::started(&bodies, 1).await;
    assert!(second.is_finished().await);
    assert!(matches!(second.finish().await, Err(ReadBodyError::Evicted)));
    assert_eq!((bodies.bytes(), bodies.evicted()), (4 * WINDOW, 1));
    let fifth = Client::started(&bodies, 1).await;
    assert!(third.is_finished().await);
    for (client, length) in [(first, WINDOW + 1), (fourth, 1), (fifth, 1)] {
        assert_eq!(client.finish().await.unwrap().len(), length);
    }
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 2));
}

/// However large it is, and however large the stalled ones are.
#[tokio::test(start_paused = true)]
async fn a_body_that_makes_progress_is_read_beside_any_number_of_stalled_ones() {
    let bodies = bodies(64);
    let mut stalled = Vec::new();
    for count in [1, WINDOW, 63 * WINDOW, 40 * WINDOW].into_iter().cycle().take(400) {
        stalled.push(Client::started(&bodies, count).await);
        assert!(bodies.bytes() <= 64 * WINDOW);
    }
    let evicted = bodies.evicted();
    assert!(evicted > 200, "{evicted}");
    let honest = Client::started(&bodies, 100).await;
    for _ in 0..60 {
        honest.send(WINDOW).await;
        assert!(bodies.bytes() <= 64 * WINDOW);
    }
    assert_eq!(honest.finish().await.unwrap().len(), 60 * WINDOW + 100);
    drop(stalled);
}

/// Its worker may be busy, and not have noticed the eviction yet.
#[tokio::test(start_paused = true)]
async fn the_memory_of_an_evicted_body_is_freed_at_once() {
    let bodies = bodies(2);
    let (mut first, mut evicted) = BodyReader::new(&bodies);
    first.push(b"a", LIMIT).unwrap();
    let (mut second, mut stays) = BodyReader::new(&bodies);
    second.push(&vec![b'b'; WINDOW + 1], LIMIT).unwrap();
    assert_eq!((bodies.bytes(), bodies.evicted()), (2 * WINDOW, 1));
    assert!(evicted.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    assert!(first.windows.lock().is_none());
    // An evicted body can reserve nothing more, and frees nothing twice.
    for count in [1, 3 * WINDOW] {
        assert!(matches!(first.push(&vec![b'a'; count], LIMIT), Err(ReadBodyError::Evicted)));
    }
    assert!(matches!(first.finish(), Err(ReadBodyError::Evicted)));
    drop(first);
    assert_eq!((bodies.bytes(), bodies.evicted()), (2 * WINDOW, 1));
    assert!(stays.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    assert_eq!(second.finish().unwrap().len(), WINDOW + 1);
    drop(second);
    assert_eq!(bodies.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_bounded_by_its_limit_and_by_the_total() {
    for (windows, max_bytes) in [(100, LIMIT), (64, LIMIT), (3, 3 * WINDOW)] {
        let bodies = bodies(windows);
        for pieces in [1, 2, 7] {
            for (length, is_read) in [(max_bytes, true), (max_bytes + 1, false)] {
                let client = Client::new(&bodies);
                let mut left = length;
                for piece in (0..pieces).rev() {
                    let size = if piece == 0 { left } else { length / pieces };
                    client.send(size).await;
                    left -= size;
                }
                let read = client.finish().await;
                assert_eq!(
                    read.as_ref().is_ok_and(|read| read.len() == length),
                    is_read,
                    "{length} in {pieces}"
                );
                assert!(is_read || matches!(read, Err(ReadBodyError::TooLarge)));
                assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_or_takes_too_long_is_given_up() {
    let bodies = bodies(64);
    let nearly = IDLE_TIMEOUT.saturating_sub(Duration::from_millis(1));
    let client = Client::started(&bodies, 1).await;
    tokio::time::sleep(nearly).await;
    client.send(1).await;
    tokio::time::sleep(nearly).await;
    assert!(!client.is_finished().await);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(matches!(client.read.await.unwrap(), Err(ReadBodyError::TooSlow)));
    // A client that has sent only the head.
    let silent = Client::new(&bodies);
    assert!(matches!(silent.read.await.unwrap(), Err(ReadBodyError::TooSlow)));
    let slow = Client::new(&bodies);
    for second in 0..30 {
        assert!(!slow.is_finished().await, "after {second} s");
        slow.send(1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(matches!(slow.read.await.unwrap(), Err(ReadBodyError::TooSlow)));
    assert_eq!(bodies.bytes(), 0);
}

/// At every border of a window, every byte in its place.
#[tokio::test(start_paused = true)]
async fn pieces_are_joined_in_order() {
    let bodies = bodies(64);
    let all: Vec<u8> = (0..5 * WINDOW + 3).map(|at| u8::try_from(at % 251).unwrap()).collect();
    for border in [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW - 1, 5 * WINDOW + 2] {
        let client = Client::new(&bodies);
        for piece in [&all[..border], &all[border..]] {
            let _ = client.send.send(Bytes::copy_from_slice(piece));
            settle().await;
        }
        assert!(client.finish().await.unwrap() == all, "{border}");
    }
}
