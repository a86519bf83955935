//! The spans of a request that is sampled, made when it has ended: its own, and those of the layers that it has
//! passed. Requests to Rails have spans of their own, made in `upstream`.
//!
//! Attributes are those of OpenTelemetry's semantic conventions for HTTP, and `railgate.…`. What the access log does
//! not show of a request, they do not show either.

use std::time::Instant;

use http::Method;

use super::access_log::{MAX_ERROR, MAX_USER_AGENT, filtered, known_method};
use super::in_flight::InFlightRequest;
use crate::auth::Rejection;
use crate::exchange::{CacheOutcome, RequestInfo};
use crate::failure::FailureOrigin;
use crate::log::truncated;
use crate::route;
use crate::server::wire::REFUSED;
use crate::trace::{AttributeValue, Span, TraceRecord};

/// Queues them. `end` is when the request has ended.
pub(super) fn export(
    request: &InFlightRequest,
    info: &RequestInfo,
    record: TraceRecord,
    end: Instant,
    client_stayed: bool,
) {
    let mut spans = Vec::with_capacity(4);
    if let Some(accepted) = record.accepted_at {
        // It belongs to the request, but comes before it: with the handshake of TLS, and the wait for the head.
        spans.push(record.span.part("accept", accepted, request.started));
    }
    if let Some(until) = record.authenticated_at {
        spans.push(authentication(request, info, &record, until));
    }
    spans.extend(cache(info, &record, end));
    let span = record.span.clone();
    spans.push(own(request, info, record, end, client_stayed));
    span.export(spans);
}

/// From the arrival of the request to the verdict on its credential.
fn authentication(
    request: &InFlightRequest,
    info: &RequestInfo,
    record: &TraceRecord,
    until: Instant,
) -> Span {
    let mut span = record.span.part("authenticate", request.started, until);
    span.attributes.push(("railgate.caller", info.caller.as_str().into()));
    if let Some(rejection) = info.rejection.map(Rejection::as_str) {
        span.attributes.push(("error.type", rejection.into()));
        span.error = Some(String::new());
    }
    span
}

/// From then on to the answer from memory, or to that of Rails for which the cache has asked or waited.
fn cache(info: &RequestInfo, record: &TraceRecord, end: Instant) -> Option<Span> {
    let is_bypass =
        matches!(info.cache, CacheOutcome::Unreached | CacheOutcome::Never | CacheOutcome::Bypass);
    if is_bypass && record.cache.is_none() {
        return None;
    }
    let start = record.cache.map(|(_, begun_at)| begun_at).or(record.authenticated_at)?;
    let mut span = record.span.part("cache", start, record.cache_ended_at.unwrap_or(end));
    if let Some((id, _)) = record.cache {
        span.context.span_id = id;
    }
    span.attributes.push(("railgate.cache", info.cache.as_str().into()));
    span.links.extend(record.shared_with);
    Some(span)
}

/// What the conventions call a method that is not known.
const OTHER: &str = "_OTHER";

fn standard_method(method: &Method) -> &str {
    Some(known_method(method)).filter(|known| *known == method.as_str() && *known != REFUSED).unwrap_or(OTHER)
}

fn own(
    request: &InFlightRequest,
    info: &RequestInfo,
    record: TraceRecord,
    end: Instant,
    client_stayed: bool,
) -> Span {
    let (method, template) = (standard_method(&request.method), info.route.and_then(route::template));
    let of_name = if method == OTHER { "HTTP" } else { method };
    let name =
        template.as_ref().map_or_else(|| of_name.to_owned(), |template| format!("{of_name} {template}"));
    let mut span = record.span.own(name, record.parent, request.started, end);
    let attributes = &mut span.attributes;
    attributes.extend(record.of_arrival);
    let mut set = |key, value: AttributeValue| attributes.push((key, value));
    set("http.request.method", method.into());
    let shown = filtered(&request.uri);
    let (path, query) =
        shown.split_once('?').map_or((shown.as_str(), None), |(path, query)| (path, Some(query)));
    set("url.path", path.into());
    if let Some(query) = query {
        set("url.query", query.into());
    }
    if let Some(template) = template {
        set("http.route", template.into());
    }
    if let Some(status) = request.status {
        set("http.response.status_code", status.as_u16().into());
    }
    if let Some(ip) = request.remote_ip {
        set("client.address", ip.to_string().into());
    }
    if let Some(agent) = request.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        set("user_agent.original", truncated(agent, MAX_USER_AGENT).into_owned().into());
    }
    set("correlation_id", request.request_id.as_str().into());
    set("railgate.route", info.route.unwrap_or("none").into());
    set("railgate.caller", info.caller.as_str().into());
    set("railgate.cache", info.cache.as_str().into());
    set("railgate.resent", info.is_resent.into());
    if !client_stayed {
        set("railgate.client_left", true.into());
    }
    let status = request.status.map(|status| status.as_u16());
    let error = info.failure.map(str::to_owned).or_else(|| {
        let status = status.filter(|status| *status >= 500)?;
        Some(status.to_string())
    });
    if let Some(error) = error {
        set("error.type", error.into());
    }
    // A 4xx is no failure of the one who says it.
    let has_failed = status.is_some_and(|status| status >= 500)
        || matches!(info.failure_origin, Some(FailureOrigin::Gateway | FailureOrigin::Upstream));
    span.error = has_failed.then(|| {
        info.error.as_deref().map_or_else(String::new, |error| truncated(error, MAX_ERROR).into_owned())
    });
    span
}
