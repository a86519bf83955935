//! The body type of requests and responses in the stack.

mod stream;
pub mod transfer;
pub mod unverified;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use self::stream::BodyStream;
pub use self::stream::{BodyDriver, BodyFault, BodySource};
use self::transfer::{BodyTransfer, TransferGuard};
use crate::header::trailer;

/// Empty, bytes in memory, or a stream from a socket that is passed on without being collected.
///
/// It moves through the whole stack, mostly without a stream, so what belongs to a stream is apart from it.
#[derive(Debug, Default)]
pub struct Body {
    /// Sent before the stream: a response of our own, or the part of a stream that was already read.
    buffered: Bytes,
    /// `None` once all was received, or nothing more will be.
    rest: Option<Box<Rest>>,
}

/// What is still to be received of a body.
#[derive(Debug)]
struct Rest {
    stream: BodyStream,
    /// Reports the end of the transfer when it is dropped.
    transfer: Option<TransferGuard>,
    /// Released once the whole body was received.
    permit: Option<Permit>,
    timeouts: Option<BodyTimeouts>,
    /// Trailers are not passed on.
    drops_trailers: bool,
}

/// A place among concurrent requests, given back when it is dropped.
#[derive(Debug)]
pub enum Permit {
    /// One of a semaphore.
    Semaphore(OwnedSemaphorePermit),
    /// One that is counted elsewhere, too.
    Counted(Box<dyn fmt::Debug + Send + Sync>),
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke, or the bytes received are not HTTP.
    #[error(transparent)]
    Broken(BodyFault),
    /// No bytes arrived for that long.
    #[error("nothing more of the body came within {0:?}")]
    Stalled(Duration),
    /// The whole body was not received before its deadline.
    #[error("the body was not complete in time")]
    TooSlow,
}

/// How long a body may pause, and by when the whole body must be received.
#[derive(Debug)]
struct BodyTimeouts {
    idle_timeout: Duration,
    /// Runs while no bytes arrive.
    idle_timer: Option<Pin<Box<Sleep>>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl BodyTimeouts {
    fn check(&mut self, has_progress: bool, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Err(Error::TooSlow);
        }
        if has_progress {
            self.idle_timer = None;
            return Ok(());
        }
        let timer = self.idle_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.idle_timeout)));
        if timer.as_mut().poll(cx).is_ready() { Err(Error::Stalled(self.idle_timeout)) } else { Ok(()) }
    }
}

impl Body {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A stream that makes progress only while `driver` is polled with it.
    pub fn driven(stream: Incoming, driver: Box<dyn BodyDriver>) -> Self {
        Self::streamed(BodyStream::Hyper(stream, Some(driver)))
    }

    /// What `source` reads.
    pub fn from_source(source: Box<dyn BodySource>) -> Self {
        Self::streamed(BodyStream::Source(source))
    }

    fn streamed(stream: BodyStream) -> Self {
        if stream.is_end_stream() {
            stream.release();
            return Self::empty();
        }
        let rest = Rest { stream, transfer: None, permit: None, timeouts: None, drops_trailers: false };
        Self { buffered: Bytes::new(), rest: Some(Box::new(rest)) }
    }

    /// What a client sends; driven only over HTTP/2.
    pub fn received(stream: Incoming, driver: Option<Box<dyn BodyDriver>>) -> Self {
        Self::streamed(BodyStream::Hyper(stream, driver))
    }

    /// Holds `permit` until the whole body was received, fails if no bytes arrive for `idle_timeout`, or if the
    /// body is incomplete at `deadline`.
    #[must_use]
    pub fn with_timeouts(
        mut self,
        permit: Permit,
        idle_timeout: Duration,
        deadline: Option<Instant>,
    ) -> Self {
        if self.has_received_all() {
            self.release();
        }
        if let Some(rest) = &mut self.rest {
            let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
            rest.permit = Some(permit);
            rest.timeouts = Some(BodyTimeouts { idle_timeout, idle_timer: None, deadline });
        }
        self
    }

    /// Ends the body before its trailers.
    pub fn drop_trailers(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.drops_trailers = true;
        }
    }

    /// A copy of the body, if all of it is in memory.
    pub fn try_clone(&self) -> Option<Self> {
        self.in_memory().cloned().map(Self::from)
    }

    /// All of the body, if it is in memory.
    pub fn in_memory(&self) -> Option<&Bytes> {
        self.has_received_all().then_some(&self.buffered)
    }

    fn has_received_all(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.stream.is_end_stream())
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = rest.stream.poll_frame(cx);
        let has_trailers = matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_trailers());
        let is_dropped = has_trailers && rest.drops_trailers;
        if let Some(transfer) = &rest.transfer {
            transfer.note(&frame);
        }
        if let Some(timeouts) = &mut rest.timeouts
            && let Err(error) = timeouts.check(frame.is_ready(), cx)
        {
            self.rest = None;
            return Poll::Ready(Some(Err(error)));
        }
        // Trailers are the end; a reader that has them does not ask for more.
        if matches!(frame, Poll::Ready(None)) || has_trailers || rest.stream.is_end_stream() {
            self.release();
        }
        if is_dropped {
            return Poll::Ready(None);
        }
        frame.map_ok(with_allowed_trailers).map_err(Error::Broken)
    }

    /// Ends the transfer, and gives back what is held for it.
    fn release(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.stream.release();
        }
    }

    /// A handle that tells how far the body has come.
    pub fn track_transfer(&mut self) -> BodyTransfer {
        match self.rest.as_mut().filter(|rest| !rest.stream.is_end_stream()) {
            Some(rest) => {
                let (transfer, guard) = BodyTransfer::begin();
                rest.transfer = Some(guard);
                transfer
            }
            None => BodyTransfer::NONE,
        }
    }

    /// Reads into memory until the end, or until there are more than `limit` bytes: the body that is returned with
    /// [`Collected::TooLong`] still yields all of them. The limit holds for a body that is in memory already, too.
    pub async fn collect_up_to(mut self, limit: usize) -> Result<Collected, Error> {
        if self.rest.is_none() {
            let is_too_long = self.buffered.len() > limit;
            return Ok(if is_too_long {
                Collected::TooLong(self)
            } else {
                Collected::Complete(self.buffered)
            });
        }
        let mut collected = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if collected.is_empty() && data.len() <= limit && self.is_end_stream() {
                // Nearly always: the body arrived in one piece, which needs no copy.
                return Ok(Collected::Complete(data));
            }
            collected.extend_from_slice(&data);
            if collected.len() > limit {
                self.buffered = collected.freeze();
                return Ok(Collected::TooLong(self));
            }
        }
        Ok(Collected::Complete(collected.freeze()))
    }
}

fn with_allowed_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            trailer::retain_allowed(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// See [`Body::collect_up_to`].
#[derive(Debug)]
pub enum Collected {
    /// The whole body.
    Complete(Bytes),
    /// The body has more bytes than the limit; none of them is lost.
    TooLong(Body),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { buffered: bytes, rest: None }
    }
}

impl From<Incoming> for Body {
    fn from(stream: Incoming) -> Self {
        Self::received(stream, None)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if !self.buffered.is_empty() {
            let buffered = std::mem::take(&mut self.buffered);
            return Poll::Ready(Some(Ok(Frame::data(buffered))));
        }
        self.poll_rest(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.buffered.is_empty() && self.has_received_all()
    }

    fn size_hint(&self) -> SizeHint {
        let buffered = self.buffered.len() as u64;
        let Some(rest) = &self.rest else { return SizeHint::with_exact(buffered) };
        let stream = rest.stream.size_hint();
        let mut hint = SizeHint::new();
        // Upper first: a lower bound may never pass the upper one.
        if let Some(upper) = stream.upper() {
            hint.set_upper(upper.saturating_add(buffered));
        }
        hint.set_lower(stream.lower().saturating_add(buffered));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Parts that come one after the other.
    #[derive(Debug)]
    struct Parts(std::vec::IntoIter<&'static str>);

    impl BodySource for Parts {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
            Poll::Ready(self.0.next().map(|part| Ok(Frame::data(part.into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.len() == 0
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }

        fn release(self: Box<Self>) {}
    }

    fn streamed<const N: usize>(parts: [&'static str; N]) -> Body {
        Body::from_source(Box::new(Parts(Vec::from(parts).into_iter())))
    }

    /// However it came.
    #[tokio::test]
    async fn a_body_over_the_limit_is_not_taken_for_a_short_one_and_loses_nothing() {
        for limit in [0, 4, 5, 6, 100] {
            for body in [Body::from(Bytes::from("hello")), streamed(["hello"]), streamed(["he", "l", "lo"])] {
                let (body, is_short) = match body.collect_up_to(limit).await.unwrap() {
                    Collected::Complete(bytes) => (Body::from(bytes), true),
                    Collected::TooLong(body) => (body, false),
                };
                assert_eq!(is_short, limit >= 5, "{limit}");
                assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
            }
        }
    }

    #[tokio::test]
    async fn a_permit_is_given_back_once_all_was_received() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        for (body, left) in
            [(Body::from(Bytes::from("hello")), 1), (streamed([]), 1), (streamed(["he", "llo"]), 0)]
        {
            let permit = Permit::Semaphore(Arc::clone(&places).acquire_owned().await.unwrap());
            let body = body.with_timeouts(permit, Duration::from_secs(1), None);
            assert_eq!(places.available_permits(), left, "{body:?}");
            let is_sent = !body.is_end_stream();
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), if is_sent { 5 } else { 0 });
            assert_eq!(places.available_permits(), 1);
        }
    }
}
