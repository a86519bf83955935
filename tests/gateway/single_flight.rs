//! Many callers at once share one upstream request (single-flight), and each is authenticated.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::client::{Address, Connection, Request, Response, eventually, within_deadline};
use super::credentials::{SHELL_HEADER, now, shell_token};
use super::fake_rails::{Latch, PADDED_KEY, ROOT_KEY, Reply, gitlab};
use super::harness::{Harness, Setup};

const IN_FLIGHT: &str = "railgate_requests_in_flight";

fn key() -> Request {
    Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

/// Opens a connection for each request, and sends it.
async fn send_all(address: &Address, requests: impl IntoIterator<Item = Request>) -> Vec<Connection> {
    let mut connections = Vec::new();
    for request in requests {
        let mut connection = address.connect().await;
        connection.write(&request.to_bytes("close")).await;
        connections.push(connection);
    }
    connections
}

/// Reads the response of each connection.
async fn read_all(connections: Vec<Connection>) -> Vec<Response> {
    let mut responses = Vec::new();
    for mut connection in connections {
        responses.push(connection.read_response().await);
    }
    responses
}

/// A thousand, or fewer if the limit of open files is lower.
fn caller_count() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open_files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let open_files = open_files.and_then(|limit| limit.parse::<usize>().ok()).unwrap_or(1024);
    (open_files.saturating_sub(400) / 2).clamp(150, 1_000)
}

/// A gateway in front of a small GitLab whose responses wait for the latch.
async fn harness_with_delayed_responses(latch: &Latch) -> Harness {
    let latch = latch.clone();
    Harness::with(move |request| gitlab(request).after(&latch)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_cause_one_upstream_request() {
    let latch = Latch::closed();
    let harness = harness_with_delayed_responses(&latch).await;
    let count = caller_count();
    let connections = send_all(&harness.gateway.tcp, vec![key(); count]).await;
    harness.wait_for_metric(IN_FLIGHT, count).await;
    harness.rails.wait_for_requests(1).await;
    assert_eq!(harness.rails.request_count(), 1);
    latch.open();
    let responses = read_all(connections).await;
    let mut stored = 0;
    for response in &responses {
        assert_eq!((response.status, response.json()["id"].as_u64()), (200, Some(1)), "{response}");
        match response.cache_status() {
            "railgate; fwd=miss; stored" => stored += 1,
            "railgate; fwd=miss; collapsed" => {
                // Headers of the leader's response are not shared.
                assert_eq!((response.header("set-cookie"), response.header("x-runtime")), (None, None));
                assert!(response.header("age").is_some(), "{response}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((stored, harness.rails.request_count()), (1, 1));
    let ids: HashSet<&str> =
        responses.iter().filter_map(|response| response.header("x-request-id")).collect();
    assert_eq!(ids.len(), count, "each has its own request id");
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    harness.wait_for_metric("railgate_cache_flights", 0).await;
}

/// Also if the leader disconnects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remaining_callers_are_answered_when_others_disconnect() {
    for (count, leaving) in [(caller_count(), caller_count() / 10), (100, 1), (100, 99)] {
        let latch = Latch::closed();
        let harness = harness_with_delayed_responses(&latch).await;
        let mut connections = send_all(&harness.gateway.tcp, [key()]).await;
        harness.rails.wait_for_requests(1).await;
        connections.extend(send_all(&harness.gateway.tcp, vec![key(); count - 1]).await);
        harness.wait_for_metric(IN_FLIGHT, count).await;
        let staying = connections.split_off(leaving);
        drop(connections);
        harness.wait_for_metric(IN_FLIGHT, staying.len()).await;
        harness.wait_for_metric("railgate_clients_gone_total", leaving).await;
        latch.open();
        for response in read_all(staying).await {
            assert_eq!((response.status, response.json()["id"].as_u64()), (200, Some(1)), "{response}");
            assert_eq!(response.cache_status(), "railgate; fwd=miss; collapsed");
        }
        assert_eq!(harness.rails.request_count(), 1);
        assert!(harness.send(&key()).await.is_hit());
    }
}

#[tokio::test]
async fn a_fill_is_stored_after_all_callers_have_left() {
    let latch = Latch::closed();
    let harness = harness_with_delayed_responses(&latch).await;
    drop(send_all(&harness.gateway.tcp, [key()]).await);
    harness.rails.wait_for_requests(1).await;
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    let connections = send_all(&harness.gateway.tcp, [key()]).await;
    harness.wait_for_metric(IN_FLIGHT, 1).await;
    latch.open();
    for response in read_all(connections).await {
        assert_eq!(response.cache_status(), "railgate; fwd=miss; collapsed");
    }
    assert_eq!(harness.rails.request_count(), 1);
}

#[tokio::test]
async fn different_spellings_share_one_fill() {
    let latch = Latch::closed();
    let harness = harness_with_delayed_responses(&latch).await;
    let padded = PADDED_KEY.replace('+', "%2B");
    let target = |key: &str| format!("authorized_keys?key={key}");
    let requests = [
        Request::get(&target(&padded)).with_secret(),
        Request::get(&target(padded.trim_end_matches('='))).with_shell_token(),
        Request::get(&target(&padded.replace('/', "%2F"))).form("secret_token=s3cret"),
        Request::get(&format!("{}&secret_token=s3cret", target(&padded))),
    ];
    let count = requests.len();
    let mut connections = send_all(&harness.gateway.tcp, requests.clone()).await;
    harness.wait_for_metric(IN_FLIGHT, count).await;
    harness.rails.wait_for_requests(1).await;
    assert_eq!(harness.rails.request_count(), 1);
    latch.open();
    for (connection, request) in connections.iter_mut().zip(&requests) {
        assert_eq!(connection.read_response_to(request).await.status, 200);
    }
    assert_eq!(harness.rails.request_count(), 1);
}

#[tokio::test]
async fn a_slow_fill_does_not_delay_other_requests() {
    let latch = Latch::closed();
    let slow = latch.clone();
    let harness = Harness::with(move |request| {
        if request.is_for("authorized_keys") { gitlab(request).after(&slow) } else { gitlab(request) }
    })
    .await;
    let connections = send_all(&harness.gateway.tcp, vec![key(); 20]).await;
    harness.wait_for_metric(IN_FLIGHT, 20).await;
    for target in ["check", "discover?key_id=1", "discover?username=root"] {
        assert_eq!(harness.send(&Request::get(target).with_secret()).await.status, 200);
    }
    assert_eq!(harness.send(&Request::post("allowed").with_secret()).await.status, 200);
    latch.open();
    assert!(read_all(connections).await.iter().all(|response| response.status == 200));
    assert_eq!(harness.rails.request_count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_distinct_target_has_one_fill() {
    let latch = Latch::closed();
    let harness = harness_with_delayed_responses(&latch).await;
    let request = |id: usize| Request::get(&format!("discover?key_id={id}")).with_secret();
    let requests = (0..300).map(|index| request(1_000 + index % 30));
    let connections = send_all(&harness.gateway.tcp, requests).await;
    harness.wait_for_metric(IN_FLIGHT, 300).await;
    harness.wait_for_metric("railgate_cache_flights", 30).await;
    latch.open();
    assert!(read_all(connections).await.iter().all(|response| response.text() == "null"));
    assert_eq!(harness.rails.request_count(), 30);
}

/// A response that is not stored was for one caller. Each of the others sends its own request, with its own
/// id and credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unstorable_response_goes_to_the_leader_only() {
    let row = |id: usize| format!(r#"{{"id":{id},"key":"ssh-ed25519 {ROOT_KEY} u"}}"#);
    let elses = format!(r#"{{"id":1,"key":"ssh-ed25519 {PADDED_KEY} u"}}"#);
    let unshared = [
        (Reply::json(500, r#"{"message":"500 Internal Server Error"}"#), 500),
        (Reply::json(401, r#"{"message":"401 Unauthorized"}"#), 401),
        (Reply::json(403, "{}"), 403),
        (Reply::json(429, "{}"), 429),
        (Reply::json(503, "{}"), 503),
        (Reply::json(200, "null"), 200),
        (Reply::new(200, "Content-Type: text/html\r\n", row(1)), 200),
        (Reply::json(200, &elses), 502),
        (Reply::hang_up(), 502),
        (
            Reply::bytes("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
                .then_close(),
            502,
        ),
    ];
    for (reply, status) in unshared {
        let latch = Latch::closed();
        let (held, first) = (latch.clone(), reply.clone());
        let harness = Harness::with(move |request| {
            if request.nth == 0 { first.clone().after(&held) } else { Reply::json(200, &row(request.nth)) }
        })
        .await;
        let named = |index: usize| {
            let token = shell_token(&json!({ "gl_id": format!("user-{index}") }));
            Request::get(&format!("authorized_keys?key={ROOT_KEY}"))
                .header(SHELL_HEADER, &token)
                .header("X-Request-Id", &format!("caller-{index}"))
        };
        let requests: Vec<Request> = (0..20).map(named).collect();
        let mut connections = send_all(&harness.gateway.tcp, requests[..1].to_vec()).await;
        harness.rails.wait_for_requests(1).await;
        connections.extend(send_all(&harness.gateway.tcp, requests[1..].to_vec()).await);
        harness.wait_for_metric(IN_FLIGHT, 20).await;
        latch.open();
        let responses = read_all(connections).await;
        assert_eq!(responses[0].status, status, "{reply:?}: {}", responses[0]);
        let mut ids = HashSet::new();
        for response in &responses[1..] {
            assert_eq!(response.status, 200, "{reply:?}: {response}");
            assert!(response.cache_status().starts_with("railgate; fwd=miss"), "{response}");
            ids.insert(response.json()["id"].as_u64());
        }
        assert_eq!((ids.len(), harness.rails.request_count()), (19, 20), "{reply:?}");
        let mut seen: Vec<(String, String)> = harness
            .rails
            .requests()
            .iter()
            .map(|request| {
                let of = |name| request.header(name).unwrap_or_default().to_owned();
                (of("X-Request-Id"), of(SHELL_HEADER))
            })
            .collect();
        let mut sent: Vec<(String, String)> = requests
            .iter()
            .map(|request| (request.headers[1].1.clone(), request.headers[0].1.clone()))
            .collect();
        seen.sort();
        sent.sort();
        assert_eq!(seen, sent, "each request has its own id and credential");
    }
}

/// Rails closes the connection of the leader, and that of its retry.
#[tokio::test]
async fn followers_do_not_retry_after_a_failed_retry() {
    let harness = Setup::new().set("upstream.resend_percent", 100).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::hang_up().after(&latch));
    let connections = send_all(&harness.gateway.tcp, vec![key(); 20]).await;
    harness.wait_for_metric(IN_FLIGHT, 20).await;
    latch.open();
    for response in read_all(connections).await {
        response.assert_failure(502);
    }
    assert_eq!(harness.rails.request_count(), 2);
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_broke_off"}"#, 20).await;
}

/// Refusals do not wait for the fill.
#[tokio::test]
async fn each_follower_is_authenticated() {
    let latch = Latch::closed();
    let harness = harness_with_delayed_responses(&latch).await;
    let connections = send_all(&harness.gateway.tcp, vec![key(); 20]).await;
    harness.wait_for_metric(IN_FLIGHT, 20).await;
    let target = format!("authorized_keys?key={ROOT_KEY}");
    for unauthenticated in [
        Request::get(&target),
        Request::get(&target).header("Gitlab-Shared-Secret", "eHh4"),
        Request::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "exp": now() - 120 }))),
        Request::get(&format!("{target}&secret_token=bad")).with_secret(),
        Request::get(&target).form("secret_token=bad"),
    ] {
        harness.send(&unauthenticated).await.assert_unauthorized();
    }
    latch.open();
    assert!(read_all(connections).await.iter().all(|response| response.status == 200));
    assert_eq!(harness.rails.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unauthenticated_requests_never_get_cached_answers() {
    let harness = Arc::new(Harness::new().await);
    assert_eq!(harness.send(&key()).await.status, 200);
    let mut tasks = Vec::new();
    for index in 0..8 {
        let harness = Arc::clone(&harness);
        tasks.push(tokio::spawn(async move {
            let mut connection = harness.gateway.tcp.connect().await;
            let target = format!("authorized_keys?key={ROOT_KEY}");
            for round in 0..50 {
                if (index + round) % 2 == 0 {
                    assert!(connection.exchange(&key()).await.is_hit());
                } else {
                    connection.exchange(&Request::get(&target)).await.assert_unauthorized();
                }
            }
        }));
    }
    for task in tasks {
        within_deadline("a caller to finish", task).await.unwrap();
    }
    assert_eq!(harness.rails.request_count(), 1);
    harness.wait_for_metric(r#"railgate_auth_refusals_total{reason="missing"}"#, 200).await;
}

/// Slow clients with large bodies do not delay those who send the secret in a small form.
#[tokio::test]
async fn slow_unauthenticated_bodies_do_not_delay_forms_with_a_secret() {
    let harness = Harness::new().await;
    let head = "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n";
    let mut connections = Vec::new();
    for index in 0..100 {
        let mut connection = harness.gateway.tcp.connect().await;
        let framing = match index % 2 {
            0 => "Content-Length: 1048575\r\n\r\na",
            _ => "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        };
        connection.write(format!("{head}{framing}").as_bytes()).await;
        connections.push(connection);
    }
    harness.wait_for_metric(IN_FLIGHT, 100).await;
    let response = harness.send(&Request::get("check").form("secret_token=s3cret")).await;
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(harness.metric(IN_FLIGHT).await, Some(100), "the slow clients had to be disconnected first");
}

#[tokio::test]
async fn a_follower_sends_its_own_request_after_cache_wait() {
    let latch = Latch::closed();
    let harness = Setup::new().text("cache.wait", "50ms").start().await;
    let held = latch.clone();
    harness.rails.respond_with(
        move |request| {
            if request.nth == 0 { gitlab(request).after(&held) } else { gitlab(request) }
        },
    );
    let first = send_all(&harness.gateway.tcp, [key()]).await;
    harness.rails.wait_for_requests(1).await;
    let response = harness.send(&key()).await;
    assert_eq!((response.status, response.cache_status()), (200, "railgate; fwd=miss; detail=alone"));
    assert_eq!(harness.rails.request_count(), 2);
    latch.open();
    assert_eq!(read_all(first).await[0].cache_status(), "railgate; fwd=miss; stored");
    assert!(harness.send(&key()).await.is_hit());
}

/// The next request after that is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_callers_fail_when_rails_does_not_answer() {
    let harness = Setup::new().text("upstream.response_timeout", "200ms").start().await;
    harness.rails.respond_always(Reply::silence());
    let connections = send_all(&harness.gateway.tcp, vec![key(); 50]).await;
    for response in read_all(connections).await {
        assert!(matches!(response.status, 502 | 504), "{response}");
        response.assert_failure(response.status);
    }
    harness.rails.recover();
    // Rails is well again, but on a busy machine it may be late for once.
    let response = eventually("an answer", async || {
        let response = harness.send(&key()).await;
        (response.status == 200).then_some(response)
    });
    assert_eq!(response.await.cache_status(), "railgate; fwd=miss; stored");
    harness.wait_for_metric("railgate_cache_flights", 0).await;
}
