//! Request bodies in memory: those of requests that can be sent again, and what has come of a body before its request
//! gets a permit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body::Body as _;

use crate::body::{Body, Collected};
use crate::upstream::error::Error;

/// Bytes of the largest body that is read into memory so that its request can be sent again. GitLab Shell's have a few hundred.
const MAX_REPLAY_BODY: usize = 64 * 1024;

/// Bytes of all such bodies together. Beyond that, bodies are streamed, and their requests sent once.
pub(in crate::upstream) const MAX_REPLAY_MEMORY: usize = 64 * 1024 * 1024;

/// Bytes of all bodies of [`Class::Other`](crate::route::Class::Other) that are read before the request has a permit.
/// Beyond that, bodies are streamed.
pub(in crate::upstream) const MAX_UNADMITTED_MEMORY: usize = 8 * 1024 * 1024;

/// The memory that the bodies take, over all threads.
#[derive(Debug)]
pub(in crate::upstream) struct ReplayMemory {
    taken: AtomicUsize,
    max: usize,
}

/// Whether a request can be sent again, and the memory that its body takes.
pub(in crate::upstream) struct Replay<'m> {
    is_possible: bool,
    _reservation: Option<MemoryReservation<'m>>,
}

impl Replay<'_> {
    /// Of a request that may be sent again, if it has no body or one that is in memory already.
    pub(in crate::upstream) fn of(request: &Request<Body>) -> Self {
        Self { is_possible: request.body().in_memory().is_some(), _reservation: None }
    }

    /// Whether all of the request is in memory, where it stays while it is sent.
    pub(in crate::upstream) fn is_possible(&self) -> bool {
        self.is_possible
    }
}

/// A part of the memory, released when it is dropped.
struct MemoryReservation<'m> {
    memory: &'m ReplayMemory,
    bytes: usize,
}

impl Drop for MemoryReservation<'_> {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl ReplayMemory {
    /// For up to `max` bytes.
    pub(in crate::upstream) const fn new(max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), max }
    }

    fn reserve(&self, bytes: usize) -> Option<MemoryReservation<'_>> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.max);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(MemoryReservation { memory: self, bytes })
    }

    /// Reads a body whose declared length is small into memory, within `timeout`, so that the request can be sent again.
    pub(in crate::upstream) async fn buffer(
        &self,
        request: &mut Request<Body>,
        timeout: Duration,
    ) -> Result<Replay<'_>, Error> {
        let reservation = replayable_length(request.body()).and_then(|length| self.reserve(length));
        if reservation.is_some() {
            read_body(request, timeout).await?;
        }
        // A body may be longer than it says.
        let is_possible = reservation.is_some() && request.body().in_memory().is_some();
        Ok(Replay { is_possible, _reservation: reservation })
    }

    /// Reads the body, or the begin of a large one, into memory, within `timeout`. The request is not sent again.
    pub(in crate::upstream) async fn read(
        &self,
        request: &mut Request<Body>,
        timeout: Duration,
    ) -> Result<Replay<'_>, Error> {
        let length = request.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let length = length.map_or(MAX_REPLAY_BODY, |length| length.min(MAX_REPLAY_BODY));
        let reservation = self.reserve(length).filter(|_| !request.body().is_end_stream());
        if reservation.is_some() {
            read_body(request, timeout).await?;
        }
        Ok(Replay { is_possible: false, _reservation: reservation })
    }
}

async fn read_body(request: &mut Request<Body>, timeout: Duration) -> Result<(), Error> {
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = match tokio::time::timeout(timeout, body.collect_up_to(MAX_REPLAY_BODY)).await {
        Ok(Ok(Collected::Complete(body))) => body.into(),
        Ok(Ok(Collected::TooLong(body))) => body,
        Ok(Err(error)) => return Err(Error::RequestBody(error.into())),
        Err(_) => return Err(Error::RequestBodyTimeout(timeout)),
    };
    Ok(())
}

/// Whether the declared length of a body is small enough to keep it.
pub(in crate::upstream) fn is_replayable(body: &Body) -> bool {
    replayable_length(body).is_some()
}

/// That length.
fn replayable_length(body: &Body) -> Option<usize> {
    let length = usize::try_from(body.size_hint().exact()?).ok()?;
    (length <= MAX_REPLAY_BODY).then_some(length)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http_body::{Frame, SizeHint};
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::body::{BodyFault, BodySource};

    fn request(bytes: usize) -> Request<Body> {
        Request::new(Body::from(Bytes::from(vec![7; bytes])))
    }

    #[tokio::test]
    async fn bodies_take_no_more_than_the_memory_for_them() {
        let memory = ReplayMemory::new(MAX_REPLAY_MEMORY);
        let timeout = Duration::from_secs(1);
        let mut replays = Vec::new();
        for _ in 0..MAX_REPLAY_MEMORY / MAX_REPLAY_BODY {
            let mut request = request(MAX_REPLAY_BODY);
            replays.push(memory.buffer(&mut request, timeout).await.unwrap());
            assert_eq!(request.body().in_memory().map(Bytes::len), Some(MAX_REPLAY_BODY));
        }
        assert!(replays.iter().all(Replay::is_possible));
        let mut unread = request(1);
        let none = memory.buffer(&mut unread, timeout).await.unwrap();
        assert!(!none.is_possible() && unread.body().size_hint().exact() == Some(1));
        replays.pop();
        assert!(memory.buffer(&mut request(MAX_REPLAY_BODY), timeout).await.unwrap().is_possible());
        drop(replays);
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
        assert!(!memory.buffer(&mut request(MAX_REPLAY_BODY + 1), timeout).await.unwrap().is_possible());
    }

    /// A body that is longer than it says.
    #[derive(Debug)]
    struct Overlong(Option<Bytes>);

    impl BodySource for Overlong {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }

        fn is_end_stream(&self) -> bool {
            false
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(5)
        }

        fn release(self: Box<Self>) {}
    }

    /// Its begin would be sent the first time, and nothing the second time.
    #[tokio::test]
    async fn a_request_whose_body_is_not_in_memory_after_all_is_sent_once() {
        let (memory, timeout) = (ReplayMemory::new(MAX_REPLAY_MEMORY), Duration::from_secs(1));
        for (length, is_possible) in [(MAX_REPLAY_BODY, true), (MAX_REPLAY_BODY + 1, false)] {
            let body = Overlong(Some(Bytes::from(vec![7; length])));
            let mut request = Request::new(Body::from_source(Box::new(body)));
            let replay = memory.buffer(&mut request, timeout).await.unwrap();
            assert_eq!(replay.is_possible(), is_possible, "{length}");
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), length);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_sent_once_is_read_while_there_is_memory() {
        let (memory, timeout) = (ReplayMemory::new(MAX_REPLAY_BODY), Duration::from_secs(1));
        let taken = || memory.taken.load(Ordering::Relaxed);
        let mut large = request(MAX_REPLAY_BODY * 2);
        let replay = memory.read(&mut large, timeout).await.unwrap();
        assert!(!replay.is_possible());
        assert_eq!(taken(), MAX_REPLAY_BODY);
        let mut other = request(1);
        let none = memory.read(&mut other, timeout).await.unwrap();
        for (request, length) in [(large, MAX_REPLAY_BODY * 2), (other, 1)] {
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), length);
        }
        drop((replay, none));
        assert_eq!(taken(), 0);
    }
}
