//! Which upstream connections are reused, and for how long.

use std::collections::HashSet;
use std::sync::Mutex;

use super::client::{Request, eventually, noise};
use super::fake_rails::{Behavior, FakeRails, Latch, Reply, gitlab};
use super::harness::{Harness, Setup};

async fn harness() -> Harness {
    Setup::new().set("workers", 1).start().await
}

/// The connection, counted from 0, over which Rails got a request.
async fn connection_of(harness: &Harness, request: &Request) -> usize {
    let (response, request) = harness.send_forwarded(request).await;
    assert_eq!(response.status, 200, "{response}");
    request.connection
}

/// Rails may just have closed a kept connection, and a large body could not be sent again.
#[tokio::test]
async fn a_large_body_gets_a_new_connection() {
    let harness = harness().await;
    let post = |size| Request::post("allowed").with_secret().body(noise(size));
    assert_eq!(connection_of(&harness, &post(10)).await, 0);
    for (request, nth) in [
        (post(64 * 1024), 0),
        (Request::get("lfs").with_secret(), 0),
        (post(64 * 1024 + 1), 1),
        // Afterwards it is reused like any other; the last one used is taken first.
        (post(10), 1),
        (post(200_000), 2),
        (post(200_000), 3),
        // Of unknown length.
        (post(10).chunked(5), 4),
        (post(0), 4),
    ] {
        assert_eq!(connection_of(&harness, &request).await, nth, "{} bytes", request.body_bytes().len());
    }
}

/// A script that closes a connection when a second request comes over it, after reading only its head.
fn closes_reused_connections() -> impl Fn(&super::fake_rails::ReceivedRequest) -> Reply + Send + Sync {
    let used = Mutex::new(HashSet::new());
    move |request| {
        let is_new = used.lock().unwrap().insert(request.connection);
        if is_new { gitlab(request) } else { Reply::hang_up() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_avoid_reused_connections() {
    let setup = Setup::new().set("workers", 1);
    let unix = setup.dir.file("rails.sock");
    for rails in [FakeRails::listen_tcp().await, FakeRails::listen_unix(&unix)] {
        let setup = Setup::new().set("workers", 1);
        let harness = setup.start_with(rails);
        harness.rails.set_behavior(Behavior::RespondAfterHead, closes_reused_connections());
        for size in [70_000, 200_000, 1_000_000] {
            for request in [
                Request::post("allowed"),
                Request::post("pre_receive"),
                Request::new("POST", "/api/v4/internal/any"),
            ] {
                let response = harness.send(&request.with_secret().body(noise(size))).await;
                assert_eq!(response.status, 200, "{size} bytes: {response}");
            }
            // Bodies that were searched for a credential, and so are in memory as a whole.
            let padding = "x".repeat(size);
            for request in [
                Request::post("allowed").form(&format!("a={padding}&secret_token=s3cret")),
                Request::post("pre_receive").json(&format!(r#"{{"a":"{padding}","secret_token":"s3cret"}}"#)),
                Request::post("allowed").form(&format!("a={padding}&secret_token=s3cret")).chunked(4096),
            ] {
                let response = harness.send(&request).await;
                assert_eq!(response.status, 200, "{size} bytes in memory: {response}");
            }
        }
    }
}

#[tokio::test]
async fn an_expired_connection_gets_no_new_requests() {
    let harness = Setup::new().set("workers", 1).text("upstream.max_connection_age", "50ms").start().await;
    let request = Request::post("allowed").with_secret();
    let first = connection_of(&harness, &request).await;
    // A running request is not affected.
    let latch = Latch::closed();
    let waits = latch.clone();
    harness.rails.respond_with(move |request| {
        if request.is_for("lfs") { gitlab(request).after(&waits) } else { gitlab(request) }
    });
    let mut connection = harness.start_request(&Request::get("lfs").with_secret()).await;
    harness.rails.wait_for_requests(2).await;
    let slow = harness.rails.last_request().connection;
    for _ in 0..3 {
        let before = connection_of(&harness, &request).await;
        eventually("another connection", async || {
            (connection_of(&harness, &request).await != before).then_some(())
        })
        .await;
    }
    latch.open();
    assert_eq!(connection.read_response().await.status, 200);
    assert!(connection_of(&harness, &request).await > slow.max(first));
    // All expired connections are closed.
    harness.rails.wait_for_closed(harness.rails.connection_count() - 1).await;
}

/// The address leads elsewhere now, and nothing tells the gateway so: the old server answers as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_workers_move_to_a_server_that_takes_over_the_address() {
    let setup = Setup::new().set("workers", 4).text("upstream.max_connection_age", "50ms");
    let [path, new_path] = ["rails.sock", "new.sock"].map(|name| setup.dir.file(name));
    let harness = setup.start_with(FakeRails::listen_unix(&path));
    let request = Request::post("allowed").with_secret();
    for _ in 0..20 {
        assert_eq!(harness.send(&request).await.status, 200);
    }
    let successor = FakeRails::listen_unix(&new_path);
    std::fs::rename(&new_path, &path).unwrap();
    eventually("all requests to go to the successor", async || {
        let before = harness.rails.request_count();
        for _ in 0..40 {
            assert_eq!(harness.send(&request).await.status, 200);
        }
        (harness.rails.request_count() == before).then_some(())
    })
    .await;
    assert!(successor.request_count() >= 40);
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_it_expires() {
    let setup = Setup::new().text("upstream.max_connection_age", "50ms").text("upstream.idle_timeout", "1h");
    let harness = setup.start().await;
    harness.assert_alive().await;
    harness.rails.wait_for_closed(1).await;
    harness.assert_alive().await;
}

#[tokio::test]
async fn without_max_connection_age_a_connection_does_not_expire() {
    let harness = harness().await;
    for _ in 0..50 {
        assert_eq!(connection_of(&harness, &Request::post("allowed").with_secret()).await, 0);
    }
}
