//! Traces: which requests are sampled, what Rails is told, and the spans that are made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use super::client::{Address, Request, eventually};
use super::collector::{Collector, SeenSpan, assert_nested, named, resource_of};
use super::credentials::{SHELL_HEADER, SHELL_SECRET, shell_token};
use super::fake_rails::{Latch, ROOT_KEY, ReceivedRequest, Reply, gitlab};
use super::harness::{RunningGateway, Setup};
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
    harness.wait_for_metric(r#"railgate_tracing_spans_total{result="exported"}"#, spans.len() + 1).await;
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

#[tokio::test]
async fn a_caller_that_does_not_sample_is_followed() {
    let collector = Collector::start().await;
    for (ratio, is_sampled) in [("0", false), ("1", true)] {
        let harness = collector.setup().set("tracing.sample_ratio", ratio).start().await;
        // What the caller says passes as it is, whatever the ratio.
        let request = allowed("not-sampled")
            .header("traceparent", &traceparent("00"))
            .header("tracestate", "rojo=1")
            .header("tracestate", "congo=2");
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!(seen.header("traceparent"), Some(traceparent("00").as_str()));
        assert_eq!(seen.header_values("tracestate"), ["rojo=1", "congo=2"]);
        assert!(log::wait_for_request_line("not-sampled").await.get("trace_id").is_none());
        // And what says nothing is decided here, once for all that follow.
        let (_, seen) = harness.send_forwarded(&allowed(&format!("of-itself-{ratio}"))).await;
        let (trace, _, flags) = told(&seen);
        assert_eq!(flags, if is_sampled { "03" } else { "02" });
        let line = log::wait_for_request_line(&format!("of-itself-{ratio}")).await;
        assert_eq!(line["trace_id"].as_str(), is_sampled.then_some(trace.as_str()));
        harness.send(&discover("sampled").header("traceparent", &traceparent("01"))).await;
        collector.trace_of("sampled").await;
    }
    for span in collector.spans() {
        let id = span.attribute("correlation_id");
        assert!(id != Some("not-sampled") && id != Some("of-itself-0"), "{span:#?}");
    }
}

#[tokio::test]
async fn what_is_no_traceparent_begins_a_new_trace_without_the_old_state() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let long = format!("{}-{}", traceparent("01"), "0".repeat(4_000));
    for (nth, bad) in [
        "",
        "x",
        &traceparent("01").to_uppercase(),
        &traceparent("01").replacen("00-", "ff-", 1),
        &traceparent("01").replace(TRACE, &"0".repeat(32)),
        &traceparent("01").replace(CALLER, &"0".repeat(16)),
        &format!("{}-more", traceparent("01")),
        &long,
        "\u{e9}\u{e9}",
    ]
    .into_iter()
    .enumerate()
    {
        let request =
            allowed(&format!("hostile-{nth}")).header("traceparent", bad).header("tracestate", "rojo=1");
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!(response.status, 200, "{bad}");
        let (trace, _, flags) = told(&seen);
        assert!(trace != TRACE && flags == "03", "{}", seen.head);
        assert_eq!(seen.header_values("tracestate"), Vec::<&str>::new(), "{bad}");
    }
    let twice = allowed("twice")
        .header("traceparent", &traceparent("01"))
        .header("traceparent", &traceparent("00"))
        .header("tracestate", "rojo=1");
    let (_, seen) = harness.send_forwarded(&twice).await;
    assert_ne!(told(&seen).0, TRACE);
    assert_eq!(seen.header("tracestate"), None);
    // A state that cannot be read costs the trace nothing else.
    let many = (0..33).map(|nth| format!("k{nth}=v")).collect::<Vec<_>>().join(",");
    for bad in [many.as_str(), "rojo", "Rojo=1", "rojo=1,rojo=2", "=", &format!("a={}", "v".repeat(257))] {
        let request =
            allowed("bad-state").header("traceparent", &traceparent("01")).header("tracestate", bad);
        let (_, seen) = harness.send_forwarded(&request).await;
        assert_eq!((told(&seen).0.as_str(), seen.header("tracestate")), (TRACE, None), "{bad}");
    }
}

/// A refresh belongs to no caller, and must not say that it does.
#[tokio::test]
async fn a_refresh_has_a_trace_of_its_own_that_links_to_its_cause() {
    let collector = Collector::start().await;
    let setup = collector.setup().text("cache.discover.ttl", "1ms");
    let harness = setup.text("cache.discover.stale_while_revalidate", "1h").start().await;
    harness.send(&discover("before")).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let request =
        discover("traced-stale").header("traceparent", &traceparent("01")).header("tracestate", "a=1");
    let response = harness.send(&request).await;
    assert!(response.cache_status().contains("stale_while_revalidate"), "{response}");
    harness.rails.wait_for_requests(2).await;
    let seen = harness.rails.last_request();
    let (trace, parent, flags) = told(&seen);
    assert!(trace != TRACE && flags == "03", "{}", seen.head);
    assert_eq!(seen.header("tracestate"), None, "it is of the other trace");
    let spans = collector.trace_of("traced-stale").await;
    assert_nested(&spans);
    assert_eq!(named(&spans, "cache").attribute("railgate.cache"), Some("stale_while_revalidate"));
    let server = named(&spans, "GET /api/v4/internal/discover").id.clone();
    let refresh = collector.span_named("refresh").await;
    assert_eq!((refresh.trace.as_str(), refresh.parent.as_str()), (trace.as_str(), ""));
    assert_eq!(refresh.links, [(TRACE.to_owned(), server)]);
    let own: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == trace).collect();
    assert_nested(&own);
    assert_eq!((&named(&own, "GET").parent, &named(&own, "GET").id), (&refresh.id, &parent));
}

/// One request to Rails is in one trace; the others link to it.
#[tokio::test]
async fn a_caller_that_shares_an_answer_links_to_the_request_that_brought_it() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let latch = Latch::closed();
    let waiting = latch.clone();
    harness.rails.respond_with(move |request| gitlab(request).after(&waiting));
    let mut leader =
        harness.start_request(&discover("leader").header("traceparent", &traceparent("01"))).await;
    harness.rails.wait_for_requests(1).await;
    let mut follower = harness.start_request(&discover("follower")).await;
    harness.wait_for_metric("railgate_requests_in_flight", 2).await;
    latch.open();
    leader.read_response().await;
    let shared = follower.read_response().await;
    assert_eq!(shared.cache_status(), "railgate; fwd=miss; collapsed");
    assert_eq!(harness.rails.request_count(), 1);
    let (first, second) = (collector.trace_of("leader").await, collector.trace_of("follower").await);
    assert_nested(&first);
    assert_nested(&second);
    let cache = named(&second, "cache");
    assert_eq!(cache.attribute("railgate.cache"), Some("shared"));
    assert_eq!(cache.links, [(TRACE.to_owned(), named(&first, "cache").id.clone())]);
    assert_ne!(second[0].trace, TRACE);
    assert!(second.iter().all(|span| span.kind != SpanKind::Client), "{second:#?}");
}

#[tokio::test]
async fn a_refusal_says_why() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    harness
        .send(&Request::get("discover?key_id=1").header("X-Request-Id", "refused"))
        .await
        .assert_unauthorized();
    let spans = collector.trace_of("refused").await;
    assert_nested(&spans);
    let authentication = named(&spans, "authenticate");
    assert_eq!(authentication.attribute("error.type"), Some("missing"));
    assert!(authentication.error.is_some());
    let server = named(&spans, "GET /api/v4/internal/discover");
    assert_eq!(server.attribute("error.type"), Some("unauthorized"));
    // It is the client's mistake.
    assert_eq!((server.attribute("http.response.status_code"), &server.error), (Some("401"), &None));
    assert_eq!(spans.len(), 2, "{spans:#?}");

    harness.send(&Request::get("check;a").header("X-Request-Id", "ambiguous")).await.assert_failure(400);
    let spans = collector.trace_of("ambiguous").await;
    let [server] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((server.name.as_str(), server.attribute("http.route")), ("GET", None));

    harness
        .send(&Request::new("ODD", "/api/v4/internal/check").with_secret().header("X-Request-Id", "odd"))
        .await;
    let spans = collector.trace_of("odd").await;
    let server = spans.iter().find(|span| span.kind == SpanKind::Server).unwrap();
    assert_eq!(server.attribute("http.request.method"), Some("_OTHER"));
    assert!(server.name.starts_with("HTTP"), "{server:#?}");
}

#[tokio::test]
async fn each_time_that_a_request_is_sent_has_a_span() {
    let collector = Collector::start().await;
    let harness = collector.setup().set("upstream.resend_percent", 100).start().await;
    harness.rails.respond_with(|request| if request.nth == 0 { Reply::hang_up() } else { gitlab(request) });
    let response = harness.send(&discover("resent")).await;
    assert_eq!(response.status, 200, "{response}");
    let spans = collector.trace_of("resent").await;
    assert_nested(&spans);
    let attempts: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Client).collect();
    let [first, second] = attempts[..] else { panic!("{spans:#?}") };
    assert_eq!(first.attribute("error.type"), Some("upstream_broke_off"));
    assert!(first.error.is_some() && second.error.is_none() && first.end <= second.start);
    assert_eq!(second.attribute("http.request.resend_count"), Some("1"));
    let told: Vec<_> = harness.rails.requests().iter().map(|seen| told(seen).1).collect();
    assert_eq!(told, [first.id.as_str(), second.id.as_str()], "each has a parent of its own");
    let server = named(&spans, "GET /api/v4/internal/discover");
    assert_eq!(server.attribute("railgate.resent"), Some("true"));
}

#[tokio::test]
async fn failures_are_in_the_spans_in_which_they_happened() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    harness.rails.respond_always(Reply::hang_up());
    harness.send(&allowed("broken")).await.assert_failure(502);
    let spans = collector.trace_of("broken").await;
    assert_nested(&spans);
    let server = named(&spans, "POST /api/v4/internal/allowed");
    assert_eq!(server.attribute("error.type"), Some("upstream_broke_off"));
    assert!(server.error.as_ref().is_some_and(|error| !error.is_empty()), "{server:#?}");
    assert_eq!(named(&spans, "POST").attribute("error.type"), Some("upstream_broke_off"));

    harness.rails.respond_always(Reply::json(500, "{}"));
    harness.send(&allowed("internal")).await;
    let spans = collector.trace_of("internal").await;
    for name in ["POST /api/v4/internal/allowed", "POST"] {
        let span = named(&spans, name);
        assert_eq!((span.attribute("error.type"), span.error.is_some()), (Some("500"), true), "{span:#?}");
    }

    // Nothing listens there.
    let gateway = RunningGateway::start(collector.setup().settings(&Address::parse("127.0.0.1:1")));
    gateway.tcp.send(&allowed("away")).await.assert_failure(503);
    let spans = collector.trace_of("away").await;
    assert_nested(&spans);
    assert_eq!(named(&spans, "POST").attribute("error.type"), Some("connect"));
    assert!(named(&spans, "connect").error.as_ref().is_some_and(|error| error.contains("refused")));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_spans() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    harness.rails.respond_always(Reply::silence());
    let connection = harness.start_request(&allowed("left")).await;
    harness.rails.wait_for_requests(1).await;
    drop(connection);
    let server = |span: &SeenSpan| span.attribute("correlation_id") == Some("left");
    let trace = eventually("the span", async || collector.spans().into_iter().find(server)).await.trace;
    // The request to Rails ends a moment later.
    let attempt =
        async || collector.spans().into_iter().find(|span| span.trace == trace && span.name == "POST");
    let attempt = eventually("the span of the request to Rails", attempt).await;
    assert_eq!(attempt.error.as_deref(), Some("given up"));
    let spans = collector.trace_of("left").await;
    let server = named(&spans, "POST /api/v4/internal/allowed");
    assert_eq!(server.attribute("railgate.client_left"), Some("true"));
}

#[tokio::test]
async fn a_wait_for_a_permit_has_a_span() {
    let collector = Collector::start().await;
    let setup = collector.setup().set("upstream.classes.access.concurrency", 1);
    let harness = setup.text("upstream.classes.access.queue_timeout", "10m").start().await;
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(move |request| gitlab(request).after(&held));
    let mut first = harness.start_request(&allowed("first")).await;
    harness.rails.wait_for_requests(1).await;
    let mut second = harness.start_request(&allowed("second")).await;
    harness.wait_for_metric(r#"railgate_upstream_queue{class="access"}"#, 1).await;
    latch.open();
    assert_eq!((first.read_response().await.status, second.read_response().await.status), (200, 200));
    let spans = collector.trace_of("second").await;
    assert_nested(&spans);
    let (queue, attempt) = (named(&spans, "queue"), named(&spans, "POST"));
    assert!(queue.end <= attempt.start && queue.error.is_none(), "{spans:#?}");
    assert!(collector.trace_of("first").await.iter().all(|span| span.name != "queue"));
}

/// The bytes themselves are searched, whatever they mean.
#[tokio::test]
async fn nothing_secret_is_exported() {
    let collector = Collector::start().await;
    let file = Setup::new();
    std::fs::write(file.dir.file("headers"), "Authorization: Bearer of-the-collector\n").unwrap();
    let setup = collector.setup().text("tracing.headers_file", file.dir.file("headers").to_str().unwrap());
    let harness = setup.start().await;
    let token = shell_token(&json!({}));
    let requests = [
        Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret(),
        Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret(),
        Request::get(&format!("authorized_keys?key={ROOT_KEY}&secret_token={SHELL_SECRET}")),
        Request::get(&format!("authorized_keys?key={ROOT_KEY};secret_token={SHELL_SECRET}")),
        Request::get("discover?username=canary-user").with_secret(),
        Request::get("canary-path/canary-more?canary=1").with_secret(),
        Request::post("allowed").form(&format!("secret_token={SHELL_SECRET}&changes=canary-body")),
        Request::post("allowed").header(SHELL_HEADER, &token).json(r#"{"canary":"canary-body"}"#),
        Request::new("CANARY", "/api/v4/internal/check").with_secret(),
        Request::get("check")
            .with_secret()
            .header("Cookie", "canary-cookie")
            .header("X-Canary", "canary-header"),
    ];
    let count = requests.len();
    for (nth, request) in requests.into_iter().enumerate() {
        harness.send(&request.header("X-Request-Id", &format!("secret-{nth}"))).await;
    }
    for nth in 0..count {
        collector.trace_of(&format!("secret-{nth}")).await;
    }
    let encoded = STANDARD.encode(SHELL_SECRET);
    let key: String = ROOT_KEY.chars().skip(24).take(24).collect();
    for request in collector.server.requests() {
        assert_eq!(request.header("authorization"), Some("Bearer of-the-collector"));
        let bytes = String::from_utf8_lossy(&request.body).to_ascii_lowercase();
        let parts = token.split('.').skip(1).map(str::to_owned);
        for secret in [SHELL_SECRET.to_owned(), encoded.clone(), key.clone(), "canary".to_owned()]
            .into_iter()
            .chain(parts)
        {
            assert!(!bytes.contains(&secret.to_ascii_lowercase()), "{secret} in {bytes}");
        }
    }
    let lines = log::since(0);
    assert!(!lines.contains("of-the-collector"));
}

/// Whoever can connect could fill the collector otherwise.
#[tokio::test]
async fn a_client_without_a_credential_cannot_have_its_requests_sampled() {
    let collector = Collector::start().await;
    let harness = collector.setup().set("tracing.sample_ratio", 0).start().await;
    let traced = |request: Request, id: &str| {
        let request = request.header("traceparent", &traceparent("01")).header("tracestate", "rojo=1");
        request.header("X-Request-Id", id)
    };
    let wrong = Request::get("discover?key_id=1").header("Gitlab-Shared-Secret", "eHh4");
    harness.send(&traced(wrong, "untrusted-1")).await.assert_unauthorized();
    harness.send(&traced(Request::get("check;a"), "untrusted-2")).await.assert_failure(400);
    // Rails decides about this one, and about its trace too.
    let (_, seen) = harness.send_forwarded(&traced(Request::get("pages/status"), "untrusted-3")).await;
    assert_eq!(seen.header("traceparent"), Some(traceparent("01").as_str()));
    assert_eq!(seen.header("tracestate"), Some("rojo=1"));
    for nth in 1..=3 {
        let line = log::wait_for_request_line(&format!("untrusted-{nth}")).await;
        assert!(line.get("trace_id").is_none(), "{line}");
    }
    harness.send(&traced(Request::get("discover?key_id=1").with_secret(), "trusted")).await;
    collector.trace_of("trusted").await;
    let others = collector.spans().into_iter().filter(|span| span.kind == SpanKind::Server);
    assert_eq!(others.count(), 1, "{:#?}", collector.spans());
}

/// It comes before the request, of which it is a part all the same.
#[tokio::test]
async fn the_first_request_of_a_connection_shows_its_accept() {
    let collector = Collector::start().await;
    let harness = collector.harness().await;
    let mut connection = harness.gateway.tcp.connect().await;
    for (id, is_first) in [("first", true), ("second", false)] {
        connection.write(&discover(id).to_bytes("keep-alive")).await;
        assert_eq!(connection.read_response().await.status, 200);
        let spans = collector.whole_trace_of(id).await;
        let server = named(&spans, "GET /api/v4/internal/discover");
        let accepts: Vec<_> = spans.iter().filter(|span| span.name == "accept").collect();
        assert_eq!(accepts.len(), usize::from(is_first), "{spans:#?}");
        for accept in accepts {
            assert_eq!(accept.parent, server.id);
            assert!(accept.start <= accept.end && accept.end <= server.start, "{spans:#?}");
        }
    }
    // Not that of a request before, which was not sampled.
    let mut connection = harness.gateway.tcp.connect().await;
    let unsampled = discover("unsampled").header("traceparent", &traceparent("00"));
    for request in [unsampled, discover("sampled")] {
        connection.write(&request.to_bytes("keep-alive")).await;
        assert_eq!(connection.read_response().await.status, 200);
    }
    let spans = collector.whole_trace_of("sampled").await;
    assert!(spans.iter().all(|span| span.name != "accept"), "{spans:#?}");
}

#[tokio::test]
async fn comparisons_with_rails_have_traces_of_their_own() {
    let collector = Collector::start().await;
    let setup = collector.setup().set("cache.shadow.one_in", 1).set("cache.shadow.max_per_second", 10_000);
    let harness = setup.text("cache.shadow.slow", "1h").start().await;
    harness.send(&discover("kept")).await;
    let hit = harness.send(&discover("compared").header("traceparent", &traceparent("01"))).await;
    assert!(hit.is_hit(), "{hit}");
    let check = collector.span_named("shadow check").await;
    let cause = collector.trace_of("compared").await;
    let server = named(&cause, "GET /api/v4/internal/discover");
    assert_eq!((check.parent.as_str(), &check.links), ("", &vec![(TRACE.to_owned(), server.id.clone())]));
    assert_ne!(check.trace, TRACE);
    let (trace, _, _) = told(&harness.rails.last_request());
    assert_eq!(trace, check.trace);
}
