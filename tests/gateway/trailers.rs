//! Trailers of Rails are forwarded, except for fields that must not come late; those of clients are dropped.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Address, Connection};
use super::credentials::{ENCODED_SECRET, SECRET_HEADER};
use super::harness::{RunningGateway, Setup};

/// A gateway, and the listener of its Rails.
async fn harness() -> (RunningGateway, TcpListener, Setup) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new();
    let rails = Address::parse(&listener.local_addr().unwrap().to_string());
    (RunningGateway::start(setup.settings(&rails)), listener, setup)
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{:?}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

/// What Rails gets of the request, and the client of the response, in lower case.
async fn exchange(request: &str, response: &str) -> (String, String) {
    let (gateway, listener, _setup) = harness().await;
    let mut connection: Connection = gateway.tcp.connect().await;
    connection
        .write(request.replace("SECRET", &format!("{SECRET_HEADER}: {ENCODED_SECRET}")).as_bytes())
        .await;
    let (mut rails, _) = listener.accept().await.unwrap();
    let seen = read_until(&mut rails, if request.contains("chunked") { "\r\n\r\n" } else { "{}" }).await;
    // Both the head and the trailers end in an empty line.
    let seen = if seen.matches("\r\n\r\n").count() < 2 && request.contains("chunked") {
        seen + &read_until(&mut rails, "\r\n\r\n").await
    } else {
        seen
    };
    rails.write_all(response.as_bytes()).await.unwrap();
    let got = String::from_utf8(connection.read_to_end().await).unwrap();
    (seen.to_lowercase(), got.to_lowercase())
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nTrailer: X-Sum, Set-Cookie, X-Forwarded-For\r\nTransfer-Encoding: chunked\r\n\r\n\
                      2\r\n{}\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Other: 1\r\n\r\n";

#[tokio::test]
async fn response_trailers_are_forwarded_only_if_requested() {
    let request = |te: &str| {
        format!(
            "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nSECRET\r\n{te}\r\n\
             Content-Length: 2\r\n\r\n{{}}"
        )
    };
    let (seen, got) = exchange(&request("TE: trailers\r\nConnection: close, TE"), ANSWER).await;
    assert!(seen.contains("\r\nte: trailers\r\n") && seen.contains("\r\nconnection: te\r\n"), "{seen}");
    assert!(got.contains("\r\ntrailer: x-sum\r\n"), "{got}");
    assert!(got.ends_with("\r\n2\r\n{}\r\n0\r\nx-sum: 7\r\n\r\n"), "{got}");

    let (seen, got) = exchange(&request("Connection: close"), ANSWER).await;
    assert!(!seen.contains("\r\nte:") && !seen.contains("\r\nconnection:"), "{seen}");
    assert!(got.ends_with("\r\n2\r\n{}\r\n0\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn request_trailers_are_dropped() {
    let request = "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\nSECRET\r\nConnection: close\r\n\
                   Trailer: X-Sum, Gitlab-Shared-Secret, Authorization\r\nTransfer-Encoding: chunked\r\n\r\n\
                   2\r\n{}\r\n0\r\nX-Sum: 7\r\nGitlab-Shared-Secret: eA==\r\nAuthorization: Bearer x\r\nX-Other: 1\r\n\r\n";
    let (seen, got) = exchange(request, ANSWER).await;
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("trailer"), "{head}");
    assert_eq!(body, "2\r\n{}\r\n0\r\n\r\n");
    assert!(got.starts_with("http/1.1 200 "), "{got}");
}
