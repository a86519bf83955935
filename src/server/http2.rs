//! A connection that speaks HTTP/2: by ALPN in TLS, or by its preface on a plain listener.
//!
//! hyper and h2 read and write the frames. What they do not bound is bounded here, so that a peer gets from a
//! connection of many streams no more than from as many connections of HTTP/1: [`gate`] counts frames and has their
//! deadlines, [`head`] judges heads as those of HTTP/1 are judged, [`streams`] has the deadlines of each stream. A
//! stream beside others takes a place of the listener, as one more connection ([`places`]).

mod frames;
mod gate;
mod head;
mod places;
mod stream;
mod streams;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub(super) use self::frames::PREFACE;
use self::gate::{CLOSE_TIMEOUT, FrameGate};
use self::stream::{RequestBodyWatch, Stream, StreamBody};
use self::streams::{OwnedStreams, StreamExecutor, StreamTask, Streams};
use super::WAITING_TIMEOUT;
use super::connection::{ClientSide, not_ready};
use super::connection_handle::ConnectionHandle;
use super::deadline_timer::{DeadlineTimer, now};
use super::gate::GateLimits;
use super::hangup::DetectHangup;
use super::inbound::{Inbound, RequestService};
use super::limiter::ConnectionLimiter;
use super::registry::{Registration, ServerPhase};
use super::wire::{self, HeadLimits};

/// Streams of one connection at one time. A client that knows the limit lets further requests wait.
const MAX_STREAMS: u32 = 100;
/// Bytes of a body that a client may send before they are read: about what a connection of HTTP/1 has in its buffer.
const STREAM_WINDOW: u32 = 32 * 1024;
/// The same for all streams together, so that none has to wait for the window of another one.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes of a response that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// What a field counts beyond its name and value in HTTP/2 (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;
/// Fields that a head has beyond those that are counted here.
const PSEUDO_FIELDS: usize = 4;

/// Where a connection gets places for its streams.
#[derive(Clone, Debug)]
pub(super) struct StreamPlaces {
    pub(super) limiter: Arc<ConnectionLimiter>,
    /// For those that wait for a place, as connections do.
    pub(super) waiting_slots: Arc<Semaphore>,
}

pin_project! {
    /// Ends when the peer or hyper closes it, when the server stops, or when it is evicted.
    pub(super) struct Http2Connection<I, S>
    where
        S: RequestService,
    {
        #[pin]
        http: http2::Connection<TokioIo<FrameGate<I>>, StreamService<S>, StreamExecutor>,
        streams: OwnedStreams,
        running: FuturesUnordered<StreamTask>,
        registration: Registration,
        idle_timeout: Duration,
        idle_timer: DeadlineTimer,
        has_task: bool,
        // When the peer was told that it may begin no more streams.
        closing_since: Option<Instant>,
    }
}

/// Serves a connection whose peer is about to send its preface.
pub(super) fn connection<I, S>(
    socket: I,
    registration: Registration,
    limits: GateLimits,
    client: ClientSide,
    (service, places): (Arc<Mutex<S>>, StreamPlaces),
) -> Http2Connection<I, S>
where
    I: DetectHangup + 'static,
    S: RequestService,
{
    let state = registration.state();
    let streams = Streams::new(Arc::clone(state), limits.idle_timeout);
    let gate = FrameGate::new(socket, limits, Arc::clone(&streams));
    let list_size = limits.head.bytes + FIELD_OVERHEAD * (limits.head.headers + PSEUDO_FIELDS);
    let shared =
        Arc::new(Shared { service, client, limits: limits.head, streams: Arc::clone(&streams), places });
    let http = http2::Builder::new(StreamExecutor(Arc::clone(&streams)))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // So that the stack answers a head that is too large, unless it is so by far.
        .max_header_list_size(u32::try_from(list_size).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(gate), StreamService(shared));
    Http2Connection {
        http,
        streams: OwnedStreams(streams),
        running: FuturesUnordered::new(),
        registration,
        idle_timeout: limits.idle_timeout,
        idle_timer: DeadlineTimer::default(),
        has_task: false,
        closing_since: None,
    }
}

impl<I, S> Future for Http2Connection<I, S>
where
    I: DetectHangup + 'static,
    S: RequestService,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !std::mem::replace(this.has_task, true) {
            this.registration.set_task(cx);
        }
        let state = this.registration.state();
        let mut must_end = match state.phase() {
            ServerPhase::Open => false,
            // A client that has just connected would have done so for nothing.
            ServerPhase::Leaving => this.streams.0.have_begun(),
            ServerPhase::Draining => true,
            ServerPhase::Stopped => return Poll::Ready(()),
        };
        loop {
            if must_end && this.closing_since.is_none() {
                *this.closing_since = Some(now());
                this.http.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(outcome) = this.http.as_mut().poll(cx) {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "connection ended early");
                }
                return Poll::Ready(());
            }
            this.running.extend(this.streams.0.take_new());
            while let Poll::Ready(Some(())) = this.running.poll_next_unpin(cx) {}
            if this.streams.0.evict() {
                // A request that came just now may be answered already.
                let _ = this.http.as_mut().poll(cx);
                return Poll::Ready(());
            }
            if state.has_active_requests() {
                return Poll::Pending;
            }
            let (since, limit) = match *this.closing_since {
                None => (state.idle_since(), *this.idle_timeout),
                // The peer may still have to receive the end of an answer.
                Some(since) => {
                    (since.max(state.idle_since()).max(this.streams.0.last_progress()), CLOSE_TIMEOUT)
                }
            };
            if !this.idle_timer.is_expired_since(since, limit, cx) {
                return Poll::Pending;
            }
            if this.closing_since.is_some() {
                return Poll::Ready(());
            }
            must_end = true;
        }
    }
}

/// Passes the requests of one connection to the service that all connections share.
pub(super) struct StreamService<S>(Arc<Shared<S>>);

struct Shared<S> {
    service: Arc<Mutex<S>>,
    client: ClientSide,
    limits: HeadLimits,
    streams: Arc<Streams>,
    places: StreamPlaces,
}

/// The body of the stack's response, or of [`not_ready`].
type AnswerBody<B> = StreamBody<Either<B, Full<Bytes>>>;

type Answer<B> = Result<Response<AnswerBody<B>>, h2::Error>;

impl<S: RequestService> hyper::service::Service<Request<Incoming>> for StreamService<S> {
    type Response = Response<AnswerBody<S::Body>>;
    /// Resets the stream.
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Answer<S::Body>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (stream, has_place) = self.0.streams.begin();
        Box::pin(answer(Arc::clone(&self.0), request, stream, has_place))
    }
}

async fn answer<S: RequestService>(
    shared: Arc<Shared<S>>,
    request: Request<Incoming>,
    stream: Arc<Stream>,
    has_place: bool,
) -> Answer<S::Body> {
    if !has_place && !shared.find_place(&stream).await {
        // The client may send it again: nothing was done.
        return Err(h2::Reason::REFUSED_STREAM.into());
    }
    let pending = shared.call(request, &stream);
    let response = match pending {
        Some(pending) => match pending.await {
            Ok(response) => response.map(Either::Left),
            Err(never) => match never {},
        },
        None => not_ready().map(Either::Right),
    };
    stream.set_answered();
    let mut response = response.map(|body| StreamBody::new(body, stream));
    // Of HTTP/1; hyper would remove it with a warning.
    response.headers_mut().remove(header::CONNECTION);
    Ok(response)
}

impl<S: RequestService> Shared<S> {
    /// Waits for a place among the connections of the listener, as a new connection of the same peer would, or for that
    /// of the connection itself. Returns whether the stream has one.
    async fn find_place(&self, stream: &Arc<Stream>) -> bool {
        let (limiter, streams) = (&self.places.limiter, &self.streams);
        // A stream before this one may have ended since this one has begun.
        if streams.try_take_first_place(stream) {
            return true;
        }
        let is_trusted = streams.connection().is_trusted();
        let has_place = if let Ok(_slot) = Arc::clone(&self.places.waiting_slots).try_acquire_owned() {
            let wait = async {
                tokio::select! {
                    biased;
                    () = streams.take_first_place(stream) => {}
                    permit = limiter.acquire_as(is_trusted) => streams.add_place(stream, permit),
                }
            };
            tokio::time::timeout(WAITING_TIMEOUT, wait).await.is_ok()
        } else {
            let permit = limiter.try_acquire_as(is_trusted);
            permit.map(|permit| streams.add_place(stream, permit)).is_some()
        };
        if !has_place {
            limiter.capacity().count_rejected();
        }
        has_place
    }

    /// `None` if the service is not ready.
    fn call(&self, request: Request<Incoming>, stream: &Arc<Stream>) -> Option<S::Future> {
        let (mut head, body) = request.into_parts();
        let refusal = head::to_http1_form(&mut head, self.limits).err();
        if let Some(refusal) = refusal {
            wire::to_refused(&mut head, refusal);
        }
        let (remote_ip, scheme) = self.client.of(&head.headers);
        let inbound = Inbound {
            request: Request::from_parts(head, body),
            body_driver: Some(Box::new(RequestBodyWatch(Arc::clone(stream)))),
            refusal,
            peer: self.client.peer,
            remote_ip,
            scheme,
            accept: self.client.accept,
            connection: ConnectionHandle::new(self.streams.connection()),
        };
        let mut service = self.service.lock();
        // Nothing waits for readiness here, so nothing is to be woken.
        let is_ready = service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        is_ready.then(|| service.call(inbound))
    }
}

#[cfg(test)]
mod tests;
