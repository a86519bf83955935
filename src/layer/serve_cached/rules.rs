//! Which requests may be answered from memory, and which answers of Rails count as failures.

use http::StatusCode;
use http::header::HeaderName;

use crate::exchange::{Authenticated, SeenBody};
use crate::failure::Failure;
use crate::layer::Answer;
use crate::params::Params;
use crate::upstream;

/// The failures for which a stale answer is given (RFC 5861 §4 leaves the list to us): no connection,
/// no answer in time, none at all, and the statuses by which a server in front of Rails says the same.
/// A 500 is not among them: Rails is there, and does not say what it said before.
pub(super) fn is_failing(answer: &Answer) -> bool {
    match answer {
        Ok(answer) => is_failing_status(answer.status()),
        Err(Failure::Upstream(error)) => matches!(
            error,
            upstream::Error::Connect(..)
                | upstream::Error::HoldFull(_)
                | upstream::Error::Expires(_)
                | upstream::Error::Shed(_)
                | upstream::Error::Timeout(_)
                | upstream::Error::TotalTimeout(_)
                | upstream::Error::Broken(_)
                | upstream::Error::BrokeOff(_)
        ),
        Err(Failure::SharedTrouble(_)) => true,
        Err(_) => false,
    }
}

/// Whether it says that Rails fails, for others too. Not that it has enough to do, or that somebody's token
/// expires.
pub(super) fn is_news(answer: &Answer) -> bool {
    let is_ours =
        matches!(answer, Err(Failure::Upstream(upstream::Error::Shed(_) | upstream::Error::Expires(_))));
    is_failing(answer) && !is_ours
}

pub(super) const fn is_failing_status(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Whether nothing beside the query changes the answer: the canonical spelling of the path, no body
/// but a form with the credential, and nothing that asks for another answer than a 200.
pub(super) fn may_be_kept(call: &Authenticated) -> bool {
    let is_plain = call.found.exact && !call.exchange.request.headers().keys().any(is_condition);
    let has_no_more = match &call.seen {
        SeenBody::None => true,
        SeenBody::Form(form) => Params::parse(form).plain().is_some_and(|mut rest| rest.next().is_none()),
        SeenBody::Unknown => false,
    };
    is_plain && has_no_more
}

/// RFC 9110 §13 and §14: they ask for a 304, a 412 or a 206.
fn is_condition(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" | "if-range" | "range"
    )
}
