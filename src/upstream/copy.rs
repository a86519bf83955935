//! What is kept of a request, so that it can be sent again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body::Body as _;

use super::Error;
use crate::body::{Body, Collected};

/// Bytes of the largest body that is read into memory for that. GitLab Shell's have a few hundred.
const LARGEST: usize = 64 * 1024;

/// Bytes of all of them together. Beyond that, bodies are streamed, and their requests sent once.
const MOST: usize = 64 * 1024 * 1024;

/// The memory that bodies take, for all threads.
#[derive(Debug, Default)]
pub(super) struct Memory {
    taken: AtomicUsize,
}

/// A request as it was.
pub(super) struct Copy<'m> {
    request: Option<Box<Request<Body>>>,
    _share: Option<Share<'m>>,
}

impl Copy<'_> {
    /// Of a request whose body, if it has one, is in memory already.
    pub(super) fn of(request: &Request<Body>) -> Self {
        Self { request: again(request), _share: None }
    }

    /// The same request once more, if all of it is in memory.
    pub(super) fn again(&self) -> Option<Box<Request<Body>>> {
        again(self.request.as_deref()?)
    }
}

/// A part of the memory, given back when it is dropped.
struct Share<'m> {
    memory: &'m Memory,
    bytes: usize,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Memory {
    fn take(&self, bytes: usize) -> Option<Share<'_>> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= MOST);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Share { memory: self, bytes })
    }

    /// Reads a body that says it is small into memory, within `limit`, and copies the request.
    pub(super) async fn read(
        &self,
        mut request: Box<Request<Body>>,
        limit: Duration,
    ) -> Result<(Box<Request<Body>>, Copy<'_>), Error> {
        let share = small(request.body()).and_then(|length| self.take(length));
        if share.is_none() {
            return Ok((request, Copy { request: None, _share: None }));
        }
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = match tokio::time::timeout(limit, body.collect_up_to(LARGEST)).await {
            Ok(Ok(Collected::Whole(body))) => body.into(),
            Ok(Ok(Collected::TooLong(body))) => body,
            Ok(Err(error)) => return Err(Error::RequestBody(error.into())),
            Err(_) => return Err(Error::BodyStalled(limit)),
        };
        let copy = Copy { request: again(&request), _share: share };
        Ok((request, copy))
    }
}

/// Whether a body says that it is small enough to be kept.
pub(super) fn is_small(body: &Body) -> bool {
    small(body).is_some()
}

/// Its length, if so.
fn small(body: &Body) -> Option<usize> {
    let length = usize::try_from(body.size_hint().exact()?).ok()?;
    (length <= LARGEST).then_some(length)
}

fn again(request: &Request<Body>) -> Option<Box<Request<Body>>> {
    let mut again = Box::new(Request::new(request.body().again()?));
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    *again.version_mut() = request.version();
    again.headers_mut().clone_from(request.headers());
    Some(again)
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
    async fn a_copy_is_the_same_request_as_often_as_needed() {
        let memory = Memory::default();
        let (request, copy) = memory.read(request(1_000), Duration::from_secs(1)).await.unwrap();
        for _ in 0..3 {
            let again = copy.again().unwrap();
            assert_eq!(
                (again.method(), again.uri(), again.headers()),
                (request.method(), request.uri(), request.headers())
            );
            assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), vec![7; 1_000]);
        }
    }

    #[tokio::test]
    async fn there_is_no_more_memory_than_there_is() {
        let memory = Memory::default();
        let limit = Duration::from_secs(1);
        let mut copies = Vec::new();
        for _ in 0..MOST / LARGEST {
            copies.push(memory.read(request(LARGEST), limit).await.unwrap().1);
        }
        assert!(copies.iter().all(|copy| copy.again().is_some()));
        let (unread, none) = memory.read(request(1), limit).await.unwrap();
        assert!(none.again().is_none() && unread.body().size_hint().exact() == Some(1));
        copies.pop();
        assert!(memory.read(request(LARGEST), limit).await.unwrap().1.again().is_some());
        drop(copies);
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
        assert!(memory.read(request(LARGEST + 1), limit).await.unwrap().1.again().is_none());
    }
}
