//! `railgate doctor` with healthy and with broken servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::certificates::CertificateAuthority;
use super::client::{Address, Request, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, ROOT_KEY, ReceivedRequest, Reply, gitlab};
use super::harness::{Harness, Scratch, Setup};

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
        self.examine_with(&self.config(upstream, more), &[]).await
    }

    fn config(&self, upstream: &str, more: &str) -> String {
        let secret = self.dir.file("shell_secret");
        // Where no gateway runs.
        let admin = self.dir.file("none.sock");
        format!(
            "{upstream}\n[auth.shell]\nsecret_file = '{}'\naccept = ['jwt', 'shared_secret']\n[admin]\naddress = \
             'unix:{}'\n{more}",
            secret.display(),
            admin.display()
        )
    }

    async fn examine_with(&self, config: &str, options: &[&str]) -> (bool, String) {
        fs::write(self.dir.file("railgate.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("doctor").args(options).arg("--config").arg(self.dir.file("railgate.toml"));
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
    // A request for each credential, one of the maximum length, and one for a page of Workhorse.
    let asked = rails.requests();
    assert_eq!(asked.len(), 4, "{output}");
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

#[tokio::test]
async fn findings_are_json_for_programs() {
    let operator = Operator::new();
    let rails = FakeRails::listen_tcp().await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = operator.dir.file("shell_secret").display().to_string();
    let admin = operator.dir.file("none.sock").display().to_string();
    for (url, is_healthy) in [(rails.address.url(), true), (format!("http://{away}"), false)] {
        let config = format!(
            "upstream.url = '{url}'\nauth.shell.secret_file = '{secret}'\nadmin.address = 'unix:{admin}'\n"
        );
        let (was_healthy, output) = operator.examine_with(&config, &["--json"]).await;
        let said: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(was_healthy, is_healthy, "{output}");
        let findings = said["findings"].as_array().unwrap();
        let of = |subject: &str| findings.iter().filter(|one| one["subject"] == subject).collect::<Vec<_>>();
        assert!(!of("this machine").is_empty(), "{said}");
        assert_eq!(of(&format!("the gateway on unix:{admin}"))[0]["level"], "note", "{said}");
        let of_server = of(url.trim_start_matches("http://"));
        if is_healthy {
            assert!(of_server.iter().any(|one| one["level"] == "ok"), "{said}");
            // The scripted Rails has no page of Workhorse.
            assert_eq!(said["worst"], "warning", "{said}");
        } else {
            assert_eq!(
                (&said["worst"], &of_server[0]["level"]),
                (&"failed".into(), &"failed".into()),
                "{said}"
            );
            assert!(of_server[0]["advice"].as_str().unwrap().contains("upstream.url"), "{said}");
        }
    }
}

#[tokio::test]
async fn sockets_that_cannot_be_made_are_reported() {
    let operator = Operator::new();
    let rails = FakeRails::listen_tcp().await;
    fs::write(operator.dir.file("file"), "").unwrap();
    let dir = operator.dir.path().display();
    for (listen, is_healthy, words) in [
        (format!("address = 'unix:{dir}/new.sock'"), true, "new.sock can be made, with the mode 0660"),
        (
            format!("address = 'unix:{dir}/new.sock'\nmode = '0666'"),
            true,
            "every user of this machine may connect",
        ),
        (format!("address = 'unix:{dir}/file'"), false, "is there, and is not a socket"),
        (format!("address = 'unix:{dir}/none/new.sock'"), false, "the directory of"),
        (format!("address = 'unix:{dir}/file/new.sock'"), false, "is not a directory"),
    ] {
        let (was_healthy, output) = operator
            .examine(&format!("upstream.url = '{}'", rails.address.url()), &format!("[[listen]]\n{listen}"))
            .await;
        assert!(was_healthy == is_healthy && output.contains(words), "{listen}: {output}");
    }
}

#[tokio::test]
async fn a_running_gateway_is_examined() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let token = setup.dir.file("hook_token");
    fs::write(&token, "h00k").unwrap();
    let setup = setup
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string())
        .set("cache.shadow.one_in", 1);
    let config = setup.config(&rails.address);
    let harness = setup.start_with(rails);
    let Address::Tcp(admin) = &harness.gateway.admin else { unreachable!() };
    let config = config.replace("admin.address = \"127.0.0.1:0\"", &format!("admin.address = '{admin}'"));
    let operator = Operator::new();
    let (is_healthy, output) = operator.examine_with(&config, &[]).await;
    assert!(is_healthy && output.contains("no System Hook has arrived"), "{output}");
    assert!(output.contains("no answer from memory was compared"), "{output}");

    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for _ in 0..2 {
        harness.gateway.tcp.send(&key).await;
    }
    let same = "railgate_shadow_checks_total{route=\"authorized_keys\",result=\"agreed\"}";
    harness.wait_for_metric(same, 1).await;
    let (is_healthy, output) = operator.examine_with(&config, &[]).await;
    assert!(is_healthy && output.contains("all 1 answers from memory"), "{output}");
}

/// A gateway with a certificate that expires tomorrow, and its configuration as the doctor needs it.
async fn with_old_certificate() -> (Harness, String) {
    let setup = Setup::new();
    let files = CertificateAuthority::new().issue_for_days(&setup.dir, "localhost", -80..1);
    let [certificate, key] = files.map(|file| file.display().to_string());
    let setup = setup.tcp(format!("tls = {{ certificate_file = {certificate:?}, key_file = {key:?} }}"));
    let rails = FakeRails::listen_tcp().await;
    let config = setup.config(&rails.address);
    let harness = setup.start_with(rails);
    let Address::Tcp(admin) = &harness.gateway.admin else { unreachable!() };
    let config = config.replace("admin.address = \"127.0.0.1:0\"", &format!("admin.address = '{admin}'"));
    (harness, config)
}

#[tokio::test]
async fn alerts_that_hold_are_named_with_their_rows() {
    let (harness, config) = with_old_certificate().await;
    let Address::Tcp(listener) = &harness.gateway.tcp else { unreachable!() };
    let (is_healthy, output) = Operator::new().examine_with(&config, &[]).await;
    for words in [
        format!("RailgateCertificateExpires: the certificate of {listener} expires in 1.0 days"),
        "its row of \"At 3 a.m.\" is deploy/README.md#certificate".to_owned(),
    ] {
        assert!(!is_healthy && output.contains(&words), "{output}");
    }
    assert_eq!(output.matches("Railgate").count(), 1, "{output}");
}

/// Debian's, with the rules of `deploy/prometheus`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_is_asked_for_its_alerts() {
    let (harness, config) = with_old_certificate().await;
    let operator = Operator::new();
    let Address::Tcp(admin) = &harness.gateway.admin else { unreachable!() };
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/railgate.rules.yaml");
    let settings = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\nscrape_configs: \
         [{{job_name: railgate, static_configs: [{{targets: [\"{admin}\"]}}]}}]\n"
    );
    let (file, data) = (operator.dir.file("prometheus.yml"), operator.dir.file("data"));
    fs::write(&file, settings).unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", data.display()));
    command.arg(format!("--web.listen-address={address}"));
    let prometheus = Process::spawn_piped(command);
    let url = format!("http://{address}");
    let options = ["--prometheus", &url];
    let (is_healthy, output) = eventually(&prometheus.printed(), async || {
        let found = operator.examine_with(&config, &options).await;
        found.1.contains("RailgateCertificateExpires: The certificate of").then_some(found)
    })
    .await;
    assert!(!is_healthy && output.contains("is deploy/README.md#certificate"), "{output}");
    assert!(output.contains(&format!("the alerts of {url}:")), "{output}");
}

#[tokio::test]
async fn a_prometheus_that_does_not_answer_is_reported() {
    let operator = Operator::new();
    let rails = FakeRails::listen_tcp().await;
    let upstream = format!("upstream.url = '{}'", rails.address.url());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other = rails_with(|_| Reply::json(200, "{}")).await;
    let refusing =
        rails_with(|_| Reply::json(422, r#"{"status":"error","error":"no such\u001b type"}"#)).await;
    let empty = rails_with(|_| Reply::json(200, r#"{"data":{"groups":[]}}"#)).await;
    for (url, words) in [
        (format!("http://{closed}"), "it cannot be asked: "),
        ("ftp://prometheus".to_owned(), "must begin with http://"),
        (other.address.url(), "it is no Prometheus"),
        (refusing.address.url(), "it does not tell its alerts: 422 Unprocessable Entity: no such type"),
        (empty.address.url(), "it has no alerts of railgate"),
    ] {
        let config = operator.config(&upstream, "");
        let (is_healthy, output) = operator.examine_with(&config, &["--prometheus", &url]).await;
        assert!(!is_healthy && output.contains(words), "{url}: {output}");
    }
}

#[tokio::test]
async fn a_prometheus_may_want_a_token() {
    let operator = Operator::new();
    let rails = FakeRails::listen_tcp().await;
    let config = operator.config(&format!("upstream.url = '{}'", rails.address.url()), "");
    let prometheus = rails_with(|request| match request.header("authorization") {
        Some("Bearer t0ken") => Reply::json(200, r#"{"data":{"groups":[]}}"#),
        Some(_) => Reply::json(403, "{}"),
        None => Reply::json(401, "{}"),
    })
    .await;
    let url = prometheus.address.url();
    let file = |name: &str, text: &str| {
        let file = operator.dir.file(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let (right, wrong, empty) = (file("right", "t0ken\n"), file("wrong", "0ther"), file("empty", ""));
    let on_the_way = "http://prometheus.example.com:9090";
    for (url, token, words) in [
        (url.as_str(), Some(&right), "it has no alerts of railgate"),
        (&url, Some(&wrong), "without a token that it accepts"),
        (&url, None, "--prometheus-token-file"),
        (&url, Some(&empty), "--prometheus-token-file"),
        (on_the_way, Some(&right), "the token would be sent unencrypted; use https://"),
    ] {
        let mut options = vec!["--prometheus", url];
        options.extend(token.iter().flat_map(|token| ["--prometheus-token-file", token.as_str()]));
        let (is_healthy, output) = operator.examine_with(&config, &options).await;
        assert!(!is_healthy && output.contains(words), "{url} {token:?}: {output}");
        assert!(!output.contains("t0ken"), "{output}");
    }
}
