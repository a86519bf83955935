//! Connections of proxies, which begin with a PROXY header.

use super::certificates::CertificateAuthority;
use super::client::{Address, Connection, Request};
use super::harness::{Harness, Setup};
use super::log;

const PROXY: &str = "127.0.0.9";
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 8181\r\n";

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn setup() -> Setup {
    Setup::new().tcp(format!("proxy_protocol = true\ntrusted_proxies = ['{PROXY}', '203.0.113.8']"))
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

fn refused(harness: &Harness) -> String {
    let Address::Tcp(address) = &harness.gateway.tcp else { unreachable!() };
    format!("railgate_listener_refused_total{{listener=\"{address}\",reason=\"proxy_header\"}}")
}

async fn from_proxy(harness: &Harness, header: &[u8]) -> Connection {
    let mut connection = harness.gateway.tcp.connect_from(PROXY).await;
    connection.write(header).await;
    connection
}

#[tokio::test]
async fn the_client_is_the_one_in_the_header() {
    let harness = setup().start().await;
    let tcp4 = [203, 0, 113, 7, 192, 0, 2, 1, 1, 1, 2, 2];
    let tcp6 = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], [1; 16]].concat();
    let tcp6 = [&tcp6[..], &[1, 1, 2, 2]].concat();
    let with_tlv = [&tcp4[..], &[4, 0, 3, 0, 0, 0]].concat();
    for (number, (header, client)) in [
        (V1.to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), PROXY),
        (v2(0x21, 0x11, &tcp4), "203.0.113.7"),
        (v2(0x21, 0x11, &with_tlv), "203.0.113.7"),
        (v2(0x21, 0x21, &tcp6), "2001:db8::7"),
        (v2(0x21, 0x31, &[0; 216]), PROXY),
        (v2(0x21, 0x00, &[]), PROXY),
        (v2(0x20, 0x00, &[]), PROXY),
        (v2(0x20, 0x11, &tcp4), PROXY),
    ]
    .into_iter()
    .enumerate()
    {
        // Byte by byte, in one piece with the request, and before it.
        for (way, pieces) in [1, usize::MAX, header.len()].into_iter().enumerate() {
            let id = format!("proxied-{number}-{way}");
            let request = allowed().header("X-Request-Id", &id).to_bytes("close");
            let mut connection = harness.gateway.tcp.connect_from(PROXY).await;
            for piece in [header.clone(), request].concat().chunks(pieces) {
                connection.write(piece).await;
            }
            assert_eq!(connection.read_response().await.status, 200, "{id}");
            assert_eq!(log::wait_for_request_line(&id).await["remote_ip"], client, "{id}");
            assert_eq!(harness.rails.last_request().header("x-forwarded-for"), Some(client), "{id}");
        }
    }
    assert_eq!(harness.metric(&refused(&harness)).await, Some(0));
}

#[tokio::test]
async fn what_a_client_says_of_itself_is_believed_only_if_it_is_a_proxy_too() {
    let harness = setup().start().await;
    for (client, id, remote_ip) in
        [("203.0.113.7", "proxied-client", "203.0.113.7"), ("203.0.113.8", "proxied-proxy", "192.0.2.55")]
    {
        let header = format!("PROXY TCP4 {client} 192.0.2.1 1 2\r\n");
        let mut connection = from_proxy(&harness, header.as_bytes()).await;
        let request = allowed().header("X-Request-Id", id).header("X-Forwarded-For", "192.0.2.55");
        assert_eq!(connection.exchange(&request).await.status, 200);
        assert_eq!(log::wait_for_request_line(id).await["remote_ip"], remote_ip);
        let chain = format!("192.0.2.55, {client}");
        assert_eq!(harness.rails.last_request().header("x-forwarded-for"), Some(chain.as_str()));
        // The next request of the connection has no header of its own.
        assert_eq!(connection.exchange(&allowed()).await.status, 200);
    }
}

#[tokio::test]
async fn other_peers_and_other_beginnings_are_refused() {
    let harness = setup().start().await;
    let request = allowed().to_bytes("close");
    let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
    let mut count = 0;
    for ip in ["127.0.0.1", "127.0.0.10", PROXY] {
        for header in [
            &b""[..],
            V1,
            b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n",
            b"proxy TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
            b"\r\nPROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
            &endless,
            &v2(0x21, 0x11, &[1; 11]),
            &v2(0x21, 0x11, &[0; 600]),
            &v2(0x21, 0x12, &[1; 12]),
            &v2(0x2f, 0x11, &[1; 12]),
            &v2(0x21, 0x99, &[1; 12]),
        ] {
            if ip == PROXY && header == V1 {
                continue;
            }
            let mut connection = harness.gateway.tcp.connect_from(ip).await;
            connection.write(&[header, &request[..]].concat()).await;
            assert!(connection.try_read_response().await.is_err(), "{ip} {header:?}");
            count += 1;
        }
    }
    harness.wait_for_metric(&refused(&harness), count).await;
    assert_eq!(harness.rails.request_count(), 0);
    // A second header is no request.
    let mut connection = from_proxy(&harness, &[V1, V1, &request[..]].concat()).await;
    connection.read_response().await.assert_failure(400);
}

#[tokio::test]
async fn a_header_has_a_deadline_and_makes_room_for_others() {
    let harness = setup().text("limits.first_byte_timeout", "300ms").tcp("connections = 8").start().await;
    let mut silent = from_proxy(&harness, b"").await;
    let mut half = from_proxy(&harness, b"PROXY TCP4 203.0.").await;
    assert_eq!((silent.read_to_end().await, half.read_to_end().await), (Vec::new(), Vec::new()));
    harness.wait_for_metric(&refused(&harness), 2).await;
    let harness = setup().tcp("connections = 8").start().await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(from_proxy(&harness, b"PROXY ").await);
    }
    assert_eq!(from_proxy(&harness, V1).await.exchange(&allowed()).await.status, 200);
}

#[tokio::test]
async fn the_header_comes_before_tls() {
    let authority = CertificateAuthority::new();
    let setup = setup();
    let [certificate, key] =
        authority.issue_to_files(&setup.dir, "localhost").map(|file| file.display().to_string());
    let harness = setup
        .tcp(format!("tls = {{ certificate_file = '{certificate}', key_file = '{key}' }}"))
        .start()
        .await;
    let trusting = authority.client_config(None);
    let connection = from_proxy(&harness, V1).await;
    let mut connection = connection.start_tls(&trusting).await.unwrap();
    let id = "proxied-tls";
    assert_eq!(connection.exchange(&allowed().header("X-Request-Id", id)).await.status, 200);
    assert_eq!(log::wait_for_request_line(id).await["remote_ip"], "203.0.113.7");
    assert_eq!(harness.rails.last_request().header("x-forwarded-proto"), Some("https"));
    assert!(from_proxy(&harness, b"").await.start_tls(&trusting).await.is_err());
    harness.wait_for_metric(&refused(&harness), 1).await;
}

#[tokio::test]
async fn a_proxy_on_a_unix_socket_may_send_a_header() {
    let harness = Setup::new().unix("proxy_protocol = true\ntrusted_proxies = ['unix:']").start().await;
    let id = "proxied-unix";
    let mut connection = harness.gateway.unix.connect().await;
    connection.write(V1).await;
    assert_eq!(connection.exchange(&allowed().header("X-Request-Id", id)).await.status, 200);
    assert_eq!(log::wait_for_request_line(id).await["remote_ip"], "203.0.113.7");
}
