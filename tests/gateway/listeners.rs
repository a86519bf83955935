//! Clients that only connect cannot lock out others: each listener has its own limit, and the connection
//! that has been idle the longest is closed.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::client::{Address, Connection, Request, eventually};
use super::fake_rails::{FakeRails, Latch, Reply};
use super::harness::{RunningGateway, Setup};

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

fn live() -> Request {
    Request::new("GET", "/live")
}

/// Opens so many connections on which nothing is sent. Evicted ones count too.
async fn open_idle(address: &Address, count: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(address.connect().await);
    }
    connections
}

/// The name of a listener's series.
fn series_of(series: &str, address: &Address) -> String {
    let name = match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    };
    format!("railgate_listener_{series}{{listener=\"{name}\"}}")
}

#[tokio::test]
async fn idle_connections_do_not_lock_out_operators_and_hooks() {
    let setup = Setup::new();
    let token = setup.dir.file("hook_token");
    fs::write(&token, "h00k\n").unwrap();
    let setup = setup
        .set("admin.connections", 64)
        .set("hooks.connections", 64)
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string());
    let harness = setup.start().await;
    let hooks = harness.gateway.hooks.clone().unwrap();
    let admin = &harness.gateway.admin;
    let _idle = (open_idle(admin, 100).await, open_idle(&hooks, 100).await);
    let event = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k");
    let event = event.json(r#"{"event_name":"project_create"}"#);
    for _ in 0..5 {
        assert_eq!(admin.send(&live()).await.status, 200);
        assert_eq!(hooks.send(&event).await.status, 200);
    }
    for address in [admin, &hooks] {
        assert_eq!(harness.metric(&series_of("max_connections", address)).await, Some(64));
        assert!(harness.metric(&series_of("evictions_total", address)).await.unwrap() >= 36);
        assert!(harness.metric(&series_of("connections", address)).await.unwrap() <= 64);
    }
    assert_eq!(harness.metric("railgate_client_connections_accepted_total").await, Some(0));
}

#[tokio::test]
async fn a_full_listener_does_not_affect_the_others() {
    let harness = Setup::new().set("limits.connections", 8).start().await;
    let (tcp, unix) = (harness.gateway.tcp.clone(), harness.gateway.unix.clone());
    let mut kept = unix.connect().await;
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    let _idle = open_idle(&tcp, 40).await;
    for _ in 0..10 {
        assert_eq!(unix.send(&allowed()).await.status, 200);
        // A new connection gets in, since idle ones are evicted.
        assert_eq!(tcp.send(&allowed()).await.status, 200);
    }
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    assert_eq!(harness.metric(&series_of("evictions_total", &unix)).await, Some(0));
    assert!(harness.metric(&series_of("evictions_total", &tcp)).await.unwrap() >= 32);
    assert!(
        harness.metric(&series_of("connections", &tcp)).await.unwrap() <= 6,
        "the rest is reserved for authenticated clients"
    );
}

#[tokio::test]
async fn a_listener_can_have_its_own_limit() {
    // Within any limit of open files.
    let setup = Setup::new().set("limits.connections", 100);
    let mut settings = setup.settings(&FakeRails::listen_tcp().await.address);
    settings.listen[0].connections = 3;
    let gateway = RunningGateway::start(settings);
    assert_eq!(gateway.metric(&series_of("max_connections", &gateway.tcp)).await, Some(3));
    let _idle = open_idle(&gateway.tcp, 10).await;
    gateway.wait_for_metric(&series_of("connections", &gateway.tcp), 3).await;
    assert_eq!(gateway.metric(&series_of("evictions_total", &gateway.unix)).await, Some(0));
}

/// Whether it waits for Rails, is being answered, or still sends its body.
#[tokio::test]
async fn active_requests_are_never_evicted() {
    const LENGTH: usize = 16 << 20;
    let harness = Setup::new().set("limits.connections", 8).start().await;
    let latch = Latch::closed();
    let until = latch.clone();
    harness.rails.respond_with(move |request| {
        if request.target.contains("large") {
            Reply::new(200, "", vec![b'x'; LENGTH])
        } else {
            Reply::json(200, "{}").after(&until)
        }
    });
    let mut waiting = harness.start_request(&allowed()).await;
    let mut reading = harness.start_request(&Request::post("allowed?large").with_secret()).await;
    // Its body is not complete.
    let mut uploading = harness.gateway.tcp.connect().await;
    let bytes = allowed().to_bytes("close");
    uploading.write(&bytes[..bytes.len() - 1]).await;
    harness.rails.wait_for_requests(2).await;
    let _idle = open_idle(&harness.gateway.tcp, 40).await;
    assert_eq!(harness.send(&Request::new("GET", "/elsewhere")).await.status, 404);
    latch.open();
    uploading.write(&bytes[bytes.len() - 1..]).await;
    assert_eq!((waiting.read_response().await.status, uploading.read_response().await.status), (200, 200));
    assert_eq!(reading.read_response().await.body.len(), LENGTH);
}

/// A connection with an incomplete head counts as idle.
#[tokio::test]
async fn authenticated_connections_are_evicted_last() {
    let harness = Setup::new().set("limits.connections", 8).start().await;
    let tcp = harness.gateway.tcp.clone();
    let mut trusted = [tcp.connect().await, tcp.connect().await];
    for connection in &mut trusted {
        assert_eq!(connection.exchange(&allowed()).await.status, 200);
    }
    let mut refused = tcp.connect().await;
    assert_eq!(refused.exchange(&Request::get("check")).await.status, 401);
    let mut begun = tcp.connect().await;
    begun.write(b"POST /api/v4/internal/allowed HT").await;
    let _idle = open_idle(&tcp, 40).await;
    assert_eq!((refused.read_to_end().await, begun.read_to_end().await), (vec![], vec![]));
    for connection in &mut trusted {
        assert_eq!(connection.exchange(&allowed()).await.status, 200, "it was the first connection");
    }
}

#[tokio::test]
async fn the_longest_idle_authenticated_connection_is_evicted_when_there_are_no_others() {
    let harness = Setup::new().set("limits.connections", 8).start().await;
    let tcp = harness.gateway.tcp.clone();
    let mut trusted = Vec::new();
    for _ in 0..8 {
        let mut connection = tcp.connect().await;
        assert_eq!(connection.exchange(&allowed()).await.status, 200);
        trusted.push(connection);
    }
    let mut new = tcp.connect().await;
    assert_eq!(new.exchange(&allowed()).await.status, 200);
    assert_eq!(trusted.remove(0).read_to_end().await, b"");
    for connection in &mut trusted {
        assert_eq!(connection.exchange(&allowed()).await.status, 200);
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_first_byte_timeout() {
    let harness = Setup::new().text("limits.first_byte_timeout", "50ms").start().await;
    for address in [&harness.gateway.tcp, &harness.gateway.unix] {
        let mut used = address.connect().await;
        assert_eq!(used.exchange(&allowed()).await.status, 200);
        let mut begun = address.connect().await;
        let bytes = allowed().to_bytes("close");
        begun.write(&bytes[..10]).await;
        let mut silent = address.connect().await;
        assert_eq!(silent.read_to_end().await, b"");
        // Used connections have `idle_timeout`, and those with a partial head `head_timeout`.
        assert_eq!(used.exchange(&allowed()).await.status, 200);
        begun.write(&bytes[10..]).await;
        assert_eq!(begun.read_response().await.status, 200);
    }
}

#[tokio::test]
async fn connections_wait_when_all_slots_have_active_requests() {
    let harness = Setup::new().set("limits.connections", 2).start().await;
    let latch = Latch::closed();
    harness.rails.respond_always(Reply::json(200, "{}").after(&latch));
    let mut first = [harness.start_request(&allowed()).await, harness.start_request(&allowed()).await];
    harness.rails.wait_for_requests(2).await;
    let mut third = harness.start_request(&Request::post("allowed?third").with_secret()).await;
    assert_eq!(harness.gateway.admin.send(&live()).await.status, 200);
    assert_eq!(harness.rails.request_count(), 2);
    latch.open();
    for connection in &mut first {
        assert_eq!(connection.read_response().await.status, 200);
    }
    assert_eq!(third.read_response().await.status, 200);
}

/// The gateway in its own process, with a limit of open files.
struct Process {
    child: Child,
    log: std::path::PathBuf,
    admin: Address,
}

impl Process {
    async fn start(setup: &Setup, rails: &Address, limits: &str) -> Self {
        let (config, log) = (setup.dir.file("railgate.toml"), setup.dir.file("log"));
        fs::write(&config, setup.config(rails)).unwrap();
        let mut command = Command::new("sh");
        let limited = format!("ulimit {limits}; exec \"$0\" run --config \"$1\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_railgate")]).arg(&config);
        let child = command.stdout(Stdio::from(File::create(&log).unwrap())).spawn().unwrap();
        let admin = Address::Unix(setup.dir.file("admin.sock"));
        let process = Self { child, log, admin };
        eventually("the gateway to listen", async || process.admin.try_connect().await.ok()).await;
        process
    }

    fn lines(&self) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The TCP listener for clients, read off the log.
    async fn tcp(&self) -> Address {
        let listen = eventually("the line with the listeners", async || {
            self.lines().iter().find_map(|line| line["listen"].as_str().map(str::to_owned))
        });
        Address::parse(listen.await.split(", ").next().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn idle_connections_do_not_exhaust_open_files() {
    railgate::server::open_files::raise_limit();
    let setup = Setup::new();
    let admin = format!("unix:{}", setup.dir.file("admin.sock").display());
    let setup = setup.text("admin.address", &admin);
    let rails = FakeRails::listen_tcp().await;
    let gateway = Process::start(&setup, &rails.address, "-n 1024").await;
    let tcp = gateway.tcp().await;
    let mut kept = tcp.connect().await;
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    let _idle = open_idle(&tcp, 1_100).await;
    for _ in 0..5 {
        assert_eq!(gateway.admin.send(&live()).await.status, 200);
        assert_eq!(kept.exchange(&allowed()).await.status, 200);
        assert_eq!(tcp.send(&allowed()).await.status, 200);
    }
    // All connections have been accepted by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = gateway.lines();
    let count_lines = |level: &str, text: &str| {
        let is = |line: &&Value| {
            line["level"] == level
                && line["message"].as_str().is_some_and(|message| message.starts_with(text))
        };
        lines.iter().filter(is).count()
    };
    assert_eq!(count_lines("ERROR", ""), 0, "{lines:?}");
    assert_eq!(count_lines("WARN", "the limit of open files is too low"), 1, "{lines:?}");
    assert_eq!(count_lines("WARN", "a listener is full"), 1, "{lines:?}");
}

/// Up to the hard limit.
#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised() {
    let setup = Setup::new().set("limits.connections", 100);
    let admin = format!("unix:{}", setup.dir.file("admin.sock").display());
    let setup = setup.text("admin.address", &admin);
    // Sets both limits, then the soft one.
    let gateway =
        Process::start(&setup, &FakeRails::listen_tcp().await.address, "-n 2000; ulimit -Sn 100").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_ascii_whitespace().nth(3), Some("2000"), "{line}");
    gateway.tcp().await;
    let is_warned = gateway.lines().iter().any(|line| line.to_string().contains("open files"));
    assert!(!is_warned, "{:?}", gateway.lines());
}
