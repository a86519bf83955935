//! What Rails says reaches the client as it was said, whatever the status.

use super::client::Ask;
use super::fake::Reply;
use super::stage::Stage;

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
async fn every_status_passes_with_its_body_and_nothing_is_followed() {
    let stage = Stage::new().await;
    for (status, more, body) in ALLOWED {
        let headers = format!("Content-Type: application/json\r\nX-Of-Rails: 1\r\n{more}");
        for reply in [Reply::new(status, &headers, body), Reply::in_chunks(status, &headers, body, 10)] {
            stage.rails.always(reply);
            for ask in [
                Ask::post("allowed").with_secret().json(r#"{"action":"git-upload-pack"}"#),
                // On its way into the cache as well.
                Ask::get("discover?key_id=9").with_secret(),
            ] {
                let (answer, _) = stage.pass(&ask).await;
                assert_eq!((answer.status, answer.text()), (status, body), "{answer}");
                assert_eq!(answer.header("content-type"), Some("application/json"));
                assert_eq!(answer.header("x-of-rails"), Some("1"));
                for line in more.split_terminator("\r\n") {
                    let (name, value) = line.split_once(": ").unwrap();
                    assert_eq!(answer.header(name), Some(value), "{answer}");
                }
                assert_eq!(answer.all("retry-after").len(), more.matches("Retry-After").count());
            }
        }
    }
}

/// A type is not guessed, changed or added.
#[tokio::test]
async fn the_content_type_is_rails_own() {
    let stage = Stage::new().await;
    for kind in ["application/json", "application/json; charset=utf-8", "text/html", "a/b"] {
        stage.rails.always(Reply::new(200, &format!("Content-Type: {kind}\r\n"), "{}"));
        let (answer, _) = stage.pass(&Ask::post("allowed").with_secret()).await;
        assert_eq!(answer.header("content-type"), Some(kind));
    }
    stage.rails.always(Reply::new(200, "", "{}"));
    let (answer, _) = stage.pass(&Ask::post("allowed").with_secret()).await;
    assert_eq!(answer.header("content-type"), None);
}

/// Each request has its own answer, on a connection that is kept.
#[tokio::test]
async fn answers_do_not_change_places() {
    let stage = Stage::with(|request| Reply::json(200, &format!("{:?}", request.target))).await;
    let mut wire = stage.gateway.tcp.connect().await;
    for index in 0..100 {
        let ask = Ask::post(&format!("allowed?n={index}")).with_secret();
        assert_eq!(wire.exchange(&ask).await.text(), format!("{:?}", ask.target));
    }
}

#[tokio::test]
async fn a_head_request_gets_the_head() {
    let stage = Stage::new().await;
    // Not kept: asked as it was asked.
    stage.rails.always(Reply::bytes("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 1234\r\n\r\n"));
    let ask = Ask::new("HEAD", "/api/v4/internal/lfs?oid=1").with_secret();
    let (answer, seen) = stage.pass(&ask).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("1234")));
    assert_eq!(seen.method, "HEAD");
    // The connection is in order, on both sides.
    let mut wire = stage.gateway.tcp.connect().await;
    for _ in 0..3 {
        let answer = wire.exchange(&ask).await;
        assert_eq!(answer.header("content-type"), Some("a/b"));
    }
    // The body of an answer that is not kept is dropped on the way, whatever its size.
    for reply in [Reply::json(500, "{}"), Reply::new(200, "", vec![b'x'; 1 << 20])] {
        stage.rails.always(reply);
        for _ in 0..3 {
            let head = Ask::new("HEAD", "/api/v4/internal/discover?key_id=1").with_secret();
            let answer = wire.exchange(&head).await;
            assert!(matches!(answer.status, 200 | 500), "{answer}");
            wire.exchange(&Ask::get("check")).await.assert_unauthorized();
        }
    }
    stage.rails.recover();
    // Without the credential neither.
    let answer = stage.send(&Ask::new("HEAD", "/api/v4/internal/lfs")).await;
    assert_eq!((answer.status, answer.header("content-type")), (401, Some("application/json")));
}

/// Rails leaves files to Workhorse. What it answers then is an empty success to all others, which Gitaly would
/// take for the file.
#[tokio::test]
async fn an_order_to_workhorse_is_no_answer_for_others() {
    let stage = Stage::new().await;
    let ask = Ask::get("lfs?oid=1&gl_repository=project-1").with_secret();
    for header in [
        "Gitlab-Workhorse-Send-Data: send-url:e30=",
        "gitlab-workhorse-detect-content-type: true",
        "Gitlab-Workhorse-Send-Dependency: x",
        "X-Sendfile: /var/opt/gitlab/lfs/1",
    ] {
        stage.rails.always(Reply::new(200, &format!("{header}\r\n"), ""));
        stage.send(&ask).await.assert_failure(502);
        let workhorse = ask.clone().header("Gitlab-Workhorse", "18.1");
        assert_eq!(stage.send(&workhorse).await.status, 200, "{header}");
    }
    stage.reaches(r#"railgate_failures_total{reason="upstream_needs_workhorse"}"#, 4).await;
    // Not an order.
    stage.rails.always(Reply::new(200, "Enable-Workhorse-Circuit-Breaker: true\r\n", "{}"));
    assert_eq!(stage.send(&ask).await.status, 200);
}
