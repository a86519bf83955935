//! Rails behind TLS: who is believed, and what is said of those who are not.

use super::certificates::Authority;
use super::client::{Ask, eventually};
use super::fake::{Rails, Reply};
use super::log;
use super::stage::{Setup, Stage};

/// In front of a Rails that is called `localhost`.
async fn in_front_of(setup: Setup, rails: &Authority, clients: Option<&Authority>) -> Stage {
    setup.in_front_of(Rails::on_tls(rails.server("localhost", clients)).await)
}

fn trusting(authority: &Authority) -> Setup {
    let setup = Setup::new().over_tls();
    let file = authority.file(&setup.dir, "ca.pem");
    setup.text("upstream.tls.ca_file", &file.display().to_string())
}

fn check() -> Ask {
    Ask::get("check").with_secret()
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json(&format!(r#"{{"changes":"{}"}}"#, "x".repeat(300_000)))
}

#[tokio::test]
async fn requests_go_over_kept_connections_whole() {
    let authority = Authority::new();
    // Each worker has connections of its own.
    let stage = in_front_of(trusting(&authority).set("workers", 1), &authority, None).await;
    let large = "y".repeat(500_000);
    stage.rails.always(Reply::json(200, &large));
    for _ in 0..5 {
        let (answer, arrived) =
            stage.pass(&Ask::post("allowed").with_secret().body(vec![b'x'; 60_000])).await;
        assert_eq!((answer.status, answer.text().len(), arrived.body.len()), (200, 500_000, 60_000));
        assert!(arrived.header("host").unwrap().starts_with("localhost:"));
    }
    assert_eq!(stage.rails.connections(), 1);
    // That one is too large for it.
    let (answer, arrived) = stage.pass(&allowed()).await;
    assert_eq!((answer.status, answer.text().len(), arrived.body.len()), (200, 500_000, 300_014));
    assert_eq!(stage.rails.connections(), 2);
}

#[tokio::test]
async fn whoever_is_not_believed_gets_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (setup, why) in [
        (trusting(&other), "invalid peer certificate: BadSignature"),
        (trusting(&authority).text("upstream.tls.server_name", "gitlab.example.com"), "not valid for name"),
    ] {
        let stage = in_front_of(setup, &authority, None).await;
        let logged = log::length();
        stage.send(&check()).await.assert_failure(502);
        eventually(why, async || {
            let is_told = |line: &str| line.contains("upstream_unreachable") && line.contains(why);
            log::since(logged).lines().any(is_told).then_some(())
        })
        .await;
        assert_eq!(stage.rails.count(), 0);
    }
}

#[tokio::test]
async fn the_name_that_rails_proves_may_be_another_than_that_of_the_url() {
    let authority = Authority::new();
    let rails = Rails::on_tls(authority.server("gitlab.example.com", None)).await;
    let setup = trusting(&authority).text("upstream.tls.server_name", "gitlab.example.com");
    let stage = setup.in_front_of(rails);
    assert_eq!(stage.send(&check()).await.status, 200);
}

#[tokio::test]
async fn a_rails_that_wants_a_certificate_gets_ours() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let setup = trusting(&authority);
    let [certificate, key] = clients.sign(&setup.dir, "gateway").map(|path| path.display().to_string());
    let setup = setup.text("upstream.tls.certificate_file", &certificate).text("upstream.tls.key_file", &key);
    let stage = in_front_of(setup, &authority, Some(&clients)).await;
    assert_eq!(stage.send(&check()).await.status, 200);

    let stage = in_front_of(trusting(&authority), &authority, Some(&clients)).await;
    stage.send(&check()).await.assert_failure(502);
    assert_eq!(stage.rails.count(), 0);
}

/// Neither side waits for the other for ever.
#[tokio::test]
async fn plain_and_secured_do_not_mix() {
    let authority = Authority::new();
    let plain = Rails::on_tcp().await;
    let stage = trusting(&authority).text("upstream.connect_timeout", "1s").in_front_of(plain);
    stage.send(&check()).await.assert_failure(503);

    let secured = Rails::on_tls(authority.server("localhost", None)).await;
    let stage = Setup::new().in_front_of(secured);
    stage.send(&check()).await.assert_failure(502);
}
