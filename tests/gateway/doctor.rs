//! `railgate doctor` with healthy and with broken servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::certificates::CertificateAuthority;
use super::fake_rails::{FakeRails, ReceivedRequest, Reply, gitlab};
use super::harness::Scratch;

struct Operator {
    dir: Scratch,
}

impl Operator {
    fn new() -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), "s3cret").unwrap();
        Self { dir }
    }

    /// Runs the command. Returns whether it succeeded, and its output.
    async fn examine(&self, upstream: &str, more: &str) -> (bool, String) {
        let secret = self.dir.file("shell_secret");
        let config = format!(
            "{upstream}\n[auth.shell]\nsecret_file = '{}'\naccept = ['jwt', 'shared_secret']\n{more}",
            secret.display()
        );
        fs::write(self.dir.file("railgate.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("doctor").arg("--config").arg(self.dir.file("railgate.toml"));
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let output = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!output.contains("s3cret"), "{output}");
        (status.success(), output)
    }
}

async fn rails_with(script: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static) -> FakeRails {
    let rails = FakeRails::listen_tcp().await;
    rails.respond_with(script);
    rails
}

/// A server that answers everything with 400, as Puma does for bytes that are not HTTP.
async fn start_400_server() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    url
}

#[tokio::test]
async fn a_healthy_rails_is_reported() {
    let rails = FakeRails::listen_tcp().await;
    let (is_healthy, output) =
        Operator::new().examine(&format!("upstream.url = '{}'", rails.address.url()), "").await;
    assert!(
        is_healthy && output.contains("answers `check`") && output.contains("tokens and the secret"),
        "{output}"
    );
    assert!(output.contains("as long as limits.target allows, 11264 bytes"), "{output}");
    // A request for each credential, and one of the maximum length.
    let asked = rails.requests();
    assert_eq!(asked.len(), 3, "{output}");
    let longest = asked.iter().map(|request| request.target.len()).max().unwrap();
    assert!((9_000..11_264).contains(&longest), "{longest}");
}

#[tokio::test]
async fn problems_are_reported_with_a_remedy() {
    let operator = Operator::new();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let page = rails_with(|_| Reply::new(200, "Content-Type: text/html\r\n", "<html>")).await;
    let refusing = rails_with(|_| Reply::json(401, r#"{"message":"401 Unauthorized"}"#)).await;
    let narrow =
        rails_with(
            |request| if request.target.len() > 8_000 { Reply::json(414, "{}") } else { gitlab(request) },
        )
        .await;
    let plain = start_400_server().await;
    for (url, words) in [
        (format!("http://{unused}"), ["Connection refused", "is the port of upstream.url right?"]),
        ("http://no-such-name.invalid".to_owned(), ["failed to lookup", "getent hosts"]),
        ("http+unix://%2Fno%2Fsuch%2Fsocket".to_owned(), ["No such file", "the path in upstream.url"]),
        (plain.replace("http:", "https:"), ["does not speak TLS", "begin with http://"]),
        (page.address.url(), ["not GitLab's internal API", "host and port"]),
        (refusing.address.url(), ["no credential", "auth.shell.secret_file"]),
        (narrow.address.url(), ["no targets as long", "PUMA_QUERY_STRING_MAX_LENGTH"]),
    ] {
        let (is_healthy, output) = operator.examine(&format!("upstream.url = '{url}'"), "").await;
        assert!(!is_healthy && words.iter().all(|words| output.contains(words)), "{url}: {output}");
    }
}

#[tokio::test]
async fn a_silent_host_and_tls_problems_are_reported_with_a_remedy() {
    let operator = Operator::new();
    // Its queue is full.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    silent.listen(0).unwrap();
    let silent_address = silent.local_addr().unwrap().as_socket().unwrap();
    let _taken = std::net::TcpStream::connect(silent_address).unwrap();
    let (own, other) = (CertificateAuthority::new(), CertificateAuthority::new());
    let [own_file, other_file] = [(&own, "own.pem"), (&other, "other.pem")]
        .map(|(authority, name)| authority.write_certificate(&operator.dir, name).display().to_string());
    let rails = FakeRails::listen_tls(own.tls_acceptor("localhost", None)).await;
    let http = rails.address.url().replace("127.0.0.1", "localhost");
    let https = http.replace("http:", "https:");
    let trusting = |url: &str, file: &str| format!("upstream.url = '{url}'\nupstream.tls.ca_file = '{file}'");
    for (upstream, words) in [
        (
            format!("upstream.url = 'http://{silent_address}'\nupstream.connect_timeout = '100ms'"),
            ["no connection within 100ms", "a firewall, another address, a host that is down"],
        ),
        (
            trusting(&https, &other_file),
            ["invalid peer certificate", "signed by an authority in upstream.tls.ca_file"],
        ),
        (
            trusting(&https.replace("localhost", "127.0.0.1"), &own_file),
            ["not valid for name", "for the name in upstream.url?"],
        ),
        (format!("upstream.url = '{http}'"), ["is not HTTP/1.1", "has to begin with https://"]),
    ] {
        let (is_healthy, output) = operator.examine(&upstream, "").await;
        assert!(!is_healthy && words.iter().all(|words| output.contains(words)), "{upstream}: {output}");
    }
    let (is_healthy, output) = operator.examine(&trusting(&https, &own_file), "").await;
    assert!(is_healthy, "{output}");
}

#[tokio::test]
async fn each_server_is_examined() {
    let well = FakeRails::listen_tcp().await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let servers = format!(
        "[[upstream.server]]\nurl = '{}'\n[[upstream.server]]\nurl = 'http://{away}'",
        well.address.url()
    );
    let (is_healthy, output) = Operator::new().examine(&servers, "").await;
    assert!(!is_healthy && output.contains(&format!("{away}:\n  failed: ")), "{output}");
    assert!(output.contains("answers `check`"), "{output}");
}

#[tokio::test]
async fn configuration_errors_are_reported_as_by_check() {
    let (is_healthy, output) = Operator::new().examine("upstream.ulr = 'http://127.0.0.1:1'", "").await;
    assert!(!is_healthy && output.contains("upstream.url"), "{output}");
}
