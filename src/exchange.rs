//! A request on its way through the stack, and what the layers learn about it.
//!
//! The type changes as more is known: an [`Exchange`] has been read, a [`Routed`] request has a row
//! of the route table, an [`Authenticated`] one has a caller. Each layer takes the stage that it
//! needs, so a request that was neither authenticated nor left to Rails by its row cannot be handed to the cache or to
//! Rails.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::HeaderValue;
use parking_lot::{Mutex, MutexGuard};

use crate::auth::{Caller, CallerKind, Rejection};
use crate::body::Body;
use crate::cache::Key;
use crate::cache::storable::NoStoreReason;
use crate::failure::{Failure, FailureOrigin};
use crate::header::{ClientScheme, RequestId};
use crate::progress::Progress;
use crate::refusal::Refusal;
use crate::request_span::RequestSpan;
use crate::route::RouteMatch;
use crate::server::{AcceptedCallers, ConnectionHandle};
use crate::trace::{ActiveSpan, RequestTrace};
use crate::trace_context::SpanId;
use crate::upstream::{self, WaitPolicy};

/// A request whose head has been read.
#[derive(Debug)]
pub struct Exchange {
    /// As the client sent it, until a layer changes it for Rails.
    ///
    /// In a box, since it moves from layer to layer, and stays where it is until Rails has answered.
    pub request: Box<Request<Body>>,
    /// Why the server has refused the request, if it has.
    pub refusal: Option<Refusal>,
    /// The address of the client; `None` on a unix socket.
    pub peer: Option<IpAddr>,
    /// Of the URL that the client has asked for.
    pub scheme: ClientScheme,
    /// Whose requests the listener takes; `None`: all.
    pub accept: Option<AcceptedCallers>,
    /// The client connection.
    pub connection: ConnectionHandle,
    /// Correlates the logs of caller, gateway and Rails.
    pub request_id: RequestId,
    /// Filled in by the layers, for log and metrics.
    pub info: SharedRequestInfo,
}

impl Exchange {
    /// Takes the request id from the headers, or generates one.
    #[inline]
    pub fn new(request: Request<Body>, peer: Option<IpAddr>, connection: ConnectionHandle) -> Self {
        let request_id = RequestId::from_headers(request.headers());
        let (scheme, info) = (ClientScheme::default(), SharedRequestInfo::default());
        let request = Box::new(request);
        Self { request, refusal: None, peer, scheme, accept: None, connection, request_id, info }
    }

    /// Names the request in events about it.
    pub fn span(&self, found: &RouteMatch) -> RequestSpan {
        RequestSpan { request_id: self.request_id.clone(), route: found.route.id }
    }
}

/// A request whose endpoint is known.
#[derive(Debug)]
pub struct Routed {
    /// Its path is stripped of the relative URL root.
    pub exchange: Exchange,
    /// The row of the route table.
    pub route_match: RouteMatch,
}

/// A request whose caller may call the endpoint.
#[derive(Debug)]
pub struct Authenticated {
    /// As in [`Routed`].
    pub exchange: Exchange,
    /// The row of the route table.
    pub route_match: RouteMatch,
    /// The proof of authentication; only `auth` can make one.
    pub caller: Caller,
    /// The cache key of the query, if its response can be cached.
    pub key: Option<Key>,
    /// What authentication has read of the body.
    pub known_body: KnownBody,
    /// Up to so many bytes of the response are buffered before it is returned; `None`: it is streamed.
    pub buffer_up_to: Option<usize>,
    /// What it may wait for before it is sent to Rails.
    pub wait_policy: WaitPolicy,
    /// Read by the requests that wait for this one's response.
    pub progress: Option<Arc<Progress>>,
    /// The start of its time-outs, if it has waited for another request's response; `None`: when it is sent.
    pub received_at: Option<Instant>,
}

/// What is known of a request's body after authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownBody {
    /// The request has no body.
    None,
    /// A form, read in search of the credential. The request still has it as its body.
    Form(Bytes),
    /// The request has a body that was not read, or not as a form.
    Unknown,
}

/// What the cache did for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// The request did not reach the cache.
    #[default]
    Unreached,
    /// The endpoint is never cached.
    Never,
    /// The endpoint is cached, but this request is not of the canonical form.
    Bypass,
    /// Answered from memory.
    Hit,
    /// Answered from memory with a stale response, which is refreshed in the background.
    StaleWhileRevalidate,
    /// Answered from memory with a stale response, since Rails fails.
    StaleIfError,
    /// Answered by Rails, and stored.
    Stored,
    /// Answered by Rails, and not stored.
    Unstored(NoStoreReason),
    /// Answered with what another gateway of the fleet has shared, and stored.
    Fleet,
    /// Answered with the response to another caller's request for the same key.
    Shared,
    /// Waited for another caller's request, whose response could not be shared, then asked Rails.
    Alone,
}

impl CacheOutcome {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreached => "none",
            Self::Never => "never",
            Self::Bypass => "bypass",
            Self::Hit => "hit",
            Self::StaleWhileRevalidate => "stale_while_revalidate",
            Self::StaleIfError => "stale_if_error",
            Self::Stored => "miss_stored",
            Self::Unstored(_) => "miss_unstored",
            Self::Fleet => "fleet",
            Self::Shared => "shared",
            Self::Alone => "alone",
        }
    }

    /// The `Cache-Status` of a response of Rails (RFC 9211); a hit writes its own.
    pub const fn cache_status(self) -> HeaderValue {
        macro_rules! value {
            // Validated when this is compiled.
            ($text:literal) => {
                const { HeaderValue::from_static($text) }
            };
        }
        match self {
            Self::Never => value!("railgate; fwd=bypass; detail=route"),
            Self::Bypass => value!("railgate; fwd=bypass; detail=request"),
            // Never used: a request that did not reach the cache has no response of Rails, and a
            // hit adds its remaining lifetime.
            Self::Unreached | Self::Hit | Self::StaleWhileRevalidate | Self::StaleIfError => {
                value!("railgate")
            }
            Self::Stored => value!("railgate; fwd=miss; stored"),
            Self::Unstored(NoStoreReason::Status) => value!("railgate; fwd=miss; detail=status"),
            Self::Unstored(NoStoreReason::Type) => value!("railgate; fwd=miss; detail=type"),
            Self::Unstored(NoStoreReason::TooLarge) => value!("railgate; fwd=miss; detail=too_large"),
            Self::Unstored(NoStoreReason::Shape) => value!("railgate; fwd=miss; detail=shape"),
            Self::Unstored(NoStoreReason::Unhealthy) => value!("railgate; fwd=miss; detail=unhealthy"),
            Self::Unstored(NoStoreReason::Mismatch) => value!("railgate; fwd=miss; detail=mismatch"),
            Self::Unstored(NoStoreReason::Expired) => value!("railgate; fwd=miss; detail=expired"),
            Self::Unstored(NoStoreReason::Disabled) => value!("railgate; fwd=miss; detail=disabled"),
            Self::Unstored(NoStoreReason::Fenced) => value!("railgate; fwd=miss; detail=fenced"),
            Self::Fleet => value!("railgate; hit; detail=fleet"),
            Self::Shared => value!("railgate; fwd=miss; collapsed"),
            Self::Alone => value!("railgate; fwd=miss; detail=alone"),
        }
    }
}

/// What the layers learned about one request, for its log line and its metrics.
#[derive(Debug, Default)]
pub struct RequestInfo {
    /// The id of the row in the route table; `None` before routing.
    pub route: Option<&'static str>,
    /// The kind of credential that was accepted.
    pub caller: CallerKind,
    /// Why the credential was rejected.
    pub rejection: Option<Rejection>,
    /// What the cache did.
    pub cache: CacheOutcome,
    /// The time from sending the request to the head of the response, all tries together.
    pub upstream_time: Option<Duration>,
    /// The time in queues before the request was sent to Rails.
    pub queue_time: Option<Duration>,
    /// The server of Rails that it was last sent to.
    pub server: Option<Arc<str>>,
    /// It was sent more than once.
    pub is_resent: bool,
    /// The label of the failure that ended the request in the gateway.
    pub failure: Option<&'static str>,
    /// Who is responsible for that failure.
    pub failure_origin: Option<FailureOrigin>,
    /// The error with its causes; for the log alone, since it may name what clients must not know.
    pub error: Option<String>,
    /// Its trace.
    pub trace: RequestTrace,
}

impl RequestInfo {
    /// Notes what the cache did, which is now.
    pub fn set_cache(&mut self, outcome: CacheOutcome) {
        self.cache = outcome;
        if let Some(record) = self.trace.record() {
            record.cache_ended_at = Some(record.span.now());
        }
    }

    /// Notes whose credential was accepted, which is now.
    pub fn set_caller(&mut self, caller: CallerKind) {
        self.caller = caller;
        if let Some(record) = self.trace.record() {
            record.authenticated_at = Some(record.span.now());
        }
    }
}

/// A handle on a request's info, shared by the layers and by a fill that outlives them.
#[derive(Clone, Debug, Default)]
pub struct SharedRequestInfo {
    info: Arc<Mutex<RequestInfo>>,
}

impl SharedRequestInfo {
    /// Changes the info under its lock.
    pub fn update(&self, change: impl FnOnce(&mut RequestInfo)) {
        change(&mut self.info.lock());
    }

    /// Sets the fields that describe a failure.
    pub fn record_failure(&self, failure: &Failure) {
        self.update(|info| {
            info.failure = Some(failure.as_str());
            if let (Failure::Unauthorized(_) | Failure::UnauthorizedKas(_), Some(record)) =
                (failure, info.trace.record())
            {
                record.authenticated_at = Some(record.span.now());
            }
            info.failure_origin = Some(failure.origin());
            match failure {
                Failure::Unauthorized(rejection) | Failure::UnauthorizedKas(rejection) => {
                    info.rejection = Some(*rejection);
                }
                Failure::Upstream(error) => info.error = Some(describe(error)),
                Failure::SharedFill(_, error) => info.error = Some(error.to_string()),
                Failure::Loop => info.error = Some(LOOP.to_owned()),
                _ => {}
            }
        });
    }

    /// From now on the request waits for Rails on behalf of the cache.
    pub fn begin_cache_span(&self) {
        if let Some(record) = self.lock().trace.record() {
            record.cache = Some((SpanId::random(), record.span.now()));
        }
    }

    /// The info of a request to Rails that this one causes, but does not wait for, and its span, if it is sampled.
    pub fn of_background(&self, name: &'static str) -> (Self, Option<ActiveSpan>) {
        let (trace, span) = self.lock().trace.of_background(name);
        let info = RequestInfo { trace, ..RequestInfo::default() };
        (Self { info: Arc::new(Mutex::new(info)) }, span)
    }

    /// What is known so far. The info is locked as long as the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, RequestInfo> {
        self.info.lock()
    }
}

const LOOP: &str = "this gateway has sent the request itself: upstream.url, or a proxy behind it, leads back to one of the \
                    gateway's listeners; point it to Workhorse";

/// An error, its causes, and a hint how to fix it, if there is one: for the log alone.
pub fn describe(error: &upstream::Error) -> String {
    let text = error.chain();
    error.hint().map_or_else(|| text.clone(), |hint| format!("{text}; {hint}"))
}
