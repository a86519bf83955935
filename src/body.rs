//! The one body type that travels through the stack, in both directions.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::Semaphore;

/// Nothing, bytes in memory, or a stream from a socket that passes by without being collected.
#[derive(Debug, Default)]
pub struct Body {
    /// Ends the watch on this body when dropped, or when there is no more.
    watched: Option<Arc<()>>,
    /// Sent before `rest`: an answer of ours, or what was already read of a stream.
    ready: Bytes,
    rest: Option<Incoming>,
}

impl Body {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// What was read of a stream, then what is left of it: the same bytes as before the reading.
    pub fn resumed(read: Bytes, rest: Incoming) -> Self {
        Self { ready: read, rest: Some(rest), watched: None }
    }

    /// The body, and a way to see whether it is still being sent. One in memory never is.
    pub fn watched(mut self) -> (Self, Sending) {
        let watch = Arc::new(());
        let sending = Sending(Arc::downgrade(&watch));
        self.watched = self.rest.as_ref().filter(|rest| !rest.is_end_stream()).map(|_| watch);
        (self, sending)
    }

    /// Reads up to `limit` bytes into memory. What does not fit stays in the stream, and the body
    /// that comes back with [`Collected::TooLong`] is still whole.
    pub async fn collect_up_to(self, limit: usize) -> Result<Collected, hyper::Error> {
        self.collect_within(limit, &Semaphore::new(Semaphore::MAX_PERMITS)).await
    }

    /// The same, for bodies that share memory with others: each KiB that has arrived, begun ones
    /// included, takes a permit of `budget` until all is read.
    pub async fn collect_within(self, limit: usize, budget: &Semaphore) -> Result<Collected, hyper::Error> {
        let Self { ready, rest, .. } = self;
        let Some(mut rest) = rest else { return Ok(Collected::Whole(ready)) };
        let mut read = BytesMut::from(ready.as_ref());
        let mut permits = Vec::new();
        let mut charged = 0;
        while let Some(frame) = rest.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            read.extend_from_slice(&data);
            if read.len() > limit {
                return Ok(Collected::TooLong(Self::resumed(read.freeze(), rest)));
            }
            let due = u32::try_from(read.len().div_ceil(1024)).unwrap_or(u32::MAX);
            if due > charged {
                permits.push(budget.acquire_many(due - charged).await);
                charged = due;
            }
        }
        Ok(Collected::Whole(read.freeze()))
    }
}

/// Whether a body is on its way; see [`Body::watched`].
#[derive(Debug)]
pub struct Sending(Weak<()>);

impl Sending {
    /// Whether more of the body has to come.
    pub fn is_under_way(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// What [`Body::collect_up_to`] found.
#[derive(Debug)]
pub enum Collected {
    /// All of the body.
    Whole(Bytes),
    /// More than the limit; nothing of it is lost.
    TooLong(Body),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { ready: bytes, rest: None, watched: None }
    }
}

impl From<Incoming> for Body {
    fn from(stream: Incoming) -> Self {
        Self { ready: Bytes::new(), rest: Some(stream), watched: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if !self.ready.is_empty() {
            let ready = std::mem::take(&mut self.ready);
            return Poll::Ready(Some(Ok(Frame::data(ready))));
        }
        match &mut self.rest {
            Some(rest) => {
                let frame = Pin::new(&mut *rest).poll_frame(cx);
                if matches!(frame, Poll::Ready(None)) || rest.is_end_stream() {
                    self.watched = None;
                }
                frame
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let ready = self.ready.len() as u64;
        let Some(rest) = &self.rest else { return SizeHint::with_exact(ready) };
        let rest = rest.size_hint();
        let mut hint = SizeHint::new();
        // Upper first: a lower bound may never pass the upper one.
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ready));
        }
        hint.set_lower(rest.lower().saturating_add(ready));
        hint
    }
}
