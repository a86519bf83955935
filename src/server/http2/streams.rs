//! The streams of one connection: each is a request. They run in the task of their connection, so that all of them end
//! with it.
//!
//! One that has waited for its peer for `limits.idle_timeout` is reset, and so is one whose place is given to another
//! connection.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::capacity::ConnectionPermit;
use super::super::deadline_timer::{DeadlineTimer, now};
use super::super::registry::{ConnectionRegistry, ConnectionState};
use super::places::Places;
use super::stream::Stream;

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the streams of a connection share.
#[derive(Debug)]
pub(super) struct Streams {
    connection: Arc<ConnectionState>,
    idle_timeout: Duration,
    have_begun: AtomicBool,
    places: Mutex<Places>,
    /// The place of the connection has become free.
    place_freed: Notify,
    /// When an answer last made progress, in nanoseconds since the start of the capacity.
    progress_at: AtomicU64,
    /// Those that have begun, and are not polled yet.
    new: Mutex<Vec<StreamTask>>,
    /// The stream that hyper makes a future for next.
    called: Mutex<Option<StreamGuard>>,
}

impl Streams {
    pub(super) fn new(connection: Arc<ConnectionState>, idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            connection,
            idle_timeout,
            have_begun: AtomicBool::new(false),
            places: Mutex::default(),
            place_freed: Notify::new(),
            progress_at: AtomicU64::new(0),
            new: Mutex::default(),
            called: Mutex::default(),
        })
    }

    pub(super) fn connection(&self) -> &Arc<ConnectionState> {
        &self.connection
    }

    /// Whether there was a request.
    pub(super) fn have_begun(&self) -> bool {
        self.have_begun.load(Ordering::Relaxed)
    }

    /// Begins a stream. Returns whether it has a place: that of the connection, if no other stream is in it.
    pub(super) fn begin(self: &Arc<Self>) -> (Arc<Stream>, bool) {
        self.have_begun.store(true, Ordering::Relaxed);
        let stream = Arc::new(Stream::new(&self.connection));
        *self.called.lock() = Some(StreamGuard { streams: Arc::clone(self), stream: Arc::clone(&stream) });
        let has_place = self.try_take_first_place(&stream);
        (stream, has_place)
    }

    /// Gives a stream the place of the connection, if it is free.
    pub(super) fn try_take_first_place(&self, stream: &Arc<Stream>) -> bool {
        self.places.lock().take_first(stream, &self.connection)
    }

    /// Waits for the place of the connection.
    pub(super) async fn take_first_place(&self, stream: &Arc<Stream>) {
        loop {
            let freed = self.place_freed.notified();
            if self.try_take_first_place(stream) {
                return;
            }
            freed.await;
        }
    }

    /// Gives a stream a place of its own, as that of one more connection; or that of the connection, if it has become
    /// free meanwhile: a connection whose streams all had others would seem to have no requests, and be closed.
    pub(super) fn add_place(&self, stream: &Arc<Stream>, permit: ConnectionPermit) {
        if self.try_take_first_place(stream) {
            return;
        }
        let registration = ConnectionRegistry::register_stream(&self.connection, permit);
        self.places.lock().add(stream, registration);
    }

    fn leave(&self, stream: &Arc<Stream>) {
        let mut places = self.places.lock();
        let given_up = places.leave(stream, &self.connection);
        if places.are_free() {
            self.place_freed.notify_one();
        }
        drop(places);
        drop(given_up);
    }

    /// Gives the places of streams to those who have asked for them. Returns whether the connection itself has to close.
    pub(super) fn evict(&self) -> bool {
        self.places.lock().evict(&self.connection)
    }

    /// A part of an answer was sent, or the peer has said something at the end.
    pub(super) fn record_progress(&self) {
        self.progress_at.store(self.connection.age_at(now()), Ordering::Relaxed);
    }

    /// When that was last so.
    pub(super) fn last_progress(&self) -> Instant {
        self.connection.time_at(self.progress_at.load(Ordering::Relaxed))
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
}

/// Held by the connection.
#[derive(Debug)]
pub(super) struct OwnedStreams(pub(super) Arc<Streams>);

impl Drop for OwnedStreams {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Ends a stream when it is dropped, even if its body is still held elsewhere.
#[derive(Debug)]
struct StreamGuard {
    streams: Arc<Streams>,
    stream: Arc<Stream>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.leave(&self.stream);
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

/// Runs a stream until it is reset, or has waited for its peer for too long. Dropping it resets the stream.
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
        let is_reset = task.guard.as_ref().is_some_and(|guard| guard.stream.is_reset(cx));
        if is_reset || task.future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(StreamGuard { streams, stream }) = &task.guard else { return Poll::Pending };
        match stream.waiting_since() {
            // Another task may read the body, and begin to wait.
            None => task.timer.wake_within(streams.idle_timeout, cx),
            Some(since) if task.timer.is_expired_since(since, streams.idle_timeout, cx) => {
                return Poll::Ready(());
            }
            Some(_) => {}
        }
        Poll::Pending
    }
}
