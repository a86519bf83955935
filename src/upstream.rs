//! The way to Rails: one request in, one answer out, over a pool of kept connections.
//!
//! Errors say which side failed; what the client is told about it is not decided here.

mod connect;
mod pool;
mod target;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;

use self::connect::Connector;
use self::pool::{Pool, Trouble};
pub use self::target::{Address, Target, TargetError};
use self::tls::Tls;
use crate::body::Body;
use crate::header::strip_hop_by_hop;

/// What `[upstream]` of the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Rails listens.
    pub target: Target,
    /// How connections are secured, if they are.
    pub tls: Option<Tls>,
    /// The `Host` that Rails sees; by default the authority of the URL.
    pub host: Option<String>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long Rails may take from the request to the head of its answer.
    pub response_timeout: Duration,
    /// How long an unused connection is kept. Puma drops them after 20 s, so less than that.
    pub idle_timeout: Duration,
    /// How many unused connections are kept.
    pub max_idle: usize,
}

impl Settings {
    /// Rails at `target`, without TLS, and the defaults for the rest.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            tls: None,
            host: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            response_timeout: DEFAULT_RESPONSE_TIMEOUT,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            max_idle: DEFAULT_MAX_IDLE,
        }
    }
}

/// Default of [`Settings::connect_timeout`].
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Default of [`Settings::response_timeout`]: `/allowed` may take 50 s (contract §1.2).
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Default of [`Settings::idle_timeout`].
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`Settings::max_idle`].
pub const DEFAULT_MAX_IDLE: usize = 64;

/// Rails, as the gateway sees it.
#[derive(Debug)]
pub struct Upstream {
    pool: Pool,
    target: Target,
    host: HeaderValue,
    response_timeout: Duration,
    state: Arc<State>,
}

/// What is known of the upstream side, for metrics and readiness.
#[derive(Debug, Default)]
pub struct State {
    /// Connections that are open now, used or kept.
    pub open: AtomicI64,
    /// Connections that are kept now, without a request.
    pub kept: AtomicUsize,
    /// Connections made so far.
    pub opened: AtomicU64,
    /// Attempts to connect that failed.
    pub refused: AtomicU64,
    /// Failures in a row, whatever the kind; 0 after an answer.
    pub failures_in_a_row: AtomicU64,
    /// Answers received.
    pub answers: AtomicU64,
}

/// How a request to Rails failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// No head of an answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection ended, or what came is no HTTP.
    #[error("the connection failed before an answer came")]
    Broken(#[source] hyper::Error),
    /// The answer's body ended too early.
    #[error("the answer broke off")]
    BrokeOff(#[source] hyper::Error),
    /// An answer with two framings, or an upgrade that nobody asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
    /// The body that the client sends did not come to its end in time.
    #[error("the request body was not complete within {0:?}")]
    BodyStalled(Duration),
    /// The body that the client sends broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] hyper::Error),
}

impl Upstream {
    /// Prepares the pool; connects when the first request comes. What happens is counted in `state`.
    pub fn new(settings: Settings, state: Arc<State>) -> Self {
        let connector = Connector::new(
            settings.target.address.clone(),
            settings.tls,
            settings.connect_timeout,
            Arc::clone(&state),
        );
        let pool = Pool::new(connector, settings.max_idle, settings.idle_timeout, Arc::clone(&state));
        let host = settings
            .host
            .as_deref()
            .and_then(|host| HeaderValue::from_str(host).ok())
            .unwrap_or_else(|| settings.target.host_header());
        let Settings { target, response_timeout, .. } = settings;
        Self { pool, target, host, response_timeout, state }
    }

    /// The relative URL root of this Rails: empty, or `/gitlab` and the like.
    pub fn relative_root(&self) -> &str {
        &self.target.root
    }

    /// Sends a request whose target is a path below the relative URL root, and waits for the head
    /// of the answer. The message is framed anew: nothing in its headers may concern framing.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, Error> {
        self.prepare(&mut request)?;
        let sending = request.body_mut().watch();
        // Pinned here, so that the body is still there to be asked about when the time is up.
        let mut sent = std::pin::pin!(self.pool.send(request, &sending));
        let outcome = match tokio::time::timeout(self.response_timeout, sent.as_mut()).await {
            Ok(Ok(answer)) => accept(answer),
            Ok(Err(Trouble::Connect(error))) => Err(Error::Connect(self.target.address.to_string(), error)),
            Ok(Err(Trouble::Sent(error))) if error.is_user() => Err(Error::RequestBody(error)),
            Ok(Err(Trouble::Sent(error))) => Err(Error::Broken(error)),
            // Rails cannot answer what it has not been given.
            Err(_) if sending.is_under_way() => Err(Error::BodyStalled(self.response_timeout)),
            Err(_) => Err(Error::Timeout(self.response_timeout)),
        };
        match &outcome {
            Ok(_) => {
                self.state.answers.fetch_add(1, Ordering::Relaxed);
                self.state.failures_in_a_row.store(0, Ordering::Relaxed);
            }
            Err(Error::RequestBody(_) | Error::BodyStalled(_)) => {}
            Err(_) => {
                self.state.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
        }
        outcome
    }

    fn prepare(&self, request: &mut Request<Body>) -> Result<(), Error> {
        request.headers_mut().insert(header::HOST, self.host.clone());
        if request.body().size_hint().exact().is_none() {
            // hyper takes a GET of unknown length for one without a body, unless told.
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // RFC 9110 §8.6: a method that may have a body says so when it has none.
        let may_have_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        if may_have_body && request.body().size_hint().exact() == Some(0) {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        *request.version_mut() = Version::HTTP_11;
        let uri = self.target.below_root(std::mem::take(request.uri_mut()));
        *request.uri_mut() = uri.ok_or(Error::Unusable("no URI for the path"))?;
        Ok(())
    }
}

/// RFC 9112 §6.3: an answer with both framings, which hyper lets through, may be an attempt to
/// make two readers disagree.
fn accept(mut answer: Response<Body>) -> Result<Response<Body>, Error> {
    let headers = answer.headers();
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Error::Unusable("both Content-Length and Transfer-Encoding"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.next().is_some()
    {
        return Err(Error::Unusable("Content-Length is repeated or not a number"));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_odd = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if encodings.next().is_some_and(is_odd) || encodings.next().is_some() {
        return Err(Error::Unusable("Transfer-Encoding is not `chunked` alone"));
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Unusable("an upgrade that nobody asked for"));
    }
    strip_hop_by_hop(answer.headers_mut());
    // The version belongs to this connection; the client's has its own.
    *answer.version_mut() = Version::HTTP_11;
    Ok(answer)
}
