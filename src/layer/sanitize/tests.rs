use super::*;
use crate::body::Body;
use crate::layer::testing::{is_idle, mock_service};
use crate::server::ConnectionHandle;
use http::Request;
use tower::ServiceExt as _;

fn exchange(path: &str, headers: &[(&str, &str)]) -> Exchange {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Exchange::new(request.body(Body::empty()).unwrap(), None, ConnectionHandle::default())
}

/// The reason why the layer refuses a request; `None` if it passes it on.
async fn refusal(exchange: Exchange) -> Option<Refusal> {
    let (inner, mut handle) = mock_service();
    let layer = SanitizeLayer::new("/git/lab", Pseudonym::random());
    let call = tokio::spawn(layer.layer(inner).oneshot(exchange));
    if !is_idle(&mut handle).await {
        return None;
    }
    match call.await.unwrap() {
        Err(Failure::Refused(refusal)) => Some(refusal),
        other => unreachable!("{other:?}"),
    }
}

#[tokio::test]
async fn unambiguous_requests_pass() {
    for path in [
        "/",
        "/a/b.c",
        "/a/",
        "/a?b=//../%2e;x",
        "/a%20b",
        "/%C3%A9",
        "/...",
        "/a/..b",
        "/git/lab//a",
        "/git/lab////",
    ] {
        assert_eq!(refusal(exchange(path, &[("host", "a")])).await, None, "{path}");
    }
    for host in ["a", "a:80", "a:", "127.0.0.1:8181", "[::1]:80", "[::1]:", "unix", "localhost"] {
        assert_eq!(refusal(exchange("/", &[("host", host)])).await, None, "{host}");
    }
}

#[tokio::test]
async fn ambiguous_paths_are_refused() {
    for (path, expected) in [
        ("//", Refusal::EmptySegment),
        ("/a//b", Refusal::EmptySegment),
        ("/git//lab/a", Refusal::EmptySegment),
        ("/git/lab/a//b", Refusal::EmptySegment),
        ("/git/lab//a//b", Refusal::EmptySegment),
        ("/git/labs//a", Refusal::EmptySegment),
        ("/git/lab//../a", Refusal::DotSegment),
        ("/git/lab//%2e", Refusal::EncodedPath),
        ("/a/.", Refusal::DotSegment),
        ("/a/../b", Refusal::DotSegment),
        ("/..", Refusal::DotSegment),
        ("/a;b", Refusal::PathParameter),
        ("/a/b;c=d/e", Refusal::PathParameter),
        ("/a%2fb", Refusal::EncodedPath),
        ("/a%2Fb", Refusal::EncodedPath),
        ("/a%5cb", Refusal::EncodedPath),
        ("/%2e%2e/a", Refusal::EncodedPath),
        ("/%61llowed", Refusal::EncodedPath),
        ("/%41", Refusal::EncodedPath),
        ("/a%00", Refusal::EncodedPath),
        ("/a%0a", Refusal::EncodedPath),
        ("/a%252f", Refusal::EncodedPath),
        ("/a%3bb", Refusal::EncodedPath),
        ("/a%3fb", Refusal::EncodedPath),
        ("/a%", Refusal::EncodedPath),
        ("/a%2", Refusal::EncodedPath),
        ("/a%zz", Refusal::EncodedPath),
    ] {
        assert_eq!(refusal(exchange(path, &[("host", "a")])).await, Some(expected), "{path}");
    }
}

#[tokio::test]
async fn exactly_one_valid_host_is_needed() {
    let none: &[(&str, &str)] = &[];
    assert_eq!(refusal(exchange("/", none)).await, Some(Refusal::Host));
    assert_eq!(refusal(exchange("/", &[("host", "a"), ("host", "a")])).await, Some(Refusal::Host));
    for host in ["", "a b", "a/b", "user@a", "a:b", "a::", "a:80:", "a:99999", ":", ":80", "a,b?"] {
        assert_eq!(refusal(exchange("/", &[("host", host)])).await, Some(Refusal::Host), "{host:?}");
    }
    let old = |headers| {
        let mut exchange = exchange("/", headers);
        *exchange.request.version_mut() = Version::HTTP_10;
        refusal(exchange)
    };
    for (headers, refused) in [
        (none, None),
        (&[("host", "a")], None),
        (&[("host", "")], Some(Refusal::Host)),
        (&[("host", "a"), ("host", "a")], Some(Refusal::Host)),
    ] {
        assert_eq!(old(headers).await, refused, "{headers:?}");
    }
}

/// Also behind other proxies.
#[tokio::test]
async fn the_gateways_own_request_is_a_loop() {
    let (own, other) = (Pseudonym::random(), Pseudonym::random());
    let layer = SanitizeLayer::new("", own.clone());
    for (passed, is_loop) in [
        (vec![], false),
        (vec![&other], false),
        (vec![&own], true),
        (vec![&own, &other], true),
        (vec![&other, &own], true),
    ] {
        let mut exchange = exchange("/api/v4/internal/check", &[("host", "a"), ("via", "1.1 nginx")]);
        for name in &passed {
            name.add_to(exchange.request.headers_mut());
        }
        let (inner, mut handle) = mock_service();
        let call = tokio::spawn(layer.layer(inner).oneshot(exchange));
        assert_eq!(is_idle(&mut handle).await, is_loop, "{passed:?}");
        if is_loop {
            assert!(matches!(call.await.unwrap(), Err(Failure::Loop)));
        }
    }
}

#[tokio::test]
async fn headers_that_the_gateway_interprets_occur_once() {
    for name in ["content-type", "authorization", "gitlab-shared-secret", "gitlab-shell-api-request"] {
        let headers = [("host", "a"), (name, "x"), (name, "x")];
        assert_eq!(refusal(exchange("/", &headers)).await, Some(Refusal::RepeatedHeader), "{name}");
    }
    let others = [("host", "a"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")];
    assert_eq!(refusal(exchange("/", &others)).await, None);
}

#[tokio::test]
async fn a_refusal_of_the_server_keeps_its_reason() {
    for reason in Refusal::ALL {
        let refused = Exchange { refusal: Some(*reason), ..exchange("/", &[("host", "a")]) };
        assert_eq!(refusal(refused).await, Some(*reason));
    }
}

#[test]
fn headers_that_no_client_may_set_are_removed() {
    let mut headers: HeaderMap = exchange(
        "/",
        &[
            ("gitlab_shared_secret", "x"),
            ("gitlab-shared_secret", "x"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x-sendfile-type", "X-Accel-Redirect"),
            ("gitlab-shared-secret", "kept"),
            ("x-forwarded-for", "kept"),
        ],
    )
    .request
    .headers()
    .clone();
    remove_spoofed(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["gitlab-shared-secret", "x-forwarded-for"]);
}
