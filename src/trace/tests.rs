use std::time::Duration;

use super::*;
use crate::clock::ManualClock;

fn tracer(ratio: f64) -> (Tracer, Arc<SpanQueue>, ManualClock) {
    let (queue, clock) = (Arc::new(SpanQueue::new(2)), ManualClock::at(1_000));
    queue.set_max(4);
    (Tracer::new(Arc::clone(&queue), Clock::Manual(clock.clone()), ratio), queue, clock)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-b7ad6b7169203331-{flags}")
}

#[test]
fn the_decision_of_the_caller_counts_and_without_one_the_ratio() {
    for ratio in [0.0, 1.0] {
        let (tracer, ..) = tracer(ratio);
        let mut sampled = headers(&[("traceparent", &traceparent("01")), ("tracestate", "a=1")]);
        let RequestTrace::Sampled(record) = tracer.begin(&mut sampled) else { panic!("{ratio}") };
        assert_eq!(record.span.context.trace_id.to_string(), TRACE);
        assert_ne!(record.parent, Some(record.span.context.span_id));
        assert_eq!(record.parent.unwrap().to_string(), "b7ad6b7169203331");
        assert_eq!(record.tracestate.unwrap(), "a=1");
        let mut unsampled = headers(&[("traceparent", &traceparent("00")), ("tracestate", "a=1")]);
        assert!(matches!(tracer.begin(&mut unsampled), RequestTrace::NotSampled(None)));
        assert_eq!(unsampled.len(), 2, "they pass through");
        for mut none in [
            headers(&[]),
            headers(&[("traceparent", "00-zz"), ("tracestate", "a=1")]),
            headers(&[("traceparent", &traceparent("01").to_uppercase())]),
            headers(&[("traceparent", &traceparent("01")), ("traceparent", &traceparent("01"))]),
        ] {
            match tracer.begin(&mut none) {
                RequestTrace::Sampled(record) if ratio > 0.5 => {
                    assert!(record.parent.is_none() && record.tracestate.is_none());
                    assert_ne!(record.span.context.trace_id.to_string(), TRACE);
                }
                RequestTrace::NotSampled(Some(context)) if ratio < 0.5 => assert!(!context.is_sampled()),
                other => panic!("{ratio}: {other:?}"),
            }
            assert!(none.is_empty(), "what cannot be used is removed");
        }
    }
}

#[test]
fn about_the_ratio_of_new_traces_is_sampled() {
    let (tracer, ..) = tracer(0.25);
    let is_sampled = || matches!(tracer.begin(&mut HeaderMap::new()), RequestTrace::Sampled(_));
    let sampled = (0..10_000).filter(|_| is_sampled()).count();
    assert!((2_200..2_800).contains(&sampled), "{sampled}");
}

/// All who can connect can send any of these. With the same id again and again, each has the odds of any other request.
#[test]
fn a_caller_that_is_not_trusted_cannot_choose_to_be_sampled() {
    let (tracer, ..) = tracer(0.25);
    // By the first id the ratio would always decide for it, and by the second one never.
    for id in ["00000000000000010000000000000000", "0000000000000001ffffffffffffffff"] {
        let value = format!("00-{id}-b7ad6b7169203331-01");
        let mut sampled = 0;
        for _ in 0..10_000 {
            let mut headers = headers(&[("traceparent", &value), ("tracestate", "a=1")]);
            let mut trace = tracer.begin(&mut headers);
            let believed = trace.sampled_id().unwrap();
            assert!(value.contains(&believed.to_string()), "{believed}");
            trace.distrust_caller();
            // Once more, as when it is refused after it was forwarded.
            let first = trace.sampled_id();
            trace.distrust_caller();
            assert_eq!(trace.sampled_id(), first);
            match trace {
                RequestTrace::Sampled(record) => {
                    sampled += 1;
                    assert_ne!(record.span.context.trace_id, believed);
                    assert!(record.parent.is_none() && record.tracestate.is_none(), "{record:?}");
                }
                RequestTrace::NotSampled(None) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((2_200..2_800).contains(&sampled), "{value}: {sampled}");
    }
    // Without a trace of its caller, a request keeps what was decided.
    let mut own = self::tracer(1.0).0.begin(&mut HeaderMap::new());
    let id = own.sampled_id();
    own.distrust_caller();
    assert!(id.is_some() && own.sampled_id() == id);
}

#[test]
fn a_span_has_the_times_of_the_monotonic_clock() {
    let (tracer, queue, clock) = tracer(1.0);
    let RequestTrace::Sampled(record) = tracer.begin(&mut HeaderMap::new()) else { panic!() };
    let span = ActiveSpan::begin(&record.span, "outer", SpanKind::Internal);
    clock.advance(Duration::from_secs(2));
    clock.step_wall(-500);
    let inner = ActiveSpan::begin(&span.as_parent().unwrap(), "inner", SpanKind::Client);
    clock.advance(Duration::from_secs(3));
    drop(inner);
    span.end(None);
    let [inner, outer] = queue.take().try_into().unwrap();
    let seconds = |span: &Span| (span.start.as_secs(), span.end.as_secs());
    assert_eq!((seconds(&outer), seconds(&inner)), ((1_000, 1_005), (1_002, 1_005)));
    assert_eq!(inner.parent, Some(outer.context.span_id));
    assert_eq!(outer.parent, Some(record.span.context.span_id));
    // Dropped without an end, so its work was given up.
    assert_eq!((inner.error.as_deref(), outer.error), (Some("given up"), None));
}

#[test]
fn what_runs_in_the_background_has_a_trace_of_its_own() {
    let (tracer, queue, _) = tracer(1.0);
    let cause = tracer.begin(&mut HeaderMap::new());
    let (trace, span) = cause.of_background("refresh");
    assert_ne!(trace.sampled_id(), cause.sampled_id());
    let RequestTrace::Sampled(record) = &trace else { panic!("{trace:?}") };
    let root = span.unwrap();
    assert_eq!(root.as_parent().unwrap().context, record.span.context);
    root.end(None);
    let [root] = queue.take().try_into().unwrap();
    assert_eq!((Some(root.links[0].trace_id), root.parent), (cause.sampled_id(), None));
    for other in [RequestTrace::Off, RequestTrace::NotSampled(None)] {
        let (trace, span) = other.of_background("refresh");
        assert!(trace.sampled_id().is_none() && span.is_none());
    }
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (tracer, queue, _) = tracer(1.0);
    let RequestTrace::Sampled(record) = tracer.begin(&mut HeaderMap::new()) else { panic!() };
    let now = record.span.now();
    let push = |count| record.span.export(vec![record.span.part("span", now, now); count]);
    push(3);
    push(2);
    assert_eq!(
        (queue.len(), queue.results().get(SpanResult::Dropped)),
        (3, 2),
        "a trace is whole or not there"
    );
    push(1);
    push(1);
    assert_eq!((queue.len(), queue.results().get(SpanResult::Dropped)), (4, 3));
    assert_eq!((queue.take().len(), queue.take().len(), queue.take().len()), (2, 2, 0), "in batches");
    assert!(queue.is_empty());
}

#[tokio::test]
async fn an_exporter_is_woken_by_a_whole_batch() {
    let (tracer, queue, _) = tracer(1.0);
    let RequestTrace::Sampled(record) = tracer.begin(&mut HeaderMap::new()) else { panic!() };
    let now = record.span.now();
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.wait_for_batch().await }
    });
    tokio::task::yield_now().await;
    record.span.export(vec![record.span.part("span", now, now)]);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    record.span.export(vec![record.span.part("span", now, now)]);
    waiting.await.unwrap();
}

#[test]
fn an_attempt_names_its_server_and_how_often_it_was_sent() {
    let (tracer, queue, _) = tracer(1.0);
    let RequestTrace::Sampled(record) = tracer.begin(&mut HeaderMap::new()) else { panic!() };
    let trace = SendTrace::new(record.parent_of_requests(), "GET", "/x?key=[FILTERED]".to_owned());
    for (scheme, server, expected) in [
        ("http", "127.0.0.1:8080", ["127.0.0.1", "8080", "-", "http://127.0.0.1:8080/x?key=[FILTERED]"]),
        ("https", "[::1]:443", ["::1", "443", "1", "https://[::1]:443/x?key=[FILTERED]"]),
        ("http", "unix:/run/a:1.sock", ["/run/a:1.sock", "-", "2", "http://localhost/x?key=[FILTERED]"]),
    ] {
        trace.begin_attempt(scheme, server).end(None);
        let [span] = queue.take().try_into().unwrap();
        let shown = |key: &str| {
            let value = span.attributes.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
            value.map_or("-".to_owned(), |value| match value {
                AttributeValue::Text(text) => text.clone(),
                AttributeValue::Integer(number) => number.to_string(),
                AttributeValue::Boolean(flag) => flag.to_string(),
            })
        };
        let keys = ["server.address", "server.port", "http.request.resend_count", "url.full"];
        assert_eq!(keys.map(shown), expected);
    }
}
