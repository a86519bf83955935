//! Rails cannot be reached: what operators are told of the reason, also by those who only stood in line.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::certificates::Authority;
use super::client::{Ask, Peer, Wire, eventually};
use super::fake::Rails;
use super::log;
use super::stage::{Running, Setup};

fn setup() -> Setup {
    Setup::new().text("upstream.hold", "300ms").text("upstream.connect_timeout", "100ms")
}

async fn begin(gateway: &Running, id: &str) -> Wire {
    let ask = Ask::post("allowed").with_secret().json("{}").header("X-Request-Id", id);
    let mut wire = gateway.tcp.connect().await;
    wire.write(&ask.to_bytes("close")).await;
    wire
}

/// What is in the line of the log that tells of a request.
async fn told(id: &str, since: usize) -> String {
    eventually("the line of a request", async || {
        let log = log::since(since);
        log.lines().find(|line| line.contains(id) && line.contains(r#""failure""#)).map(str::to_owned)
    })
    .await
}

/// Rails, where two requests wait for it: one tries to connect, the other one stands behind it.
async fn assert_told(gateway: &Running, name: &str, status: u16, (cause, words): (&str, &str)) {
    let since = log::length();
    let ids = [format!("first-of-{name}"), format!("second-of-{name}")];
    let mut wires = Vec::new();
    for id in &ids {
        wires.push(begin(gateway, id).await);
    }
    for wire in &mut wires {
        wire.answer().await.assert_failure(status);
    }
    for id in &ids {
        let line = told(id, since).await;
        assert!(line.contains(words), "{name}: {line}");
    }
    let series = format!("railgate_upstream_unreachable_total{{cause=\"{cause}\"}}");
    let count = gateway.metric(&series).await;
    assert!(count.is_some_and(|count| count > 0), "{name}: {}", gateway.metrics().await);
    let ready = gateway.admin.send(&Ask::new("GET", "/ready")).await;
    assert_eq!(ready.json()["upstream"]["cause"], cause, "{name}: {ready}");
}

fn at(url: &str) -> Running {
    Running::start(setup().settings_of(&format!("[[upstream.server]]\nurl = \"{url}\"")))
}

fn bound() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn the_reason_for_which_rails_cannot_be_reached_is_told_to_all_who_wait() {
    let (_closed, refusing) = bound();
    let (full, silent) = bound();
    full.listen(0).unwrap();
    let _taken = std::net::TcpStream::connect(silent).unwrap();
    for (name, url, cause, words) in [
        ("refused", format!("http://{refusing}"), "refused", "Connection refused"),
        ("silent", format!("http://{silent}"), "timeout", "no connection within 100ms"),
        ("no-socket", "http+unix://%2Fnowhere%2Frails.sock".into(), "no_socket", "No such file"),
    ] {
        assert_told(&at(&url), name, 503, (cause, words)).await;
    }
}

/// Resolving may take its time.
#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told() {
    let setup = setup().text("upstream.connect_timeout", "10m").text("upstream.hold", "1s");
    let servers = "[[upstream.server]]\nurl = \"http://no-such-host.invalid\"";
    let gateway = Running::start(setup.settings_of(servers));
    assert_told(&gateway, "name", 503, ("dns", "failed to lookup address information")).await;
}

/// A server that speaks HTTP, as Puma does, whatever it is sent.
async fn speaks_http() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    address
}

/// One that hangs up on what it does not understand.
async fn hangs_up() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
        }
    });
    address
}

#[tokio::test]
async fn https_spoken_to_http_is_said_in_words() {
    let authority = Authority::new();
    let patient = || setup().text("upstream.connect_timeout", "10m");
    for (name, address, status) in
        [("https-to-http", speaks_http().await, 502), ("https-to-a-mute", hangs_up().await, 503)]
    {
        let setup = patient();
        let file = authority.file(&setup.dir, "ca.pem");
        let servers = format!(
            "[upstream.tls]\nca_file = \"{}\"\n[[upstream.server]]\nurl = \"https://{address}\"",
            file.display()
        );
        let gateway = Running::start(setup.settings_of(&servers));
        let words = "upstream.url has to begin with http://";
        assert_told(&gateway, name, status, ("tls", words)).await;
    }
}

#[tokio::test]
async fn http_spoken_to_https_is_said_in_words() {
    let authority = Authority::new();
    let rails = Rails::on_tls(authority.server("localhost", None)).await;
    let Peer::Tcp(address) = rails.peer else { panic!("{:?}", rails.peer) };
    let gateway = at(&format!("http://{address}"));
    let since = log::length();
    begin(&gateway, "http-to-https").await.answer().await.assert_failure(502);
    let line = told("http-to-https", since).await;
    assert!(line.contains("upstream.url has to begin with https://"), "{line}");
}
