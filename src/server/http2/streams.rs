//! The streams of one connection: each is a request. They run in the task of their connection, so that all of them end
//! with it.
//!
//! A stream waits for its peer while more of a request's body, or room for more of a response, has to come from there.
//! One that has waited for `limits.idle_timeout` is reset. A connection all of whose streams wait may be closed for
//! another one, as one of HTTP/1 in the same place may.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

use super::super::capacity::ConnectionPermit;
use super::super::deadline_timer::{DeadlineTimer, now};
use super::super::registry::ConnectionState;
use crate::body::BodyDriver;

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the streams of a connection share.
#[derive(Debug)]
pub(super) struct Streams {
    connection: Arc<ConnectionState>,
    idle_timeout: Duration,
    have_begun: AtomicBool,
    active: AtomicU32,
    /// How many of them wait for the peer.
    waiting: AtomicU32,
    /// Those that have begun, and are not polled yet.
    new: Mutex<Vec<StreamTask>>,
    /// The stream that hyper makes a future for next.
    called: Mutex<Option<StreamGuard>>,
}

impl Streams {
    pub(super) fn new(connection: Arc<ConnectionState>, idle_timeout: Duration) -> Arc<Self> {
        let (active, waiting, have_begun) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        let (new, called) = (Mutex::default(), Mutex::default());
        Arc::new(Self { connection, idle_timeout, have_begun, active, waiting, new, called })
    }

    pub(super) fn connection(&self) -> &Arc<ConnectionState> {
        &self.connection
    }

    /// Whether there was a request.
    pub(super) fn have_begun(&self) -> bool {
        self.have_begun.load(Ordering::Relaxed)
    }

    /// Begins a stream. Returns whether others are active.
    pub(super) fn begin(self: &Arc<Self>) -> (Arc<Stream>, bool) {
        let has_others = self.active.fetch_add(1, Ordering::Relaxed) > 0;
        self.have_begun.store(true, Ordering::Relaxed);
        self.connection.request_started();
        let stream = Arc::new(Stream {
            streams: Arc::clone(self),
            waiting_since: AtomicU64::new(0),
            is_answered: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            permit: Mutex::default(),
        });
        *self.called.lock() = Some(StreamGuard(Arc::clone(&stream)));
        self.update();
        (stream, has_others)
    }

    /// The streams that have begun since the last call.
    pub(super) fn take_new(&self) -> Vec<StreamTask> {
        std::mem::take(&mut *self.new.lock())
    }

    /// Ends those that were not polled yet, which hold these.
    fn clear(&self) {
        let (new, called) = (self.take_new(), self.called.lock().take());
        drop((new, called));
    }

    fn update(&self) {
        let active = self.active.load(Ordering::Relaxed);
        self.connection.set_awaits_body(active > 0 && self.waiting.load(Ordering::Relaxed) >= active);
    }
}

/// Held by the connection.
#[derive(Debug)]
pub(super) struct OwnedStreams(pub(super) Arc<Streams>);

impl Drop for OwnedStreams {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// One request and its response.
#[derive(Debug)]
pub(super) struct Stream {
    streams: Arc<Streams>,
    /// In nanoseconds since the start of the capacity; 0: it does not wait for the peer.
    waiting_since: AtomicU64,
    is_answered: AtomicBool,
    is_over: AtomicBool,
    /// Beyond that of the connection.
    permit: Mutex<Option<ConnectionPermit>>,
}

impl Stream {
    /// Counts as one more connection until the stream ends.
    pub(super) fn hold(&self, permit: ConnectionPermit) {
        if self.permit.lock().replace(permit).is_none() {
            self.streams.connection.add_place();
        }
    }

    fn begin_waiting(&self) {
        let now = self.streams.connection.age_at(now()).max(1);
        if !self.is_over.load(Ordering::Relaxed) && self.waiting_since.swap(now, Ordering::Relaxed) == 0 {
            self.streams.waiting.fetch_add(1, Ordering::Relaxed);
            self.streams.update();
        }
    }

    fn end_waiting(&self) {
        if self.waiting_since.swap(0, Ordering::Relaxed) != 0 {
            self.streams.waiting.fetch_sub(1, Ordering::Relaxed);
            self.streams.update();
        }
    }

    /// From now on, only the peer's reading matters.
    pub(super) fn set_answered(&self) {
        self.is_answered.store(true, Ordering::Relaxed);
        self.begin_waiting();
    }
}

/// Ends a stream when it is dropped, even if its body is still held elsewhere.
#[derive(Debug)]
struct StreamGuard(Arc<Stream>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let stream = &self.0;
        stream.is_over.store(true, Ordering::Relaxed);
        stream.end_waiting();
        if stream.permit.lock().take().is_some() {
            stream.streams.connection.remove_place();
        }
        stream.streams.active.fetch_sub(1, Ordering::Relaxed);
        stream.streams.connection.request_finished();
        stream.streams.update();
    }
}

/// Passes the futures that hyper makes of streams to the task of the connection.
#[derive(Clone, Debug)]
pub(in super::super) struct StreamExecutor(pub(super) Arc<Streams>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let guard = self.0.called.lock().take();
        let task = StreamTask { future: Box::pin(future), guard, timer: DeadlineTimer::default() };
        self.0.new.lock().push(task);
    }
}

/// Runs a stream, as long as it does not wait for its peer for too long. Dropping it resets the stream.
pub(super) struct StreamTask {
    future: BoxedFuture,
    guard: Option<StreamGuard>,
    timer: DeadlineTimer,
}

impl fmt::Debug for StreamTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamTask").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Future for StreamTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = self.get_mut();
        if task.future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(StreamGuard(stream)) = &task.guard else { return Poll::Pending };
        let limit = stream.streams.idle_timeout;
        match stream.waiting_since.load(Ordering::Relaxed) {
            // Another task may read the body, and begin to wait.
            0 => task.timer.wake_within(limit, cx),
            since => {
                let since = stream.streams.connection.time_at(since);
                if task.timer.is_expired_since(since, limit, cx) {
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
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
