//! `railgate doctor` in front of servers that are well, and that are not.

use std::fs;
use std::process::{Command, Output};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::fake::{Rails, Reply, Request, gitlab};
use super::stage::Scratch;

struct Operator {
    dir: Scratch,
}

impl Operator {
    fn new() -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), "s3cret").unwrap();
        Self { dir }
    }

    /// Runs the command, and says how it ended and what it printed.
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
        let told = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(!told.contains("s3cret"), "{told}");
        (status.success(), told)
    }
}

async fn rails(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Rails {
    let rails = Rails::on_tcp().await;
    rails.answer(script);
    rails
}

/// As Puma does what is no HTTP.
async fn answers_anything_with_400() -> String {
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
async fn a_rails_that_is_well_is_told_so() {
    let rails = Rails::on_tcp().await;
    let (is_well, told) =
        Operator::new().examine(&format!("upstream.url = '{}'", rails.peer.url()), "").await;
    assert!(is_well && told.contains("answers `check`") && told.contains("tokens and the secret"), "{told}");
    assert!(told.contains("as long as limits.target lets pass, 11264 bytes"), "{told}");
    // A question for each credential, and one that is as long as may be.
    let asked = rails.requests();
    assert_eq!(asked.len(), 3, "{told}");
    let longest = asked.iter().map(|request| request.target.len()).max().unwrap();
    assert!((9_000..11_264).contains(&longest), "{longest}");
}

#[tokio::test]
async fn what_is_wrong_is_told_with_the_mend() {
    let operator = Operator::new();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let page = rails(|_| Reply::new(200, "Content-Type: text/html\r\n", "<html>")).await;
    let stranger = rails(|_| Reply::json(401, r#"{"message":"401 Unauthorized"}"#)).await;
    let narrow =
        rails(|request| if request.target.len() > 8_000 { Reply::json(414, "{}") } else { gitlab(request) })
            .await;
    let plain = answers_anything_with_400().await;
    for (url, words) in [
        (format!("http://{unused}"), ["Connection refused", "is the port of upstream.url right?"]),
        ("http://no-such-name.invalid".to_owned(), ["failed to lookup", "getent hosts"]),
        ("http+unix://%2Fno%2Fsuch%2Fsocket".to_owned(), ["No such file", "the path in upstream.url"]),
        (plain.replace("http:", "https:"), ["no TLS", "begin with http://"]),
        (page.peer.url(), ["not GitLab's internal API", "host and port"]),
        (stranger.peer.url(), ["no credential", "auth.shell.secret_file"]),
        (narrow.peer.url(), ["no requests as long", "PUMA_QUERY_STRING_MAX_LENGTH"]),
    ] {
        let (is_well, told) = operator.examine(&format!("upstream.url = '{url}'"), "").await;
        assert!(!is_well && words.iter().all(|words| told.contains(words)), "{url}: {told}");
    }
}

#[tokio::test]
async fn each_of_several_servers_is_examined() {
    let well = Rails::on_tcp().await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let servers = format!(
        "[[upstream.server]]\nurl = '{}'\n[[upstream.server]]\nurl = 'http://{away}'",
        well.peer.url()
    );
    let (is_well, told) = Operator::new().examine(&servers, "").await;
    assert!(!is_well && told.contains(&format!("{away}:\n  failed: ")), "{told}");
    assert!(told.contains("answers `check`"), "{told}");
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_as_check_does() {
    let (is_well, told) = Operator::new().examine("upstream.ulr = 'http://127.0.0.1:1'", "").await;
    assert!(!is_well && told.contains("upstream.url"), "{told}");
}
