//! Request bodies in memory: copies, so that requests can be sent again, and what has come of a body before its
//! request gets a permit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body::Body as _;

use crate::body::{Body, Collected};
use crate::upstream::error::Error;

/// Bytes of the largest body that is read into memory for a copy. GitLab Shell's have a few hundred.
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

/// A request as it was when it arrived.
pub(in crate::upstream) struct ReplayCopy<'m> {
    request: Option<Box<Request<Body>>>,
    _reservation: Option<MemoryReservation<'m>>,
}

impl ReplayCopy<'_> {
    /// Of a request without a body, or with one that is in memory already.
    pub(in crate::upstream) fn of(request: &Request<Body>) -> Self {
        Self { request: duplicate(request), _reservation: None }
    }

    /// The request once more, if all of it is in memory.
    pub(in crate::upstream) fn replay(&self) -> Option<Box<Request<Body>>> {
        duplicate(self.request.as_deref()?)
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

    /// Reads a body whose declared length is small into memory, within `timeout`, and copies the request.
    pub(in crate::upstream) async fn buffer(
        &self,
        mut request: Box<Request<Body>>,
        timeout: Duration,
    ) -> Result<(Box<Request<Body>>, ReplayCopy<'_>), Error> {
        let reservation = replayable_length(request.body()).and_then(|length| self.reserve(length));
        if reservation.is_none() {
            return Ok((request, ReplayCopy { request: None, _reservation: None }));
        }
        read_body(&mut request, timeout).await?;
        let copy = ReplayCopy { request: duplicate(&request), _reservation: reservation };
        Ok((request, copy))
    }

    /// Reads the body, or the begin of a large one, into memory, within `timeout`. There is no copy.
    pub(in crate::upstream) async fn read(
        &self,
        mut request: Box<Request<Body>>,
        timeout: Duration,
    ) -> Result<(Box<Request<Body>>, ReplayCopy<'_>), Error> {
        let length = request.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let length = length.map_or(MAX_REPLAY_BODY, |length| length.min(MAX_REPLAY_BODY));
        let reservation = self.reserve(length).filter(|_| !request.body().is_end_stream());
        if reservation.is_some() {
            read_body(&mut request, timeout).await?;
        }
        Ok((request, ReplayCopy { request: None, _reservation: reservation }))
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

/// Whether the declared length of a body is small enough for a copy.
pub(in crate::upstream) fn is_replayable(body: &Body) -> bool {
    replayable_length(body).is_some()
}

/// That length.
fn replayable_length(body: &Body) -> Option<usize> {
    let length = usize::try_from(body.size_hint().exact()?).ok()?;
    (length <= MAX_REPLAY_BODY).then_some(length)
}

fn duplicate(request: &Request<Body>) -> Option<Box<Request<Body>>> {
    let mut copy = Box::new(Request::new(request.body().try_clone()?));
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt as _;

    use super::*;

    fn request(bytes: usize) -> Box<Request<Body>> {
        let mut request = Box::new(Request::new(Body::from(Bytes::from(vec![7; bytes]))));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = "/allowed?a=b".parse().unwrap();
        request.headers_mut().insert("x-mine", "1".parse().unwrap());
        request
    }

    #[tokio::test]
    async fn a_copy_can_be_replayed_any_number_of_times() {
        let memory = ReplayMemory::new(MAX_REPLAY_MEMORY);
        let (request, copy) = memory.buffer(request(1_000), Duration::from_secs(1)).await.unwrap();
        for _ in 0..3 {
            let again = copy.replay().unwrap();
            assert_eq!(
                (again.method(), again.uri(), again.headers()),
                (request.method(), request.uri(), request.headers())
            );
            assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), vec![7; 1_000]);
        }
    }

    #[tokio::test]
    async fn copies_take_no_more_than_the_memory_for_them() {
        let memory = ReplayMemory::new(MAX_REPLAY_MEMORY);
        let timeout = Duration::from_secs(1);
        let mut copies = Vec::new();
        for _ in 0..MAX_REPLAY_MEMORY / MAX_REPLAY_BODY {
            copies.push(memory.buffer(request(MAX_REPLAY_BODY), timeout).await.unwrap().1);
        }
        assert!(copies.iter().all(|copy| copy.replay().is_some()));
        let (unread, none) = memory.buffer(request(1), timeout).await.unwrap();
        assert!(none.replay().is_none() && unread.body().size_hint().exact() == Some(1));
        copies.pop();
        assert!(memory.buffer(request(MAX_REPLAY_BODY), timeout).await.unwrap().1.replay().is_some());
        drop(copies);
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
        assert!(memory.buffer(request(MAX_REPLAY_BODY + 1), timeout).await.unwrap().1.replay().is_none());
    }

    #[tokio::test]
    async fn a_body_is_read_without_a_copy_while_there_is_memory() {
        let (memory, timeout) = (ReplayMemory::new(MAX_REPLAY_BODY), Duration::from_secs(1));
        let taken = || memory.taken.load(Ordering::Relaxed);
        let (large, copy) = memory.read(request(MAX_REPLAY_BODY * 2), timeout).await.unwrap();
        assert!(copy.replay().is_none());
        assert_eq!(taken(), MAX_REPLAY_BODY);
        let (other, none) = memory.read(request(1), timeout).await.unwrap();
        for (request, length) in [(large, MAX_REPLAY_BODY * 2), (other, 1)] {
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes().len(), length);
        }
        drop((copy, none));
        assert_eq!(taken(), 0);
    }
}
