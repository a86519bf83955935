//! Traces: which requests are sampled, what Rails is told, and the spans that are made.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::client::Request;
use super::collector::{Collector, assert_nested, named, resource_of};
use super::fake_rails::ReceivedRequest;
use super::log;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// The trace, the span and the flags that Rails was told.
fn told(seen: &ReceivedRequest) -> (String, String, String) {
    let value = seen.header("traceparent").unwrap_or_else(|| panic!("{}", seen.head)).to_owned();
    let parts: Vec<&str> = value.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else { panic!("{value}") };
    (trace.to_owned(), span.to_owned(), flags.to_owned())
}

fn allowed(id: &str) -> Request {
    Request::post("allowed").with_secret().json("{}").header("X-Request-Id", id)
}

fn discover(id: &str) -> Request {
    Request::get("discover?key_id=1").with_secret().header("X-Request-Id", id)
}

#[tokio::test]
async fn the_trace_of_a_caller_goes_on_to_rails() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let request = allowed("traced-pass")
        .header("traceparent", &traceparent("01"))
        .header("tracestate", "rojo=00f067aa0ba902b7")
        .header("tracestate", " congo=t61rcWkgMzE ,")
        .header("User-Agent", "GitLab-Shell");
    let (response, seen) = harness.send_forwarded(&request).await;
    assert_eq!(response.status, 200, "{response}");
    let (trace, parent_of_rails, flags) = told(&seen);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_eq!(seen.header("tracestate"), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));

    let spans = collector.trace_of("traced-pass").await;
    assert_nested(&spans);
    let server = named(&spans, "POST /api/v4/internal/allowed");
    assert_eq!((server.trace.as_str(), server.parent.as_str()), (TRACE, CALLER));
    assert_eq!((server.kind, &server.error), (SpanKind::Server, &None));
    let address = harness.gateway.tcp.url();
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/api/v4/internal/allowed"),
        ("http.response.status_code", "200"),
        ("url.path", "/api/v4/internal/allowed"),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "GitLab-Shell"),
        ("railgate.route", "allowed"),
        ("railgate.caller", "shared_secret"),
        ("railgate.cache", "never"),
    ] {
        assert_eq!(server.attribute(key), Some(value), "{address}: {server:#?}");
    }
    let authentication = named(&spans, "authenticate");
    assert_eq!(
        (authentication.parent.as_str(), authentication.kind),
        (server.id.as_str(), SpanKind::Internal)
    );
    let attempt = named(&spans, "POST");
    assert_eq!((&attempt.id, &attempt.parent), (&parent_of_rails, &server.id));
    assert_eq!(attempt.kind, SpanKind::Client);
    assert_eq!(attempt.attribute("http.response.status_code"), Some("200"));
    assert_eq!(attempt.attribute("server.address"), Some("127.0.0.1"));
    let url = harness.rails.address.url();
    let port = url.rsplit(':').next();
    assert_eq!(attempt.attribute("server.port"), port);
    assert_eq!(attempt.attribute("url.full"), Some(format!("{url}/api/v4/internal/allowed").as_str()));
    assert_eq!(attempt.attribute("http.request.resend_count"), None);
    assert_eq!(named(&spans, "connect").parent, attempt.id);
    assert!(authentication.end <= attempt.start, "{spans:#?}");

    let resource = resource_of(&collector.server.requests()[0]);
    assert_eq!(resource["service.name"], "railgate");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let line = log::wait_for_request_line("traced-pass").await;
    assert_eq!(line["trace_id"], TRACE);
    harness.wait_for_metric(r#"railgate_tracing_spans_total{result="exported"}"#, spans.len()).await;
}

/// Over a kept connection there is none to make.
#[tokio::test]
async fn a_hit_a_miss_and_a_bypass_show_what_the_cache_did() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let miss = async {
        let (_, seen) =
            harness.send_forwarded(&discover("traced-miss").header("traceparent", &traceparent("01"))).await;
        let spans = collector.trace_of("traced-miss").await;
        (spans, told(&seen))
    };
    let (spans, (trace, parent_of_rails, _)) = miss.await;
    assert_eq!(trace, TRACE);
    assert_nested(&spans);
    let (server, cache) = (named(&spans, "GET /api/v4/internal/discover"), named(&spans, "cache"));
    assert_eq!(cache.parent, server.id);
    assert_eq!(cache.attribute("railgate.cache"), Some("miss_stored"));
    let attempt = named(&spans, "GET");
    assert_eq!((&attempt.id, &attempt.parent), (&parent_of_rails, &cache.id));
    assert_eq!(server.attribute("url.query"), Some("key_id=1"));

    harness.send(&discover("traced-hit")).await;
    let spans = collector.trace_of("traced-hit").await;
    assert_nested(&spans);
    assert_ne!(spans[0].trace, TRACE);
    let (server, cache) = (named(&spans, "GET /api/v4/internal/discover"), named(&spans, "cache"));
    assert_eq!((server.parent.as_str(), &cache.parent), ("", &server.id));
    assert_eq!(cache.attribute("railgate.cache"), Some("hit"));
    assert_eq!(spans.len(), 3, "{spans:#?}");

    harness.send(&discover("traced-bypass").header("Range", "bytes=0-1")).await;
    let spans = collector.trace_of("traced-bypass").await;
    assert_nested(&spans);
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["GET", "authenticate", "GET /api/v4/internal/discover"]);
}
