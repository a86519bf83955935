//! Traces: which requests are sampled, and the spans that are made of those.
//!
//! The decision is made when a request arrives: that of its caller counts if that shows a credential, else chance.
//! Nothing is recorded of a request that is not sampled. Spans go into a queue, from which [`otlp`](crate::otlp)
//! exports them; while that is full, they are dropped and counted.

mod active;
mod queue;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use http::header::{HeaderMap, HeaderValue};

pub use self::active::{ActiveSpan, SpanParent};
pub use self::queue::{SpanQueue, SpanResult};
pub use self::span::{AttributeValue, Span, SpanKind};
use crate::clock::Clock;
use crate::trace_context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId, tracestate};

/// Decides which requests are sampled, and begins their traces.
#[derive(Clone, Debug)]
pub struct Tracer {
    queue: Arc<SpanQueue>,
    clock: Clock,
    /// When it began to decide.
    since: Instant,
    /// Traces whose sampling number is below this are sampled.
    threshold: u64,
}

/// What is known of the trace of a request.
#[derive(Debug, Default)]
pub enum RequestTrace {
    /// There is no tracing: the fields of the caller pass through.
    #[default]
    Off,
    /// Not recorded here. Rails is told so by this context; without one, by that of the caller, which passes through.
    NotSampled(Option<TraceContext>),
    /// Recorded.
    Sampled(Box<TraceRecord>),
}

/// What is recorded of a request that is sampled.
#[derive(Debug)]
pub struct TraceRecord {
    /// The span of the request.
    pub span: SpanParent,
    /// Attributes that were known when the request arrived.
    pub of_arrival: Vec<(&'static str, AttributeValue)>,
    /// The trace that it has if its caller is not to be trusted; `None`: it is not sampled then.
    own_trace: Option<TraceContext>,
    /// The span of the caller that has sent the request.
    pub parent: Option<SpanId>,
    /// What Rails gets as `tracestate`.
    pub tracestate: Option<HeaderValue>,
    /// When its connection was accepted, if it is the first request there.
    pub accepted_at: Option<Instant>,
    /// When the credential was accepted, or refused.
    pub authenticated_at: Option<Instant>,
    /// The span of a request that has asked Rails, or waited for one that did, on behalf of the cache.
    pub cache: Option<(SpanId, Instant)>,
    /// When the cache was done.
    pub cache_ended_at: Option<Instant>,
    /// The request to Rails of another caller that this one has waited for.
    pub shared_with: Option<TraceContext>,
}

impl Tracer {
    /// Samples this part of the traces that begin here, 0 to 1.
    pub fn new(queue: Arc<SpanQueue>, clock: Clock, ratio: f64) -> Self {
        // As the samplers of OpenTelemetry do, so that the gateways and callers that decide alike agree.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let threshold = (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        let since = clock.now();
        Self { queue, clock, since, threshold }
    }

    /// Whether a connection that was accepted at this time has had no request that was not traced.
    pub fn has_seen_all_since(&self, accepted_at: Instant) -> bool {
        accepted_at >= self.since
    }

    /// Decides on a request. What cannot be used of its fields is removed.
    pub fn begin(&self, headers: &mut HeaderMap) -> RequestTrace {
        if let Some(caller) = TraceContext::of(headers) {
            if !caller.is_sampled() {
                return RequestTrace::NotSampled(None);
            }
            let span = self.span(caller.child());
            return RequestTrace::Sampled(Box::new(TraceRecord {
                own_trace: Some(self.begin_own()).filter(TraceContext::is_sampled),
                parent: Some(caller.span_id),
                tracestate: tracestate(headers),
                ..TraceRecord::new(span)
            }));
        }
        // The state of a trace is worth nothing without its ids.
        headers.remove(&TRACEPARENT);
        headers.remove(&TRACESTATE);
        let context = self.begin_own();
        if context.is_sampled() {
            RequestTrace::Sampled(Box::new(TraceRecord::new(self.span(context))))
        } else {
            RequestTrace::NotSampled(Some(context))
        }
    }

    /// A trace that begins here. Chance decides whether it is sampled, and no caller has a hand in that.
    fn begin_own(&self) -> TraceContext {
        let trace_id = TraceId::random();
        TraceContext::root(trace_id, trace_id.sampling_number() < self.threshold)
    }

    fn span(&self, context: TraceContext) -> SpanParent {
        let clock = self.clock.clone();
        let origin = (clock.now(), clock.unix_time());
        SpanParent { context, origin, clock, queue: Arc::clone(&self.queue) }
    }
}

impl TraceRecord {
    fn new(span: SpanParent) -> Self {
        Self {
            span,
            of_arrival: Vec::new(),
            own_trace: None,
            parent: None,
            tracestate: None,
            accepted_at: None,
            authenticated_at: None,
            cache: None,
            cache_ended_at: None,
            shared_with: None,
        }
    }

    /// The span that a request to Rails belongs to.
    pub fn parent_of_requests(&self) -> SpanParent {
        match &self.cache {
            Some((id, _)) => self.span.with_id(*id),
            None => self.span.clone(),
        }
    }
}

impl RequestTrace {
    /// The record, if the request is sampled.
    pub fn record(&mut self) -> Option<&mut TraceRecord> {
        match self {
            Self::Sampled(record) => Some(record),
            Self::Off | Self::NotSampled(_) => None,
        }
    }

    /// Decides without the word of the caller. For callers that show no credential: all who can connect could fill the
    /// queue of spans otherwise, and add spans to the traces of others.
    pub fn distrust_caller(&mut self) {
        let Self::Sampled(record) = self else { return };
        if record.parent.take().is_none() {
            return;
        }
        match record.own_trace.take() {
            Some(own) => (record.span.context, record.tracestate) = (own, None),
            None => *self = Self::NotSampled(None),
        }
    }

    /// The id of the trace, if the request is sampled.
    pub fn sampled_id(&self) -> Option<TraceId> {
        match self {
            Self::Sampled(record) => Some(record.span.context.trace_id),
            Self::Off | Self::NotSampled(_) => None,
        }
    }

    /// For a request to Rails that this one causes, but does not wait for: a trace of its own, which is sampled if this
    /// one is, and its span, which links to this one.
    pub fn of_background(&self, name: &'static str) -> (Self, Option<ActiveSpan>) {
        match self {
            Self::Off => (Self::Off, None),
            Self::NotSampled(context) => (Self::NotSampled(*context), None),
            Self::Sampled(record) => {
                let cause = &record.span;
                let span = cause.in_new_trace();
                let mut root = ActiveSpan::root(&span, name, SpanKind::Internal);
                root.link(cause.context);
                (Self::Sampled(Box::new(TraceRecord::new(span))), Some(root))
            }
        }
    }
}

/// The spans of one request to Rails: of its waits and of each time it is sent.
#[derive(Debug)]
pub struct SendTrace {
    /// What they belong to.
    pub parent: SpanParent,
    /// `GET` and so on.
    pub method: String,
    /// The path and the query, without what must not be known.
    pub target: String,
    attempts: AtomicI64,
}

impl SendTrace {
    /// Nothing was sent yet.
    pub fn new(parent: SpanParent, method: &str, target: String) -> Self {
        Self { parent, method: method.to_owned(), target, attempts: AtomicI64::new(0) }
    }

    /// A wait, which begins now.
    pub fn begin_wait(&self, name: &'static str) -> ActiveSpan {
        ActiveSpan::begin(&self.parent, name, SpanKind::Internal)
    }

    /// The request is sent to this server now, for the first time or again.
    pub fn begin_attempt(&self, scheme: &str, server: &str) -> ActiveSpan {
        let mut span = ActiveSpan::begin(&self.parent, self.method.clone(), SpanKind::Client);
        span.set("http.request.method", self.method.as_str());
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !server.starts_with("unix:") => (host, port.parse().ok()),
            _ => (server.strip_prefix("unix:").unwrap_or(server), None),
        };
        span.set("server.address", host.trim_matches(['[', ']']));
        if let Some(port) = port {
            span.set("server.port", AttributeValue::Integer(port));
        }
        let resends = self.attempts.fetch_add(1, Ordering::Relaxed);
        if resends > 0 {
            span.set("http.request.resend_count", AttributeValue::Integer(resends));
        }
        let authority = if port.is_some() { server } else { "localhost" };
        span.set("url.full", format!("{scheme}://{authority}{}", self.target));
        span
    }
}

#[cfg(test)]
mod tests;
