//! hyper's client and the one of the gateway, over a connection in memory, with what each makes of what comes.

use std::fmt::Debug;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite as _, DuplexStream};

use super::super::connection::Http1Connection;
use super::super::error::Http1Error;
use super::super::request::Persistence;
use crate::body::Body;
use crate::upstream::connection::exchange_error::ExchangeError;
use crate::upstream::connection::limits::{HEAD_BUFFER, MAX_RESPONSE_FIELDS};
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::connection::stream::{UpstreamSocket, UpstreamStream};

/// What a client makes of a stream of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It waits for more of the head.
    AwaitsHead,
    /// There is no response: the kind of error, and its text.
    Refused(String, String),
    Response(Box<Received>),
}

/// A response, as far as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) trailers: HeaderMap,
    pub(super) end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It waits for more of the body.
    AwaitsBody,
    /// The body broke off, with this error.
    Broken(String),
    /// All of it is there. Says whether the connection is used again.
    Complete(bool),
}

type Failure = (String, String);

/// A client that has sent a request.
pub(super) trait Client {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failure>>;
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>>;
    fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool;
}

/// What the client that `new` makes of a connection does with these bytes, which come in pieces. The server closes the
/// connection after them, or leaves it open.
pub(super) fn judge<C: Client>(
    new: impl FnOnce(DuplexStream) -> C,
    pieces: &[&[u8]],
    closes: bool,
) -> Verdict {
    let mut cx = Context::from_waker(Waker::noop());
    let (server, client) = tokio::io::duplex(1 << 20);
    let (mut server, mut client) = (Box::pin(server), new(client));
    let (mut head, mut received) = (None, None);
    advance(&mut client, &mut head, &mut received, &mut cx);
    for piece in pieces {
        // A client that has closed the connection takes nothing more.
        let _ = server.as_mut().poll_write(&mut cx, piece);
        advance(&mut client, &mut head, &mut received, &mut cx);
    }
    if closes {
        let _ = server.as_mut().poll_shutdown(&mut cx);
        advance(&mut client, &mut head, &mut received, &mut cx);
    }
    match (head, received) {
        (Some(Err((kind, text))), _) => Verdict::Refused(kind, text),
        (_, Some(received)) => {
            let mut received: Received = received;
            if matches!(received.end, End::Complete(_)) {
                received.end = End::Complete(client.is_reusable(&mut cx));
            }
            Verdict::Response(Box::new(received))
        }
        (_, None) => Verdict::AwaitsHead,
    }
}

fn advance<C: Client>(
    client: &mut C,
    head: &mut Option<Result<(), Failure>>,
    received: &mut Option<Received>,
    cx: &mut Context<'_>,
) {
    if head.is_none() {
        let Poll::Ready(outcome) = client.poll_head(cx) else { return };
        *head = Some(outcome.map(|response| {
            let (head, ()) = response.into_parts();
            let (body, trailers, end) = (Vec::new(), HeaderMap::new(), End::AwaitsBody);
            *received = Some(Received { status: head.status, fields: head.headers, body, trailers, end });
        }));
    }
    let Some(received) = received else { return };
    while received.end == End::AwaitsBody {
        match client.poll_frame(cx) {
            Poll::Pending => return,
            Poll::Ready(None) => received.end = End::Complete(false),
            Poll::Ready(Some(Err(error))) => received.end = End::Broken(error),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => received.body.extend(data),
                Err(frame) => received.trailers = frame.into_trailers().unwrap(),
            },
        }
    }
}

fn request(method: &Method) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    request.method_mut().clone_from(method);
    request
}

/// The connection of the gateway.
pub(super) struct Ours(Http1Connection);

impl Ours {
    pub(super) fn new(method: &Method) -> impl FnOnce(DuplexStream) -> Self {
        move |client| {
            let stream =
                UpstreamStream::new(UpstreamSocket::Memory(client), Arc::<ConnectionStats>::default());
            let mut connection = Http1Connection::new(stream);
            connection.begin(&mut request(method), Persistence::KeepAlive);
            Self(connection)
        }
    }
}

impl Client for Ours {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failure>> {
        self.0.poll_head(cx).map_err(|error| match error {
            Http1Error::Unusable(why) => ("Unusable".to_owned(), why.to_owned()),
            error => {
                let text = error.to_string();
                (format!("{:?}", ExchangeError::from_http1(error, false).fault()), text)
            }
        })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        self.0.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(chain)))
    }

    fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        self.0.is_usable(cx)
    }
}

fn chain(error: impl std::error::Error) -> String {
    crate::upstream::connection::error::with_sources(&error)
}

/// hyper's, with the rules that the gateway had beside it.
pub(super) struct Hypers {
    sender: http1::SendRequest<Body>,
    connection: Option<http1::Connection<TokioIo<DuplexStream>, Body>>,
    response: Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>>>>,
    body: Option<Incoming>,
}

impl Hypers {
    pub(super) fn new(method: &Method) -> impl FnOnce(DuplexStream) -> Self {
        move |client| {
            let mut builder = http1::Builder::new();
            builder
                .max_buf_size(HEAD_BUFFER as usize)
                .max_header_size(HEAD_BUFFER as usize)
                .max_headers(MAX_RESPONSE_FIELDS)
                .allow_spaces_after_header_name_in_responses(true)
                .allow_obsolete_multiline_headers_in_responses(true);
            let handshake = Box::pin(builder.handshake(TokioIo::new(client)));
            let (mut sender, connection) = handshake.now_or_never().unwrap().unwrap();
            let response = Box::pin(sender.send_request(request(method)));
            Self { sender, connection: Some(connection), response, body: None }
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready()) {
            self.connection = None;
        }
    }
}

impl Client for Hypers {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failure>> {
        self.drive(cx);
        self.response.as_mut().poll(cx).map(|outcome| match outcome {
            Ok(response) => {
                let (head, body) = response.into_parts();
                self.body = Some(body);
                let response = Response::from_parts(head, ());
                rules_beside(&response).map_err(|why| ("Unusable".to_owned(), why.to_owned()))?;
                Ok(response)
            }
            Err(error) => {
                let text = error.to_string();
                Err((format!("{:?}", ExchangeError::from_http2(error).fault()), text))
            }
        })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if frame.is_ready() {
            return frame.map(|frame| frame.map(|frame| frame.map_err(chain)));
        }
        self.drive(cx);
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(chain)))
    }

    fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.connection.is_some() && self.sender.is_ready()
    }
}

fn rules_beside(response: &Response<()>) -> Result<(), &'static str> {
    let headers = response.headers();
    if headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING) {
        return Err("both Content-Length and Transfer-Encoding");
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.next().is_some()
    {
        return Err("Content-Length is repeated or not a number");
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_odd = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if encodings.next().is_some_and(is_odd) || encodings.next().is_some() {
        return Err("Transfer-Encoding is not `chunked` alone");
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err("an upgrade that was not requested");
    }
    Ok(())
}
