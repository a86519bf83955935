//! Rails responds before it has read the whole request, and closes the connection: the client gets that
//! response, even if the rest of the request cannot be sent.

use super::certificates::CertificateAuthority;
use super::client::{Request, noise};
use super::fake_rails::{Behavior, FakeRails, Reply};
use super::harness::{Harness, Setup};

const TOO_LARGE: &str = r#"{"error":"413 Request Entity Too Large"}"#;

fn request_of_size(size: usize) -> Request {
    Request::post("allowed").with_secret().body(noise(size))
}

fn too_large() -> Reply {
    Reply::json(413, TOO_LARGE)
}

/// Repetitions: whether the response or the close is noticed first is chance.
const TIMES: usize = 40;

async fn assert_early_413(harness: &Harness) {
    let close_delimited = Reply::bytes("HTTP/1.0 413 Too Large\r\nContent-Type: application/json\r\n\r\n");
    for reply in [too_large(), Reply::in_chunks(413, "", TOO_LARGE, 7), close_delimited.then(TOO_LARGE)] {
        harness.rails.set_behavior(Behavior::RespondAfterHead, move |_| reply.clone().then_close());
        for request in [
            request_of_size(200_000),
            request_of_size(200_000).chunked(10_000),
            request_of_size(60_000),
            request_of_size(3_000_000),
        ] {
            for _ in 0..TIMES {
                let response = harness.send(&request).await;
                assert_eq!(
                    (response.status, response.text()),
                    (413, TOO_LARGE),
                    "{} bytes",
                    request.body_bytes().len()
                );
            }
        }
    }
    assert_eq!(harness.metric(r#"railgate_upstream_resent_total{reason="unread"}"#).await, Some(0));
    // The next requests are not affected.
    harness.rails.recover();
    for _ in 0..5 {
        harness.assert_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_arrives_over_tcp() {
    assert_early_413(&Harness::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_arrives_over_a_unix_socket() {
    let setup = Setup::new();
    let rails = FakeRails::listen_unix(&setup.dir.file("rails.sock"));
    assert_early_413(&setup.start_with(rails)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_arrives_over_tls() {
    let authority = CertificateAuthority::new();
    let setup = Setup::new().over_tls();
    let file = authority.write_certificate(&setup.dir, "ca.pem");
    let setup = setup.text("upstream.tls.ca_file", &file.display().to_string());
    assert_early_413(
        &setup.start_with(FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await),
    )
    .await;
}

/// On a kept connection there may be a response too, but not to a request of which nothing was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_response_arrives_over_a_kept_connection() {
    let harness = Setup::new().set("workers", 1).start().await;
    for _ in 0..TIMES {
        harness.rails.recover();
        harness.assert_alive().await;
        harness.rails.set_behavior(Behavior::RespondAfterHead, |_| too_large().then_close());
        let response = harness.send(&request_of_size(50_000)).await;
        assert_eq!((response.status, response.text()), (413, TOO_LARGE));
    }
}

#[tokio::test]
async fn a_client_is_answered_before_it_has_sent_everything() {
    let harness = Harness::new().await;
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| too_large().then_close());
    let bytes = request_of_size(1_000_000).to_bytes("keep-alive");
    for sent in [500, 100_000, 900_000] {
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes[..sent]).await;
        let response = connection.read_response().await;
        assert_eq!((response.status, response.text()), (413, TOO_LARGE), "{sent} bytes sent");
    }
}

#[tokio::test]
async fn an_early_close_without_a_response_is_a_502() {
    let harness = Harness::new().await;
    for reply in [Reply::hang_up(), Reply::bytes("HTTP/1.1 413 Too").then_close()] {
        harness.rails.set_behavior(Behavior::RespondAfterHead, move |_| reply.clone());
        harness.send(&request_of_size(3_000_000)).await.assert_failure(502);
    }
    harness.wait_for_metric(r#"railgate_failures_total{reason="upstream_broke_off"}"#, 2).await;
}
