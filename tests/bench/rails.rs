//! A stand-in for Rails: the same endpoints, responses and headers, as fast as hyper can.
//!
//! `GET /__count` returns the number of requests so far, without control requests; `GET /__latency?ms=20`
//! sets the time of every later response; `GET /__rows?bytes=0` disables the padding of key rows, which
//! otherwise have 600 bytes; `GET /__known?keys=0` makes every key an unknown one.

pub(crate) mod responses;

use std::convert::Infallible;
use std::future::ready;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::Either;
use futures_util::stream;
use http::StatusCode;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use tokio::sync::Notify;

use crate::{Fallible, keys, serve};

#[derive(clap::Args)]
pub(crate) struct Options {
    port: u16,
    socket: PathBuf,
    /// Sleep while idle.
    #[arg(long)]
    sleeps: bool,
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static ASKED: Notify = Notify::const_new();
static LATENCY_MS: AtomicU64 = AtomicU64::new(0);
static ROW_BYTES: AtomicUsize = AtomicUsize::new(responses::ROW);
static KNOWS_KEYS: AtomicBool = AtomicBool::new(true);
static CHUNK: [u8; 65_536] = [b'z'; 65_536];
const CLOSE_TOGETHER: Duration = Duration::from_millis(2);
const CHUNKS_PER_MIB: u64 = 16;

type RailsResponse = Response<BoxBody<Bytes, Infallible>>;

pub(crate) fn run(options: &Options) -> Fallible<()> {
    let task = if options.sleeps { Either::Left(ready(())) } else { Either::Right(stay_awake()) };
    serve::forever(options.port, &options.socket, task, handle)
}

/// Keeps the thread awake while requests come in quick succession.
async fn stay_awake() {
    let mut seen = 0;
    let mut since = Instant::now();
    loop {
        let count = COUNT.load(Relaxed);
        if count != seen {
            (seen, since) = (count, Instant::now());
        }
        if since.elapsed() < CLOSE_TOGETHER {
            // The load shares this core.
            thread::yield_now();
            tokio::task::yield_now().await;
        } else {
            ASKED.notified().await;
            since = Instant::now();
        }
    }
}

async fn handle(mut request: Request<Incoming>) -> Result<RailsResponse, Infallible> {
    let number_of = |name| request.uri().query().and_then(|query| query.strip_prefix(name)?.parse().ok());
    match request.uri().path() {
        "/__count" => return Ok(plain(COUNT.load(Relaxed).to_string())),
        "/__latency" => {
            LATENCY_MS.store(number_of("ms=").unwrap_or(0), Relaxed);
            return Ok(plain(String::new()));
        }
        "/__rows" => {
            let bytes = number_of("bytes=").and_then(|bytes| usize::try_from(bytes).ok());
            ROW_BYTES.store(bytes.unwrap_or(0), Relaxed);
            return Ok(plain(String::new()));
        }
        "/__known" => {
            KNOWS_KEYS.store(number_of("keys=") != Some(0), Relaxed);
            return Ok(plain(String::new()));
        }
        _ => {}
    }
    let number = COUNT.fetch_add(1, Relaxed);
    ASKED.notify_one();
    let mut received = 0;
    while let Some(frame) = request.body_mut().frame().await {
        match frame {
            Ok(frame) => received += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => return Ok(json(StatusCode::BAD_REQUEST, "{}".into(), number)),
        }
    }
    let latency = LATENCY_MS.load(Relaxed);
    if latency > 0 {
        tokio::time::sleep(Duration::from_millis(latency)).await;
    }
    Ok(response(request.uri().path(), request.uri().query().unwrap_or_default(), received, number))
}

fn response(path: &str, query: &str, received: usize, number: u64) -> RailsResponse {
    let body = match path.strip_prefix("/api/v4/internal/").unwrap_or_default() {
        "authorized_keys" if !KNOWS_KEYS.load(Relaxed) => {
            return json(StatusCode::NOT_FOUND, responses::UNKNOWN_KEY.into(), number);
        }
        "authorized_keys" => match query.strip_prefix("key=") {
            Some(key) => responses::authorized_keys(&keys::unescaped(key), ROW_BYTES.load(Relaxed)),
            None => return json(StatusCode::BAD_REQUEST, r#"{"error":"key is missing"}"#.into(), number),
        },
        "discover" => responses::DISCOVER.into(),
        "check" => responses::CHECK.into(),
        "allowed" => responses::ALLOWED.into(),
        "kubernetes/agent_info" => responses::AGENT_INFO.into(),
        "upload" => format!(r#"{{"received":{received}}}"#),
        "blob" => return blob(query.strip_prefix("mb=").and_then(|mb| mb.parse().ok()).unwrap_or(64)),
        _ => return json(StatusCode::NOT_FOUND, r#"{"message":"404 Not Found"}"#.into(), number),
    };
    json(StatusCode::OK, body, number)
}

fn plain(text: String) -> RailsResponse {
    Response::new(Full::new(Bytes::from(text)).boxed())
}

fn json(status: StatusCode, body: String, number: u64) -> RailsResponse {
    let mut response = plain(body);
    *response.status_mut() = status;
    if let Ok(headers) = responses::headers(number) {
        *response.headers_mut() = headers;
    }
    response
}

fn blob(mebibytes: u64) -> RailsResponse {
    let chunks = (0..mebibytes * CHUNKS_PER_MIB).map(|_| Ok(Frame::data(Bytes::from_static(&CHUNK))));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(chunks))));
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/octet-stream"));
    headers.insert("cache-control", http::HeaderValue::from_static("no-store"));
    headers.insert("content-length", (mebibytes << 20).into());
    response
}
