//! Which requests may be answered from memory, and which answers of Rails count as failures.

use http::header::HeaderName;
use http::{Response, StatusCode};

use super::fill::collect;
use crate::body::{self, Body, Collected};
use crate::cache::freshness::is_plain_json;
use crate::cache::{Cache, Key, Trouble};
use crate::exchange::{Authenticated, SeenBody};
use crate::failure::Failure;
use crate::layer::Answer;
use crate::params::Params;
use crate::route::Caching;
use crate::upstream;

/// Whether Rails fails, so that a stale answer is given (RFC 5861 §4 leaves the list to us) and known of
/// for others too. One that is busy does not: a caller would be given what Rails does not say any more,
/// such as a key that was revoked, for as long as others keep Rails busy. Of all that can come of a
/// question, that is:
///
/// | what came of it | Rails fails | since |
/// |---|---|---|
/// | no connection (`Connect`, `HoldFull`) | yes | it is away |
/// | no connection for want of files or memory here | no | it is our own want |
/// | none of the time (`Timeout`, `Hung`), or the connection breaks (`Broken`, `BrokeOff`) | yes | it is there, and answers nothing |
/// | a 500, 502, 503 or 504 | yes | Rails, or a server in front of it, says that it cannot answer (RFC 5861 §4) |
/// | not in time, while it answers others (`Slow`) | no | it is busy |
/// | not sent in time, since others go first (`Shed`, `Expires`, `TotalTimeout`) | no | the queue is our own |
/// | any other answer | no | it is there |
/// | anything about the request or the answer itself | no | it says nothing of others |
pub(super) fn is_failing(answer: &Answer) -> bool {
    match answer {
        Ok(answer) => is_failing_status(answer.status()),
        Err(Failure::Upstream(upstream::Error::Connect(_, error) | upstream::Error::HoldFull(_, error))) => {
            !upstream::is_for_want_of_resources(error)
        }
        Err(Failure::Upstream(error)) => matches!(
            error,
            upstream::Error::Timeout(_)
                | upstream::Error::Hung(_)
                | upstream::Error::Broken(_)
                | upstream::Error::BrokeOff(body::Error::Broken(_) | body::Error::Stalled(_))
        ),
        Err(Failure::SharedTrouble(trouble)) => {
            matches!(trouble, Trouble::Unreachable | Trouble::Timeout | Trouble::Broken)
        }
        Err(_) => false,
    }
}

/// Whether Rails has not said anything about what it was asked, for whatever reason.
pub(super) fn gave_no_answer(answer: &Answer) -> bool {
    match answer {
        Ok(answer) => is_failing_status(answer.status()),
        Err(Failure::Upstream(error)) => !matches!(error, upstream::Error::Unusable(_)),
        Err(_) => true,
    }
}

pub(super) const fn is_failing_status(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether the head of an answer that is not kept ends what is kept: if it is Rails' own word on what was
/// asked for. Something in front of Rails may say anything, such as a redirect to a login, a page that
/// asks for patience, or 429, and knows nothing of keys.
pub(super) fn ends_what_is_kept<B>(answer: &Response<B>) -> bool {
    let is_refusal =
        matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
    is_refusal && is_plain_json(answer.headers())
}

/// An answer that is not kept, on its way to its caller. If it says that what was asked for is unknown or
/// refused, what is kept of that goes, and what is on its way to be kept: once Rails has said so, no
/// other answer may be given.
pub(super) async fn heeded(answer: Response<Body>, key: &Key, cache: &Cache) -> Answer {
    let is_refused = ends_what_is_kept(&answer);
    let (head, body) = answer.into_parts();
    let (body, is_known) = match head.status {
        _ if is_refused => (body, false),
        // A user that is unknown.
        StatusCode::OK if key.caching() == Caching::Discover => match collect(body, NULL.len()).await? {
            Collected::Whole(whole) => (Body::from(whole.clone()), whole != NULL),
            Collected::TooLong(body) => (body, true),
        },
        _ => (body, true),
    };
    if !is_known {
        cache.invalidate(key);
    }
    Ok(Response::from_parts(head, body))
}

const NULL: &[u8] = b"null";

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
