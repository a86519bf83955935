//! Which connections to Rails carry a request, and for how long they are kept.

use std::collections::HashSet;
use std::sync::Mutex;

use super::client::{Ask, eventually, noise};
use super::fake::{Manners, Rails, Reply, Valve, gitlab};
use super::stage::{Setup, Stage};

async fn stage() -> Stage {
    Setup::new().set("workers", 1).start().await
}

/// Which connection a request came over.
async fn connection_of(stage: &Stage, ask: &Ask) -> usize {
    let (answer, request) = stage.pass(ask).await;
    assert_eq!(answer.status, 200, "{answer}");
    request.connection
}

/// Rails may just have closed a kept one, and a large body could not be sent again.
#[tokio::test]
async fn a_large_body_has_a_connection_of_its_own() {
    let stage = stage().await;
    let post = |size| Ask::post("allowed").with_secret().body(noise(size));
    assert_eq!(connection_of(&stage, &post(10)).await, 0);
    for (ask, nth) in [
        (post(64 * 1024), 0),
        (Ask::get("lfs").with_secret(), 0),
        (post(64 * 1024 + 1), 1),
        // It is as good as any other afterwards; the one that was used last is the first.
        (post(10), 1),
        (post(200_000), 2),
        (post(200_000), 3),
        // Whose length is not known.
        (post(10).chunked(5), 4),
        (post(0), 4),
    ] {
        assert_eq!(connection_of(&stage, &ask).await, nth, "{} bytes", ask.plain_body().len());
    }
}

/// Closes every connection on which a second request comes, without reading more of it than its head.
fn is_used_up_at_once() -> impl Fn(&super::fake::Request) -> Reply + Send + Sync {
    let used = Mutex::new(HashSet::new());
    move |request| {
        let is_new = used.lock().unwrap().insert(request.connection);
        if is_new { gitlab(request) } else { Reply::hang_up() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_do_not_meet_connections_that_rails_closes() {
    let setup = Setup::new().set("workers", 1);
    let unix = setup.dir.file("rails.sock");
    for rails in [Rails::on_tcp().await, Rails::on_unix(&unix)] {
        let setup = Setup::new().set("workers", 1);
        let stage = setup.in_front_of(rails);
        stage.rails.behave(Manners::Hasty, is_used_up_at_once());
        for size in [70_000, 200_000, 1_000_000] {
            for ask in
                [Ask::post("allowed"), Ask::post("pre_receive"), Ask::new("POST", "/api/v4/internal/any")]
            {
                let answer = stage.send(&ask.with_secret().body(noise(size))).await;
                assert_eq!(answer.status, 200, "{size} bytes: {answer}");
            }
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_too_old_carries_nothing_new() {
    let stage = Setup::new().set("workers", 1).text("upstream.max_connection_age", "50ms").start().await;
    let ask = Ask::post("allowed").with_secret();
    let first = connection_of(&stage, &ask).await;
    // Under way for as long as it likes.
    let valve = Valve::shut();
    let waits = valve.clone();
    stage.rails.answer(
        move |request| if request.is_for("lfs") { gitlab(request).after(&waits) } else { gitlab(request) },
    );
    let mut wire = stage.begin(&Ask::get("lfs").with_secret()).await;
    stage.rails.has_got(2).await;
    let slow = stage.rails.last().connection;
    for _ in 0..3 {
        let before = connection_of(&stage, &ask).await;
        eventually("another connection", async || {
            (connection_of(&stage, &ask).await != before).then_some(())
        })
        .await;
    }
    valve.open();
    assert_eq!(wire.answer().await.status, 200);
    assert!(connection_of(&stage, &ask).await > slow.max(first));
    // None of the old ones is left open.
    stage.rails.has_lost(stage.rails.connections() - 1).await;
}

/// It is not needed for that: one that is not used is closed as well.
#[tokio::test]
async fn an_unused_connection_that_is_too_old_is_closed() {
    let setup = Setup::new().text("upstream.max_connection_age", "50ms").text("upstream.idle_timeout", "1h");
    let stage = setup.start().await;
    stage.assert_alive().await;
    stage.rails.has_lost(1).await;
    stage.assert_alive().await;
}

#[tokio::test]
async fn without_a_limit_a_connection_grows_old() {
    let stage = stage().await;
    for _ in 0..50 {
        assert_eq!(connection_of(&stage, &Ask::post("allowed").with_secret()).await, 0);
    }
}
