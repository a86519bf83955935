//! The one body type that travels through the stack, in both directions.

pub mod unverified;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::header::trailer;

/// Nothing, bytes in memory, or a stream from a socket that passes by without being collected.
#[derive(Debug, Default)]
pub struct Body {
    /// Ends the watch on this body when dropped, or when there is no more.
    watched: Option<Watched>,
    /// Sent before `rest`: an answer of ours, or what was already read of a stream.
    ready: Bytes,
    rest: Option<Incoming>,
    /// Brings `rest`, where nobody else does.
    carrier: Option<Box<dyn Carrier>>,
    /// Given back once all of it has come.
    permit: Option<OwnedSemaphorePermit>,
    /// How long it may take.
    pace: Option<Pace>,
    /// What comes behind it is not passed on.
    drops_trailers: bool,
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke, or what came is no HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// Nothing came for that long.
    #[error("nothing more of the body came within {0:?}")]
    Stalled(Duration),
    /// All of it took too long.
    #[error("the body was not complete in time")]
    TooSlow,
}

/// How long a body may pause, and when it has to be complete.
#[derive(Debug)]
struct Pace {
    pause: Duration,
    /// Runs while nothing comes.
    pausing: Option<Pin<Box<Sleep>>>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Something came, or nothing did.
    fn poll(&mut self, has_come: bool, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Err(Error::TooSlow);
        }
        if has_come {
            self.pausing = None;
            return Ok(());
        }
        let pausing = self.pausing.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.pause)));
        if pausing.as_mut().poll(cx).is_ready() { Err(Error::Stalled(self.pause)) } else { Ok(()) }
    }
}

/// The connection that a body comes over.
pub trait Carrier: fmt::Debug + Send {
    /// Moves bytes, until there are none to move.
    fn carry(&mut self, cx: &mut Context<'_>);

    /// Told once all of the body has come; until then, to drop it is to give it up.
    fn release(self: Box<Self>);
}

impl Body {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A stream that comes over `carrier`.
    pub fn carried(stream: Incoming, carrier: Box<dyn Carrier>) -> Self {
        let mut body = Self { rest: Some(stream), carrier: Some(carrier), ..Self::default() };
        body.release_at_the_end();
        body
    }

    /// The same for an answer that was asked for with `permit`, may pause for so long, and has to be
    /// complete at `end`.
    #[must_use]
    pub fn paced(mut self, permit: OwnedSemaphorePermit, pause: Duration, end: Option<Instant>) -> Self {
        self.permit = Some(permit);
        self.pace = self.rest.is_some().then(|| {
            let end = end.map(|end| Box::pin(tokio::time::sleep_until(end.into())));
            Pace { pause, pausing: None, end }
        });
        self.release_at_the_end();
        self
    }

    /// The same body, but nothing that comes behind it.
    pub fn drop_trailers(&mut self) {
        self.drops_trailers = true;
    }

    /// The same body once more, if all of it is in memory.
    pub fn again(&self) -> Option<Self> {
        let is_there = self.rest.as_ref().is_none_or(HttpBody::is_end_stream);
        is_there.then(|| Self::from(self.ready.clone()))
    }

    fn release_at_the_end(&mut self) {
        if self.rest.as_ref().is_none_or(HttpBody::is_end_stream) {
            self.watched = None;
            self.permit = None;
            if let Some(carrier) = self.carrier.take() {
                carrier.release();
            }
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let mut frame = Pin::new(&mut *rest).poll_frame(cx);
        if let (Poll::Pending, Some(carrier)) = (&frame, &mut self.carrier) {
            carrier.carry(cx);
            frame = Pin::new(rest).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(None) => {
                self.rest = None;
                self.release_at_the_end();
            }
            // They are the end; a reader that has them does not ask for more.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                self.rest = None;
                self.release_at_the_end();
                if self.drops_trailers {
                    return Poll::Ready(None);
                }
            }
            Poll::Ready(Some(Ok(_))) => self.release_at_the_end(),
            Poll::Ready(Some(Err(_))) => {
                if let Some(Watched(watch)) = &self.watched {
                    watch.has_broken_off.store(true, Ordering::Relaxed);
                }
                self.release_at_the_end();
            }
            Poll::Pending => {}
        }
        if let Some(pace) = &mut self.pace
            && let Err(error) = pace.poll(frame.is_ready(), cx)
        {
            self.rest = None;
            self.permit = None;
            return Poll::Ready(Some(Err(error)));
        }
        frame.map_ok(without_what_may_not_trail).map_err(Error::Broken)
    }

    /// A way to see whether the body is still being sent. One in memory never is.
    pub fn watch(&mut self) -> Sending {
        let is_under_way = self.rest.as_ref().is_some_and(|rest| !rest.is_end_stream());
        let watch = Arc::new(Watch {
            is_under_way: AtomicBool::new(is_under_way),
            has_broken_off: AtomicBool::new(false),
        });
        self.watched = is_under_way.then(|| Watched(Arc::clone(&watch)));
        Sending(watch)
    }

    /// Reads up to `limit` bytes into memory. What does not fit stays in the stream, and the body
    /// that comes back with [`Collected::TooLong`] is still whole.
    pub async fn collect_up_to(mut self, limit: usize) -> Result<Collected, Error> {
        if self.rest.is_none() {
            return Ok(Collected::Whole(self.ready));
        }
        let mut read = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if read.is_empty() && data.len() <= limit && self.is_end_stream() {
                // Nearly always: it has come in one piece, which needs no copy.
                return Ok(Collected::Whole(data));
            }
            read.extend_from_slice(&data);
            if read.len() > limit {
                self.ready = read.freeze();
                return Ok(Collected::TooLong(self));
            }
        }
        Ok(Collected::Whole(read.freeze()))
    }
}

fn without_what_may_not_trail(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            trailer::keep_allowed(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// What is seen of a body that is on its way.
#[derive(Debug)]
struct Watch {
    is_under_way: AtomicBool,
    has_broken_off: AtomicBool,
}

/// The body's side of it.
#[derive(Debug)]
struct Watched(Arc<Watch>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.is_under_way.store(false, Ordering::Relaxed);
    }
}

/// Whether a body is on its way; see [`Body::watch`].
#[derive(Debug)]
pub struct Sending(Arc<Watch>);

impl Sending {
    /// Whether more of the body has to come.
    pub fn is_under_way(&self) -> bool {
        self.0.is_under_way.load(Ordering::Relaxed)
    }

    /// Whether it has ended before its end.
    pub fn has_broken_off(&self) -> bool {
        self.0.has_broken_off.load(Ordering::Relaxed)
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
        Self { ready: bytes, ..Self::default() }
    }
}

impl From<Incoming> for Body {
    fn from(stream: Incoming) -> Self {
        Self { rest: Some(stream), ..Self::default() }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if !self.ready.is_empty() {
            let ready = std::mem::take(&mut self.ready);
            return Poll::Ready(Some(Ok(Frame::data(ready))));
        }
        self.poll_rest(cx)
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
