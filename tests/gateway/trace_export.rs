//! The export of spans: no collector, however it behaves, is in the way of a request.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::net::TcpListener;

use super::certificates::CertificateAuthority;
use super::client::{Address, Request, eventually};
use super::collector::{Collector, accepted, spans_of};
use super::fake_rails::{Behavior, FakeRails, Latch, Reply};
use super::harness::{Harness, RunningGateway, Setup};
use super::log;

const EXPORTED: &str = r#"railgate_tracing_spans_total{result="exported"}"#;
const DROPPED: &str = r#"railgate_tracing_spans_total{result="dropped"}"#;
const FAILED: &str = r#"railgate_tracing_spans_total{result="failed"}"#;

/// Spans of a request that is refused: the accept of its connection, the verdict on its credential, and its own.
const SPANS: usize = 3;

fn refused(id: &str) -> Request {
    Request::get("discover?key_id=1").header("X-Request-Id", id)
}

/// Sends requests that are all answered.
async fn send(harness: &Harness, count: usize) {
    for _ in 0..count {
        assert_eq!(harness.send(&Request::post("allowed").with_secret().json("{}")).await.status, 200);
    }
}

fn setup_for(url: &str) -> Setup {
    let setup = Setup::new().text("tracing.endpoint", url).set("tracing.sample_ratio", 1).set("workers", 1);
    setup.text("tracing.interval", "5ms").set("tracing.queue", 8)
}

/// Nothing here ever ends by itself, so that a request which waited for it would wait for ever.
#[tokio::test]
async fn a_collector_that_takes_nothing_costs_no_request_and_spans_are_counted() {
    // Its backlog accepts connections, and the little that fits into a socket.
    let unread = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = FakeRails::listen_tcp().await;
    silent.respond_always(Reply::silence());
    let slow = FakeRails::listen_tcp().await;
    let latch = Latch::closed();
    slow.respond_always(accepted().after(&latch));
    for url in [
        format!("http://{}", unread.local_addr().unwrap()),
        silent.address.url(),
        slow.address.url(),
        // Nothing listens there.
        "http://127.0.0.1:1".to_owned(),
    ] {
        let harness = setup_for(&url).text("tracing.timeout", "10m").start().await;
        send(&harness, 20).await;
        eventually("dropped spans", async || harness.metric(DROPPED).await.filter(|count| *count > 0)).await;
        assert_eq!(harness.metric(EXPORTED).await, Some(0), "{url}");
        send(&harness, 5).await;
    }
}

/// Each of these says no for good, so what it was sent has failed, and the next batch is tried all the same.
#[tokio::test]
async fn what_a_collector_refuses_has_failed_and_is_told_once() {
    let html = "Content-Type: text/html\r\n";
    for (name, reply) in [
        ("400", Reply::json(400, "{}")),
        ("401", Reply::json(401, "{}")),
        ("404", Reply::json(404, "{}")),
        ("500", Reply::json(500, "{}")),
        ("301", Reply::new(301, "Location: http://127.0.0.1:1/\r\n", "")),
        ("a page", Reply::new(200, html, "<html>")),
        ("another message", Reply::new(200, "Content-Type: application/x-protobuf\r\n", "\u{1}garbage")),
        ("endless", Reply::new(200, html, "x".repeat(1 << 20))),
    ] {
        // All tests write to one log, which has become long.
        let place = log::position();
        let collector = Collector::start().await;
        collector.server.respond_always(reply);
        let harness = collector.harness().await;
        for nth in 1..=3 {
            harness.send(&refused("failed")).await;
            harness.wait_for_metric(FAILED, nth * SPANS).await;
        }
        collector.server.respond_always(accepted());
        harness.send(&refused("works again")).await;
        harness.wait_for_metric(EXPORTED, SPANS).await;
        harness.send(&refused("works again")).await;
        harness.wait_for_metric(EXPORTED, 2 * SPANS).await;
        assert_eq!(
            (harness.metric(FAILED).await, harness.metric(DROPPED).await),
            (Some(3 * SPANS), Some(0)),
            "{name}"
        );
        let Address::Tcp(address) = &collector.server.address else { panic!() };
        let lines = log::since(place);
        let about = |text: &str| {
            lines.lines().filter(|line| line.contains(text) && line.contains(&address.to_string())).count()
        };
        assert_eq!((about("spans are not exported"), about("spans are exported again")), (1, 1), "{name}");
    }
}

/// The pause is real: that before the first retry is one second, or what the collector asks for.
#[tokio::test]
async fn a_busy_collector_gets_the_same_spans_again() {
    for (name, reply) in [
        ("429", Reply::new(429, "Retry-After: 1\r\n", "")),
        ("503", Reply::json(503, "{}")),
        ("closes the connection", Reply::hang_up()),
        ("is no server", Reply::bytes("SSH-2.0-OpenSSH_9.2\r\n").then_close()),
    ] {
        let collector = Collector::start().await;
        collector
            .server
            .respond_with(move |request| if request.nth == 0 { reply.clone() } else { accepted() });
        let harness = collector.harness().await;
        harness.send(&refused("again")).await;
        let begun = std::time::Instant::now();
        harness.wait_for_metric(EXPORTED, SPANS).await;
        assert!(begun.elapsed().as_millis() > 900, "{name}: {:?}", begun.elapsed());
        let [first, second] = &collector.server.requests()[..] else { panic!("{name}") };
        assert_eq!(first.body, second.body);
        assert_eq!((harness.metric(FAILED).await, harness.metric(DROPPED).await), (Some(0), Some(0)));
    }
}

#[tokio::test]
async fn spans_that_are_rejected_one_by_one_are_counted() {
    let collector = Collector::start().await;
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "too old".to_owned() };
    let answer = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    collector.server.respond_always(Reply::new(200, "Content-Type: application/x-protobuf\r\n", answer));
    let harness = collector.harness().await;
    harness.send(&refused("partial")).await;
    harness.wait_for_metric(EXPORTED, SPANS - 1).await;
    assert_eq!(harness.metric(FAILED).await, Some(1));
    let lines = log::wait_for_lines("the collector rejects 1 spans of a batch: \\\"too old\\\"", 1).await;
    assert_eq!(lines.len(), 1);
}

#[tokio::test]
async fn spans_are_sent_once_there_are_enough_and_at_the_end() {
    let collector = Collector::start().await;
    let mut harness = collector.setup().text("tracing.interval", "1h").start().await;
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..300 {
        connection.exchange(&refused("many")).await;
    }
    collector.server.wait_for_requests(1).await;
    assert_eq!(spans_of(&collector.server.requests()[0]).len(), 512);
    drop(connection);
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await);
    let spans = collector.spans();
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    // One connection was accepted.
    assert_eq!((spans.len(), ids.len()), (601, 601), "the rest was sent at the end");
}

/// It ends after three seconds.
#[tokio::test]
async fn a_silent_collector_does_not_keep_the_gateway_from_stopping() {
    let silent = FakeRails::listen_tcp().await;
    silent.respond_always(Reply::silence());
    let mut harness = setup_for(&silent.address.url()).text("tracing.timeout", "10m").start().await;
    harness.send(&refused("last")).await;
    silent.wait_for_requests(1).await;
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn a_reload_begins_moves_and_ends_the_export() {
    let (rails, first, second) =
        (FakeRails::listen_tcp().await, Collector::start().await, Collector::start().await);
    let setup = Setup::new().set("workers", 1);
    let file = setup.dir.file("railgate.toml");
    let text = setup.config(&rails.address);
    std::fs::write(&file, &text).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    let reload = async |tracing: &str| {
        std::fs::write(&file, format!("{tracing}\n{text}")).unwrap();
        let response = gateway.admin.send(&Request::new("POST", "/reload").json("")).await;
        assert_eq!((response.status, response.json()["restart_needed"].as_array().unwrap().len()), (200, 0));
    };
    let keys = |collector: &Collector, ratio: u8| {
        let url = collector.server.address.url();
        format!("tracing.endpoint = \"{url}\"\ntracing.sample_ratio = {ratio}\ntracing.interval = \"5ms\"")
    };
    gateway.tcp.send(&refused("without")).await;
    reload(&keys(&first, 1)).await;
    gateway.tcp.send(&refused("to-the-first")).await;
    first.trace_of("to-the-first").await;
    reload(&keys(&second, 1)).await;
    gateway.tcp.send(&refused("to-the-second")).await;
    second.trace_of("to-the-second").await;
    reload(&keys(&second, 0)).await;
    gateway.tcp.send(&refused("not-sampled")).await;
    reload("").await;
    let traced =
        refused("off").header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    gateway.tcp.send(&traced).await;
    reload(&keys(&second, 1)).await;
    gateway.tcp.send(&refused("on-again")).await;
    second.trace_of("on-again").await;
    let ids = |collector: &Collector| -> Vec<String> {
        collector
            .spans()
            .iter()
            .filter_map(|span| span.attribute("correlation_id").map(str::to_owned))
            .collect()
    };
    assert_eq!(
        (ids(&first), ids(&second)),
        (vec!["to-the-first".into()], vec!["to-the-second".into(), "on-again".into()])
    );
    gateway.wait_for_metric(EXPORTED, 3 * SPANS).await;
}

/// Else the batch on its way would be lost with each reload.
#[tokio::test]
async fn an_export_goes_on_during_a_reload_unless_the_collector_is_another() {
    let (rails, first, second) =
        (FakeRails::listen_tcp().await, Collector::start().await, Collector::start().await);
    let headers = Setup::new();
    let (file, credential) = (headers.dir.file("railgate.toml"), headers.dir.file("headers"));
    std::fs::write(&credential, "Authorization: Bearer one").unwrap();
    let text = headers.config(&rails.address);
    let write = |collector: &Collector, ratio: &str| {
        let (url, credential) = (collector.server.address.url(), credential.display());
        let tracing = format!(
            "tracing.endpoint = \"{url}\"\ntracing.sample_ratio = {ratio}\ntracing.interval = \"5ms\"\n\
             tracing.headers_file = \"{credential}\"\ntracing.timeout = \"10m\""
        );
        std::fs::write(&file, format!("{tracing}\n{text}")).unwrap();
    };
    write(&first, "1");
    let gateway = RunningGateway::start_with_file(&file);
    let reload = async || {
        let response = gateway.admin.send(&Request::new("POST", "/reload").json("")).await;
        assert_eq!(response.status, 200, "{response}");
    };
    let latch = Latch::closed();
    first.server.respond_always(accepted().after(&latch));
    gateway.tcp.send(&refused("slow")).await;
    first.server.wait_for_requests(1).await;
    // Not a matter of the export: the same file was read again, or another part is sampled.
    for ratio in ["1", "0.5", "1"] {
        write(&first, ratio);
        reload().await;
    }
    latch.open();
    gateway.wait_for_metric(EXPORTED, SPANS).await;
    assert_eq!((gateway.metric(FAILED).await, first.server.request_count()), (Some(0), 1));

    // Another credential, and another endpoint: at once, whatever becomes of the batch.
    for (nth, next) in [(2, &first), (3, &second)] {
        let never = Latch::closed();
        first.server.respond_always(accepted().after(&never));
        gateway.tcp.send(&refused("lost")).await;
        first.server.wait_for_requests(nth).await;
        first.server.respond_always(accepted());
        std::fs::write(&credential, format!("Authorization: Bearer {nth}")).unwrap();
        write(next, "1");
        reload().await;
        gateway.wait_for_metric(FAILED, (nth - 1) * SPANS).await;
    }
    gateway.tcp.send(&refused("moved")).await;
    second.trace_of("moved").await;
    assert_eq!(second.server.last_request().header("authorization"), Some("Bearer 3"));
}

#[tokio::test]
async fn a_collector_may_be_behind_tls_a_path_and_a_unix_socket() {
    let scratch = Setup::new();
    let authority = CertificateAuthority::new();
    let tls = FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await;
    let ca = authority.write_certificate(&scratch.dir, "ca.pem");
    let unix = FakeRails::listen_unix(&scratch.dir.file("collector.sock"));
    let over_tls = tls.address.url().replace("http://127.0.0.1", "https://localhost");
    for (server, url, target) in
        [(&tls, over_tls, "/v1/traces"), (&unix, format!("{}/otlp", unix.address.url()), "/otlp/v1/traces")]
    {
        server.respond_always(accepted());
        let setup = setup_for(&url);
        let setup = if url.starts_with("https") {
            setup.text("tracing.tls.ca_file", ca.to_str().unwrap())
        } else {
            setup
        };
        let harness = setup.start().await;
        harness.send(&refused("elsewhere")).await;
        harness.wait_for_metric(EXPORTED, SPANS).await;
        let request = server.last_request();
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", target));
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(spans_of(&request).len(), SPANS);
    }
    let closing = FakeRails::listen_tcp().await;
    closing.set_behavior(Behavior::CloseOnAccept, |_| Reply::silence());
    let harness = setup_for(&closing.address.url()).start().await;
    send(&harness, 20).await;
    eventually("dropped spans", async || harness.metric(DROPPED).await.filter(|count| *count > 0)).await;
}
