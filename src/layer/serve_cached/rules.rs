//! Which requests may be answered from memory, and which answers of Rails count as failures.

use http::header::{self, HeaderName};
use http::{Response, StatusCode};

use super::shared::{ServeCachedShared, collect};
use crate::body::{Body, Collected};
use crate::cache::refusal::{MAX_REFUSAL_BODY, Verdict, judge, judge_unknown, may_be_refusal};
use crate::cache::{FillError, Key};
use crate::exchange::{Authenticated, KnownBody};
use crate::failure::Failure;
use crate::layer::LayerResult;
use crate::params::Params;
use crate::route::Caching;
use crate::upstream::{self, ErrorKind, Fault};

/// Whether Rails fails, so that a stale answer is served (RFC 5861 §4 leaves the list to us) and an outage
/// begins for other callers too. A busy Rails does not fail: a caller would be given what Rails does not say any
/// more, such as a key that was revoked, for as long as other requests keep Rails busy. All the ways in which a
/// request can end:
///
/// | How the request ended | Rails fails | Why |
/// |---|---|---|
/// | no connection (`Unreachable`, `Unconnectable`) | yes | it is away |
/// | no connection, since files or memory are exhausted here (`Exhausted`) | no | the gateway's own shortage |
/// | no answer in time, to no request (`Silent`), or the connection breaks (`Unread`, `Interrupted`, `Malformed`, `BodyStalled`) | yes | it is there, and answers nothing |
/// | a 500, 502, 503 or 504 | yes | Rails, or a server in front of it, says that it cannot answer (RFC 5861 §4) |
/// | no answer in time, while it answers others (`Slow`) | no | it is busy |
/// | not sent in time, since others go first (`Shed`, `CredentialExpires`, `OutOfTime`) | no | the queue is the gateway's own |
/// | cut short, since the server has just left another look-up unanswered (`OutOfTime`) | no | that one has said so already |
/// | any other answer | no | it is there, or something in front of it is; only an answer of the endpoint, or its own refusal, ends an outage |
/// | an error of the request or the answer itself | no | it says nothing of others |
pub(super) fn is_rails_failure(result: &LayerResult) -> bool {
    match result {
        Ok(response) => is_failure_status(response.status()),
        Err(Failure::Upstream(error)) => error.kind().fault() == Fault::Rails,
        Err(Failure::SharedFill(error, _)) => {
            matches!(error, FillError::Unreachable | FillError::Timeout | FillError::Broken)
        }
        Err(_) => false,
    }
}

/// Whether Rails gave no answer to the question, for any reason.
pub(super) fn is_no_answer(result: &LayerResult) -> bool {
    match result {
        Ok(response) => is_failure_status(response.status()),
        Err(Failure::Upstream(error)) => error.kind() != ErrorKind::Unusable,
        Err(_) => true,
    }
}

pub(super) const fn is_failure_status(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// An answer, and whether it refuses, or does not know, what was asked for. Of a short body nothing is passed on
/// before all of it is there.
pub(super) async fn with_verdict(
    response: Response<Body>,
) -> Result<(Response<Body>, Verdict), upstream::Error> {
    if !may_be_refusal(response.status(), response.headers()) {
        return Ok((response, Verdict::Unrelated));
    }
    let (head, body) = response.into_parts();
    let (body, verdict) = match collect(body, MAX_REFUSAL_BODY).await? {
        Collected::Complete(whole) => (Body::from(whole.clone()), judge(head.status, &whole)),
        Collected::TooLong(body) => (body, judge_unknown(head.status)),
    };
    Ok((Response::from_parts(head, body), verdict))
}

/// Looks at an answer that is not stored, on its way to its caller. If it says that what was asked for is
/// unknown or refused, the entry of that key and the flight that may be under way are invalidated: once Rails
/// has said so, no other answer may be served.
pub(super) async fn invalidate_if_refused(
    response: Response<Body>,
    key: &Key,
    shared: &ServeCachedShared,
) -> LayerResult {
    let (response, verdict) = with_verdict(response).await?;
    let (head, body) = response.into_parts();
    let (body, is_known) = match head.status {
        // Rails answers `null` for an unknown user.
        StatusCode::OK if key.caching() == Caching::Discover => match collect(body, NULL.len()).await? {
            Collected::Complete(whole) => (Body::from(whole.clone()), whole != NULL),
            Collected::TooLong(body) => (body, true),
        },
        _ => (body, verdict != Verdict::Refused),
    };
    if !is_known {
        shared.cache.invalidate(key);
    } else if let Verdict::Doubtful(status) = verdict {
        shared.cache.doubt(key, status, shared.clock.now());
    }
    Ok(Response::from_parts(head, body))
}

/// Lets Rails, and what is in front of it, compress no answer to a request that goes on as it came: a refusal has to
/// be readable. The request that fills an entry has no such header in any case.
pub(super) fn ask_for_plain_answer(call: &mut Authenticated) {
    call.exchange.request.headers_mut().remove(header::ACCEPT_ENCODING);
}

const NULL: &[u8] = b"null";

/// Whether nothing beside the query changes the answer: the canonical spelling of the path, no body
/// but a form with the credential, and no header that asks for another answer than a 200.
pub(super) fn is_cacheable(call: &Authenticated) -> bool {
    let is_plain = call.route_match.is_exact && !call.exchange.request.headers().keys().any(is_precondition);
    let has_no_more = match &call.known_body {
        KnownBody::None => true,
        KnownBody::Form(form) => Params::parse(form).plain().is_some_and(|mut rest| rest.next().is_none()),
        KnownBody::Unknown => false,
    };
    is_plain && has_no_more
}

/// RFC 9110 §13 and §14: they ask for a 304, a 412 or a 206.
fn is_precondition(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" | "if-range" | "range"
    )
}
