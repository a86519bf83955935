//! Who can do no more than connect takes no place from those who may use the gateway: each listener has
//! its own bound, and the connection that has been idle for the longest makes room.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::client::{Ask, Peer, Wire, eventually};
use super::fake::{Rails, Reply, Valve};
use super::stage::{Running, Setup};

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

fn live() -> Ask {
    Ask::new("GET", "/live")
}

/// So many connections on which nothing is ever sent. Those that were closed already count too.
async fn idle(peer: &Peer, count: usize) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..count {
        wires.push(peer.connect().await);
    }
    wires
}

/// A series of a listener.
fn of(series: &str, peer: &Peer) -> String {
    let name = match peer {
        Peer::Tcp(address) => address.to_string(),
        Peer::Unix(path) => format!("unix:{}", path.display()),
    };
    format!("railgate_listener_{series}{{listener=\"{name}\"}}")
}

#[tokio::test]
async fn idle_connections_do_not_keep_operators_and_hooks_out() {
    let setup = Setup::new();
    let token = setup.dir.file("hook_token");
    fs::write(&token, "h00k\n").unwrap();
    let setup = setup
        .set("admin.connections", 64)
        .set("hooks.connections", 64)
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token.display().to_string());
    let stage = setup.start().await;
    let hooks = stage.gateway.hooks.clone().unwrap();
    let admin = &stage.gateway.admin;
    let _idle = (idle(admin, 100).await, idle(&hooks, 100).await);
    let event = Ask::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k");
    let event = event.json(r#"{"event_name":"project_create"}"#);
    for _ in 0..5 {
        assert_eq!(admin.send(&live()).await.status, 200);
        assert_eq!(hooks.send(&event).await.status, 200);
    }
    for peer in [admin, &hooks] {
        assert_eq!(stage.metric(&of("max_connections", peer)).await, Some(64));
        assert!(stage.metric(&of("evictions_total", peer)).await.unwrap() >= 36);
        assert!(stage.metric(&of("connections", peer)).await.unwrap() <= 64);
    }
    assert_eq!(stage.metric("railgate_client_connections_accepted_total").await, Some(0));
}

#[tokio::test]
async fn a_full_listener_leaves_the_others_as_they_are() {
    let stage = Setup::new().set("limits.connections", 8).start().await;
    let (tcp, unix) = (stage.gateway.tcp.clone(), stage.gateway.unix.clone());
    let mut kept = unix.connect().await;
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    let _idle = idle(&tcp, 40).await;
    for _ in 0..10 {
        assert_eq!(unix.send(&allowed()).await.status, 200);
        // Who shows a credential gets in, since idle ones make room.
        assert_eq!(tcp.send(&allowed()).await.status, 200);
    }
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    assert_eq!(stage.metric(&of("evictions_total", &unix)).await, Some(0));
    assert!(stage.metric(&of("evictions_total", &tcp)).await.unwrap() >= 32);
    assert!(stage.metric(&of("connections", &tcp)).await.unwrap() <= 6, "the rest is not for strangers");
}

#[tokio::test]
async fn a_listener_can_have_a_bound_of_its_own() {
    // Little enough for any limit of open files.
    let setup = Setup::new().set("limits.connections", 100);
    let mut settings = setup.settings(&Rails::on_tcp().await.peer);
    settings.listen[0].connections = 3;
    let gateway = Running::start(settings);
    assert_eq!(gateway.metric(&of("max_connections", &gateway.tcp)).await, Some(3));
    let _idle = idle(&gateway.tcp, 10).await;
    gateway.reaches(&of("connections", &gateway.tcp), 3).await;
    assert_eq!(gateway.metric(&of("evictions_total", &gateway.unix)).await, Some(0));
}

/// Neither one that waits for Rails nor one whose answer is on its way.
#[tokio::test]
async fn a_request_under_way_is_never_ended_for_a_new_connection() {
    const LENGTH: usize = 16 << 20;
    let stage = Setup::new().set("limits.connections", 8).start().await;
    let valve = Valve::shut();
    let until = valve.clone();
    stage.rails.answer(move |request| {
        if request.target.contains("large") {
            Reply::new(200, "", vec![b'x'; LENGTH])
        } else {
            Reply::json(200, "{}").after(&until)
        }
    });
    let mut waiting = stage.begin(&allowed()).await;
    let mut reading = stage.begin(&Ask::post("allowed?large").with_secret()).await;
    // Its body is still to come.
    let mut uploading = stage.gateway.tcp.connect().await;
    let bytes = allowed().to_bytes("close");
    uploading.write(&bytes[..bytes.len() - 1]).await;
    stage.rails.has_got(2).await;
    let _idle = idle(&stage.gateway.tcp, 40).await;
    assert_eq!(stage.send(&Ask::new("GET", "/elsewhere")).await.status, 404);
    valve.open();
    uploading.write(&bytes[bytes.len() - 1..]).await;
    assert_eq!((waiting.answer().await.status, uploading.answer().await.status), (200, 200));
    assert_eq!(reading.answer().await.body.len(), LENGTH);
}

/// A head that is not complete is no request.
#[tokio::test]
async fn who_has_shown_a_credential_is_closed_last() {
    let stage = Setup::new().set("limits.connections", 8).start().await;
    let tcp = stage.gateway.tcp.clone();
    let mut trusted = [tcp.connect().await, tcp.connect().await];
    for wire in &mut trusted {
        assert_eq!(wire.exchange(&allowed()).await.status, 200);
    }
    let mut refused = tcp.connect().await;
    assert_eq!(refused.exchange(&Ask::get("check")).await.status, 401);
    let mut begun = tcp.connect().await;
    begun.write(b"POST /api/v4/internal/allowed HT").await;
    let _idle = idle(&tcp, 40).await;
    assert_eq!((refused.rest().await, begun.rest().await), (vec![], vec![]));
    for wire in &mut trusted {
        assert_eq!(wire.exchange(&allowed()).await.status, 200, "it was there before all others");
    }
}

/// Who is trusted does not keep all others out either.
#[tokio::test]
async fn the_longest_idle_of_the_trusted_makes_room_when_there_are_no_others() {
    let stage = Setup::new().set("limits.connections", 8).start().await;
    let tcp = stage.gateway.tcp.clone();
    let mut trusted = Vec::new();
    for _ in 0..8 {
        let mut wire = tcp.connect().await;
        assert_eq!(wire.exchange(&allowed()).await.status, 200);
        trusted.push(wire);
    }
    let mut new = tcp.connect().await;
    assert_eq!(new.exchange(&allowed()).await.status, 200);
    assert_eq!(trusted.remove(0).rest().await, b"");
    for wire in &mut trusted {
        assert_eq!(wire.exchange(&allowed()).await.status, 200);
    }
}

#[tokio::test]
async fn a_connection_that_sends_nothing_is_given_seconds() {
    let stage = Setup::new().text("limits.first_byte_timeout", "50ms").start().await;
    for peer in [&stage.gateway.tcp, &stage.gateway.unix] {
        let mut used = peer.connect().await;
        assert_eq!(used.exchange(&allowed()).await.status, 200);
        let mut begun = peer.connect().await;
        let bytes = allowed().to_bytes("close");
        begun.write(&bytes[..10]).await;
        let mut silent = peer.connect().await;
        assert_eq!(silent.rest().await, b"");
        // Others have `idle_timeout`, and those that have begun `head_timeout`.
        assert_eq!(used.exchange(&allowed()).await.status, 200);
        begun.write(&bytes[10..]).await;
        assert_eq!(begun.answer().await.status, 200);
    }
}

/// All requests under way: then new ones wait for a place.
#[tokio::test]
async fn who_finds_no_place_waits_for_one() {
    let stage = Setup::new().set("limits.connections", 2).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut first = [stage.begin(&allowed()).await, stage.begin(&allowed()).await];
    stage.rails.has_got(2).await;
    let mut third = stage.begin(&Ask::post("allowed?third").with_secret()).await;
    assert_eq!(stage.gateway.admin.send(&live()).await.status, 200);
    assert_eq!(stage.rails.count(), 2);
    valve.open();
    for wire in &mut first {
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(third.answer().await.status, 200);
}

/// The gateway as a process of its own, with fewer files than it wants.
struct Process {
    child: Child,
    log: std::path::PathBuf,
    admin: Peer,
}

impl Process {
    async fn start(setup: &Setup, rails: &Peer, limits: &str) -> Self {
        let (config, log) = (setup.dir.file("railgate.toml"), setup.dir.file("log"));
        fs::write(&config, setup.config(rails)).unwrap();
        let mut command = Command::new("sh");
        let limited = format!("ulimit {limits}; exec \"$0\" run --config \"$1\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_railgate")]).arg(&config);
        let child = command.stdout(Stdio::from(File::create(&log).unwrap())).spawn().unwrap();
        let admin = Peer::Unix(setup.dir.file("admin.sock"));
        let process = Self { child, log, admin };
        eventually("the gateway to listen", async || process.admin.try_connect().await.ok()).await;
        process
    }

    fn lines(&self) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Where clients connect over TCP.
    async fn tcp(&self) -> Peer {
        let listen = eventually("the line that says so", async || {
            self.lines().iter().find_map(|line| line["listen"].as_str().map(str::to_owned))
        });
        Peer::parse(listen.await.split(", ").next().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn idle_connections_do_not_use_up_the_open_files() {
    railgate::server::open_files::raise_limit();
    let setup = Setup::new();
    let admin = format!("unix:{}", setup.dir.file("admin.sock").display());
    let setup = setup.text("admin.address", &admin);
    let rails = Rails::on_tcp().await;
    let gateway = Process::start(&setup, &rails.peer, "-n 1024").await;
    let tcp = gateway.tcp().await;
    let mut kept = tcp.connect().await;
    assert_eq!(kept.exchange(&allowed()).await.status, 200);
    let _idle = idle(&tcp, 1_100).await;
    for _ in 0..5 {
        assert_eq!(gateway.admin.send(&live()).await.status, 200);
        assert_eq!(kept.exchange(&allowed()).await.status, 200);
        assert_eq!(tcp.send(&allowed()).await.status, 200);
    }
    // All of them have been seen by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let lines = gateway.lines();
    let told = |level: &str, text: &str| {
        let is = |line: &&Value| {
            line["level"] == level && line["message"].as_str().is_some_and(|told| told.starts_with(text))
        };
        lines.iter().filter(is).count()
    };
    assert_eq!(told("ERROR", ""), 0, "{lines:?}");
    assert_eq!(told("WARN", "the limit of open files is too low"), 1, "{lines:?}");
    assert_eq!(told("WARN", "a listener is full"), 1, "{lines:?}");
}

/// Up to the hard one.
#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised() {
    let setup = Setup::new().set("limits.connections", 100);
    let admin = format!("unix:{}", setup.dir.file("admin.sock").display());
    let setup = setup.text("admin.address", &admin);
    // Both limits, then the soft one.
    let gateway = Process::start(&setup, &Rails::on_tcp().await.peer, "-n 2000; ulimit -Sn 100").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_ascii_whitespace().nth(3), Some("2000"), "{line}");
    gateway.tcp().await;
    let is_warned = gateway.lines().iter().any(|line| line.to_string().contains("open files"));
    assert!(!is_warned, "{:?}", gateway.lines());
}
