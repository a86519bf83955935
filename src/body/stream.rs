//! Where the bytes of a body come from that is not in memory.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Why a body broke off.
pub type BodyFault = Box<dyn StdError + Send + Sync>;

/// Reads a body from a connection while it is polled.
pub trait BodySource: fmt::Debug + Send {
    /// The next part of the body; `None` after the last.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>>;

    /// Whether nothing more comes, trailers included.
    fn is_end_stream(&self) -> bool;

    /// How many bytes are still to come.
    fn size_hint(&self) -> SizeHint;

    /// Called once the whole body was received. Dropping the source before that aborts the transfer.
    fn release(self: Box<Self>);
}

/// Drives the connection of hyper that a body is received over.
pub trait BodyDriver: fmt::Debug + Send {
    /// Reads from the connection until it would block.
    fn drive(&mut self, cx: &mut Context<'_>);

    /// Called for each part of the body that was received.
    fn has_received(&mut self) {}

    /// Called once the whole body was received. Dropping the driver before that aborts the transfer.
    fn release(self: Box<Self>);
}

#[derive(Debug)]
pub(super) enum BodyStream {
    /// The second reads the first from its connection, where no task of its own does; HTTP/2 alone has it.
    Hyper(Incoming, Option<Box<dyn BodyDriver>>),
    Source(Box<dyn BodySource>),
}

impl BodyStream {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self {
            Self::Source(source) => source.poll_frame(cx),
            Self::Hyper(incoming, driver) => {
                let mut frame = Pin::new(&mut *incoming).poll_frame(cx);
                if let (Poll::Pending, Some(driver)) = (&frame, &mut *driver) {
                    driver.drive(cx);
                    frame = Pin::new(&mut *incoming).poll_frame(cx);
                }
                let (Poll::Ready(received), Some(driver)) = (&frame, driver) else {
                    return frame.map_err(BodyFault::from);
                };
                driver.has_received();
                // hyper takes a reset without an error, or one that cancels the stream, for the end.
                if received.is_none() && !incoming.is_end_stream() {
                    return Poll::Ready(Some(Err("the stream was reset within the body".into())));
                }
                frame.map_err(BodyFault::from)
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(incoming, _) => incoming.is_end_stream(),
            Self::Source(source) => source.is_end_stream(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(incoming, _) => incoming.size_hint(),
            Self::Source(source) => source.size_hint(),
        }
    }

    pub(super) fn release(self) {
        match self {
            Self::Hyper(_, Some(driver)) => driver.release(),
            Self::Hyper(_, None) => {}
            Self::Source(source) => source.release(),
        }
    }
}
