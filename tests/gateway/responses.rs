//! Responses of Rails reach the client unchanged, whatever their status.

use super::client::Request;
use super::fake_rails::Reply;
use super::harness::Harness;
use super::log;

const ALLOWED: [(u16, &str, &str); 16] = [
    (200, "", r#"{"status":true,"gl_id":"user-1","gitaly":{"token":"t"},"gl_console_messages":["é"]}"#),
    (300, "", r#"{"status":true,"payload":{"action":"geo_proxy_to_primary","data":{"a":[1]}}}"#),
    (301, "Location: http://evil.example/\r\n", r#"{"message":"moved"}"#),
    (302, "Location: /api/v4/internal/other\r\n", ""),
    (303, "Location: /\r\n", "x"),
    (307, "Location: http://127.0.0.1:1/\r\n", "x"),
    (308, "Location: /\r\n", "x"),
    (400, "Cache-Control: no-cache\r\n", r#"{"error":"action is missing"}"#),
    (401, "Cache-Control: no-cache\r\n", r#"{"status":false,"message":"You may not"}"#),
    (403, "", r#"{"message":"403 Forbidden"}"#),
    (404, "", r#"{"status":false,"message":"The project you were looking for could not be found."}"#),
    (415, "", r#"{"error":"The provided content-type 'x' is not supported."}"#),
    (
        429,
        "Retry-After: 60\r\n",
        r#"{"message":{"error":"This endpoint has been requested too many times."}}"#,
    ),
    (500, "", r#"{"status":false,"message":"Unknown check result"}"#),
    (503, "Retry-After: 5\r\n", r#"{"status":false,"message":"timed out"}"#),
    (599, "", "<html>"),
];

#[tokio::test]
async fn every_status_and_body_is_forwarded_and_redirects_are_not_followed() {
    let harness = Harness::new().await;
    for (status, more, body) in ALLOWED {
        let headers = format!("Content-Type: application/json\r\nX-Of-Rails: 1\r\n{more}");
        for reply in [Reply::new(status, &headers, body), Reply::in_chunks(status, &headers, body, 10)] {
            harness.rails.respond_always(reply);
            for request in [
                Request::post("allowed").with_secret().json(r#"{"action":"git-upload-pack"}"#),
                // A cache fill too.
                Request::get("discover?key_id=9").with_secret(),
            ] {
                let (response, _) = harness.send_forwarded(&request).await;
                assert_eq!((response.status, response.text()), (status, body), "{response}");
                assert_eq!(response.header("content-type"), Some("application/json"));
                assert_eq!(response.header("x-of-rails"), Some("1"));
                for line in more.split_terminator("\r\n") {
                    let (name, value) = line.split_once(": ").unwrap();
                    assert_eq!(response.header(name), Some(value), "{response}");
                }
                assert_eq!(response.header_values("retry-after").len(), more.matches("Retry-After").count());
            }
        }
    }
}

/// It is not guessed, changed or added.
#[tokio::test]
async fn the_content_type_is_forwarded_unchanged() {
    let harness = Harness::new().await;
    for kind in ["application/json", "application/json; charset=utf-8", "text/html", "a/b"] {
        harness.rails.respond_always(Reply::new(200, &format!("Content-Type: {kind}\r\n"), "{}"));
        let (response, _) = harness.send_forwarded(&Request::post("allowed").with_secret()).await;
        assert_eq!(response.header("content-type"), Some(kind));
    }
    harness.rails.respond_always(Reply::new(200, "", "{}"));
    let (response, _) = harness.send_forwarded(&Request::post("allowed").with_secret()).await;
    assert_eq!(response.header("content-type"), None);
}

#[tokio::test]
async fn responses_on_a_kept_connection_match_their_requests() {
    let harness = Harness::with(|request| Reply::json(200, &format!("{:?}", request.target))).await;
    let mut connection = harness.gateway.tcp.connect().await;
    for index in 0..100 {
        let request = Request::post(&format!("allowed?n={index}")).with_secret();
        assert_eq!(connection.exchange(&request).await.text(), format!("{:?}", request.target));
    }
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let harness = Harness::new().await;
    // Not cacheable: the HEAD is forwarded as a HEAD.
    harness
        .rails
        .respond_always(Reply::bytes("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 1234\r\n\r\n"));
    let request = Request::new("HEAD", "/api/v4/internal/lfs?oid=1").with_secret();
    let (response, seen) = harness.send_forwarded(&request).await;
    assert_eq!((response.status, response.header("content-length")), (200, Some("1234")));
    assert_eq!(seen.method, "HEAD");
    // Both connections are still in sync.
    let mut connection = harness.gateway.tcp.connect().await;
    for _ in 0..3 {
        let response = connection.exchange(&request).await;
        assert_eq!(response.header("content-type"), Some("a/b"));
    }
    // The body of a response that is not stored is dropped, whatever its size.
    for reply in [Reply::json(500, "{}"), Reply::new(200, "", vec![b'x'; 1 << 20])] {
        harness.rails.respond_always(reply);
        for _ in 0..3 {
            let head = Request::new("HEAD", "/api/v4/internal/discover?key_id=1").with_secret();
            let response = connection.exchange(&head).await;
            assert!(matches!(response.status, 200 | 500), "{response}");
            connection.exchange(&Request::get("check")).await.assert_unauthorized();
        }
    }
    harness.rails.recover();
    // Also for a refusal.
    let response = harness.send(&Request::new("HEAD", "/api/v4/internal/lfs")).await;
    assert_eq!((response.status, response.header("content-type")), (401, Some("application/json")));
}

/// Rails leaves sending files to Workhorse. Without Workhorse such a response is an empty success, which
/// Gitaly would take for the file.
#[tokio::test]
async fn instructions_for_workhorse_are_refused_to_other_clients() {
    let harness = Harness::new().await;
    let lfs = Request::get("lfs?oid=1&gl_repository=project-1").with_secret();
    let head = Request::new("HEAD", &lfs.target).with_secret();
    let fill = Request::get("discover?key_id=1").with_secret();
    let requests = [(&lfs, "get"), (&head, "head"), (&fill, "fill")];
    let headers = [
        ("Gitlab-Workhorse-Send-Data", "send-url:e30="),
        ("gitlab-workhorse-detect-content-type", "true"),
        ("Gitlab-Workhorse-Send-Dependency", "x"),
        ("X-Sendfile", "/var/opt/gitlab/lfs/1"),
        ("X-Accel-Redirect", "/lfs/1"),
    ];
    for (name, value) in headers {
        harness.rails.respond_always(Reply::new(200, &format!("{name}: {value}\r\n"), ""));
        for (request, kind) in requests {
            let id = format!("needs-workhorse-{kind}-{name}");
            let refused = harness.send(&request.clone().header("X-Request-Id", &id)).await;
            assert_eq!(refused.status, 502, "{request}: {refused}");
            if kind != "head" {
                refused.assert_failure(502);
            }
            let line = log::wait_for_request_line(&id).await;
            let error = line["error"].as_str().unwrap_or_default();
            assert_eq!(line["failure"], "upstream_needs_workhorse", "{line}");
            assert!(error.contains(&name.to_lowercase()) && error.contains("only Workhorse"), "{error}");
            // A fill is for all, and does not say who asks.
            for mark in ["Gitlab-Workhorse", "Gitlab-Workhorse-Api-Request"].iter().filter(|_| kind != "fill")
            {
                let response = harness.send(&request.clone().header(mark, "18.1")).await;
                assert_eq!((response.status, response.header(name)), (200, Some(value)), "{mark} {name}");
            }
        }
    }
    let refused = headers.len() * requests.len();
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_needs_workhorse"}"#, refused).await;
    // Not an instruction.
    harness.rails.respond_always(Reply::new(200, "Enable-Workhorse-Circuit-Breaker: true\r\n", "{}"));
    assert_eq!(harness.send(&lfs).await.status, 200);
}
