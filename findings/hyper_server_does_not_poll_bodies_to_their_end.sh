#!/usr/bin/env bash
# hyper 1.12.0, HTTP/1 server: whether a response body is polled until it returns `None` depends on its framing. A body of
# unknown length is. A body with an exact `size_hint` is dropped after that many bytes, and a body with trailers is dropped
# after the trailers.
#
# So a wrapper that observes the end of a body (to count truncated responses, or to release a permit) must not take a drop
# without `None` for a truncated response: `is_end_stream` of the wrapped body may still be false then. The documentation of
# `http_body::Body` does not mention this; it describes `poll_frame` as if it were called until `None`.
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

/// Records the calls to it.
struct RecordedBody {
    frames: VecDeque<Frame<Bytes>>,
    length: Option<u64>,
    log: Arc<Mutex<String>>,
}

impl RecordedBody {
    fn record(&self, what: &str) {
        self.log.lock().unwrap().push_str(what);
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.frames.pop_front();
        self.record(match &next {
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

impl Drop for RecordedBody {
    fn drop(&mut self) {
        self.record("dropped");
    }
}

async fn served(length: Option<u64>, has_trailers: bool) -> (String, String) {
    let log = Arc::new(Mutex::new(String::new()));
    let (client, server) = tokio::io::duplex(65_536);
    let recorded = Arc::clone(&log);
    let service = service_fn(move |_: Request<hyper::body::Incoming>| {
        let mut frames = VecDeque::from([Frame::data(Bytes::from_static(b"ab")), Frame::data(Bytes::from_static(b"cd"))]);
        let mut response = Response::builder();
        if has_trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            frames.push_back(Frame::trailers(trailers));
            response = response.header("trailer", "x-end");
        }
        let body = RecordedBody { frames, length, log: Arc::clone(&recorded) };
        async move { Ok::<_, Infallible>(response.body(body).unwrap()) }
    });
    let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let request = async move {
        let mut client = client;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        response
    };
    let (served, response) = tokio::join!(serve, request);
    served.unwrap();
    let log = log.lock().unwrap().clone();
    (log, response)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for (name, length, has_trailers, end) in [
        ("unknown length", None, false, "0\r\n\r\n"),
        ("exact length", Some(4), false, "abcd"),
        ("trailers", None, true, "x-end: 1\r\n\r\n"),
    ] {
        let (log, response) = served(length, has_trailers).await;
        println!("{name}: {log}; complete at the client: {}", response.ends_with(end));
    }
}
RUST
output=$(cargo run --quiet)
printf '%s\n' "$output"
expected='unknown length: data data None dropped; complete at the client: true
exact length: data data dropped; complete at the client: true
trailers: data data trailers dropped; complete at the client: true'
[ "$output" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
