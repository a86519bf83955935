//! How the fields of a request are represented in HTTP/2 (RFC 7541 §6): read off the bytes that arrive.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::io::InspectReader;

use super::client::{Address, Request};
use super::credentials::{KAS_HEADER, SHELL_HEADER, kas_token, shell_token};
use super::harness::{RunningGateway, Setup};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Representation {
    Indexed,
    WithIndexing,
    WithoutIndexing,
    NeverIndexed,
}

type Fields = Vec<(String, Representation)>;

/// Answers every request, and passes on how its fields were represented.
async fn listen() -> (Address, UnboundedReceiver<Fields>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let (sender, received) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, sender.clone()));
        }
    });
    (address, received)
}

async fn serve(stream: TcpStream, received: UnboundedSender<Fields>) {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&bytes);
    let stream = InspectReader::new(stream, move |read| recorded.lock().unwrap().extend_from_slice(read));
    let mut connection = h2::server::handshake(stream).await.unwrap();
    for nth in 0.. {
        let Some(Ok((request, mut respond))) = connection.accept().await else { return };
        let blocks = header_blocks(&bytes.lock().unwrap());
        let representations = representations(&blocks[nth]);
        // The order is that of the block, in which the pseudo-header fields come first.
        let (pseudo, names) = (4, request.headers().keys().map(ToString::to_string));
        assert_eq!(representations.len(), pseudo + names.len(), "{request:?}: {representations:?}");
        received.send(names.zip(representations.into_iter().skip(pseudo)).collect()).unwrap();
        let response = http::Response::builder().header("content-type", "application/json").body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data(Bytes::from_static(b"{}"), true).unwrap();
    }
}

/// The header blocks of a client's connection, each from one frame (RFC 9113 §3.4, §4.1, §6.2).
fn header_blocks(connection: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = connection.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut blocks = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = rest {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(frame) = payload.get(..length) else { break };
        if *kind == 1 {
            assert_eq!(flags & !1, 4, "the whole block, without padding and priority");
            blocks.push(frame.to_vec());
        }
        rest = &payload[length..];
    }
    blocks
}

fn representations(mut block: &[u8]) -> Vec<Representation> {
    let mut all = Vec::new();
    while let Some(first) = block.first() {
        let (representation, prefix) = match first {
            0x80.. => (Representation::Indexed, 7),
            0x40.. => (Representation::WithIndexing, 6),
            0x20.. => {
                // The size of the table.
                integer(&mut block, 5);
                continue;
            }
            0x10.. => (Representation::NeverIndexed, 4),
            _ => (Representation::WithoutIndexing, 4),
        };
        let is_new_name = integer(&mut block, prefix) == 0;
        let strings = match representation {
            Representation::Indexed => 0,
            _ => 1 + usize::from(is_new_name),
        };
        for _ in 0..strings {
            let length = integer(&mut block, 7);
            block = &block[length..];
        }
        all.push(representation);
    }
    all
}

/// RFC 7541 §5.1.
fn integer(block: &mut &[u8], prefix: u32) -> usize {
    let most = (1 << prefix) - 1;
    let mut next = || {
        let (first, rest) = block.split_first().unwrap();
        *block = rest;
        usize::from(*first)
    };
    let mut value = next() & most;
    if value == most {
        for shift in (0..).step_by(7) {
            let byte = next();
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    value
}

/// The names of the fields that are never indexed, in alphabetical order.
fn never_indexed(fields: &Fields) -> Vec<&str> {
    let never = fields.iter().filter(|(_, representation)| *representation == Representation::NeverIndexed);
    let mut names: Vec<_> = never.map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

/// Otherwise a client could guess a credential by the length of what is sent (RFC 7541 §7.1).
#[tokio::test]
async fn credentials_are_never_indexed() {
    let (rails, mut received) = listen().await;
    let setup = Setup::new().text("upstream.protocol", "http2");
    let gateway = RunningGateway::start(setup.settings(&rails));
    let shell = shell_token(&json!({}));
    let kas = kas_token(&json!({}));
    let plain = || Request::post("allowed").header("X-Plain", "1").json("{}");
    let many = plain()
        .with_secret()
        .header("Authorization", "Basic dTpw")
        .header("Cookie", "a=b")
        .header("Private-Token", "glpat-1")
        .header("Gitlab-Agent-Api-Request", "agent");
    for (request, credentials) in [
        (plain().with_secret(), vec!["gitlab-shared-secret"]),
        (plain().header(SHELL_HEADER, &shell), vec!["gitlab-shell-api-request"]),
        // Of a cache fill.
        (Request::get("discover?key_id=1").with_secret(), vec!["gitlab-shared-secret"]),
        (
            Request::post("kubernetes/usage_metrics")
                .header(KAS_HEADER, &kas)
                .header("Authorization", "Bearer agent")
                .json("{}"),
            vec!["authorization", "gitlab-kas-api-request"],
        ),
        (
            many,
            vec![
                "authorization",
                "cookie",
                "gitlab-agent-api-request",
                "gitlab-shared-secret",
                "private-token",
            ],
        ),
    ] {
        // The second time, what was indexed is in the table.
        for _ in 0..2 {
            let response = gateway.tcp.send(&request).await;
            assert_eq!(response.status, 200, "{request}: {response}");
            let fields = received.recv().await.unwrap();
            assert_eq!(never_indexed(&fields), credentials, "{request}: {fields:?}");
            let is_indexed = |(name, representation): &(String, _)| {
                name == "x-forwarded-proto" && *representation != Representation::WithoutIndexing
            };
            assert!(fields.iter().any(is_indexed), "{request}: {fields:?}");
        }
    }
}

#[tokio::test]
async fn credentials_that_are_made_here_are_never_indexed() {
    for (credential, name) in [("jwt", "gitlab-shell-api-request"), ("shared_secret", "gitlab-shared-secret")]
    {
        let (rails, mut received) = listen().await;
        let setup = Setup::new();
        let file = setup.dir.file("upstream_secret");
        fs::write(&file, "an0ther\n").unwrap();
        let setup = setup
            .text("upstream.protocol", "http2")
            .text("upstream.credential", credential)
            .text("upstream.secret_file", &file.display().to_string());
        let gateway = RunningGateway::start(setup.settings(&rails));
        gateway.tcp.send(&Request::post("allowed").with_secret().json("{}")).await;
        assert_eq!(never_indexed(&received.recv().await.unwrap()), [name]);
    }
}
