//! systemd's side of the protocol, played by a socket: what the gateway tells its service manager from start to end.
//! The unit itself is checked by systemd's own tools.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use railgate::service_manager::ServiceManager;
use tokio::net::UnixDatagram;

use super::client::{Address, Request, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, Reply};
use super::harness::{Harness, RunningGateway, Scratch, Setup};
use super::log::{self, LogBlocker};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/railgate.service");

/// Collects the messages, as systemd does.
struct Supervisor {
    path: PathBuf,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Supervisor {
    fn listen(dir: &Scratch) -> Self {
        let path = dir.file("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let received = Arc::clone(&messages);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
                received.lock().unwrap().push(message);
            }
        });
        Self { path, messages }
    }

    fn count(&self, part: &str) -> usize {
        self.messages.lock().unwrap().iter().filter(|message| message.contains(part)).count()
    }

    /// Waits until `count` messages with this part have come.
    async fn wait_for(&self, part: &str, count: usize) {
        eventually(part, || std::future::ready((self.count(part) >= count).then_some(()))).await;
    }
}

/// `railgate run` with these variables, in front of a scripted Rails.
fn run(setup: &Setup, rails: &FakeRails, variables: &[(&str, &str)]) -> Process {
    let config = setup.dir.file("railgate.toml");
    std::fs::write(&config, setup.config(&rails.address)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(config).envs(variables.iter().copied());
    Process::spawn_piped(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_says_when_it_is_ready_alive_and_stopping() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let supervisor = Supervisor::listen(&setup.dir);
    let socket = supervisor.path.display().to_string();
    let mut gateway = run(&setup, &rails, &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", "300000")]);
    supervisor.wait_for("READY=1", 1).await;
    // At once, without another attempt.
    let client = Address::Unix(setup.socket());
    assert_eq!(client.send(&Request::get("check").with_secret()).await.status, 200);
    supervisor.wait_for("WATCHDOG=1", 3).await;
    assert_eq!((supervisor.count("READY=1"), supervisor.count("STOPPING=1")), (1, 0));

    // It says so before it ends: a request is still running.
    rails.respond_always(Reply::silence());
    let mut connection = client.connect().await;
    connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
    eventually("the request to be at Rails", || {
        std::future::ready(rails.requests().into_iter().find(|request| request.target.contains("allowed")))
    })
    .await;
    gateway.signal("-TERM");
    supervisor.wait_for("STOPPING=1", 1).await;
    assert!(gateway.child.try_wait().unwrap().is_none());
    let fed = supervisor.count("WATCHDOG=1");
    supervisor.wait_for("WATCHDOG=1", fed + 2).await;
    gateway.signal("-TERM");
    assert_eq!(gateway.wait_for_end().await.code(), Some(1));
}

/// A watchdog for another process is not this one's, and without a watchdog there is nothing to feed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watchdog_for_another_process_is_not_fed() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let supervisor = Supervisor::listen(&setup.dir);
    let socket = supervisor.path.display().to_string();
    let variables = [("NOTIFY_SOCKET", &*socket), ("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")];
    let mut gateway = run(&setup, &rails, &variables);
    supervisor.wait_for("READY=1", 1).await;
    gateway.signal("-TERM");
    supervisor.wait_for("STOPPING=1", 1).await;
    gateway.wait_for_end().await;
    assert_eq!(supervisor.count("WATCHDOG"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_notify_socket_does_not_stop_the_gateway() {
    for (socket, expected) in
        [("relative", "NOTIFY_SOCKET cannot be used"), ("/no/socket", "NOTIFY_SOCKET right")]
    {
        let rails = FakeRails::listen_tcp().await;
        let setup = Setup::new();
        let gateway = run(&setup, &rails, &[("NOTIFY_SOCKET", socket)]);
        gateway.wait_for_output(expected).await;
        let client = Address::Unix(setup.socket());
        assert_eq!(client.send(&Request::get("check").with_secret()).await.status, 200);
    }
}

#[tokio::test]
async fn the_watchdog_is_not_fed_while_a_worker_hangs() {
    let setup = Setup::new().set("workers", 2).text("limits.drain_timeout", "100ms");
    let supervisor = Supervisor::listen(&setup.dir);
    let manager = ServiceManager::at(supervisor.path.as_os_str(), Some(Duration::from_millis(90))).unwrap();
    let rails = FakeRails::listen_tcp().await;
    let gateway = RunningGateway::start_supervised(setup.settings(&rails.address), manager);
    let mut harness = Harness { rails, gateway, dir: setup.dir };
    supervisor.wait_for("WATCHDOG=1", 3).await;

    let logged = log::position();
    let hang = LogBlocker::on(r#""correlation_id":"a-worker-that-hangs""#);
    let mut stuck = harness.gateway.tcp.connect().await;
    let request = Request::get("check").with_secret().header("X-Request-Id", "a-worker-that-hangs");
    stuck.write(&request.to_bytes("close")).await;
    eventually("the worker to hang", async || {
        log::since(logged).contains("a-worker-that-hangs").then_some(())
    })
    .await;
    supervisor.wait_for("hangs: the watchdog is not fed", 1).await;
    let fed = supervisor.count("WATCHDOG=1");
    // More than the watchdog's time passes: `/live` counts seconds.
    eventually("seconds without a beat", async || {
        let live = harness.gateway.admin.send(&Request::new("GET", "/live")).await.json();
        (live["threads"][0]["silent_s"].as_u64()? >= 12).then_some(())
    })
    .await;
    assert_eq!(supervisor.count("WATCHDOG=1"), fed);

    drop(hang);
    supervisor.wait_for("WATCHDOG=1", fed + 3).await;
    assert_eq!(supervisor.count("STATUS=Accepts requests"), 2, "at the start, and again");
    harness.gateway.drain();
    assert!(harness.gateway.wait_for_end().await);
    supervisor.wait_for("STOPPING=1", 1).await;
}

#[tokio::test]
async fn a_reload_is_announced_with_its_time_and_ended() {
    let dir = Scratch::new();
    let supervisor = Supervisor::listen(&dir);
    let manager = ServiceManager::at(supervisor.path.as_os_str(), None).unwrap();
    manager.ready();
    manager.reloading();
    manager.reloaded();
    supervisor.wait_for("READY=1", 2).await;
    let messages = supervisor.messages.lock().unwrap().clone();
    let [_, reloading, ready] = &messages[..] else { panic!("{messages:?}") };
    let mut lines = reloading.lines();
    assert_eq!(lines.next(), Some("RELOADING=1"));
    let time = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse::<u64>().ok());
    // The clock runs since the start of the machine.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime_s: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(Duration::from_micros(time.unwrap()).as_secs_f64() <= uptime_s + 1.0, "{reloading} {uptime}");
    assert!(time > Some(0) && ready.starts_with("READY=1\n"), "{messages:?}");
}

/// Of the process itself, also after a reload that changes nothing because of a mistake: else the service manager would
/// wait for the end of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_announces_its_reloads_and_ends_them() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let supervisor = Supervisor::listen(&setup.dir);
    let socket = supervisor.path.display().to_string();
    let gateway = run(&setup, &rails, &[("NOTIFY_SOCKET", &socket)]);
    supervisor.wait_for("READY=1", 1).await;
    let file = setup.dir.file("railgate.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let mut last: u64 = 0;
    for (count, (text, expected)) in [
        (good.clone(), "the configuration was read again, and is in effect"),
        (format!("{good}\nnonsense = 1\n"), "the configuration was not changed"),
        (
            format!("log.format = \"pretty\"\n{good}"),
            "INFO the configuration was read again, and is in effect",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(&file, text).unwrap();
        gateway.signal("-HUP");
        supervisor.wait_for("READY=1", count + 2).await;
        let messages = supervisor.messages.lock().unwrap().clone();
        let [.., reloading, ready] = &messages[..] else { panic!("{messages:?}") };
        let mut lines = reloading.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"), "{messages:?}");
        let time = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse().ok()).unwrap();
        assert!(time > last && ready.starts_with("READY=1\n"), "{messages:?}");
        last = time;
        gateway.wait_for_output(expected).await;
    }
}

/// The unit, with the binary of the tests, in a folder of its own.
fn unit_for_this_binary(dir: &Scratch) -> PathBuf {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    assert_eq!(unit.matches("=railgate ").count(), 2, "systemd looks the binary up");
    let path = dir.file("railgate.service");
    std::fs::write(&path, unit.replace("=railgate ", &format!("={} ", env!("CARGO_BIN_EXE_railgate"))))
        .unwrap();
    std::fs::write(dir.file("railgate.socket"), include_str!("../../deploy/systemd/railgate.socket"))
        .unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &PathBuf) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    let output = output.unwrap_or_else(|error| {
        panic!("systemd-analyze is missing ({error}): apt-get install systemd, or tests/run")
    });
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_unit_is_valid() {
    let dir = Scratch::new();
    let unit = unit_for_this_binary(&dir);
    for unit in [unit, dir.file("railgate.socket")] {
        let (succeeded, said) = analyze(&["verify", "--man=no"], &unit);
        let about_these: Vec<&str> = said.lines().filter(|line| line.contains("railgate")).collect();
        assert!(succeeded && about_these.is_empty(), "{said}");
    }
    // The check itself can fail.
    std::fs::write(dir.file("railgate.service"), "[Service]\nExecStart=/nothing/here\nNoSuchKey=1\n")
        .unwrap();
    let (_, said) = analyze(&["verify", "--man=no"], &dir.file("railgate.service"));
    assert!(said.contains("NoSuchKey") && said.contains("/nothing/here"), "{said}");
}

#[test]
fn the_drop_ins_are_valid() {
    let dir = Scratch::new();
    let unit = unit_for_this_binary(&dir);
    std::fs::create_dir(dir.file("railgate.service.d")).unwrap();
    for (name, text) in [
        ("notify-reload.conf", include_str!("../../deploy/systemd/notify-reload.conf")),
        ("own-user.conf", include_str!("../../deploy/systemd/own-user.conf")),
    ] {
        std::fs::write(dir.file("railgate.service.d").join(name), text).unwrap();
    }
    let (succeeded, said) = analyze(&["verify", "--man=no"], &unit);
    // systemd before 253 keeps `Type=notify` then.
    let is_expected = |line: &&str| line.ends_with("Failed to parse service type, ignoring: notify-reload");
    let unexpected: Vec<&str> =
        said.lines().filter(|line| line.contains("railgate") && !is_expected(line)).collect();
    assert!(succeeded && unexpected.is_empty(), "{said}");
}

#[test]
fn the_unit_is_hardened() {
    let dir = Scratch::new();
    let unit = unit_for_this_binary(&dir);
    // In tenths: 1.5.
    let (succeeded, said) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=15"], &unit);
    assert!(succeeded, "{said}");
    let (_, verdict) = said.rsplit_once("Overall exposure level for").unwrap();
    println!("{verdict}");
}

#[test]
fn the_unit_and_the_gateway_agree() {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "WatchdogSec=30s",
        // A secret that is not there yet is waited for.
        "StartLimitIntervalSec=0",
        "Restart=on-failure",
        "RestartSec=5s",
        // The sockets are kept over a restart, and the gateway is told so.
        "FileDescriptorStoreMax=512",
        "Environment=FDSTORE=512",
        // Longer than limits.drain_timeout.
        "TimeoutStopSec=40s",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let drop_in = include_str!("../../deploy/systemd/notify-reload.conf");
    assert!(drop_in.lines().any(|line| line == "Type=notify-reload"));
}
