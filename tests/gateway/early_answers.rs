//! Rails answers before it has read all of a request, and closes the connection: the client gets that answer,
//! however much of the request cannot be sent any more.

use super::certificates::Authority;
use super::client::{Ask, noise};
use super::fake::{Manners, Rails, Reply};
use super::stage::{Setup, Stage};

const TOO_LARGE: &str = r#"{"error":"413 Request Entity Too Large"}"#;

fn of(size: usize) -> Ask {
    Ask::post("allowed").with_secret().body(noise(size))
}

fn too_large() -> Reply {
    Reply::json(413, TOO_LARGE)
}

/// How often each is tried: whether the answer or the end of the connection is noticed first is chance.
const TIMES: usize = 40;

async fn gets_413(stage: &Stage) {
    let close_delimited = Reply::bytes("HTTP/1.0 413 Too Large\r\nContent-Type: application/json\r\n\r\n");
    for reply in [too_large(), Reply::in_chunks(413, "", TOO_LARGE, 7), close_delimited.then(TOO_LARGE)] {
        stage.rails.behave(Manners::Hasty, move |_| reply.clone().then_close());
        for ask in [of(200_000), of(200_000).chunked(10_000), of(60_000), of(3_000_000)] {
            for _ in 0..TIMES {
                let answer = stage.send(&ask).await;
                assert_eq!(
                    (answer.status, answer.text()),
                    (413, TOO_LARGE),
                    "{} bytes",
                    ask.plain_body().len()
                );
            }
        }
    }
    assert_eq!(stage.metric(r#"railgate_upstream_resent_total{reason="unread"}"#).await, Some(0));
    // Nothing is left of it for others.
    stage.rails.recover();
    for _ in 0..5 {
        stage.assert_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_over_tcp() {
    gets_413(&Stage::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_over_a_unix_socket() {
    let setup = Setup::new();
    let rails = Rails::on_unix(&setup.dir.file("rails.sock"));
    gets_413(&setup.in_front_of(rails)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_over_tls() {
    let authority = Authority::new();
    let setup = Setup::new().over_tls();
    let file = authority.file(&setup.dir, "ca.pem");
    let setup = setup.text("upstream.tls.ca_file", &file.display().to_string());
    gets_413(&setup.in_front_of(Rails::on_tls(authority.server("localhost", None)).await)).await;
}

/// A kept connection is no other: there may be an answer, but none to a request of which nothing was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_over_a_kept_connection() {
    let stage = Setup::new().set("workers", 1).start().await;
    for _ in 0..TIMES {
        stage.rails.recover();
        stage.assert_alive().await;
        stage.rails.behave(Manners::Hasty, |_| too_large().then_close());
        let answer = stage.send(&of(50_000)).await;
        assert_eq!((answer.status, answer.text()), (413, TOO_LARGE));
    }
}

/// The client is told while it sends, and need not go on.
#[tokio::test]
async fn a_client_that_has_not_sent_everything_is_answered() {
    let stage = Stage::new().await;
    stage.rails.behave(Manners::Hasty, |_| too_large().then_close());
    let bytes = of(1_000_000).to_bytes("keep-alive");
    for sent in [500, 100_000, 900_000] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes[..sent]).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text()), (413, TOO_LARGE), "{sent} bytes sent");
    }
}

/// Without an answer, the connection has broken off.
#[tokio::test]
async fn an_early_end_without_an_answer_is_a_failure() {
    let stage = Stage::new().await;
    for reply in [Reply::hang_up(), Reply::bytes("HTTP/1.1 413 Too").then_close()] {
        stage.rails.behave(Manners::Hasty, move |_| reply.clone());
        stage.send(&of(3_000_000)).await.assert_failure(502);
    }
    stage.reaches(r#"railgate_failures_total{reason="upstream_broke_off"}"#, 2).await;
}
