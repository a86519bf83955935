//! One exchange over a connection in memory: what is written, and when.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::idle::{NoResponse, PooledConnection};
use super::super::request::Persistence;
use crate::body::{Body, BodyFault, BodySource};
use crate::upstream::connection::exchange_error::{ExchangeErrorKind, SendError};
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::connection::stream::{UpstreamSocket, UpstreamStream};
use crate::upstream::error::{Error, Resend};

/// A request body whose parts a test sends.
#[derive(Debug)]
struct Parts {
    receiver: mpsc::UnboundedReceiver<Result<Bytes, BodyFault>>,
    size_hint: SizeHint,
}

impl BodySource for Parts {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        self.receiver.poll_recv(cx).map(|part| part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint
    }

    fn release(self: Box<Self>) {}
}

fn streamed(length: Option<u64>) -> (mpsc::UnboundedSender<Result<Bytes, BodyFault>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let size_hint = length.map_or_else(SizeHint::default, SizeHint::with_exact);
    (sender, Body::from_source(Box::new(Parts { receiver, size_hint })))
}

/// A connection, and its other end, with room for so many bytes each way.
fn connection(room: usize) -> (DuplexStream, Box<PooledConnection>) {
    let (server, client) = tokio::io::duplex(room);
    let stream = UpstreamStream::new(UpstreamSocket::Memory(client), Arc::<ConnectionStats>::default());
    (server, PooledConnection::new(stream, Weak::new(), None, &TaskTracker::new()))
}

fn request(method: Method, target: &str, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().unwrap();
    request.headers_mut().insert("x-a", "1".parse().unwrap());
    request
}

async fn read_until(server: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        assert!(server.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

const DONE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn a_request_is_framed_by_what_is_known_of_its_body() {
    let streamed = |length| {
        let (sender, body) = streamed(length);
        sender.send(Ok(Bytes::from_static(b"he"))).unwrap();
        sender.send(Ok(Bytes::from_static(b"llo"))).unwrap();
        body
    };
    let hello = || Body::from(Bytes::from_static(b"hello"));
    for (method, body, persistence, expected) in [
        (Method::GET, Body::empty(), Persistence::KeepAlive, "\r\n"),
        (Method::DELETE, Body::empty(), Persistence::Close, "connection: close\r\n\r\n"),
        (Method::POST, Body::empty(), Persistence::KeepAlive, "content-length: 0\r\n\r\n"),
        (Method::PUT, hello(), Persistence::KeepAlive, "content-length: 5\r\n\r\nhello"),
        (Method::GET, hello(), Persistence::Close, "content-length: 5\r\nconnection: close\r\n\r\nhello"),
        (Method::POST, streamed(Some(5)), Persistence::KeepAlive, "content-length: 5\r\n\r\nhello"),
        (
            Method::GET,
            streamed(None),
            Persistence::KeepAlive,
            "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ),
    ] {
        // Little room, so that it takes many writes.
        for room in [1, 7, 4096] {
            let (mut server, pooled) = connection(room);
            let body = match body.try_clone() {
                Some(body) => body,
                None => streamed(http_body::Body::size_hint(&body).exact()),
            };
            let was_in_memory = body.in_memory().cloned();
            let mut request = request(method.clone(), "/a?b=c", body);
            let (response, ()) = tokio::join!(pooled.send(&mut request, persistence), async {
                let whole = format!("{method} /a?b=c HTTP/1.1\r\nx-a: 1\r\n{expected}");
                let mut written = vec![0; whole.len()];
                server.read_exact(&mut written).await.unwrap();
                assert_eq!(String::from_utf8(written).unwrap(), whole);
                server.write_all(DONE).await.unwrap();
            });
            drop(response.unwrap());
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "nothing more was written");
            // It can be sent again.
            assert!(was_in_memory.is_none_or(|body| request.body().in_memory() == Some(&body)));
        }
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_ends_the_exchange() {
    for parts in [&["hell"][..], &["hel", "loo"], &["hello!"]] {
        let (sender, body) = streamed(Some(5));
        for part in parts {
            sender.send(Ok(Bytes::from_static(part.as_bytes()))).unwrap();
        }
        drop(sender);
        let (mut server, pooled) = connection(4096);
        let mut request = request(Method::POST, "/", body);
        let outcome = pooled.send(&mut request, Persistence::KeepAlive).await;
        let Err(NoResponse { error: SendError::RequestBody(_), .. }) = outcome else {
            unreachable!("{parts:?} is no body of 5 bytes");
        };
        let mut written = Vec::new();
        server.read_to_end(&mut written).await.unwrap();
        assert!(!String::from_utf8(written).unwrap().contains('!'), "nothing beyond what was announced");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_comes_early_is_passed_on_while_the_request_is_sent() {
    let (sender, body) = streamed(None);
    let (mut server, pooled) = connection(4096);
    let mut request = request(Method::POST, "/", body);
    server.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
    let response = pooled.send(&mut request, Persistence::KeepAlive).await.unwrap();
    assert_eq!(response.status(), 413);
    let mut body = response.into_body();
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(10));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
    // The client goes on while it has not all of the response.
    sender.send(Ok(Bytes::from_static(b"one"))).unwrap();
    read_until(&mut server, "\r\n3\r\none\r\n").await;
    server.write_all(b"world").await.unwrap();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "world");
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the connection is closed");
    assert_rest_is_read(sender).await;
}

/// Once its response has ended, the rest of a request is read to its end, or for a while.
async fn assert_rest_is_read(sender: mpsc::UnboundedSender<Result<Bytes, BodyFault>>) {
    let begin = Instant::now();
    sender.send(Ok(Bytes::from_static(b"rest"))).unwrap();
    // The time is paused: it passes only when nothing else is left to do.
    sender.closed().await;
    assert_eq!(begin.elapsed().as_secs(), 30);
}

/// A reader that knows the length takes no more once it has everything.
#[tokio::test(start_paused = true)]
async fn the_client_of_an_early_response_of_which_all_was_read_may_go_on() {
    for (response, parts) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n", 2),
    ] {
        let (sender, body) = streamed(None);
        let (mut server, pooled) = connection(4096);
        let mut request = request(Method::POST, "/", body);
        server.write_all(response.as_bytes()).await.unwrap();
        let mut body = pooled.send(&mut request, Persistence::KeepAlive).await.unwrap().into_body();
        for _ in 0..parts {
            body.frame().await.unwrap().unwrap();
        }
        assert!(http_body::Body::is_end_stream(&body), "{response}");
        drop(body);
        let mut written = String::new();
        server.read_to_string(&mut written).await.unwrap();
        assert!(written.ends_with("\r\n\r\n"), "no more than the head: {written}");
        assert_rest_is_read(sender).await;
    }
}

/// The end of a chunked body would say that Rails has all of it.
#[tokio::test]
async fn a_request_that_breaks_off_after_its_early_response_is_not_ended() {
    for (length, end) in [(None, "one\r\n"), (Some(10), "one")] {
        let (sender, body) = streamed(length);
        let (mut server, pooled) = connection(4096);
        let mut request = request(Method::POST, "/", body);
        server.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        let mut body = pooled.send(&mut request, Persistence::KeepAlive).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        read_until(&mut server, "\r\n\r\n").await;
        sender.send(Ok(Bytes::from_static(b"one"))).unwrap();
        read_until(&mut server, end).await;
        sender.send(Err("it broke off".into())).unwrap();
        drop(sender);
        server.write_all(b"world").await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "world");
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "", "it is closed");
    }
}

#[tokio::test]
async fn an_early_response_that_breaks_off_is_incomplete_and_one_that_is_not_wanted_ends_the_request() {
    for is_wanted in [true, false] {
        let (sender, body) = streamed(None);
        let (mut server, pooled) = connection(4096);
        let mut request = request(Method::POST, "/", body);
        server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
        let response = pooled.send(&mut request, Persistence::KeepAlive).await.unwrap();
        read_until(&mut server, "\r\n\r\n").await;
        if is_wanted {
            server.shutdown().await.unwrap();
            assert!(response.into_body().collect().await.is_err());
        } else {
            drop(response);
        }
        sender.closed().await;
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_response_arrives_although_the_rest_of_the_request_cannot_be_written() {
    let (server, pooled) = connection(64);
    let mut server = server;
    let mut request = request(Method::POST, "/", Body::from(Bytes::from(vec![b'x'; 10_000])));
    server.write_all(b"HTTP/1.1 413 Too Large\r\n\r\nno").await.unwrap();
    drop(server);
    let response = pooled.send(&mut request, Persistence::KeepAlive).await;
    // Nothing was written, which is not the case of a server that has begun to read.
    let Err(NoResponse { error: SendError::Exchange(error), was_written: false }) = response else {
        unreachable!("there is no server");
    };
    assert!(error.is_reset());

    let (mut server, pooled) = connection(64);
    let (response, ()) = tokio::join!(pooled.send(&mut request, Persistence::KeepAlive), async move {
        server.read_exact(&mut [0; 10]).await.unwrap();
        server.write_all(b"HTTP/1.1 413 Too Large\r\n\r\nno").await.unwrap();
    });
    let response = response.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
}

#[tokio::test]
async fn a_server_that_sends_interim_responses_without_end_is_left() {
    let (mut server, pooled) = connection(4096);
    let mut request = request(Method::GET, "/", Body::empty());
    let (response, sent) = tokio::join!(pooled.send(&mut request, Persistence::KeepAlive), async move {
        let mut sent = 0;
        while server.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
            sent += 1;
            tokio::task::yield_now().await;
        }
        sent
    });
    let Err(NoResponse { error: SendError::Exchange(error), .. }) = response else {
        unreachable!("there is no response");
    };
    assert_eq!(error.fault(), ExchangeErrorKind::EndlessHead);
    assert_eq!(Error::from(error).kind().resend(), Resend::Never);
    assert!(sent >= 256, "{sent}");
}
