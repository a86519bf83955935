//! Rails is unreachable: the cause in log and metrics, also for requests that only waited in the queue.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::certificates::CertificateAuthority;
use super::client::{Address, Connection, Request, eventually};
use super::fake_rails::FakeRails;
use super::harness::{RunningGateway, Setup};
use super::log;

fn setup() -> Setup {
    Setup::new().text("upstream.hold", "300ms").text("upstream.connect_timeout", "100ms")
}

async fn start_request(gateway: &RunningGateway, id: &str) -> Connection {
    let request = Request::post("allowed").with_secret().json("{}").header("X-Request-Id", id);
    let mut connection = gateway.tcp.connect().await;
    connection.write(&request.to_bytes("close")).await;
    connection
}

/// Waits for the log line of the failed request with this id.
async fn wait_for_failure_line(id: &str, since: usize) -> String {
    eventually("the line of a request", async || {
        let log = log::since(since);
        log.lines().find(|line| line.contains(id) && line.contains(r#""failure""#)).map(str::to_owned)
    })
    .await
}

/// Asserts the logged cause for two requests: one tries to connect, the other one waits behind it.
async fn assert_logged(gateway: &RunningGateway, name: &str, status: u16, (cause, words): (&str, &str)) {
    let since = log::position();
    let ids = [format!("first-of-{name}"), format!("second-of-{name}")];
    let mut connections = Vec::new();
    for id in &ids {
        connections.push(start_request(gateway, id).await);
    }
    for connection in &mut connections {
        connection.read_response().await.assert_failure(status);
    }
    for id in &ids {
        let line = wait_for_failure_line(id, since).await;
        assert!(line.contains(words), "{name}: {line}");
    }
    let series = format!("railgate_upstream_unreachable_total{{cause=\"{cause}\"}}");
    let count = gateway.metric(&series).await;
    assert!(count.is_some_and(|count| count > 0), "{name}: {}", gateway.metrics().await);
    let ready = gateway.admin.send(&Request::new("GET", "/ready")).await;
    assert_eq!(ready.json()["upstream"]["cause"], cause, "{name}: {ready}");
}

fn gateway_for(url: &str) -> RunningGateway {
    RunningGateway::start(setup().settings_with_servers(&format!("[[upstream.server]]\nurl = \"{url}\"")))
}

fn bound_socket() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn the_connect_error_is_logged_for_all_waiting_requests() {
    let (_closed, refusing) = bound_socket();
    let (full, silent) = bound_socket();
    full.listen(0).unwrap();
    let _taken = std::net::TcpStream::connect(silent).unwrap();
    for (name, url, cause, words) in [
        ("refused", format!("http://{refusing}"), "refused", "Connection refused"),
        ("silent", format!("http://{silent}"), "timeout", "no connection within 100ms"),
        ("no-socket", "http+unix://%2Fnowhere%2Frails.sock".into(), "no_socket", "No such file"),
    ] {
        assert_logged(&gateway_for(&url), name, 503, (cause, words)).await;
    }
}

/// Name resolution may take a while.
#[tokio::test]
async fn an_unresolvable_name_is_logged() {
    let setup = setup().text("upstream.connect_timeout", "10m").text("upstream.hold", "1s");
    let servers = "[[upstream.server]]\nurl = \"http://no-such-host.invalid\"";
    let gateway = RunningGateway::start(setup.settings_with_servers(servers));
    assert_logged(&gateway, "name", 503, ("dns", "failed to lookup address information")).await;
}

/// A server that answers anything with a plain HTTP 400, as Puma does.
async fn start_http_server() -> SocketAddr {
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

/// A server that closes the connection after the first bytes, or resets it.
async fn start_closing_server(resets: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
            if resets {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    });
    address
}

#[tokio::test]
async fn tls_to_a_plain_server_is_explained_in_the_log() {
    let authority = CertificateAuthority::new();
    let patient = || setup().text("upstream.connect_timeout", "10m");
    for (name, address, status) in [
        ("https-to-http", start_http_server().await, 502),
        ("https-to-a-mute", start_closing_server(false).await, 503),
        ("https-to-a-reset", start_closing_server(true).await, 503),
    ] {
        let setup = patient();
        let file = authority.write_certificate(&setup.dir, "ca.pem");
        let servers = format!(
            "[upstream.tls]\nca_file = \"{}\"\n[[upstream.server]]\nurl = \"https://{address}\"",
            file.display()
        );
        let gateway = RunningGateway::start(setup.settings_with_servers(&servers));
        let words = "upstream.url has to begin with http://";
        assert_logged(&gateway, name, status, ("tls", words)).await;
    }
}

#[tokio::test]
async fn plain_http_to_a_tls_server_is_explained_in_the_log() {
    let authority = CertificateAuthority::new();
    let rails = FakeRails::listen_tls(authority.tls_acceptor("localhost", None)).await;
    let Address::Tcp(address) = rails.address else { panic!("{:?}", rails.address) };
    let gateway = gateway_for(&format!("http://{address}"));
    let since = log::position();
    start_request(&gateway, "http-to-https").await.read_response().await.assert_failure(502);
    let line = wait_for_failure_line("http-to-https", since).await;
    assert!(line.contains("upstream.url has to begin with https://"), "{line}");
}
