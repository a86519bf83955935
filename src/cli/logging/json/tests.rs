use super::*;
use crate::cli::logging::queue::QUEUE_LIMITS;
use futures_util::FutureExt as _;
use http::HeaderMap;
use railgate::header::RequestId;
use railgate::request_span::{self, RequestSpan};
use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt as _;

#[test]
fn every_kind_of_field_is_written_as_json() {
    let nothing: Option<u64> = None;
    let written = logged(|| {
        tracing::warn!(
            text = "a \"quoted\" line\n\u{1}\u{e9}",
            count = 7_u64,
            below = -7_i64,
            seconds = 0.25,
            not_finite = f64::NAN,
            yes = true,
            shown = %"[::1]",
            debug = ?Some("x"),
            nothing,
            "it happened"
        );
    });
    let first = written.lines().next().unwrap();
    let mut parsed: Value = serde_json::from_str(first).unwrap();
    let timestamp = parsed.as_object_mut().unwrap().remove("timestamp").unwrap();
    let timestamp = timestamp.as_str().unwrap();
    assert_eq!((timestamp.len(), timestamp.get(19..20)), (27, Some(".")), "{timestamp}");
    let expected = json!({
        "level": "WARN", "message": "it happened", "text": "a \"quoted\" line\n\u{1}\u{e9}", "count": 7,
        "below": -7, "seconds": 0.25, "not_finite": null, "yes": true, "shown": "[::1]",
        "debug": "Some(\"x\")"
    });
    assert_eq!(parsed, expected);
    assert_eq!(written.lines().count(), 1);
}

/// The lines of the events of `act`.
fn logged(act: impl FnOnce()) -> String {
    logged_by(JsonLayer::new, act)
}

/// The same as another layer formats them.
pub(in crate::cli::logging) fn logged_by<L>(layer: fn(Arc<LogQueue>) -> L, act: impl FnOnce()) -> String
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
{
    let queue = Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::default()));
    let subscriber = tracing_subscriber::registry().with(layer(Arc::clone(&queue)));
    tracing::subscriber::with_default(subscriber, act);
    queue.waiting()
}

/// Two events of a request, the second with a field that its span has too, and one behind it.
pub(in crate::cli::logging) fn log_events_of_a_request() {
    let headers = HeaderMap::from_iter([("x-request-id".parse().unwrap(), "abc-1".parse().unwrap())]);
    let request = RequestSpan { request_id: RequestId::from_headers(&headers), route: "allowed" };
    let logging = async {
        let _span = request_span::current().entered();
        tracing::warn!(count = 7, "it happened");
        tracing::warn!(route = "discover", "it happened");
    };
    assert_eq!(request.around(logging).now_or_never(), Some(()));
    let _span = request_span::current().entered();
    tracing::warn!(count = 7, "it happened");
}

#[test]
fn an_event_about_a_request_names_it() {
    let written = logged(log_events_of_a_request);
    let lines = [
        r#""count":7,"correlation_id":"abc-1","route":"allowed"}"#,
        r#""route":"discover","correlation_id":"abc-1"}"#,
        r#""count":7}"#,
    ];
    assert_eq!(written.lines().count(), lines.len(), "{written}");
    for (line, fields) in written.lines().zip(lines) {
        let expected = format!(r#""level":"WARN","message":"it happened",{fields}"#);
        assert!(line.ends_with(&expected), "{line}");
    }
}

#[test]
fn a_long_line_is_cut_and_stays_json() {
    for text in ["x", "\"", "\n", "\u{1}", "\u{7f}", "é", "\u{2028}"] {
        let text = text.repeat(70_000);
        let line = logged(|| tracing::warn!(text, count = 7, shown = %text, behind = "short", "it happened"));
        assert!((MAX_WITH_TEXT - 6..MAX_LINE).contains(&line.len()), "{}", line.len());
        let parsed: Value = serde_json::from_str(&line).unwrap();
        let kept = |field: &str| parsed[field].as_str().unwrap();
        assert!(text.starts_with(kept("text")) && !kept("text").is_empty());
        let all = 2 * text.len() + "short".len();
        let cut = all - kept("text").len() - kept("shown").len() - kept("behind").len();
        assert_eq!((&parsed["cut_bytes"], &parsed["count"]), (&json!(cut), &json!(7)));
        assert_eq!(kept("message"), "it happened");
    }
    // Long, but not too long.
    let line = logged(|| tracing::warn!(text = "\u{1}".repeat(2_200)));
    let parsed: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((parsed["text"].as_str().unwrap().len(), parsed.get("cut_bytes")), (2_200, None));
}

#[test]
fn the_timestamp_is_rfc_3339_to_the_microsecond() {
    let mut buffer = LineBuffer::default();
    for (now, begin) in [
        (Duration::from_micros(1_795_651_199_000_042), "2026-11-25T23:59:59.000042Z"),
        (Duration::from_micros(1_795_651_200_999_999), "2026-11-26T00:00:00.999999Z"),
        (Duration::from_micros(951_782_400_100_000), "2000-02-29T00:00:00.100000Z"),
    ] {
        buffer.write(now, Level::INFO, |_| {});
        let line = format!("{{\"timestamp\":\"{begin}\",\"level\":\"INFO\"}}\n");
        assert_eq!(String::from_utf8_lossy(&buffer.line), line);
    }
}
