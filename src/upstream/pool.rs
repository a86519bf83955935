//! Kept connections to Rails, and what a request does with one.
//!
//! A connection belongs to the request that it carries: whoever waits for the answer, and then
//! whoever reads its body, moves the bytes. So there is no task to wake for each step. A caller who
//! leaves takes the connection along; one who stays brings it back when the body ends.
//!
//! While a connection is kept, an attendant watches it: one that Rails closes is gone before a
//! request could meet it, and one that has been idle for too long is closed.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::answer;
use super::connect::{Connector, Reads, Stream};
use super::copy;
use super::server::ServerState;
use crate::body::{Body, Carrier, Sending};
use crate::clock::Clock;
use crate::turn;

/// The connections of one thread.
#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    kept: Arc<Kept>,
}

/// Connections without a request, the one that was used last at the end.
#[derive(Debug)]
struct Kept {
    lines: Mutex<Lines>,
    /// How many may be kept, by all threads together; they are counted in `state`.
    most: usize,
    idle_timeout: Duration,
    state: Arc<ServerState>,
}

#[derive(Debug, Default)]
struct Lines {
    idle: Vec<(Box<Line>, Instant)>,
    attendant: Option<(Waker, AbortHandle)>,
}

/// A connection to Rails.
#[derive(Debug)]
struct Line {
    sender: http1::SendRequest<Body>,
    /// `None` once it is over. What it has not taken of the sender goes back when it is dropped.
    connection: Option<http1::Connection<Stream, Body>>,
    /// Whether it has ended by being reset.
    was_reset: bool,
    /// Where it is brought back to, while there is such a place.
    kept: Weak<Kept>,
    /// From when on it carries no new request.
    expires: Option<Instant>,
    reads: Arc<Reads>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing of the request was sent.
    Connect(io::Error, Box<Request<Body>>),
    /// Some of it may have been. Whether the connection was reset.
    Sent(hyper::Error, bool),
    /// It was, and the server has not looked at it.
    Refused(hyper::Error),
}

impl Pool {
    pub(super) fn new(
        connector: Connector,
        most: usize,
        idle_timeout: Duration,
        state: Arc<ServerState>,
    ) -> Self {
        let kept = Kept { lines: Mutex::default(), most, idle_timeout, state };
        Self { connector, kept: Arc::new(kept) }
    }

    /// Sends a request over a kept connection, or a new one, which one with a large body always gets. It is
    /// sent once: over another connection only if nothing was written on a kept one that turned out to be
    /// closed.
    pub(super) async fn send(
        &self,
        mut request: Box<Request<Body>>,
        sending: &Sending,
    ) -> Result<Response<Body>, Trouble> {
        // Here, and not when hyper writes: whatever it has begun with is sent once, and a connection that
        // is closed meanwhile would be an error.
        turn::wait_to_write(request.body().size_hint().lower()).await;
        // Of a large body there is no copy to send again, so it does not go to where Rails may just have hung up.
        let may_share = !sending.is_under_way() || copy::is_small(request.body());
        while may_share && let Some(mut line) = self.kept.take() {
            match line.send(*request).await {
                Ok(answer) => return Ok(line.carrying(answer, sending)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = Box::new(unsent),
                    None => return Err(Trouble::Sent(failed.into_error(), line.was_reset)),
                },
            }
        }
        match Box::pin(self.connect()).await {
            Ok(line) => line.send_first(request, sending).await,
            Err(error) => Err(Trouble::Connect(error, request)),
        }
    }

    /// Whether a connection for one request alone costs little: it does, without TLS.
    pub(super) fn may_send_apart(&self) -> bool {
        !self.connector.is_tls()
    }

    /// Sends a request over a connection of its own, which ends with it.
    ///
    /// Puma serves a kept connection on and on while requests come (5.6: ten in a row) before it looks
    /// at new ones; over connections of their own, requests wait for their turn behind those of others.
    pub(super) async fn send_apart(
        &self,
        mut request: Box<Request<Body>>,
        sending: &Sending,
    ) -> Result<Response<Body>, Trouble> {
        request.headers_mut().append(header::CONNECTION, HeaderValue::from_static("close"));
        match Box::pin(self.connect_apart()).await {
            Ok(line) => line.send_first(request, sending).await,
            Err(error) => Err(Trouble::Connect(error, request)),
        }
    }

    async fn connect(&self) -> io::Result<Box<Line>> {
        let stream = self.connector.connect().await?;
        Line::over(stream, Arc::downgrade(&self.kept), self.connector.expiry()).await
    }

    /// Makes a connection that is not kept.
    async fn connect_apart(&self) -> io::Result<Box<Line>> {
        let stream = self.connector.connect().await?;
        stream.forget_when_closed()?;
        Line::over(stream, Weak::new(), None).await
    }

    /// Makes a connection, and keeps it for the next request.
    pub(super) async fn open(&self) -> io::Result<()> {
        self.kept.keep(self.connect().await?);
        Ok(())
    }
}

type SendError = hyper::client::conn::TrySendError<Request<Body>>;

impl Line {
    async fn over(stream: Stream, kept: Weak<Kept>, expires: Option<Instant>) -> io::Result<Box<Self>> {
        let reads = Arc::clone(stream.reads());
        let (sender, connection) = answer::reader().handshake(stream).await.map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, connection: Some(connection), was_reset: false, kept, expires, reads }))
    }

    /// Sends what a new connection was made for.
    async fn send_first(
        mut self: Box<Self>,
        request: Box<Request<Body>>,
        sending: &Sending,
    ) -> Result<Response<Body>, Trouble> {
        match self.send(*request).await {
            Ok(answer) => Ok(self.carrying(answer, sending)),
            Err(failed) => Err(Trouble::Sent(failed.into_error(), self.was_reset)),
        }
    }

    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let Self { sender, connection, was_reset, reads, .. } = self;
        reads.expect_head();
        let mut sent = pin!(sender.try_send_request(request));
        poll_fn(|cx| {
            // First what was asked for, so that the connection has something to do; then whether
            // that has brought the answer already.
            if let Poll::Ready(answer) = sent.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            carry(connection, was_reset, cx);
            sent.as_mut().poll(cx)
        })
        .await
        .inspect(|_| reads.expect_any())
    }

    /// Ties the connection to the body that comes over it. If Rails has answered before it had all
    /// of the request, whoever sends the rest may not read the answer until that is done: then the
    /// connection goes on by itself, until both have come to their end or the client has left, and
    /// carries nothing after them.
    fn carrying(mut self: Box<Self>, answer: Response<Incoming>, sending: &Sending) -> Response<Body> {
        if !sending.is_under_way() {
            return answer.map(|stream| Body::carried(stream, self));
        }
        if let Some(connection) = self.connection.take() {
            // How it ended, both bodies say.
            tokio::spawn(async move { drop(connection.await) });
        }
        answer.map(Body::from)
    }

    /// Whether it can carry another request, as far as one sees without asking the system.
    fn seems_free(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready() && !self.is_too_old(Clock::System.now())
    }

    /// The name may lead elsewhere by now, while the server that it led to stays there.
    fn is_too_old(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Whether it can carry another request.
    fn is_free(&mut self, cx: &mut Context<'_>) -> bool {
        self.carry(cx);
        self.seems_free()
    }
}

/// Moves what there is to move. How a connection ended, the answer says, but for one thing.
fn carry(
    connection: &mut Option<http1::Connection<Stream, Body>>,
    was_reset: &mut bool,
    cx: &mut Context<'_>,
) {
    if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready())
        && let Some(over) = connection.take()
    {
        *was_reset = over.into_parts().io.was_reset();
    }
}

impl Carrier for Line {
    fn carry(&mut self, cx: &mut Context<'_>) {
        carry(&mut self.connection, &mut self.was_reset, cx);
    }

    fn release(self: Box<Self>) {
        if let Some(kept) = self.kept.upgrade() {
            kept.keep(self);
        }
    }
}

impl Kept {
    /// The connection that was used last, so that those which nobody needs grow old. If Rails has
    /// closed it and the runtime knows, hyper sees that before it writes, and gives the request back.
    fn take(&self) -> Option<Box<Line>> {
        loop {
            let (line, _) = self.lines.lock().idle.pop()?;
            self.state.kept.fetch_sub(1, Ordering::Relaxed);
            if line.seems_free() {
                return Some(line);
            }
        }
    }

    fn keep(self: &Arc<Self>, mut line: Box<Line>) {
        let mut lines = self.lines.lock();
        let attendant = match &lines.attendant {
            Some((waker, _)) => waker.clone(),
            None => Waker::noop().clone(),
        };
        if !line.is_free(&mut Context::from_waker(&attendant)) || self.state.health.is_drained() {
            return;
        }
        let one_more = |kept: usize| (kept < self.most).then_some(kept + 1);
        if self.state.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return;
        }
        lines.idle.push((line, Clock::System.now()));
        if lines.attendant.is_none() {
            let state = Arc::clone(&self.state);
            let attendant = tokio::spawn(attend(Arc::downgrade(self), state)).abort_handle();
            lines.attendant = Some((Waker::noop().clone(), attendant));
        }
    }

    /// Closes what is closed on the other side or idle for too long. When to look again.
    fn look(&self, cx: &mut Context<'_>) -> Instant {
        let now = Clock::System.now();
        let mut lines = self.lines.lock();
        if let Some((waker, _)) = &mut lines.attendant {
            waker.clone_from(cx.waker());
        }
        let before = lines.idle.len();
        if self.state.health.is_drained() {
            lines.idle.clear();
        }
        lines.idle.retain_mut(|(line, since)| now < *since + self.idle_timeout && line.is_free(cx));
        self.state.kept.fetch_sub(before - lines.idle.len(), Ordering::Relaxed);
        // One that is kept from now on and is due before that is found to be too old when it is taken.
        let dues = lines.idle.iter().map(|(line, since)| {
            let idle = *since + self.idle_timeout;
            line.expires.map_or(idle, |expires| expires.min(idle))
        });
        dues.min().unwrap_or(now + self.idle_timeout)
    }
}

/// Runs while there is a pool.
async fn attend(kept: Weak<Kept>, state: Arc<ServerState>) {
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let mut drained = pin!(state.health.drained());
    poll_fn(|cx| {
        loop {
            while drained.as_mut().poll(cx).is_ready() {
                drained.set(state.health.drained());
            }
            let Some(kept) = kept.upgrade() else { return Poll::Ready(()) };
            timer.as_mut().reset(kept.look(cx).into());
            ready!(timer.as_mut().poll(cx));
        }
    })
    .await;
}

impl Drop for Kept {
    fn drop(&mut self) {
        let lines = self.lines.get_mut();
        self.state.kept.fetch_sub(lines.idle.len(), Ordering::Relaxed);
        if let Some((_, attendant)) = &lines.attendant {
            attendant.abort();
        }
    }
}

#[cfg(test)]
mod tests;
