//! Who may connect to a listener, to whom its socket belongs, and which proxies are believed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use railgate::{Gateway, config};
use serde_json::json;

use super::client::{Address, Request};
use super::fake_rails::FakeRails;
use super::harness::{Harness, Setup};
use super::log;

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn refused(address: &Address) -> String {
    let name = match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    };
    format!("railgate_listener_refused_total{{listener=\"{name}\",reason=\"peer\"}}")
}

#[tokio::test]
async fn only_allowed_addresses_may_connect() {
    let harness = Setup::new().tcp("allow_peers = ['127.0.0.16/28', '127.0.0.99']").start().await;
    let tcp = &harness.gateway.tcp;
    let mut turned_away = 0;
    for (ip, is_allowed) in [
        ("127.0.0.16", true),
        ("127.0.0.31", true),
        ("127.0.0.99", true),
        ("127.0.0.1", false),
        ("127.0.0.15", false),
        ("127.0.0.32", false),
        ("127.0.0.98", false),
    ] {
        let mut connection = tcp.connect_from(ip).await;
        connection.write(&allowed().to_bytes("close")).await;
        match connection.try_read_response().await {
            Ok(response) => assert!(is_allowed && response.status == 200, "{ip}: {response}"),
            Err(_) => assert!(!is_allowed, "{ip}"),
        }
        turned_away += usize::from(!is_allowed);
    }
    harness.wait_for_metric(&refused(tcp), turned_away).await;
    assert_eq!(harness.rails.request_count(), 3);
    // Those take no permit.
    assert_eq!(harness.metric("railgate_client_connections_accepted_total").await, Some(3));
    assert_eq!(harness.gateway.unix.send(&allowed()).await.status, 200, "another listener allows all");
}

#[tokio::test]
async fn only_allowed_users_and_groups_may_connect() {
    let own = fs::metadata(std::env::temp_dir().join(".")).and_then(|_| fs::metadata("/proc/self")).unwrap();
    let (uid, gid) = (own.uid(), own.gid());
    for (entries, is_allowed) in [
        (format!("['uid:{uid}']"), true),
        (format!("['uid:{}', 'gid:{gid}']", uid + 1), true),
        (format!("['uid:{}', 'gid:{}']", uid + 1, gid + 1), false),
    ] {
        let harness = Setup::new().unix(format!("allow_peers = {entries}")).start().await;
        let unix = &harness.gateway.unix;
        let mut connection = unix.connect().await;
        connection.write(&allowed().to_bytes("close")).await;
        assert_eq!(connection.try_read_response().await.is_ok(), is_allowed, "{entries}");
        harness.wait_for_metric(&refused(unix), usize::from(!is_allowed)).await;
    }
}

#[tokio::test]
async fn a_socket_is_given_to_its_owner() {
    // Only root may give files away; others may keep theirs.
    let own = fs::metadata("/proc/self").unwrap();
    let is_root = own.uid() == 0;
    let (user, group) = if is_root { (1, 2) } else { (own.uid(), own.gid()) };
    let setup =
        Setup::new().mode("0640").unix(format!("owner = '{user}'")).unix(format!("group = '{group}'"));
    let socket = setup.socket();
    let _harness = setup.start().await;
    let file = fs::metadata(&socket).unwrap();
    assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o777), (user, group, 0o640));
    if !is_root {
        let setup = Setup::new().unix("owner = '0'");
        let settings = setup.settings(&FakeRails::listen_tcp().await.address);
        let error = Gateway::bind(settings, std::sync::Arc::default()).unwrap_err().to_string();
        assert!(error.contains("the socket cannot be given to user 0: Operation not permitted"), "{error}");
        assert!(!setup.socket().exists());
    }
}

/// The address that the log names, and what Rails gets as `X-Forwarded-For` and `-Proto`.
async fn seen_from(harness: &Harness, ip: Option<&str>, headers: &[(&str, &str)]) -> [String; 3] {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let id = format!("forwarded-{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let mut request = allowed().header("X-Request-Id", &id);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut connection = match ip {
        Some(ip) => harness.gateway.tcp.connect_from(ip).await,
        None => harness.gateway.unix.connect().await,
    };
    connection.write(&request.to_bytes("close")).await;
    assert_eq!(connection.read_response().await.status, 200);
    let (line, arrived) = (log::wait_for_request_line(&id).await, harness.rails.last_request());
    let remote_ip = line.get("remote_ip").cloned().unwrap_or(json!("none"));
    let header = |name| arrived.header(name).unwrap_or("none").to_owned();
    [remote_ip.as_str().unwrap().to_owned(), header("x-forwarded-for"), header("x-forwarded-proto")]
}

const FOR: &str = "X-Forwarded-For";
const PROTO: &str = "X-Forwarded-Proto";

#[tokio::test]
async fn only_trusted_proxies_are_believed() {
    let harness = Setup::new().tcp("trusted_proxies = ['127.0.0.8/30']").start().await;
    for (ip, headers, expected) in [
        (
            "127.0.0.9",
            &[(FOR, "203.0.113.7"), (PROTO, "https")][..],
            ["203.0.113.7", "203.0.113.7, 127.0.0.9", "https"],
        ),
        (
            "127.0.0.9",
            &[(FOR, "192.0.2.1, 203.0.113.7, 127.0.0.10")],
            ["203.0.113.7", "192.0.2.1, 203.0.113.7, 127.0.0.10, 127.0.0.9", "http"],
        ),
        (
            "127.0.0.9",
            &[(FOR, "192.0.2.1"), (FOR, "203.0.113.7")],
            ["203.0.113.7", "192.0.2.1, 203.0.113.7, 127.0.0.9", "http"],
        ),
        ("127.0.0.9", &[], ["127.0.0.9", "127.0.0.9", "http"]),
        ("127.0.0.9", &[(FOR, "nobody"), (PROTO, "gopher")], ["127.0.0.9", "nobody, 127.0.0.9", "http"]),
        ("127.0.0.9", &[(PROTO, "https"), (PROTO, "http")], ["127.0.0.9", "127.0.0.9", "http"]),
        // As ever.
        (
            "127.0.0.1",
            &[(FOR, "203.0.113.7"), (PROTO, "https")],
            ["127.0.0.1", "203.0.113.7, 127.0.0.1", "http"],
        ),
        (
            "127.0.0.12",
            &[(FOR, "127.0.0.9"), (PROTO, "https")],
            ["127.0.0.12", "127.0.0.9, 127.0.0.12", "http"],
        ),
    ] {
        assert_eq!(seen_from(&harness, Some(ip), headers).await, expected, "{ip} {headers:?}");
    }
    let headers = [(FOR, "203.0.113.7"), (PROTO, "https")];
    assert_eq!(seen_from(&harness, None, &headers).await, ["none", "203.0.113.7", "http"]);
}

#[tokio::test]
async fn a_proxy_on_a_unix_socket_can_be_trusted() {
    let harness = Setup::new().unix("trusted_proxies = ['unix:', '10.0.0.0/8']").start().await;
    let headers = [(FOR, "203.0.113.7, 10.0.0.1"), (PROTO, "https")];
    let expected = ["203.0.113.7", "203.0.113.7, 10.0.0.1", "https"];
    assert_eq!(seen_from(&harness, None, &headers).await, expected);
    assert_eq!(seen_from(&harness, Some("127.0.0.1"), &headers).await[0], "127.0.0.1");
}

fn of_listener(diagnostics: &[config::Diagnostic]) -> Vec<String> {
    let of_listener = diagnostics.iter().filter(|one| one.mistake.key.starts_with("listen."));
    of_listener.map(|one| format!("{}: {}", one.mistake.key, one.mistake.message)).collect()
}

#[tokio::test]
async fn mistakes_in_peers_say_what_to_write() {
    let address = Address::Tcp("127.0.0.1:1".parse().unwrap());
    let mistakes = |setup: Setup| match config::parse("test.toml", &setup.config(&address)) {
        Ok(loaded) => of_listener(&loaded.warnings),
        Err(config::ConfigError(errors)) => of_listener(&errors),
    };
    let tcp = |line: &str| mistakes(Setup::new().tcp(line));
    let unix = |line: &str| mistakes(Setup::new().unix(line));
    for (found, expected) in [
        (
            tcp("allow_peers = []"),
            "listen.allow_peers: is empty, so no client could connect; drop the key to let all connect",
        ),
        (
            tcp("allow_peers = ['localhost']"),
            "listen.allow_peers: expected an address or a network, such as \"10.0.0.7\" or \"10.0.0.0/8\", found \"localhost\"",
        ),
        (
            tcp("allow_peers = ['10.1.0.0/8']"),
            "listen.allow_peers: \"10.1.0.0/8\" has bits beyond its prefix; write \"10.0.0.0/8\"",
        ),
        (tcp("allow_peers = ['10.0.0.0/33']"), "listen.allow_peers: expected an address or a network"),
        (
            tcp("allow_peers = ['uid:0']"),
            "listen.allow_peers: \"uid:0\" is for a unix socket; over TCP, peers have addresses, such as \"10.0.0.0/8\"",
        ),
        (
            unix("allow_peers = ['10.0.0.0/8']"),
            "listen.allow_peers: \"10.0.0.0/8\" is for TCP; peers of a unix socket are users and groups, such as \"uid:git\"",
        ),
        (
            unix("allow_peers = ['uid:no-such-user']"),
            "listen.allow_peers: this system has no user \"no-such-user\"; create it, or write its number",
        ),
        (
            unix("owner = 'no-such-user'"),
            "listen.owner: this system has no user \"no-such-user\"; create it, or write its number",
        ),
        (
            unix("group = 7"),
            "listen.group: expected a name or a number in quotes, such as \"git\" or \"998\"",
        ),
        (tcp("owner = 'root'"), "listen.owner: only a unix socket has an owner; drop the key"),
        (
            tcp("trusted_proxies = ['unix:']"),
            "listen.trusted_proxies: \"unix:\" stands for the peers of a unix socket, and this listener has none; drop it",
        ),
        (
            tcp("trusted_proxies = ['0.0.0.0/0']"),
            "listen.trusted_proxies: \"0.0.0.0/0\" is everyone: any client could say that it is another one",
        ),
        (
            tcp("proxy_protocol = true"),
            "listen.proxy_protocol: needs trusted_proxies: the proxies whose header is believed, such as [\"10.0.0.7\"]",
        ),
        (
            tcp("proxy_protocol = true\ntrusted_proxies = []"),
            "listen.proxy_protocol: needs an address in trusted_proxies, or no connection would be accepted",
        ),
        (
            unix("proxy_protocol = true\ntrusted_proxies = ['10.0.0.7']"),
            "listen.proxy_protocol: needs \"unix:\" in trusted_proxies here: all peers of a unix socket, or no connection would be accepted",
        ),
    ] {
        assert!(found.len() == 1 && found[0].starts_with(expected), "{expected}: {found:?}");
    }
}
