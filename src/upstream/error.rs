//! Why a request to Rails failed, and what follows from that.

use std::time::Duration;

use super::connection::error::{ConnectError, with_sources};
use super::connection::exchange_error::{ExchangeError, ExchangeErrorKind};
use super::queue::admission::ShedReason;
use crate::body;

/// Why a request got no usable response from Rails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing was sent.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] ConnectError),
    /// The hold queue of its class is full.
    #[error("{0} is away, and as many requests as may wait for it already")]
    HoldFull(String, #[source] ConnectError),
    /// The credential would expire before the request could be sent.
    #[error("{0} is away or busy, and the token expires before it can be sent")]
    CredentialExpires(String, #[source] Option<ConnectError>),
    /// Rejected by admission control.
    #[error("not sent: {}", .0.as_str())]
    Shed(ShedReason),
    /// No head of a response in time.
    #[error("no answer within {after:?}{}", timeout_detail(*limit, *is_silent))]
    Timeout {
        /// The length of that time.
        after: Duration,
        /// Which limit it was.
        limit: TimeLimit,
        /// Whether the server had the request for most of that time, and answered no other meanwhile.
        is_silent: bool,
        /// The last failure to connect, if Rails cannot be reached.
        #[source]
        unreachable: Option<ConnectError>,
    },
    /// The connection ended, or the response is malformed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The body of the response ended too early.
    #[error("the answer broke off")]
    ResponseBody(#[source] body::Error),
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
    RequestBodyTimeout(Duration),
    /// The client's request body broke off or is malformed.
    #[error("the request body broke off")]
    RequestBody(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The limit that a response exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLimit {
    /// `response_timeout`: from sending the request to the head of the response.
    Response,
    /// `total_timeout`: from the arrival of the request, time in queues included.
    Total,
    /// A part of `response_timeout`, since the server has just left another look-up unanswered.
    Shortened,
}

fn timeout_detail(limit: TimeLimit, is_silent: bool) -> &'static str {
    match (limit, is_silent) {
        (TimeLimit::Response, true) => "",
        (TimeLimit::Response, false) => ", while others were answered",
        (TimeLimit::Total, true) => ", waiting included, nor to others meanwhile",
        (TimeLimit::Total, false) => ", waiting included",
        (TimeLimit::Shortened, _) => ", cut short, since Rails has just left another look-up unanswered",
    }
}

/// The kinds of failure that are treated differently. [`Self::fault`] and [`Self::resend`] are the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, which may be over in a while.
    Unreachable,
    /// No connection, and waiting does not help: an untrusted certificate, a socket that may not be opened.
    Unconnectable,
    /// No connection, since file descriptors or memory are exhausted on this machine.
    Exhausted,
    /// Rejected by admission control.
    Shed,
    /// The credential would have expired before the request was sent.
    CredentialExpires,
    /// The server had the request long enough, and answered no request meanwhile.
    Silent,
    /// The server answered others meanwhile.
    Slow,
    /// The server had the request for too short a time to say that it is silent: the total time was over, or the time
    /// was cut short.
    OutOfTime,
    /// The server has not read the request.
    Unread,
    /// The connection ended, before the response or within it.
    Interrupted,
    /// The response is malformed.
    Malformed,
    /// The body of the response paused for too long.
    BodyStalled,
    /// The body of the response was not complete in time.
    BodyTooSlow,
    /// The response cannot be passed on.
    Unusable,
    /// The response is an instruction for Workhorse.
    NeedsWorkhorse,
    /// The client did not send all of the request body.
    RequestBody,
}

/// Where the reason for a failure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With the client.
    Client,
    /// In the limits of the gateway.
    Limits,
    /// In the resources of the gateway's machine.
    Machine,
    /// Rails is there, and has too much to do.
    Load,
    /// Rails, or the way there, fails.
    Rails,
    /// In this one response.
    Response,
}

/// Whether a request may be sent again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resend {
    /// Any request: nothing of it can have been acted on.
    Any,
    /// Only a read: it may have been acted on.
    Reads,
    /// None: the next response would be no better, or too late.
    Never,
}

impl ErrorKind {
    /// Where the reason lies.
    pub const fn fault(self) -> Fault {
        match self {
            Self::RequestBody => Fault::Client,
            Self::Shed | Self::CredentialExpires => Fault::Limits,
            Self::Exhausted => Fault::Machine,
            Self::Slow | Self::OutOfTime | Self::BodyTooSlow => Fault::Load,
            Self::Unreachable
            | Self::Unconnectable
            | Self::Silent
            | Self::Unread
            | Self::Interrupted
            | Self::Malformed
            | Self::BodyStalled => Fault::Rails,
            Self::Unusable | Self::NeedsWorkhorse => Fault::Response,
        }
    }

    /// Whether the request may be sent again.
    pub const fn resend(self) -> Resend {
        match self {
            Self::Unreachable
            | Self::Unconnectable
            | Self::Exhausted
            | Self::Shed
            | Self::CredentialExpires
            | Self::Unread => Resend::Any,
            Self::Interrupted => Resend::Reads,
            _ => Resend::Never,
        }
    }

    /// Whether the request may have been sent, at least in part.
    pub const fn was_sent(self) -> bool {
        !matches!(
            self,
            Self::Unreachable | Self::Unconnectable | Self::Exhausted | Self::Shed | Self::CredentialExpires
        )
    }
}

impl Error {
    /// What kind of failure it is: all rules about failures ask this.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect(_, error) | Self::HoldFull(_, error) if error.is_resource_exhaustion() => {
                ErrorKind::Exhausted
            }
            Self::Connect(_, error) if !error.is_transient() => ErrorKind::Unconnectable,
            Self::Connect(..) | Self::HoldFull(..) => ErrorKind::Unreachable,
            Self::CredentialExpires(..) => ErrorKind::CredentialExpires,
            Self::Shed(_) => ErrorKind::Shed,
            Self::Timeout { is_silent: true, .. } => ErrorKind::Silent,
            Self::Timeout { limit: TimeLimit::Response, .. } => ErrorKind::Slow,
            Self::Timeout { limit: TimeLimit::Total | TimeLimit::Shortened, .. } => ErrorKind::OutOfTime,
            Self::Exchange(error) if error.is_unread() => ErrorKind::Unread,
            Self::Exchange(error) if error.fault() == ExchangeErrorKind::Interrupted => {
                ErrorKind::Interrupted
            }
            Self::Exchange(_) => ErrorKind::Malformed,
            Self::ResponseBody(body::Error::Broken(_)) => ErrorKind::Interrupted,
            Self::ResponseBody(body::Error::Stalled(_)) => ErrorKind::BodyStalled,
            Self::ResponseBody(body::Error::TooSlow) => ErrorKind::BodyTooSlow,
            Self::Unusable(_) => ErrorKind::Unusable,
            Self::NeedsWorkhorse(_) => ErrorKind::NeedsWorkhorse,
            Self::RequestBodyTimeout(_) | Self::RequestBody(_) => ErrorKind::RequestBody,
        }
    }

    /// The label in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::RequestBody(_) | Self::RequestBodyTimeout(_) => "body_broke_off",
            Self::Connect(_, error) if error.is_timeout() => "upstream_connect_timeout",
            Self::Connect(..) => "upstream_unreachable",
            Self::HoldFull(..) => "hold_full",
            Self::CredentialExpires(..) => "credential_expires",
            Self::Shed(reason) => reason.as_str(),
            Self::Timeout { limit: TimeLimit::Response | TimeLimit::Shortened, .. } => "upstream_timeout",
            Self::ResponseBody(body::Error::Stalled(_)) => "upstream_body_timeout",
            Self::Timeout { limit: TimeLimit::Total, .. } | Self::ResponseBody(body::Error::TooSlow) => {
                "upstream_total_timeout"
            }
            Self::Exchange(error) => match error.fault() {
                ExchangeErrorKind::HeadTooLarge => "upstream_head_too_large",
                ExchangeErrorKind::Malformed
                | ExchangeErrorKind::WrongVersion
                | ExchangeErrorKind::EndlessHead => "upstream_malformed",
                ExchangeErrorKind::Interrupted => "upstream_broke_off",
            },
            Self::ResponseBody(_) => "upstream_broke_off",
            Self::Unusable(_) => "upstream_unusable",
            Self::NeedsWorkhorse(_) => "upstream_needs_workhorse",
        }
    }

    /// Whether there are too many requests, so that a queue is full or too slow.
    pub const fn is_overload(&self) -> bool {
        matches!(self, Self::Shed(_) | Self::HoldFull(..))
    }

    /// The error and its causes, outermost first.
    pub fn chain(&self) -> String {
        with_sources(self)
    }

    /// What an operator may have to change, where the error itself does not say so.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect(_, error) => error.hint(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
