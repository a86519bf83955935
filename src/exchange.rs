//! A request on its way through the stack, and what is learned about it there.
//!
//! The type changes as more is known: an [`Exchange`] has been read, a [`Routed`] one has a row
//! of the route table, an [`Authenticated`] one has a caller. Layers ask for the stage that they
//! need, so a request that nobody authenticated cannot be handed to the cache or to Rails.

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
use crate::failure::{Failure, Side};
use crate::header::RequestId;
use crate::progress::Progress;
use crate::route::RouteMatch;
use crate::server::ConnectionHandle;
use crate::upstream::{self, WaitPolicy};

/// A request that has been read, and nothing more.
#[derive(Debug)]
pub struct Exchange {
    /// The request.
    pub request: Request<Body>,
    /// Who sent it; none on a unix socket.
    pub peer: Option<IpAddr>,
    /// The connection that it came over.
    pub connection: ConnectionHandle,
    /// By which the logs of caller, gateway and Rails meet.
    pub request_id: RequestId,
    /// What is learned about it.
    pub record: Record,
}

impl Exchange {
    /// A request that `peer` sent, about which nothing is known yet.
    pub fn new(request: Request<Body>, peer: Option<IpAddr>, connection: ConnectionHandle) -> Self {
        let request_id = RequestId::of(request.headers());
        Self { request, peer, connection, request_id, record: Record::default() }
    }
}

/// A request whose endpoint is known. Its path is the one below the relative URL root.
#[derive(Debug)]
pub struct Routed {
    /// The request.
    pub exchange: Exchange,
    /// The endpoint.
    pub found: RouteMatch,
}

/// A request whose caller may call the endpoint.
#[derive(Debug)]
pub struct Authenticated {
    /// The request.
    pub exchange: Exchange,
    /// The endpoint.
    pub found: RouteMatch,
    /// The proof; only `auth` can make one.
    pub caller: Caller,
    /// What the query asks for, if it is something that may be kept.
    pub key: Option<Key>,
    /// What was read of the body on the way.
    pub seen: SeenBody,
    /// Up to so many bytes of the answer may be read before it is handed on, if they may.
    pub collect: Option<usize>,
    /// For what it may wait before it is sent to Rails.
    pub may_wait: WaitPolicy,
    /// Where those look who wait for its answer.
    pub progress: Option<Arc<Progress>>,
    /// When it came, if it has waited for another one's answer: its time counts from there.
    pub since: Option<Instant>,
}

/// What is known of a request's body once the caller is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenBody {
    /// There is none.
    None,
    /// A form, read in search of the credential, which is still in the request too.
    Form(Bytes),
    /// There is one; what it says is not known.
    Unknown,
}

/// What the cache did for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// The request never got so far.
    #[default]
    Unreached,
    /// The endpoint is never cached.
    Never,
    /// The endpoint is cached, but this request is not of the canonical form.
    Bypass,
    /// Answered from memory.
    Hit,
    /// Answered from memory with a stale answer, while Rails is asked anew.
    StaleWhileRevalidate,
    /// Answered from memory with a stale answer, since Rails fails.
    StaleIfError,
    /// Answered by Rails, and stored.
    Stored,
    /// Answered by Rails, and not stored.
    Unstored(NoStoreReason),
    /// Answered by the request that another caller had under way.
    Shared,
    /// Waited for another caller's request, which brought nothing to share, then asked Rails.
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
            Self::Shared => "shared",
            Self::Alone => "alone",
        }
    }

    /// The `Cache-Status` of an answer that was fetched (RFC 9211); a hit writes its own.
    pub const fn cache_status(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Never => "railgate; fwd=bypass; detail=route",
            Self::Bypass => "railgate; fwd=bypass; detail=request",
            // Never asked for: a request that did not come so far has no answer of Rails, and a
            // hit says how long it stays good.
            Self::Unreached | Self::Hit | Self::StaleWhileRevalidate | Self::StaleIfError => "railgate",
            Self::Stored => "railgate; fwd=miss; stored",
            Self::Unstored(NoStoreReason::Status) => "railgate; fwd=miss; detail=status",
            Self::Unstored(NoStoreReason::Type) => "railgate; fwd=miss; detail=type",
            Self::Unstored(NoStoreReason::TooLarge) => "railgate; fwd=miss; detail=too_large",
            Self::Unstored(NoStoreReason::Shape) => "railgate; fwd=miss; detail=shape",
            Self::Unstored(NoStoreReason::Unhealthy) => "railgate; fwd=miss; detail=unhealthy",
            Self::Unstored(NoStoreReason::Mismatch) => "railgate; fwd=miss; detail=mismatch",
            Self::Unstored(NoStoreReason::Expired) => "railgate; fwd=miss; detail=expired",
            Self::Unstored(NoStoreReason::Disabled) => "railgate; fwd=miss; detail=disabled",
            Self::Unstored(NoStoreReason::Fenced) => "railgate; fwd=miss; detail=fenced",
            Self::Shared => "railgate; fwd=miss; collapsed",
            Self::Alone => "railgate; fwd=miss; detail=alone",
        })
    }
}

/// What the layers learned about one request, for its log line and its metrics.
#[derive(Debug, Default)]
pub struct Notes {
    /// The row of the route table.
    pub route: Option<&'static str>,
    /// What the caller showed.
    pub caller: CallerKind,
    /// Why the caller was not let in.
    pub rejection: Option<Rejection>,
    /// What the cache did.
    pub cache: CacheOutcome,
    /// How long Rails took until the head of its answer.
    pub upstream: Option<Duration>,
    /// How long the request waited before it was sent to Rails.
    pub waited: Option<Duration>,
    /// The server of Rails that it was sent to at last.
    pub server: Option<Arc<str>>,
    /// It was sent again.
    pub is_resent: bool,
    /// The label of the failure that ended the request here.
    pub failure: Option<&'static str>,
    /// Whose turn it is to look into that failure.
    pub side: Option<Side>,
    /// What exactly failed on the way to Rails; for the log alone.
    pub error: Option<String>,
}

/// A handle on a request's notes, shared by the layers and by a fill that outlives them.
#[derive(Clone, Debug, Default)]
pub struct Record {
    notes: Arc<Mutex<Notes>>,
}

impl Record {
    /// Writes something down.
    pub fn note(&self, write: impl FnOnce(&mut Notes)) {
        write(&mut self.notes.lock());
    }

    /// Writes down how the request failed.
    pub fn fail(&self, failure: &Failure) {
        self.note(|notes| {
            notes.failure = Some(failure.as_str());
            notes.side = Some(failure.side());
            match failure {
                Failure::Unauthorized(rejection) | Failure::UnauthorizedKas(rejection) => {
                    notes.rejection = Some(*rejection);
                }
                Failure::Upstream(error) => notes.error = Some(told(error)),
                Failure::Loop => notes.error = Some(LOOP.to_owned()),
                _ => {}
            }
        });
    }

    /// What has been written down so far. Nobody can write as long as it is held.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock()
    }
}

const LOOP: &str = "the request has come here from this gateway: upstream.url, or what is behind it, leads back to one of \
                    its listeners; let it lead to Workhorse or Puma";

/// An error, what caused it, and what there may be to mend.
fn told(error: &upstream::Error) -> String {
    let text = error.chain();
    error.hint().map_or_else(|| text.clone(), |hint| format!("{text}; {hint}"))
}
