//! Spans while they run, and what they are made by.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::SpanQueue;
use super::span::{AttributeValue, Span, SpanKind};
use crate::clock::Clock;
use crate::trace_context::{SpanId, TraceContext, TraceId};

/// A span that others are part of, and the means to make these.
#[derive(Clone, Debug)]
pub struct SpanParent {
    /// Its place in the trace.
    pub context: TraceContext,
    /// One moment by both clocks: so a step of the wall clock does not disorder the spans of a trace.
    pub(super) origin: (Instant, Duration),
    pub(super) clock: Clock,
    pub(super) queue: Arc<SpanQueue>,
}

impl SpanParent {
    /// Another span of the same trace.
    #[must_use]
    pub fn with_id(&self, span_id: SpanId) -> Self {
        Self { context: self.context.with_span(span_id), ..self.clone() }
    }

    pub(super) fn in_new_trace(&self) -> Self {
        Self { context: TraceContext::root(TraceId::random(), true), ..self.clone() }
    }

    /// What time it is.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// A part of it that began and ended at these times, for [`Self::export`].
    pub fn part(&self, name: &'static str, start: Instant, end: Instant) -> Span {
        let span = self.span(name.into(), SpanKind::Internal, start);
        Span { end: unix_time(self.origin, end.max(start)), ..span }
    }

    /// The span itself, for [`Self::export`].
    pub fn own(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<SpanId>,
        start: Instant,
        end: Instant,
    ) -> Span {
        let span = self.span(name.into(), SpanKind::Server, start);
        Span { context: self.context, parent, end: unix_time(self.origin, end.max(start)), ..span }
    }

    /// Queues spans of this trace.
    pub fn export(&self, spans: Vec<Span>) {
        self.queue.push(spans);
    }

    fn span(&self, name: Cow<'static, str>, kind: SpanKind, start: Instant) -> Span {
        let start = unix_time(self.origin, start);
        Span {
            context: self.context.child(),
            parent: Some(self.context.span_id),
            name,
            kind,
            start,
            end: start,
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }
}

/// A span that runs. It ends, and is queued, when it is dropped: as failed, unless [`end`](Self::end) says otherwise.
#[derive(Debug)]
pub struct ActiveSpan {
    /// Boxed, since futures have room for it.
    running: Option<Box<(SpanParent, Span)>>,
}

/// The error of a span whose work was given up.
const GIVEN_UP: &str = "given up";

impl ActiveSpan {
    /// Begins a part of `parent`.
    pub fn begin(parent: &SpanParent, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        Self::of(parent, parent.span(name.into(), kind, parent.now()))
    }

    /// Begins the first span of a trace.
    pub(super) fn root(span: &SpanParent, name: &'static str, kind: SpanKind) -> Self {
        let begun = span.span(name.into(), kind, span.now());
        Self::of(span, Span { context: span.context, parent: None, ..begun })
    }

    fn of(parent: &SpanParent, span: Span) -> Self {
        let span = Span { error: Some(GIVEN_UP.to_owned()), ..span };
        Self { running: Some(Box::new((parent.clone(), span))) }
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<AttributeValue>) {
        if let Some(running) = &mut self.running {
            running.1.attributes.push((key, value.into()));
        }
    }

    /// Names a span of another trace that has to do with it.
    pub fn link(&mut self, context: TraceContext) {
        if let Some(running) = &mut self.running {
            running.1.links.push(context);
        }
    }

    /// Its place in the trace; `None` only while it is dropped.
    pub fn as_parent(&self) -> Option<SpanParent> {
        self.running.as_ref().map(|running| {
            let (parent, span) = &**running;
            parent.with_id(span.context.span_id)
        })
    }

    /// Ends it; with the error, if it has failed.
    pub fn end(mut self, error: Option<String>) {
        if let Some(running) = &mut self.running {
            running.1.error = error;
        }
    }
}

impl Drop for ActiveSpan {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let (parent, mut span) = *running;
            span.end = unix_time(parent.origin, parent.now()).max(span.start);
            parent.queue.push(vec![span]);
        }
    }
}

/// How long it is from the epoch to an instant, given the two times at another one.
fn unix_time((instant, unix): (Instant, Duration), at: Instant) -> Duration {
    match at.checked_duration_since(instant) {
        Some(later) => unix.saturating_add(later),
        None => unix.saturating_sub(instant.saturating_duration_since(at)),
    }
}
