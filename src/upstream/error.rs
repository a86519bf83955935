//! How requests to Rails fail.

use std::io;
use std::time::Duration;

use super::answer::why_broken;
use super::cause;
use super::lanes::Shed;
use crate::body;

/// How a request to Rails failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// More wait for Rails to be back than may.
    #[error("{0} is away, and as many requests as may wait for it already")]
    HoldFull(String, #[source] io::Error),
    /// The credential would have been dead on arrival.
    #[error("{0} is away or busy, and the token expires before it can be sent")]
    Expires(String),
    /// Rails has as much to do as it may have.
    #[error("not sent: {}", .0.as_str())]
    Shed(Shed),
    /// No head of an answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The same from a server that answers others meanwhile.
    #[error("no answer within {0:?}, while others were answered")]
    Slow(Duration),
    /// No head of an answer before all of it should have been there.
    #[error("no answer within {0:?}, waiting included")]
    TotalTimeout(Duration),
    /// The same from a server that has had it for most of that, and answered no other meanwhile.
    #[error("no answer within {0:?}, waiting included, nor to others meanwhile")]
    Hung(Duration),
    /// The connection ended, or what came is no HTTP.
    #[error("{}", why_broken(.0))]
    Broken(#[source] hyper::Error),
    /// The answer's body ended too early.
    #[error("the answer broke off")]
    BrokeOff(#[source] body::Error),
    /// An answer with two framings, or an upgrade that was not asked for.
    #[error("unusable answer: {0}")]
    Unusable(&'static str),
    /// An answer that only Workhorse can make something of. Its name is that of a header.
    #[error(
        "the answer has {0}, which only Workhorse can turn into what was asked for; \
         let upstream.url lead to Workhorse instead of Puma"
    )]
    NeedsWorkhorse(String),
    /// The body that the client sends did not come to its end in time.
    #[error("the request body was not complete within {0:?}")]
    BodyStalled(Duration),
    /// The body that the client sends broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The error and what caused it, outermost first.
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

    /// What an operator may have to mend, where the error does not say so itself.
    pub fn hint(&self) -> Option<&'static str> {
        cause::hint(self)
    }
}
