//! Memory per waiting request: its body stays in the kernel's buffers.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpListener;

use super::client::{Address, Request, eventually, noise, within_deadline};
use super::fake_rails::Reply;
use super::harness::{Harness, Setup};

const CONNECTIONS: u64 = 500;
const BODY: usize = 1 << 20;
/// The most memory per connection, in bytes.
const MAX_PER_CONNECTION: u64 = 160 * 1024;

struct GatewayProcess {
    process: Child,
}

impl GatewayProcess {
    /// Resident memory in bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits until the memory does not change any more.
    async fn settled(&self) -> u64 {
        let (mut last, mut same) = (0, 0);
        within_deadline("the memory to stay as it is", async {
            while same < 20 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let now = self.resident();
                same = if now.abs_diff(last) < 64 * 1024 { same + 1 } else { 0 };
                last = now;
            }
        })
        .await;
        last
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rails accepts connections without reading, or the request waits for admission.
#[tokio::test]
async fn bodies_waiting_for_rails_are_not_buffered() {
    railgate::server::open_files::raise_limit();
    for concurrency in [10_000, 1] {
        let setup = Setup::new().set("upstream.classes.access.concurrency", concurrency);
        let setup = setup.set("upstream.classes.access.queue", 10_000);
        let setup =
            setup.text("upstream.classes.access.queue_timeout", "10m").set("limits.connections", 2_000);
        let admin = setup.dir.file("admin.sock");
        let setup = setup.text("admin.address", &format!("unix:{}", admin.display()));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(2_000).unwrap();
        let rails = TcpListener::from_std(socket.into()).unwrap();
        let config = setup.dir.file("railgate.toml");
        fs::write(&config, setup.config(&Address::Tcp(rails.local_addr().unwrap()))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(&config).stdout(Stdio::null());
        let gateway = GatewayProcess { process: command.spawn().unwrap() };
        let (address, admin) = (Address::Unix(setup.socket()), Address::Unix(admin));
        eventually("the gateway to listen", async || address.try_connect().await.ok()).await;

        let before = gateway.settled().await;
        let bytes =
            std::sync::Arc::new(Request::post("allowed").with_secret().body(noise(BODY)).to_bytes("close"));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let mut connection = address.connect().await;
            let bytes = std::sync::Arc::clone(&bytes);
            clients.spawn(async move {
                connection.write(&bytes).await;
                connection.read_to_end().await
            });
        }
        eventually("all requests", async || {
            let metrics = admin.send(&Request::new("GET", "/metrics")).await;
            metrics.text().contains(&format!("\nrailgate_requests_in_flight {CONNECTIONS}\n")).then_some(())
        })
        .await;
        let each = (gateway.settled().await - before) / CONNECTIONS;
        println!("{} KiB for each connection, {concurrency} at a time", each / 1024);
        assert!(each < MAX_PER_CONNECTION, "{each} bytes for each connection, {concurrency} at a time");
    }
}

/// Chunks that arrive together may be merged. The body stays the same.
#[tokio::test]
async fn many_small_chunks_arrive_as_one_body() {
    let harness = Harness::new().await;
    for size in [1, 2, 7, 100, 5_000] {
        let body = noise(60_000);
        let request = Request::post("allowed").with_secret().body(&body).chunked(size);
        for address in [&harness.gateway.tcp, &harness.gateway.unix] {
            let mut connection = address.connect().await;
            let bytes = request.to_bytes("keep-alive");
            // Split at arbitrary places.
            for piece in bytes.chunks(9_973) {
                connection.write(piece).await;
            }
            assert_eq!(connection.read_response().await.status, 200);
            assert!(harness.rails.last_request().body == body, "chunks of {size}");
            assert_eq!(connection.exchange(&request).await.status, 200);
        }
    }
}

/// By hand: `cargo test --test gateway time_for_small_chunks -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints a figure"]
async fn time_for_small_chunks() {
    let harness = Harness::new().await;
    harness.rails.respond_always(Reply::json(200, "{}"));
    let request = Request::post("allowed").with_secret().body(noise(1_000_000));
    for request in
        [request.clone(), request.clone().chunked(1), request.clone().chunked(1), request.chunked(100_000)]
    {
        let bytes = request.to_bytes("close");
        let mut connection = harness.gateway.unix.connect().await;
        let begun = std::time::Instant::now();
        connection.write(&bytes).await;
        assert_eq!(connection.read_response().await.status, 200);
        println!("{} bytes on the wire: {:?}", bytes.len(), begun.elapsed());
    }
}
