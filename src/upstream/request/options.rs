//! How a request is to be sent to Rails, and a report of how it was.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::HeaderMap;

use crate::progress::Progress;
use crate::route::Class;
use crate::trace::SendTrace;

/// What the sender has to know of a request beyond the request itself.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// Whose limits apply.
    pub class: Class,
    /// Whether it changes nothing, so that it may be sent again.
    pub is_read: bool,
    /// Up to so many bytes of the response are read before it is passed on: until then, the request may still
    /// be sent again.
    pub buffer_up_to: Option<usize>,
    /// What it may wait for before it is sent.
    pub wait_policy: WaitPolicy,
    /// Tells callers that wait for the same response how far the request has come.
    pub progress: Option<Arc<Progress>>,
    /// Whether it is for the endpoint `check`. Its response needs few parts of Rails, so it says little about other
    /// requests.
    pub is_check_endpoint: bool,
    /// When it arrived, if it has waited for another request's response before: its deadlines count from there.
    /// By default, they count from now.
    pub received_at: Option<Instant>,
    /// How long its credential is still valid; `None` is without limit.
    pub credential_expires_in: Option<Duration>,
    /// Signs it each time it is sent: a signature made before a wait would be too old.
    pub signer: Option<Signer>,
    /// Where it is noted whether Rails has the request, if it goes on without its client from then on.
    pub stage: Option<Arc<SendStage>>,
    /// Makes its spans, if it is sampled.
    pub trace: Option<Arc<SendTrace>>,
}

/// How far a request has come whose client may leave.
#[derive(Debug, Default)]
pub struct SendStage {
    is_with_rails: AtomicBool,
    is_abandoned: AtomicBool,
}

impl SendStage {
    /// Notes that the client has left. Returns whether Rails has the request.
    pub fn abandon(&self) -> bool {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.is_with_rails.load(Ordering::Relaxed)
    }

    pub(super) fn set_with_rails(&self, is_with_rails: bool) {
        self.is_with_rails.store(is_with_rails, Ordering::Relaxed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }
}

/// What a request may wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Nothing: its caller has a response already, or wants to know whether Rails is reachable.
    #[default]
    Never,
    /// A permit, while Rails is busy. Not an unreachable Rails: its caller has a stale response for that case.
    ForPermit,
    /// A permit, and Rails to be reachable again.
    ForRails,
}

/// Puts a credential into the headers of a request.
#[derive(Clone)]
pub struct Signer(pub Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            class: Class::Other,
            is_read: false,
            buffer_up_to: None,
            wait_policy: WaitPolicy::Never,
            progress: None,
            is_check_endpoint: false,
            received_at: None,
            credential_expires_in: None,
            signer: None,
            stage: None,
            trace: None,
        }
    }
}

/// How a request was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// The server that it was sent to last.
    pub server: Option<Arc<str>>,
    /// How long it waited before it was sent, over all waits.
    pub waited: Duration,
    /// Whether it was sent again.
    pub is_resent: bool,
}
