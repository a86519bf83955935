//! Rails behind TLS: which certificates are trusted, and what is logged of others.

use super::certificates::CertificateAuthority;
use super::client::{Request, eventually};
use super::fake_rails::{FakeRails, Reply};
use super::harness::{Harness, Setup};
use super::log;

/// Starts a gateway in front of a Rails named `localhost`.
async fn start_harness(
    setup: Setup,
    rails: &CertificateAuthority,
    clients: Option<&CertificateAuthority>,
) -> Harness {
    setup.start_with(FakeRails::listen_tls(rails.tls_acceptor("localhost", clients)).await)
}

fn setup_trusting(authority: &CertificateAuthority) -> Setup {
    let setup = Setup::new().over_tls();
    let file = authority.write_certificate(&setup.dir, "ca.pem");
    setup.text("upstream.tls.ca_file", &file.display().to_string())
}

fn check() -> Request {
    Request::get("check").with_secret()
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json(&format!(r#"{{"changes":"{}"}}"#, "x".repeat(300_000)))
}

#[tokio::test]
async fn requests_over_kept_tls_connections_are_complete() {
    let authority = CertificateAuthority::new();
    // Each worker has connections of its own.
    let harness = start_harness(setup_trusting(&authority).set("workers", 1), &authority, None).await;
    let large = "y".repeat(500_000);
    harness.rails.respond_always(Reply::json(200, &large));
    for _ in 0..5 {
        let (response, arrived) =
            harness.send_forwarded(&Request::post("allowed").with_secret().body(vec![b'x'; 60_000])).await;
        assert_eq!((response.status, response.text().len(), arrived.body.len()), (200, 500_000, 60_000));
        assert!(arrived.header("host").unwrap().starts_with("localhost:"));
    }
    assert_eq!(harness.rails.connection_count(), 1);
    // This body is too large for a reused connection.
    let (response, arrived) = harness.send_forwarded(&allowed()).await;
    assert_eq!((response.status, response.text().len(), arrived.body.len()), (200, 500_000, 300_014));
    assert_eq!(harness.rails.connection_count(), 2);
}

#[tokio::test]
async fn an_untrusted_server_gets_no_request() {
    let (authority, other) = (CertificateAuthority::new(), CertificateAuthority::new());
    for (setup, why) in [
        (setup_trusting(&other), "invalid peer certificate: BadSignature"),
        (
            setup_trusting(&authority).text("upstream.tls.server_name", "gitlab.example.com"),
            "not valid for name",
        ),
    ] {
        let harness = start_harness(setup, &authority, None).await;
        let logged = log::position();
        harness.send(&check()).await.assert_failure(502);
        eventually(why, async || {
            let is_logged = |line: &str| line.contains("upstream_unreachable") && line.contains(why);
            log::since(logged).lines().any(is_logged).then_some(())
        })
        .await;
        assert_eq!(harness.rails.request_count(), 0);
    }
}

#[tokio::test]
async fn the_certificate_name_is_configurable() {
    let authority = CertificateAuthority::new();
    let rails = FakeRails::listen_tls(authority.tls_acceptor("gitlab.example.com", None)).await;
    let setup = setup_trusting(&authority).text("upstream.tls.server_name", "gitlab.example.com");
    let harness = setup.start_with(rails);
    assert_eq!(harness.send(&check()).await.status, 200);
}

#[tokio::test]
async fn a_client_certificate_is_presented_on_request() {
    let (authority, clients) = (CertificateAuthority::new(), CertificateAuthority::new());
    let setup = setup_trusting(&authority);
    let [certificate, key] =
        clients.issue_to_files(&setup.dir, "gateway").map(|path| path.display().to_string());
    let setup = setup.text("upstream.tls.certificate_file", &certificate).text("upstream.tls.key_file", &key);
    let harness = start_harness(setup, &authority, Some(&clients)).await;
    assert_eq!(harness.send(&check()).await.status, 200);

    let harness = start_harness(setup_trusting(&authority), &authority, Some(&clients)).await;
    harness.send(&check()).await.assert_failure(502);
    assert_eq!(harness.rails.request_count(), 0);
}

#[tokio::test]
async fn plain_and_tls_do_not_mix() {
    let authority = CertificateAuthority::new();
    let plain = FakeRails::listen_tcp().await;
    let harness = setup_trusting(&authority).text("upstream.connect_timeout", "1s").start_with(plain);
    harness.send(&check()).await.assert_failure(503);

    let secured = FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await;
    let harness = Setup::new().start_with(secured);
    harness.send(&check()).await.assert_failure(502);
}
