//! A scripted collector of OpenTelemetry, which reads what is exported with the official messages.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;

use super::client::eventually;
use super::fake_rails::{FakeRails, ReceivedRequest, Reply};
use super::harness::{Harness, Setup};

/// Takes every batch, unless a test says otherwise.
pub struct Collector {
    /// Records and answers.
    pub server: FakeRails,
}

/// A span, with its ids in hexadecimal.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenSpan {
    pub trace: String,
    pub id: String,
    /// Empty if it is the first of its trace.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    /// Nanoseconds since the epoch.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// Trace and span.
    pub links: Vec<(String, String)>,
    /// The message of the status `ERROR`.
    pub error: Option<String>,
}

/// The answer of a collector that takes all.
pub fn accepted() -> Reply {
    Reply::new(200, "Content-Type: application/x-protobuf\r\n", "")
}

impl Collector {
    pub async fn start() -> Self {
        let server = FakeRails::listen_tcp().await;
        server.respond_always(accepted());
        Self { server }
    }

    /// A setup that exports to it at once, and samples everything.
    pub fn setup(&self) -> Setup {
        Setup::new()
            .text("tracing.endpoint", &self.server.address.url())
            // One pool of connections to Rails.
            .set("workers", 1)
            .set("tracing.sample_ratio", 1)
            .text("tracing.interval", "5ms")
    }

    /// A gateway with that setup.
    pub async fn harness(&self) -> Harness {
        self.setup().start().await
    }

    /// All spans so far, those that were sent twice included.
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.server.requests().iter().flat_map(spans_of).collect()
    }

    /// Waits for the trace of the request with this correlation id, without the accept of its connection.
    pub async fn trace_of(&self, correlation_id: &str) -> Vec<SeenSpan> {
        let all = self.whole_trace_of(correlation_id).await;
        all.into_iter().filter(|span| span.name != "accept").collect()
    }

    /// The same with it. The request's own span is the last one of it that is made, except for those of what goes on
    /// without it.
    pub async fn whole_trace_of(&self, correlation_id: &str) -> Vec<SeenSpan> {
        let id = eventually("the trace of a request", async || {
            let of_request = |span: &SeenSpan| {
                span.attributes.get("correlation_id").is_some_and(|id| id == correlation_id)
            };
            self.spans().into_iter().find(of_request).map(|span| span.trace)
        });
        let id = id.await;
        self.spans().into_iter().filter(|span| span.trace == id).collect()
    }

    /// Waits for a span of this name.
    pub async fn span_named(&self, name: &str) -> SeenSpan {
        eventually(name, async || self.spans().into_iter().find(|span| span.name == name)).await
    }
}

/// The spans in a request.
pub fn spans_of(request: &ReceivedRequest) -> Vec<SeenSpan> {
    let request = ExportTraceServiceRequest::decode(&*request.body).unwrap();
    let all = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    all.flat_map(|scope| scope.spans).map(seen).collect()
}

/// The attributes of the gateway in a request.
pub fn resource_of(request: &ReceivedRequest) -> BTreeMap<String, String> {
    let request = ExportTraceServiceRequest::decode(&*request.body).unwrap();
    map(request.resource_spans[0].resource.clone().unwrap().attributes)
}

fn seen(span: Span) -> SeenSpan {
    let status = span.status.clone().unwrap_or_default();
    assert!([0, 2].contains(&status.code), "{status:?}");
    assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8), "{span:?}");
    SeenSpan {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        kind: span.kind(),
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: map(span.attributes),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        error: (status.code == 2).then_some(status.message),
        name: span.name,
    }
}

fn map(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let count = attributes.len();
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    let map: BTreeMap<_, _> = attributes.into_iter().map(|pair| (pair.key, text(pair.value))).collect();
    assert_eq!(map.len(), count, "a key is given twice: {map:?}");
    map
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl SeenSpan {
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

/// The only span of this name.
#[track_caller]
pub fn named<'s>(spans: &'s [SeenSpan], name: &str) -> &'s SeenSpan {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(found.next().is_none(), "several {name} in {spans:#?}");
    span
}

/// All spans have different ids, one has no parent in the trace, and each other one lies within its parent.
#[track_caller]
pub fn assert_nested(spans: &[SeenSpan]) {
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (&span.id, span)).collect();
    assert_eq!(by_id.len(), spans.len(), "{spans:#?}");
    let mut roots = 0;
    for span in spans {
        assert!(span.start <= span.end, "{span:#?}");
        match by_id.get(&span.parent) {
            None => roots += 1,
            Some(parent) => assert!(
                parent.start <= span.start && span.end <= parent.end,
                "{span:#?} is not within {parent:#?}"
            ),
        }
    }
    assert_eq!(roots, 1, "{spans:#?}");
}
