//! Clients that close their sending side after a request, and still read. What can be answered immediately
//! is; what has to wait for Rails is cancelled.

use super::client::{Connection, Request, eventually};
use super::fake_rails::{Latch, ROOT_KEY, Reply};
use super::harness::{Harness, Setup};

const GONE: &str = "railgate_clients_gone_total";
const IN_FLIGHT: &str = "railgate_requests_in_flight";

/// Sends these bytes, then closes the sending side.
async fn send_and_shut_down(harness: &Harness, is_unix: bool, bytes: &[u8]) -> Connection {
    let address = if is_unix { &harness.gateway.unix } else { &harness.gateway.tcp };
    let mut connection = address.connect().await;
    connection.write(bytes).await;
    connection.shutdown_write().await;
    connection
}

#[tokio::test]
async fn cache_hits_are_answered_after_a_half_close() {
    let harness = Harness::new().await;
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let requests =
        [key.clone(), Request::get("discover?key_id=1").with_secret(), Request::get("check").with_secret()];
    for request in &requests {
        harness.send(request).await;
    }
    let arrived = harness.rails.request_count();
    for is_unix in [false, true] {
        for persistence in ["keep-alive", "close"] {
            for request in &requests {
                let mut connection =
                    send_and_shut_down(&harness, is_unix, &request.to_bytes(persistence)).await;
                let response = connection.read_response_to(request).await;
                assert!(response.status == 200 && response.is_hit(), "{response}");
                assert_eq!(connection.read_to_end().await, b"");
            }
            // All pipelined requests.
            let row: Vec<u8> = requests.iter().flat_map(|request| request.to_bytes("keep-alive")).collect();
            let mut connection = send_and_shut_down(&harness, is_unix, &row.repeat(20)).await;
            for request in requests.iter().cycle().take(60) {
                assert!(connection.read_response_to(request).await.is_hit());
            }
            assert_eq!(connection.read_to_end().await, b"");
            // The close comes later than the request, before or after the response.
            let address = if is_unix { &harness.gateway.unix } else { &harness.gateway.tcp };
            let mut connection = address.connect().await;
            connection.write(&key.to_bytes(persistence)).await;
            tokio::task::yield_now().await;
            connection.shutdown_write().await;
            assert!(connection.read_response_to(&key).await.is_hit());
            assert_eq!(connection.read_to_end().await, b"");
        }
    }
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    assert_eq!((harness.rails.request_count(), harness.metric(GONE).await), (arrived, Some(0)));
}

/// The client does not read all of it at once.
#[tokio::test]
async fn a_large_cache_hit_is_sent_completely() {
    let harness = Setup::new().text("cache.max_body", "1MiB").start().await;
    let padding = "x".repeat(900 * 1024);
    let body = format!(r#"{{"id":1,"username":"root","name":"{padding}"}}"#);
    harness.rails.respond_always(Reply::json(200, &body));
    let request = Request::get("discover?key_id=1").with_secret();
    harness.send(&request).await;
    for is_unix in [false, true] {
        let row: Vec<u8> = request.to_bytes("keep-alive").repeat(4);
        let mut connection = send_and_shut_down(&harness, is_unix, &row).await;
        for _ in 0..4 {
            let response = connection.read_response_to(&request).await;
            assert!(response.is_hit() && response.body.len() == body.len());
        }
        assert_eq!(connection.read_to_end().await, b"");
    }
    assert_eq!((harness.rails.request_count(), harness.metric(GONE).await), (1, Some(0)));
}

#[tokio::test]
async fn refusals_are_answered_after_a_half_close() {
    let harness = Harness::new().await;
    for (bytes, status) in [
        (Request::get("check").to_bytes("keep-alive"), 401),
        (Request::get("kubernetes/agent_info").to_bytes("close"), 401),
        (Request::new("GET", "/elsewhere").to_bytes("keep-alive"), 404),
        (Request::get("check;a").to_bytes("keep-alive"), 400),
        (b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "b".repeat(70_000)).into_bytes(), 431),
    ] {
        for is_unix in [false, true] {
            let mut connection = send_and_shut_down(&harness, is_unix, &bytes).await;
            assert_eq!(connection.read_response().await.status, status);
            assert_eq!(connection.read_to_end().await, b"");
        }
    }
    for path in ["/live", "/ready", "/metrics"] {
        for persistence in ["keep-alive", "close"] {
            let mut connection = harness.gateway.admin.connect().await;
            connection.write(&Request::new("GET", path).to_bytes(persistence)).await;
            connection.shutdown_write().await;
            assert_eq!(connection.read_response().await.status, 200, "{path}");
            assert_eq!(connection.read_to_end().await, b"");
        }
    }
    assert_eq!(harness.rails.request_count(), 0);
}

/// The whole body is there, so that nothing has to be waited for.
#[tokio::test]
async fn refusals_after_reading_the_body_are_answered() {
    let harness = Harness::new().await;
    let body = format!("project={}&secret_token=bad", "x".repeat(100_000));
    for request in [
        Request::post("allowed").json("{}"),
        Request::post("allowed").form("secret_token=bad"),
        Request::post("allowed").form(&body),
        Request::post("allowed").json(&format!(r#"{{"project":"{}"}}"#, "x".repeat(100_000))),
        Request::get("check").form("secret_token=bad"),
    ] {
        for request in [request.clone(), request.clone().chunked(7_000), request.chunked(3)] {
            for is_unix in [false, true] {
                for persistence in ["close", "keep-alive"] {
                    let mut connection =
                        send_and_shut_down(&harness, is_unix, &request.to_bytes(persistence)).await;
                    connection.read_response().await.assert_unauthorized();
                    assert_eq!(connection.read_to_end().await, b"");
                }
            }
        }
    }
    // An accepted body leads to a hit, which is served, or to Rails, which is not waited for.
    harness.send(&Request::get("check").with_secret()).await;
    let form = "secret_token=s3cret";
    let mut connection =
        send_and_shut_down(&harness, false, &Request::get("check").form(form).to_bytes("close")).await;
    assert!(connection.read_response().await.is_hit());
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    for is_unix in [false, true] {
        let mut connection = send_and_shut_down(
            &harness,
            is_unix,
            &Request::post("allowed").form(form).to_bytes("keep-alive"),
        )
        .await;
        assert_eq!(connection.read_to_end().await, b"");
    }
    harness.wait_for_metric(GONE, 2).await;
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    // A truncated body is not forwarded.
    let bytes = Request::post("allowed").form("secret_token=bad").to_bytes("close");
    let mut connection = send_and_shut_down(&harness, false, &bytes[..bytes.len() - 1]).await;
    let rest = connection.read_to_end().await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&rest));
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    latch.open();
}

/// Whether Rails fails, or is being asked anew.
#[tokio::test]
async fn stale_answers_are_sent_after_a_half_close() {
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for (while_revalidate, why) in [("1h", "stale_while_revalidate"), ("0s", "stale_if_error")] {
        let setup = Setup::new()
            .text("cache.authorized_keys.ttl", "1ms")
            .text("cache.authorized_keys.stale_while_revalidate", while_revalidate)
            .text("cache.authorized_keys.stale_if_error", "1h");
        let harness = setup.start().await;
        harness.send(&key).await;
        harness.rails.respond_always(Reply::json(503, "{}"));
        // The first of the outage asks Rails and waits.
        eventually("a stale answer", async || {
            harness.send(&key).await.cache_status().ends_with(why).then_some(())
        })
        .await;
        let latch = Latch::closed();
        harness.rails.respond_always(Reply::json(503, "{}").after(&latch));
        for is_unix in [false, true] {
            for persistence in ["keep-alive", "close"] {
                let mut connection = send_and_shut_down(&harness, is_unix, &key.to_bytes(persistence)).await;
                let response = connection.read_response_to(&key).await;
                assert!(response.status == 200 && response.is_hit(), "{why}: {response}");
                assert!(response.cache_status().contains("; detail=stale_"), "{why}: {response}");
                assert_eq!(connection.read_to_end().await, b"");
            }
        }
        assert_eq!(harness.metric(GONE).await, Some(0));
        latch.open();
    }
}

/// Misses and forwarded requests, also behind a hit.
#[tokio::test]
async fn requests_waiting_for_rails_are_cancelled() {
    let harness = Harness::new().await;
    let latch = Latch::closed();
    let known = Request::get("check").with_secret();
    harness.send(&known).await;
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut gone = 0;
    for is_unix in [false, true] {
        for request in [Request::post("allowed").with_secret().json("{}"), Request::get("lfs").with_secret()]
        {
            let bytes = [known.to_bytes("keep-alive"), request.to_bytes("keep-alive")].concat();
            let mut connection = send_and_shut_down(&harness, is_unix, &bytes).await;
            assert!(connection.read_response().await.is_hit());
            gone += 1;
            harness.wait_for_metric(GONE, gone).await;
            assert_eq!(connection.read_to_end().await, b"");
            let mut connection = send_and_shut_down(&harness, is_unix, &request.to_bytes("close")).await;
            assert_eq!(connection.read_to_end().await, b"");
            gone += 1;
            harness.wait_for_metric(GONE, gone).await;
        }
    }
    harness.wait_for_metric(IN_FLIGHT, 0).await;
    latch.open();
    harness.assert_alive().await;
}

/// The head of the response has come, its body has not.
#[tokio::test]
async fn a_response_waiting_for_more_body_is_cancelled() {
    let harness = Harness::new().await;
    let latch = Latch::closed();
    let begun = Reply::bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    harness.rails.respond_always(begun.then_wait(&latch).then("0\r\n\r\n"));
    for is_unix in [false, true] {
        let request = Request::post("allowed").with_secret().json("{}");
        let address = if is_unix { &harness.gateway.unix } else { &harness.gateway.tcp };
        let mut connection = address.connect().await;
        connection.write(&request.to_bytes("keep-alive")).await;
        assert!(connection.is_readable_within(std::time::Duration::from_mins(1)).await);
        connection.shutdown_write().await;
        harness.wait_for_metric(GONE, 1 + usize::from(is_unix)).await;
        let rest = connection.read_to_end().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    }
    latch.open();
}
