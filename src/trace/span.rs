//! A span as it is exported.

use std::borrow::Cow;
use std::time::Duration;

use crate::trace_context::{SpanId, TraceContext};

/// The role of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within the gateway.
    Internal,
    /// A request of a client.
    Server,
    /// A request to Rails.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// Text.
    Text(String),
    /// A number.
    Integer(i64),
    /// Yes or no.
    Boolean(bool),
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u16> for AttributeValue {
    fn from(number: u16) -> Self {
        Self::Integer(number.into())
    }
}

impl From<bool> for AttributeValue {
    fn from(flag: bool) -> Self {
        Self::Boolean(flag)
    }
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its place in the trace.
    pub context: TraceContext,
    /// The span that it is part of.
    pub parent: Option<SpanId>,
    /// Of few values: no ids.
    pub name: Cow<'static, str>,
    /// Its role.
    pub kind: SpanKind,
    /// When it began, since the Unix epoch.
    pub start: Duration,
    /// When it ended.
    pub end: Duration,
    /// By the semantic conventions of OpenTelemetry, and `railgate.…`.
    pub attributes: Vec<(&'static str, AttributeValue)>,
    /// Spans of other traces that have to do with it.
    pub links: Vec<TraceContext>,
    /// Why it failed, if it did; may be empty.
    pub error: Option<String>,
}
