//! One stream: a request and its response.
//!
//! It waits for its peer while more of the request's body, or room for more of the response, has to come from there.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::super::deadline_timer::now;
use super::super::registry::ConnectionState;
use crate::body::BodyDriver;

/// The state of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Arc<ConnectionState>,
    /// The connection as which it counts: the one that it is a stream of, or one of its own. `None` before it has a
    /// place, and once it is over.
    place: Mutex<Option<Arc<ConnectionState>>>,
    /// In nanoseconds since the start of the capacity; 0: it does not wait for the peer.
    waiting_since: AtomicU64,
    is_answered: AtomicBool,
    is_reset: AtomicBool,
    task: AtomicWaker,
}

impl Stream {
    pub(super) fn new(connection: &Arc<ConnectionState>) -> Self {
        Self {
            connection: Arc::clone(connection),
            place: Mutex::default(),
            waiting_since: AtomicU64::new(0),
            is_answered: AtomicBool::new(false),
            is_reset: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }

    /// From now on it counts as this connection.
    pub(super) fn set_place(&self, state: &Arc<ConnectionState>) {
        let mut place = self.place.lock();
        state.set_awaits_peer(self.waiting_since.load(Ordering::Relaxed) != 0);
        *place = Some(Arc::clone(state));
    }

    /// It counts no more.
    pub(super) fn clear_place(&self) {
        self.end_waiting();
        *self.place.lock() = None;
    }

    /// Since when it waits for the peer.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let since = self.waiting_since.load(Ordering::Relaxed);
        (since != 0).then(|| self.connection.time_at(since))
    }

    /// Its body may be read elsewhere even when it is over.
    fn begin_waiting(&self) {
        let place = self.place.lock();
        let Some(state) = &*place else { return };
        let now = self.connection.age_at(now()).max(1);
        if self.waiting_since.swap(now, Ordering::Relaxed) == 0 {
            state.set_awaits_peer(true);
        }
    }

    fn end_waiting(&self) {
        let place = self.place.lock();
        if self.waiting_since.swap(0, Ordering::Relaxed) != 0
            && let Some(state) = &*place
        {
            state.set_awaits_peer(false);
        }
    }

    /// From now on, only the peer's reading matters.
    pub(super) fn set_answered(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
        self.begin_waiting();
    }

    /// Ends it before its time: its task is to drop it.
    pub(super) fn reset(&self) {
        self.is_reset.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Whether it was reset. If not, the task is woken when it is.
    pub(super) fn is_reset(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.is_reset.load(Ordering::Relaxed)
    }
}

/// Watches the body of a request.
#[derive(Debug)]
pub(super) struct RequestBodyWatch(pub(super) Arc<Stream>);

impl BodyDriver for RequestBodyWatch {
    fn drive(&mut self, _: &mut Context<'_>) {
        let stream = &self.0;
        if !stream.is_answered.load(Ordering::Relaxed) && stream.waiting_since.load(Ordering::Relaxed) == 0 {
            stream.begin_waiting();
        }
    }

    fn has_received(&mut self) {
        if !self.0.is_answered.load(Ordering::Relaxed) {
            self.0.end_waiting();
        }
    }

    fn release(self: Box<Self>) {}
}

impl Drop for RequestBodyWatch {
    fn drop(&mut self) {
        self.has_received();
    }
}

pin_project! {
    /// The body of a response, which waits for the peer from one frame to the next, unless the next is not there.
    pub(in super::super) struct StreamBody<B> {
        #[pin]
        body: B,
        // Of the last frame.
        rest: Bytes,
        stream: Arc<Stream>,
    }
}

/// h2 buffers whatever it is given, and no deadline is known to it: it gets no more at a time.
const MAX_PIECE: usize = 16 * 1024;

impl<B> StreamBody<B> {
    pub(super) fn new(body: B, stream: Arc<Stream>) -> Self {
        Self { body, rest: Bytes::new(), stream }
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for StreamBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let mut frame = if this.rest.is_empty() {
            let progress = this.body.poll_frame(cx);
            if progress.is_pending() {
                this.stream.end_waiting();
            }
            ready!(progress)
        } else {
            Some(Ok(Frame::data(std::mem::take(this.rest))))
        };
        this.stream.begin_waiting();
        if let Some(Ok(frame)) = &mut frame
            && let Some(data) = frame.data_mut()
            && data.len() > MAX_PIECE
        {
            *this.rest = data.split_off(MAX_PIECE);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}
