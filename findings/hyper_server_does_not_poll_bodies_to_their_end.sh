#!/usr/bin/env bash
# hyper 1.12.0, server side of HTTP/1: whether the body of an answer is polled until it returns `None` hangs on how it is
# framed. A body of unknown length is. One whose `size_hint` is exact is dropped once that many bytes have come, and one
# that ends in trailers is dropped once they have.
#
# So a body that wraps another one to notice how it ended (to count answers that were cut short, or to give a permit
# back) must not take a drop without `None` for an answer that was cut short: `is_end_stream` of the wrapped body may still
# be false then. `http_body::Body` says nothing of this; `poll_frame` is described as if it were called until `None`.
#
# Needs cargo, and reaches crates.io.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
bytes = "1"
http-body = "=1.0.1"
hyper = { version = "=1.12.0", features = ["http1", "server"] }
hyper-util = { version = "0.1", features = ["tokio"] }
tokio = { version = "1", features = ["io-util", "macros", "rt"] }
TOML
cat >src/main.rs <<'RUST'
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Writes down what is asked of it.
struct Told {
    frames: VecDeque<Frame<Bytes>>,
    length: Option<u64>,
    log: Arc<Mutex<String>>,
}

impl Told {
    fn tell(&self, what: &str) {
        self.log.lock().unwrap().push_str(what);
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.frames.pop_front();
        self.tell(match &next {
            Some(frame) if frame.is_trailers() => "trailers ",
            Some(_) => "data ",
            None => "None ",
        });
        Poll::Ready(next.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell("dropped");
    }
}

async fn served(length: Option<u64>, has_trailers: bool) -> (String, String) {
    let log = Arc::new(Mutex::new(String::new()));
    let (client, server) = tokio::io::duplex(65_536);
    let told = Arc::clone(&log);
    let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
        let mut frames = VecDeque::from([Frame::data(Bytes::from_static(b"ab")), Frame::data(Bytes::from_static(b"cd"))]);
        let mut answer = Response::builder();
        if has_trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            frames.push_back(Frame::trailers(trailers));
            answer = answer.header("trailer", "x-end");
        }
        let body = Told { frames, length, log: Arc::clone(&told) };
        async move { Ok::<_, Infallible>(answer.body(body).unwrap()) }
    });
    let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), answer);
    let ask = async move {
        let mut client = client;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (served, answer) = tokio::join!(serve, ask);
    served.unwrap();
    let log = log.lock().unwrap().clone();
    (log, answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for (name, length, has_trailers, end) in [
        ("unknown length", None, false, "0\r\n\r\n"),
        ("exact length", Some(4), false, "abcd"),
        ("trailers", None, true, "x-end: 1\r\n\r\n"),
    ] {
        let (log, answer) = served(length, has_trailers).await;
        println!("{name}: {log}; the client has all of it: {}", answer.ends_with(end));
    }
}
RUST
seen=$(cargo run --quiet)
printf '%s\n' "$seen"
expected='unknown length: data data None dropped; the client has all of it: true
exact length: data data dropped; the client has all of it: true
trailers: data data trailers dropped; the client has all of it: true'
[ "$seen" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
