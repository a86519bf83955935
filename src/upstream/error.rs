//! How a request to Rails fails.

use std::io;
use std::time::Duration;

use crate::body;
use crate::upstream::connection::error;
use crate::upstream::queue::admission::ShedReason;
use crate::upstream::response::describe_broken;

/// Why a request got no usable response from Rails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// As many requests wait for an unreachable Rails as may.
    #[error("{0} is away, and as many requests as may wait for it already")]
    HoldFull(String, #[source] io::Error),
    /// The credential would expire before the request could be sent.
    #[error("{0} is away or busy, and the token expires before it can be sent")]
    Expires(String),
    /// Rejected by admission control.
    #[error("not sent: {}", .0.as_str())]
    Shed(ShedReason),
    /// No head of a response in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The same from a server that answered other requests meanwhile.
    #[error("no answer within {0:?}, while others were answered")]
    Slow(Duration),
    /// The total timeout ended before the head of a response came.
    #[error("no answer within {0:?}, waiting included")]
    TotalTimeout(Duration),
    /// The same from a server that had the request for most of that time, and answered no other meanwhile.
    #[error("no answer within {0:?}, waiting included, nor to others meanwhile")]
    Hung(Duration),
    /// The connection ended, or the response is malformed.
    #[error("{}", describe_broken(.0))]
    Broken(#[source] hyper::Error),
    /// The body of the response ended too early.
    #[error("the answer broke off")]
    BrokeOff(#[source] body::Error),
    /// A response with two framings, or an upgrade that was not asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
    /// A response that only Workhorse can carry out, and the header that says so.
    #[error(
        "the answer has {0}, which only Workhorse can turn into what was asked for; \
         let upstream.url lead to Workhorse instead of Puma"
    )]
    NeedsWorkhorse(String),
    /// The client did not send all of the request body in time.
    #[error("the request body was not complete within {0:?}")]
    BodyStalled(Duration),
    /// The client's request body broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The error and its causes, outermost first.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }

    /// What an operator may have to change, where the error itself does not say so.
    pub fn hint(&self) -> Option<&'static str> {
        error::hint(self)
    }
}
