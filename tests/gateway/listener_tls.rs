//! TLS of a listener: handshakes, versions, client certificates, and certificates that are renewed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use railgate::config;
use rustls::ClientConfig;
use serde_json::json;

use super::certificates::CertificateAuthority;
use super::client::{Address, Connection, Request, noise};
use super::draining::wait_until_closed;
use super::fake_rails::{FakeRails, Latch, ROOT_KEY, Reply};
use super::harness::{Harness, RunningGateway, Setup};
use super::log;

const HANDSHAKE_FAILED: &str = "tls";

fn check() -> Request {
    Request::get("check").with_secret()
}

fn tls_line([certificate, key]: &[impl AsRef<Path>; 2], more: &str) -> String {
    format!(
        "tls = {{ certificate_file = {:?}, key_file = {:?}{more} }}",
        certificate.as_ref().display().to_string(),
        key.as_ref().display().to_string()
    )
}

fn setup_with(authority: &CertificateAuthority, more: &str) -> Setup {
    let setup = Setup::new();
    let files = authority.issue_to_files(&setup.dir, "localhost");
    setup.tcp(tls_line(&files, more))
}

/// A gateway with TLS on its TCP listener, and a client that trusts it.
async fn start(more: &str) -> (Harness, Arc<ClientConfig>) {
    let authority = CertificateAuthority::new();
    let harness = setup_with(&authority, more).start().await;
    (harness, authority.client_config(None))
}

fn refused(address: &Address, reason: &str) -> String {
    let Address::Tcp(address) = address else { panic!("{address:?}") };
    format!("railgate_listener_refused_total{{listener=\"{address}\",reason=\"{reason}\"}}")
}

async fn connect(harness: &Harness, config: &Arc<ClientConfig>) -> Connection {
    harness.gateway.tcp.connect_tls(config).await.unwrap()
}

#[tokio::test]
async fn requests_over_tls_are_those_over_tcp() {
    let (harness, trusting) = start("").await;
    let large = String::from_utf8(vec![b'y'; 3_000_000]).unwrap();
    let body = large.clone();
    harness.rails.respond_with(move |request| {
        Reply::json(200, if request.target.contains("allowed") { &body } else { "{}" })
    });
    let mut connection = connect(&harness, &trusting).await;
    for _ in 0..3 {
        assert_eq!(connection.exchange(&check()).await.status, 200);
        let request = Request::post("allowed").with_secret().body(noise(300_000)).chunked(10_000);
        let response = connection.exchange(&request).await;
        assert_eq!((response.status, response.text() == large), (200, true));
        let arrived = harness.rails.last_request();
        assert_eq!(arrived.header("x-forwarded-proto"), Some("https"));
        assert_eq!(arrived.header("x-forwarded-for"), Some("127.0.0.1"));
    }
    // Pipelined, and with the end right behind.
    connection.write(&[check().to_bytes("keep-alive"), check().to_bytes("close")].concat()).await;
    for _ in 0..2 {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(connection.read_to_end().await, b"");
    // The strict reading is the same.
    let mut connection = connect(&harness, &trusting).await;
    connection.write(b"GET /api/v4/internal/check HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    connection.read_response().await.assert_failure(400);
    // The other listener is as it was.
    harness.gateway.unix.send(&Request::post("allowed").with_secret()).await;
    assert_eq!(harness.rails.last_request().header("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_is_refused() {
    let (harness, trusting) = start("").await;
    let tcp = &harness.gateway.tcp;
    for (count, bytes) in
        [check().to_bytes("close"), vec![0x16, 3, 1, 0xff, 0xff, 1], noise(3_000)].iter().enumerate()
    {
        let mut connection = tcp.connect().await;
        connection.write(bytes).await;
        connection.shutdown_write().await;
        let answer = connection.read_to_end().await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        harness.wait_for_metric(&refused(tcp, HANDSHAKE_FAILED), count + 1).await;
    }
    // Nor is one that wants another protocol, or does not know the authority.
    let mut only_http2 = ClientConfig::clone(&trusting);
    only_http2.alpn_protocols = vec![b"h2".to_vec()];
    let stranger = CertificateAuthority::new().client_config(None);
    for (count, config) in [Arc::new(only_http2), stranger].iter().enumerate() {
        assert!(tcp.connect_tls(config).await.is_err());
        harness.wait_for_metric(&refused(tcp, HANDSHAKE_FAILED), count + 4).await;
    }
    assert_eq!(connect(&harness, &trusting).await.exchange(&check()).await.status, 200);
    assert_eq!(harness.metric("railgate_client_connections_accepted_total").await, Some(6));
}

#[tokio::test]
async fn handshakes_have_a_deadline_and_do_not_hold_up_a_drain() {
    let authority = CertificateAuthority::new();
    let setup = setup_with(&authority, "").text("limits.first_byte_timeout", "300ms");
    let harness = setup.start().await;
    let tcp = harness.gateway.tcp.clone();
    let mut silent = tcp.connect().await;
    let mut half = tcp.connect().await;
    half.write(&[0x16, 3, 1, 0, 200, 1, 0]).await;
    assert_eq!(silent.read_to_end().await, b"");
    let _ = half.read_to_end().await;
    harness.wait_for_metric(&refused(&tcp, HANDSHAKE_FAILED), 2).await;
    // After the handshake, the first byte of HTTP has one, too.
    let mut idle = tcp.connect_tls(&authority.client_config(None)).await.unwrap();
    assert_eq!(idle.read_to_end().await, b"");

    let (mut harness, _) = start("").await;
    let mut silent = harness.gateway.tcp.connect().await;
    harness.wait_for_metric("railgate_client_connections", 1).await;
    harness.gateway.drain();
    assert_eq!(silent.read_to_end().await, b"");
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn unfinished_handshakes_make_room_for_others() {
    let authority = CertificateAuthority::new();
    let harness = setup_with(&authority, "").tcp("connections = 8").start().await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(harness.gateway.tcp.connect().await);
    }
    // All are accepted before the others come: one that is accepted later would take the place of one that has not sent its
    // credential yet.
    harness.wait_for_metric("railgate_client_connections_accepted_total", 40).await;
    let trusting = authority.client_config(None);
    for _ in 0..10 {
        assert_eq!(connect(&harness, &trusting).await.exchange(&check()).await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    let authority = CertificateAuthority::new();
    let setup = setup_with(&authority, "").text("limits.idle_timeout", "500ms");
    let harness = setup.start().await;
    harness.rails.respond_always(Reply::new(200, "", vec![b'x'; 16 << 20]));
    let mut connection = connect(&harness, &authority.client_config(None)).await;
    connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
    harness.wait_for_metric("railgate_client_connections", 1).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
    assert_eq!(harness.metric("railgate_clients_gone_total").await, Some(1));
}

#[tokio::test]
async fn a_client_that_disconnects_ends_its_request() {
    let (harness, trusting) = start("").await;
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(harness.gateway.unix.send(&key).await.status, 200);
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let request = Request::post("allowed").with_secret().body(noise(100_000));
    let mut connection = connect(&harness, &trusting).await;
    connection.write(&request.to_bytes("keep-alive")).await;
    harness.rails.wait_for_requests(2).await;
    drop(connection);
    harness.wait_for_metric("railgate_clients_gone_total", 1).await;
    harness.wait_for_metric("railgate_client_connections", 0).await;
    // What can be answered at once is, though the client has closed its sending side.
    let mut connection = connect(&harness, &trusting).await;
    connection.write(&key.to_bytes("close")).await;
    connection.shutdown_write().await;
    assert!(connection.read_response().await.is_hit());
}

#[tokio::test]
async fn running_requests_over_tls_finish_during_a_drain() {
    let (mut harness, trusting) = start("").await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, r#"{"late":true}"#).after(&latch));
    let mut running = connect(&harness, &trusting).await;
    running.write(&Request::post("allowed").with_secret().to_bytes("keep-alive")).await;
    harness.rails.wait_for_requests(1).await;
    let mut idle = connect(&harness, &trusting).await;
    harness.gateway.drain();
    assert_eq!(idle.read_to_end().await, b"");
    // The other thread has heard of it, too.
    wait_until_closed(&harness.gateway.tcp).await;
    latch.open();
    let response = running.read_response().await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(harness.gateway.wait_for_end().await);
}

#[tokio::test]
async fn client_certificates_are_demanded_if_an_authority_is_named() {
    let (authority, clients) = (CertificateAuthority::new(), CertificateAuthority::new());
    let setup = Setup::new();
    let file = clients.write_certificate(&setup.dir, "clients.pem");
    let files = authority.issue_to_files(&setup.dir, "localhost");
    let more = format!(", client_ca_file = {:?}", file.display().to_string());
    let harness = setup.tcp(tls_line(&files, &more)).start().await;
    let known = authority.client_config(Some(&clients));
    assert_eq!(connect(&harness, &known).await.exchange(&check()).await.status, 200);
    // A certificate is no credential.
    connect(&harness, &known).await.exchange(&Request::get("check")).await.assert_unauthorized();
    let arrived = harness.rails.request_count();
    for (count, own) in [None, Some(&authority)].into_iter().enumerate() {
        // In TLS 1.3 the client is told only after its own part of the handshake.
        if let Ok(mut connection) = harness.gateway.tcp.connect_tls(&authority.client_config(own)).await {
            connection.write(&check().to_bytes("close")).await;
            assert!(connection.try_read_response().await.is_err());
        }
        harness.wait_for_metric(&refused(&harness.gateway.tcp, HANDSHAKE_FAILED), count + 1).await;
    }
    assert_eq!(harness.rails.request_count(), arrived);
}

#[tokio::test]
async fn the_oldest_version_is_configurable() {
    let authority = CertificateAuthority::new();
    let only_12 = authority.client_config_with(None, &[&rustls::version::TLS12]);
    let only_13 = authority.client_config_with(None, &[&rustls::version::TLS13]);
    for (more, accepts_12) in
        [("", true), (", min_version = \"1.2\"", true), (", min_version = \"1.3\"", false)]
    {
        let harness = setup_with(&authority, more).start().await;
        assert_eq!(harness.gateway.tcp.connect_tls(&only_12).await.is_ok(), accepts_12, "{more}");
        assert_eq!(connect(&harness, &only_13).await.exchange(&check()).await.status, 200);
    }
}

/// Also by a change of a link, as Kubernetes changes its volumes.
#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_connections() {
    let (old, new, newest) =
        (CertificateAuthority::new(), CertificateAuthority::new(), CertificateAuthority::new());
    let setup = Setup::new();
    let (link, key) = (setup.dir.file("localhost.pem"), setup.dir.file("localhost.key"));
    for (authority, name) in [(&old, "old"), (&new, "new")] {
        for (from, extension) in authority.issue_to_files(&setup.dir, "localhost").iter().zip(["pem", "key"])
        {
            fs::rename(from, setup.dir.file(&format!("{name}.{extension}"))).unwrap();
        }
    }
    let point_to = |name: &str, extensions: &[&str]| {
        for extension in extensions {
            let temporary = setup.dir.file("link");
            symlink(setup.dir.file(&format!("{name}.{extension}")), &temporary).unwrap();
            fs::rename(&temporary, setup.dir.file(&format!("localhost.{extension}"))).unwrap();
        }
    };
    point_to("old", &["pem", "key"]);
    let rails = FakeRails::listen_tcp().await;
    let text = setup.config(&rails.address).replace(
        "[[listen]]\naddress = \"127",
        &format!("[[listen]]\n{}\naddress = \"127", tls_line(&[&link, &key], "")),
    );
    let settings = config::parse("test.toml", &text).unwrap().config;
    let gateway = RunningGateway::start(settings);
    let Address::Tcp(address) = &gateway.tcp else { unreachable!() };
    let reloads = |result: &str| {
        format!("railgate_certificate_reloads_total{{listener=\"{address}\",result=\"{result}\"}}")
    };
    let (knows_old, knows_new) = (old.client_config(None), new.client_config(None));
    let mut kept = gateway.tcp.connect_tls(&knows_old).await.unwrap();
    let expires = format!("railgate_certificate_not_after_timestamp_seconds{{listener=\"{address}\"}}");
    assert!(gateway.metric(&expires).await.unwrap() > 2_000_000_000);

    // Half of it: the key does not fit.
    let logged = log::position();
    point_to("new", &["pem"]);
    gateway.wait_for_metric(&reloads("failed"), 1).await;
    assert!(gateway.tcp.connect_tls(&knows_old).await.is_ok());
    assert!(log::since(logged).contains("the certificate cannot be reloaded"));
    point_to("new", &["key"]);
    gateway.wait_for_metric(&reloads("ok"), 1).await;
    assert!(gateway.tcp.connect_tls(&knows_new).await.is_ok());
    assert!(gateway.tcp.connect_tls(&knows_old).await.is_err());
    assert_eq!(kept.exchange(&check()).await.status, 200, "a connection that was there stays");

    // Written in place: first without an end.
    let [certificate, new_key] = newest.issue_to_files(&setup.dir, "other");
    let text = fs::read(certificate).unwrap();
    fs::write(setup.dir.file("new.pem"), &text[..text.len() / 2]).unwrap();
    gateway.wait_for_metric(&reloads("failed"), 2).await;
    assert!(gateway.tcp.connect_tls(&knows_new).await.is_ok());
    fs::write(setup.dir.file("new.pem"), text).unwrap();
    fs::copy(new_key, setup.dir.file("new.key")).unwrap();
    gateway.wait_for_metric(&reloads("ok"), 2).await;
    assert!(gateway.tcp.connect_tls(&knows_new).await.is_err());
}

/// Without the two seconds that a changed file takes.
#[tokio::test]
async fn a_reload_reads_certificates_at_once_and_names_one_that_cannot_be_used() {
    let (old, new) = (CertificateAuthority::new(), CertificateAuthority::new());
    let setup = Setup::new();
    let files = old.issue_to_files(&setup.dir, "localhost");
    let rails = FakeRails::listen_tcp().await;
    let text = setup.config(&rails.address).replace(
        "[[listen]]\naddress = \"127",
        &format!("[[listen]]\n{}\naddress = \"127", tls_line(&files, "")),
    );
    let file = setup.dir.file("railgate.toml");
    fs::write(&file, text).unwrap();
    let gateway = RunningGateway::start_with_file(&file);
    let (knows_old, knows_new) = (old.client_config(None), new.client_config(None));
    assert!(gateway.tcp.connect_tls(&knows_old).await.is_ok());
    let reload = Request::new("POST", "/reload").json("");

    let good = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &good[..good.len() / 2]).unwrap();
    let logged = log::position();
    let answer = gateway.admin.send(&reload).await;
    assert_eq!(
        (answer.status, answer.json()["mistakes"][0]["key"].as_str()),
        (422, Some("listen.tls.certificate_file"))
    );
    assert!(log::since(logged).contains("the configuration was not changed"), "{}", log::since(logged));
    gateway.wait_for_metric("railgate_config_last_reload_successful", 0).await;
    assert!(gateway.tcp.connect_tls(&knows_old).await.is_ok(), "the one before stays");

    // In the same files.
    assert_eq!(new.issue_to_files(&setup.dir, "localhost"), files);
    let answer = gateway.admin.send(&reload).await;
    assert_eq!((answer.status, answer.json()["restart_needed"].clone()), (200, serde_json::json!([])));
    assert!(gateway.tcp.connect_tls(&knows_new).await.is_ok());
    assert!(gateway.tcp.connect_tls(&knows_old).await.is_err());
}

#[tokio::test]
async fn the_cache_is_shared_with_other_listeners() {
    let (harness, trusting) = start("").await;
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let mut connection = connect(&harness, &trusting).await;
    assert!(!connection.exchange(&key).await.is_hit());
    assert!(connection.exchange(&key).await.is_hit());
    assert!(harness.gateway.unix.send(&key).await.is_hit());
}

/// Every mistake names the file and what to do.
#[tokio::test]
async fn unusable_certificates_are_refused_before_the_start() {
    let authority = CertificateAuthority::new();
    let setup = Setup::new();
    let dir = setup.dir.path().display().to_string();
    authority.issue_to_files(&setup.dir, "one");
    authority.issue_to_files(&setup.dir, "two");
    authority.issue_for_days(&setup.dir, "expired", -10..-3);
    authority.issue_for_days(&setup.dir, "ending", -10..3);
    authority.issue_for_days(&setup.dir, "future", 3..10);
    for name in ["one", "two", "expired", "ending", "future"] {
        fs::set_permissions(setup.dir.file(&format!("{name}.key")), fs::Permissions::from_mode(0o640))
            .unwrap();
    }
    fs::copy(setup.dir.file("one.key"), setup.dir.file("open.key")).unwrap();
    fs::set_permissions(setup.dir.file("open.key"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(setup.dir.file("empty"), "").unwrap();
    fs::write(setup.dir.file("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let diagnostics = |lines: &str| {
        let text = setup.config(&Address::Tcp("127.0.0.1:1".parse().unwrap()));
        let text =
            text.replace("[[listen]]\naddress = \"127", &format!("[[listen]]\n{lines}\naddress = \"127"));
        let text = text.replace("DIR", &dir);
        let all = match config::parse("test.toml", &text) {
            Ok(loaded) => loaded.warnings,
            Err(config::ConfigError(errors)) => errors,
        };
        let of_listener = all.iter().filter(|one| one.mistake.key.starts_with("listen."));
        let shown = of_listener
            .map(|one| format!("{}: {}", one.mistake.key, one.mistake.message).replace(&dir, "DIR"));
        shown.collect::<Vec<_>>().join("\n")
    };
    let tls = |certificate: &str, key: &str| {
        format!("tls = {{ certificate_file = 'DIR/{certificate}', key_file = 'DIR/{key}' }}")
    };
    for (lines, expected) in [
        (tls("one.pem", "one.key"), ""),
        (tls("one.pem", "two.key"), "listen.tls.key_file: DIR/two.key certificate and key cannot be used together: keys may not be consistent: KeyMismatch; key_file has to be that of the first certificate in certificate_file"),
        (tls("empty", "one.key"), "listen.tls.certificate_file: DIR/empty holds no certificate in PEM; it must be in PEM, which begins with -----BEGIN"),
        (tls("one.pem", "empty"), "listen.tls.key_file: DIR/empty holds no private key in PEM; it must be in PEM, which begins with -----BEGIN"),
        (tls("one.key", "one.key"), "listen.tls.certificate_file: DIR/one.key holds no certificate in PEM; it must be in PEM, which begins with -----BEGIN"),
        (tls("broken", "one.key"), "listen.tls.certificate_file: DIR/broken holds a certificate that cannot be used: "),
        (tls("none", "one.key"), "listen.tls.certificate_file: DIR/none cannot be read: No such file or directory (os error 2); check the path, and that this user may read it"),
        (tls("expired.pem", "expired.key"), "listen.tls.certificate_file: DIR/expired.pem expired 3 days ago, so clients will refuse it; renew it"),
        (tls("ending.pem", "ending.key"), "listen.tls.certificate_file: DIR/ending.pem expires in "),
        (tls("future.pem", "future.key"), "listen.tls.certificate_file: DIR/future.pem is not valid yet, but in 3 days; is the clock of this machine right?"),
        (tls("one.pem", "open.key"), "listen.tls.key_file: DIR/open.key can be read by every user; chmod o-rwx it"),
        ("tls = { certificate_file = 'DIR/one.pem' }".to_owned(), "listen.tls.key_file: is required in [listen.tls]: the path of a file in PEM"),
        ("tls = {}".to_owned(), "listen.tls.certificate_file: is required in [listen.tls]: the path of a file in PEM\nlisten.tls.key_file: is required"),
        ("tls = { certificate_file = 'DIR/one.pem', key_file = 'DIR/one.key', client_ca_file = 'DIR/empty' }".to_owned(), "listen.tls.client_ca_file: DIR/empty holds no certificate in PEM; "),
        ("tls = { certificate_file = 'DIR/one.pem', key_file = 'DIR/one.key', min_version = '1.1' }".to_owned(), "listen.tls.min_version: expected \"1.2\" or \"1.3\", found \"1.1\""),
    ] {
        let shown = diagnostics(&lines);
        assert!(shown.starts_with(expected) && expected.is_empty() == shown.is_empty(), "{lines}: {shown}");
    }
}

#[tokio::test]
async fn the_log_says_why_a_connection_was_closed() {
    let (harness, _) = start("").await;
    let mut connection = harness.gateway.tcp.connect_from("127.0.0.83").await;
    connection.write(b"GET / HTTP/1.1\r\n\r\n").await;
    let lines = log::wait_for_lines("127.0.0.83", 1).await;
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(
        (&line["message"], &line["reason"]),
        (&json!("a connection was closed"), &json!("tls")),
        "{line}"
    );
    assert!(line["error"].as_str().unwrap().contains("corrupt message"), "{line}");
}
