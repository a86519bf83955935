//! What a connection costs whose request waits: its body stays where it is.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpListener;

use super::client::{Ask, Peer, eventually, noise, soon};
use super::fake::Reply;
use super::stage::{Setup, Stage};

const CONNECTIONS: u64 = 500;
const BODY: usize = 1 << 20;
/// Bytes of memory of each, at most.
const MOST: u64 = 160 * 1024;

struct Gateway {
    process: Child,
}

impl Gateway {
    /// What it has in memory, in bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// The same once it does not change any more.
    async fn settled(&self) -> u64 {
        let (mut last, mut same) = (0, 0);
        soon("the memory to stay as it is", async {
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

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rails takes connections and reads nothing, or does not even do that much.
#[tokio::test]
async fn a_body_that_rails_does_not_read_is_not_kept_in_memory() {
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
        fs::write(&config, setup.config(&Peer::Tcp(rails.local_addr().unwrap()))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(&config).stdout(Stdio::null());
        let gateway = Gateway { process: command.spawn().unwrap() };
        let (peer, admin) = (Peer::Unix(setup.socket()), Peer::Unix(admin));
        eventually("the gateway to listen", async || peer.try_connect().await.ok()).await;

        let before = gateway.settled().await;
        let bytes =
            std::sync::Arc::new(Ask::post("allowed").with_secret().body(noise(BODY)).to_bytes("close"));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let mut wire = peer.connect().await;
            let bytes = std::sync::Arc::clone(&bytes);
            clients.spawn(async move {
                wire.write(&bytes).await;
                wire.rest().await
            });
        }
        eventually("all requests", async || {
            let metrics = admin.send(&Ask::new("GET", "/metrics")).await;
            metrics.text().contains(&format!("\nrailgate_requests_in_flight {CONNECTIONS}\n")).then_some(())
        })
        .await;
        let each = (gateway.settled().await - before) / CONNECTIONS;
        println!("{} KiB for each connection, {concurrency} at a time", each / 1024);
        assert!(each < MOST, "{each} bytes for each connection, {concurrency} at a time");
    }
}

/// Chunks that are there together may be made one. What is in them stays what it was.
#[tokio::test]
async fn many_small_chunks_arrive_as_one_body() {
    let stage = Stage::new().await;
    for size in [1, 2, 7, 100, 5_000] {
        let body = noise(60_000);
        let ask = Ask::post("allowed").with_secret().body(&body).chunked(size);
        for peer in [&stage.gateway.tcp, &stage.gateway.unix] {
            let mut wire = peer.connect().await;
            let bytes = ask.to_bytes("keep-alive");
            // Cut wherever it happens to be.
            for piece in bytes.chunks(9_973) {
                wire.write(piece).await;
            }
            assert_eq!(wire.answer().await.status, 200);
            assert!(stage.rails.last().body == body, "chunks of {size}");
            assert_eq!(wire.exchange(&ask).await.status, 200);
        }
    }
}

/// By hand: `cargo test --test gateway what_small_chunks_cost -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints a figure"]
async fn what_small_chunks_cost() {
    let stage = Stage::new().await;
    stage.rails.always(Reply::json(200, "{}"));
    let ask = Ask::post("allowed").with_secret().body(noise(1_000_000));
    for ask in [ask.clone(), ask.clone().chunked(1), ask.clone().chunked(1), ask.chunked(100_000)] {
        let bytes = ask.to_bytes("close");
        let mut wire = stage.gateway.unix.connect().await;
        let begun = std::time::Instant::now();
        wire.write(&bytes).await;
        assert_eq!(wire.answer().await.status, 200);
        println!("{} bytes on the wire: {:?}", bytes.len(), begun.elapsed());
    }
}
