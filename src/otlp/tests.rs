use super::*;
use http::StatusCode;

#[test]
fn a_retry_waits_as_long_as_the_collector_asks_for() {
    let busy = |seconds| ExportError::Status(StatusCode::TOO_MANY_REQUESTS, Duration::from_secs(seconds));
    for (error, least, most) in [
        (busy(0), 2.0, 2.4),
        (busy(1), 2.0, 2.4),
        (busy(30), 30.0, 36.0),
        (ExportError::Timeout(Duration::from_secs(10)), 2.0, 2.4),
    ] {
        let pause = pause_before_retry(Duration::from_secs(2), &error).as_secs_f64();
        assert!((least..=most + 1e-6).contains(&pause), "{error:?}: {pause}");
    }
}

#[test]
fn an_error_says_what_to_look_at_and_whether_to_try_again() {
    let status = |code| ExportError::Status(StatusCode::from_u16(code).unwrap(), Duration::ZERO);
    for (error, words, is_transient) in [
        (ExportError::Failed("no connection: refused".to_owned()), "check tracing.endpoint", true),
        (ExportError::Timeout(Duration::from_secs(10)), "tracing.timeout", true),
        (status(401), "tracing.headers_file", false),
        (status(403), "tracing.headers_file", false),
        (status(404), "check tracing.endpoint", false),
        (status(301), "check tracing.endpoint", false),
        (status(400), "check tracing.endpoint", false),
        (status(500), "check tracing.endpoint", false),
        (status(429), "answers 429", true),
        (status(503), "answers 503", true),
        (ExportError::Foreign, "4317 is gRPC", false),
    ] {
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
}

#[test]
fn headers_are_the_same_if_all_their_values_are() {
    let headers = |pairs: &[(&'static str, &'static str)]| {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        CollectorHeaders(pairs.collect::<http::HeaderMap>())
    };
    let one = headers(&[("a", "1"), ("b", "2"), ("b", "3")]);
    assert_eq!(one, headers(&[("b", "2"), ("b", "3"), ("a", "1")]));
    for other in [
        &[][..],
        &[("a", "1"), ("b", "2")],
        &[("a", "1"), ("b", "3"), ("b", "2")],
        &[("a", "1"), ("a", "2"), ("b", "3")],
        &[("a", "1"), ("b", "2"), ("b", "4")],
        &[("a", "1"), ("b", "2"), ("c", "3")],
        &[("a", "1"), ("b", "2"), ("b", "3"), ("c", "4")],
    ] {
        assert_ne!(one, headers(other), "{other:?}");
    }
}
