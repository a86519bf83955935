use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::Frame;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// A body that comes as the test sends it.
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

/// A client in the middle of a body, and the reader of it.
struct Client {
    send: mpsc::UnboundedSender<Bytes>,
    read: JoinHandle<Result<Bytes, NotRead>>,
}

const LIMIT: usize = 64 * WINDOW;

impl Client {
    fn new(bodies: &Arc<UnverifiedBodies>) -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        let bodies = Arc::clone(bodies);
        let read = tokio::spawn(async move { bodies.read(Arriving(receive), LIMIT).await });
        Self { send, read }
    }

    /// Sends so many bytes, which are read.
    async fn send(&self, count: usize) {
        let _ = self.send.send(vec![b'a'; count].into());
        settle().await;
    }

    /// One that has begun.
    async fn begun(bodies: &Arc<UnverifiedBodies>, count: usize) -> Self {
        let client = Self::new(bodies);
        client.send(count).await;
        client
    }

    /// Sends nothing more.
    async fn finish(self) -> Result<Bytes, NotRead> {
        drop(self.send);
        self.read.await.unwrap()
    }

    async fn gave_way(&self) -> bool {
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
async fn what_has_come_is_charged_until_it_is_read() {
    let bodies = bodies(64);
    let client = Client::begun(&bodies, 1).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.send(WINDOW - 1).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.send(1).await;
    assert_eq!(bodies.bytes(), 2 * WINDOW);
    client.send(10 * WINDOW).await;
    assert_eq!(bodies.bytes(), 12 * WINDOW);
    assert_eq!(client.finish().await.unwrap().len(), 11 * WINDOW + 1);
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
    // The client leaves, and hyper drops its request.
    let client = Client::begun(&bodies, WINDOW).await;
    assert_eq!(bodies.bytes(), WINDOW);
    client.read.abort();
    settle().await;
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_in_one_piece_is_not_charged() {
    let bodies = bodies(2);
    let stalled = [Client::begun(&bodies, WINDOW).await, Client::begun(&bodies, WINDOW).await];
    for count in [0, 1, WINDOW, 2 * WINDOW] {
        let (send, receive) = mpsc::unbounded_channel();
        send.send(vec![b'a'; count].into()).unwrap();
        drop(send);
        let body = Arriving(receive);
        assert_eq!(bodies.read(body, LIMIT).await.unwrap().len(), count);
    }
    assert!(!stalled[0].gave_way().await && !stalled[1].gave_way().await);
}

#[tokio::test(start_paused = true)]
async fn the_one_that_has_gone_the_longest_without_a_window_gives_way() {
    let bodies = bodies(4);
    let (first, second, third) =
        (Client::begun(&bodies, 1).await, Client::begun(&bodies, 1).await, Client::begun(&bodies, 1).await);
    // It is slow, but it comes.
    first.send(WINDOW).await;
    // This one drips.
    second.send(1).await;
    assert_eq!((bodies.bytes(), bodies.evicted()), (4 * WINDOW, 0));
    let fourth = Client::begun(&bodies, 1).await;
    assert!(second.gave_way().await);
    assert!(matches!(second.finish().await, Err(NotRead::GaveWay)));
    assert_eq!((bodies.bytes(), bodies.evicted()), (4 * WINDOW, 1));
    let fifth = Client::begun(&bodies, 1).await;
    assert!(third.gave_way().await);
    for (client, length) in [(first, WINDOW + 1), (fourth, 1), (fifth, 1)] {
        assert_eq!(client.finish().await.unwrap().len(), length);
    }
    assert_eq!((bodies.bytes(), bodies.evicted()), (0, 2));
}

/// However large it is, and whatever the others are.
#[tokio::test(start_paused = true)]
async fn one_that_keeps_coming_is_read_beside_any_number_that_have_stalled() {
    let bodies = bodies(64);
    let mut stalled = Vec::new();
    for count in [1, WINDOW, 63 * WINDOW, 40 * WINDOW].into_iter().cycle().take(400) {
        stalled.push(Client::begun(&bodies, count).await);
        assert!(bodies.bytes() <= 64 * WINDOW);
    }
    let evicted = bodies.evicted();
    assert!(evicted > 200, "{evicted}");
    let honest = Client::begun(&bodies, 100).await;
    for _ in 0..60 {
        honest.send(WINDOW).await;
        assert!(bodies.bytes() <= 64 * WINDOW);
    }
    assert_eq!(honest.finish().await.unwrap().len(), 60 * WINDOW + 100);
    drop(stalled);
}

/// Its worker may be busy, and has not seen yet that it gave way.
#[tokio::test(start_paused = true)]
async fn the_memory_of_one_that_gave_way_is_free_at_once() {
    let bodies = bodies(2);
    let (mut first, mut gave_way) = Reading::begin(&bodies);
    first.push(b"a", LIMIT).unwrap();
    let (mut second, mut stays) = Reading::begin(&bodies);
    second.push(&vec![b'b'; WINDOW + 1], LIMIT).unwrap();
    assert_eq!((bodies.bytes(), bodies.evicted()), (2 * WINDOW, 1));
    assert!(gave_way.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    assert!(first.windows.lock().is_none());
    // Whatever it does now, it takes no more, and frees nothing twice.
    for count in [1, 3 * WINDOW] {
        assert!(matches!(first.push(&vec![b'a'; count], LIMIT), Err(NotRead::GaveWay)));
    }
    assert!(matches!(first.finish(), Err(NotRead::GaveWay)));
    drop(first);
    assert_eq!((bodies.bytes(), bodies.evicted()), (2 * WINDOW, 1));
    assert!(stays.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    assert_eq!(second.finish().unwrap().len(), WINDOW + 1);
    drop(second);
    assert_eq!(bodies.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_has_a_limit_and_never_more_than_all() {
    for (windows, most) in [(100, LIMIT), (64, LIMIT), (3, 3 * WINDOW)] {
        let bodies = bodies(windows);
        for pieces in [1, 2, 7] {
            for (length, is_read) in [(most, true), (most + 1, false)] {
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
                assert!(is_read || matches!(read, Err(NotRead::TooLong)));
                assert_eq!((bodies.bytes(), bodies.evicted()), (0, 0));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_or_drips_is_given_up() {
    let bodies = bodies(64);
    let nearly = LONGEST_PAUSE.saturating_sub(Duration::from_millis(1));
    let client = Client::begun(&bodies, 1).await;
    tokio::time::sleep(nearly).await;
    client.send(1).await;
    tokio::time::sleep(nearly).await;
    assert!(!client.gave_way().await);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(matches!(client.read.await.unwrap(), Err(NotRead::TooSlow)));
    // One that has sent its head only.
    let silent = Client::new(&bodies);
    assert!(matches!(silent.read.await.unwrap(), Err(NotRead::TooSlow)));
    let drips = Client::new(&bodies);
    for second in 0..30 {
        assert!(!drips.gave_way().await, "after {second} s");
        drips.send(1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(matches!(drips.read.await.unwrap(), Err(NotRead::TooSlow)));
    assert_eq!(bodies.bytes(), 0);
}

/// Every window's border, and every byte of it in its place.
#[tokio::test(start_paused = true)]
async fn pieces_are_put_together_as_they_came() {
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
