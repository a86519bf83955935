//! Bodies of any size are streamed in constant memory.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use super::client::{Address, eventually};
use super::harness::Setup;

const GIBIBYTE: u64 = 1 << 30;
const PIECE_SIZE: usize = 256 * 1024;
/// The most by which the memory of the process may grow.
const MAX_GROWTH: u64 = 8 << 20;

/// The gateway in its own process, so that its memory can be measured.
pub struct GatewayProcess {
    process: Child,
}

impl GatewayProcess {
    pub async fn start(setup: &Setup, rails: &Address) -> Self {
        let config = setup.dir.file("railgate.toml");
        fs::write(&config, setup.config(rails)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(&config).stdout(Stdio::null());
        let gateway = Self { process: command.spawn().unwrap() };
        let address = Address::Unix(setup.socket());
        eventually("the gateway to listen", async || address.try_connect().await.ok()).await;
        gateway
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Peak resident memory in bytes.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the head of a message. Returns how many bytes of the body came with it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> u64 {
    let (mut seen, mut piece) = (Vec::new(), vec![0; PIECE_SIZE]);
    loop {
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "no head");
        seen.extend_from_slice(&piece[..count]);
        if let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            return (seen.len() - end - 4) as u64;
        }
    }
}

/// Reads the rest of a body of 1 GiB.
async fn read_rest(stream: &mut (impl AsyncRead + Unpin), mut read: u64) {
    let mut piece = vec![0; PIECE_SIZE];
    while read < GIBIBYTE {
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "cut off after {read} bytes");
        read += count as u64;
    }
    assert_eq!(read, GIBIBYTE);
}

/// Writes a body of 1 GiB.
async fn write_body(stream: &mut (impl AsyncWrite + Unpin)) {
    let piece = vec![b'x'; PIECE_SIZE];
    for _ in 0..GIBIBYTE / PIECE_SIZE as u64 {
        stream.write_all(&piece).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_in_each_direction_takes_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new().set("workers", 1);
    let gateway = GatewayProcess::start(&setup, &Address::Tcp(listener.local_addr().unwrap())).await;
    let rails = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let read = read_head(&mut stream).await;
        read_rest(&mut stream, read).await;
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIBIBYTE}\r\n\r\n");
        stream.write_all(response.as_bytes()).await.unwrap();
        write_body(&mut stream).await;
        stream
    });
    let before = gateway.resident();
    let client = UnixStream::connect(setup.socket()).await.unwrap();
    let (mut from, mut to) = client.into_split();
    let request =
        format!("POST /api/v4/internal/pages HTTP/1.1\r\nHost: a\r\nContent-Length: {GIBIBYTE}\r\n\r\n");
    to.write_all(request.as_bytes()).await.unwrap();
    let passing = tokio::spawn(async move {
        write_body(&mut to).await;
        let read = read_head(&mut from).await;
        read_rest(&mut from, read).await;
        (from, to)
    });
    let mut most = before;
    while !passing.is_finished() {
        most = most.max(gateway.resident());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    passing.await.unwrap();
    rails.await.unwrap();
    let grown = most.saturating_sub(before);
    assert!(grown < MAX_GROWTH, "grown by {grown} bytes");
}
