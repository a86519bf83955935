//! Starts the real things, each test its own: a Rails, and gateways in front of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::credentials::{KAS_SECRET, SHELL_SECRET};
use super::wire::{Answer, Ask, Peer};

/// No test ever waits this long, unless something is broken.
const PATIENCE: Duration = Duration::from_mins(3);

const BOTH: &str = r#"["jwt", "shared_secret"]"#;

/// Entries live for an hour.
const LONG_MEMORY: &str = r#"
    [cache]
    max_entries = 1_000
    wait = "10m"
    jitter_percent = 0
    [cache.shadow]
    one_in = 0
    [cache.authorized_keys]
    ttl = "1h"
    negative_ttl = "1h"
    [cache.discover]
    ttl = "1h"
    negative_ttl = "1h"
    [cache.check]
    ttl = "1h"
"#;

/// Entries live for a millisecond.
const SHORT_MEMORY: &str = r#"
    [cache]
    [cache.shadow]
    one_in = 0
    [cache.authorized_keys]
    ttl = "1ms"
    stale_while_revalidate = "0s"
    stale_if_error = "0s"
    [cache.discover]
    ttl = "1ms"
    stale_while_revalidate = "0s"
    stale_if_error = "0s"
"#;

/// How a gateway reaches Rails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Tcp,
    Unix,
}

/// See `tests/rails/serve`.
#[derive(Clone, Copy)]
struct Kind {
    era: &'static str,
    root: &'static str,
    threads: u8,
}

const USUAL: Kind = Kind { era: "both", root: "", threads: 4 };

/// A Rails with everything it needs. When dropped, it ends and leaves nothing behind.
pub struct Stage {
    pub tcp: Peer,
    pub unix: Peer,
    kind: Kind,
    process: Process,
    // Last, so that it goes last.
    dir: Scratch,
}

impl Stage {
    /// A Rails that accepts both kinds of shell credential.
    pub fn new() -> Self {
        Self::start(USUAL)
    }

    /// A Rails of another era: see `tests/rails/serve`.
    pub fn of_era(era: &'static str) -> Self {
        Self::start(Kind { era, ..USUAL })
    }

    /// A Rails that lives below a path.
    pub fn below(root: &'static str) -> Self {
        Self::start(Kind { root, ..USUAL })
    }

    /// A Rails that answers so many requests at one time.
    pub fn of_threads(threads: u8) -> Self {
        Self::start(Kind { threads, ..USUAL })
    }

    fn start(kind: Kind) -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), format!("{SHELL_SECRET}\n")).unwrap();
        fs::write(dir.file("kas_secret"), STANDARD.encode(KAS_SECRET)).unwrap();
        let (tcp, unix) = (free_address(), dir.file("rails.sock"));
        let process = start_rails(&dir, kind, tcp, Duration::ZERO);
        let mut stage = Self { tcp: Peer::Tcp(tcp), unix: Peer::Unix(unix), kind, process, dir };
        stage.wait_for_rails();
        stage
    }

    fn wait_for_rails(&mut self) {
        let peers = [&self.tcp, &self.unix];
        let what = "Rails answers; if it is not installed, run tests/run, which does that";
        self.process.wait_until(what, || peers.iter().all(|peer| is_ok(peer, "/-/counters")));
    }

    /// A gateway that accepts both kinds of shell credential.
    pub fn gateway(&self, way: Way) -> Gateway {
        self.gateway_that_accepts(way, BOTH)
    }

    /// A gateway that accepts these kinds of shell credential.
    pub fn gateway_that_accepts(&self, way: Way, accept: &str) -> Gateway {
        let gateway = self.try_gateway(way, accept);
        Self::ready(gateway)
    }

    /// A gateway whose entries are stale after a millisecond, and then as good as `cache` says.
    pub fn gateway_of_short_memory(&self, way: Way, cache: &str) -> Gateway {
        self.gateway_of_short_memory_with(way, cache, ("", ""))
    }

    /// The same, with more in `[upstream]`, and more sections.
    pub fn gateway_of_short_memory_with(
        &self,
        way: Way,
        cache: &str,
        (upstream_keys, sections): (&str, &str),
    ) -> Gateway {
        let short = format!("ttl = \"1ms\"\n{cache}");
        let cache = format!(
            "[cache]\n[cache.shadow]\none_in = 0\n[cache.authorized_keys]\n{short}\n[cache.discover]\n{short}\n{sections}"
        );
        Self::ready(self.try_gateway_of(Some(way), BOTH, (upstream_keys, &cache)))
    }

    /// A gateway that shows Rails `wanted`, whatever its callers have shown.
    pub fn gateway_that_translates(&self, way: Way, wanted: &str) -> Gateway {
        let credential = format!("credential = \"{wanted}\"");
        Self::ready(self.try_gateway_of(Some(way), BOTH, (&credential, LONG_MEMORY)))
    }

    /// A gateway that keeps hardly anything, and waits for Rails for as long as it takes.
    pub fn gateway_that_waits(&self, way: Way) -> Gateway {
        let patient = ["lookup", "access", "callback", "kas", "other"]
            .map(|class| format!("[upstream.classes.{class}]\nhold = \"3m\"\nqueue_timeout = \"3m\"\n"));
        let cache = format!("{}{SHORT_MEMORY}", patient.concat());
        Self::ready(self.try_gateway_with(way, BOTH, &cache))
    }

    /// A gateway that keeps hardly anything, in front of this Rails and others.
    pub fn gateway_of_several(&self, others: &[&Self]) -> Gateway {
        self.gateway_of_several_with(others, "")
    }

    /// The same, with more sections.
    pub fn gateway_of_several_with(&self, others: &[&Self], more: &str) -> Gateway {
        let mut sections = String::new();
        for url in [self.tcp.url()].into_iter().chain(others.iter().map(|other| other.unix.url())) {
            writeln!(sections, "[[upstream.server]]\nurl = \"{url}\"").unwrap();
        }
        sections.push_str("[upstream.health]\ninterval = \"200ms\"\ntimeout = \"1m\"\n");
        sections.push_str(SHORT_MEMORY);
        sections.push_str(more);
        Self::ready(self.try_gateway_of(None, BOTH, ("", &sections)))
    }

    /// A gateway with entries that live for an hour, each use of which is compared with Rails.
    pub fn gateway_that_compares(&self, way: Way) -> Gateway {
        let cache = LONG_MEMORY.replace("one_in = 0", "one_in = 1\nmax_per_second = 10_000\nslow = \"1h\"");
        Self::ready(self.try_gateway_with(way, BOTH, &cache))
    }

    /// A gateway with entries that live for an hour, and where it takes GitLab's System Hooks.
    pub fn gateway_with_hooks(&self, way: Way) -> (Gateway, Peer) {
        let hooks = free_address();
        let file = self.dir.file("hook_token");
        fs::write(&file, "h00k").unwrap();
        let section = format!("[hooks]\naddress = \"{hooks}\"\ntoken_file = \"{}\"", file.display());
        let gateway = self.try_gateway_with(way, BOTH, &format!("{LONG_MEMORY}\n{section}"));
        (Self::ready(gateway), Peer::Tcp(hooks))
    }

    fn ready(mut gateway: Gateway) -> Gateway {
        let admin = gateway.admin.clone();
        gateway.process.wait_until("the gateway is ready", || is_ok(&admin, "/ready"));
        gateway
    }

    /// A gateway that may never become ready.
    pub fn try_gateway(&self, way: Way, accept: &str) -> Gateway {
        self.try_gateway_with(way, accept, LONG_MEMORY)
    }

    fn try_gateway_with(&self, way: Way, accept: &str, sections: &str) -> Gateway {
        self.try_gateway_of(Some(way), accept, ("", sections))
    }

    /// With more in `[upstream]`, and more sections; those say where Rails is, if there is no way.
    fn try_gateway_of(&self, way: Option<Way>, accept: &str, more: (&str, &str)) -> Gateway {
        let (tcp, admin) = (free_address(), free_address());
        let name = format!("gateway-{}", tcp.port());
        let socket = self.dir.file(&format!("{name}.sock"));
        let config = self.dir.file(&format!("{name}.toml"));
        fs::write(&config, self.config(way, accept, more, (tcp, &socket, admin))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(&config);
        let process = Process::start(command, self.dir.file(&format!("{name}.log")));
        Gateway { tcp: Peer::Tcp(tcp), unix: Peer::Unix(socket), admin: Peer::Tcp(admin), config, process }
    }

    /// Everybody waits for as long as it takes: no test may depend on how fast the machine is.
    fn config(
        &self,
        way: Option<Way>,
        accept: &str,
        (upstream_keys, sections): (&str, &str),
        (tcp, unix, admin): (SocketAddr, &Path, SocketAddr),
    ) -> String {
        let url = |peer: &Peer| format!("url = \"{}{}\"", peer.url(), self.kind.root);
        let url = way.map(|way| match way {
            Way::Tcp => url(&self.tcp),
            Way::Unix => url(&self.unix),
        });
        let url = url.unwrap_or_default();
        let (unix, dir) = (unix.display(), self.dir.path.display());
        format!(
            r#"
            [[listen]]
            address = "{tcp}"
            [[listen]]
            address = "unix:{unix}"
            mode = "0600"
            [admin]
            address = "{admin}"
            [upstream]
            {url}
            connect_timeout = "10m"
            response_timeout = "10m"
            total_timeout = "4h"
            {upstream_keys}
            [auth.shell]
            secret_file = "{dir}/shell_secret"
            accept = {accept}
            [auth.kas]
            secret_file = "{dir}/kas_secret"
            {sections}
            [limits]
            head_timeout = "10m"
            drain_timeout = "10m"
            "#
        )
    }

    /// Replaces a secret file, for the gateways that are started from now on.
    pub fn write_secret(&self, name: &str, text: &str) {
        fs::write(self.dir.file(name), text).unwrap();
    }

    /// How many requests reached Rails while `act` ran, and what it returned.
    pub fn arrivals<T>(&self, act: impl FnOnce() -> T) -> (u64, T) {
        self.control("POST", "/-/counters/reset");
        let result = act();
        (self.counters().values().sum(), result)
    }

    /// What reached Rails since the last reset, as in `GET /api/v4/internal/check`.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        serde_json::from_slice(&self.control("GET", "/-/counters").body).unwrap()
    }

    /// Sets something in Rails: see `tests/rails/app/controls.rb`.
    pub fn control(&self, method: &str, path: &str) -> Answer {
        let answer = self.unix.send(&Ask::new(method, path));
        assert_eq!(answer.status, 200, "{method} {path}: {answer}");
        answer
    }

    /// Ends Rails at once.
    pub fn stop_rails(&mut self) {
        self.process.kill();
    }

    /// Ends Rails as a deploy does: it finishes what it has begun.
    pub fn end_rails(&mut self) {
        let kill = format!("kill -TERM {}", self.process.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        self.process.wait_for_end();
    }

    /// The requests that reached Rails since it was started for the first time, by their ids.
    pub fn arrived(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.file("arrived.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Ends Rails, and starts it again where it was.
    pub fn restart_rails(&mut self) {
        self.restart_rails_with(Duration::ZERO);
    }

    /// The same, where it takes at least so long to load.
    pub fn restart_rails_with(&mut self, boot: Duration) {
        self.stop_rails();
        let Peer::Tcp(tcp) = self.tcp else { panic!("{:?} is no TCP address", self.tcp) };
        self.process = start_rails(&self.dir, self.kind, tcp, boot);
        self.wait_for_rails();
    }
}

fn start_rails(dir: &Scratch, Kind { era, root, threads }: Kind, tcp: SocketAddr, boot: Duration) -> Process {
    let booted_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + boot;
    // One that was killed leaves its socket behind.
    let _ = fs::remove_file(dir.file("rails.sock"));
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rails/serve"));
    command
        .env("RAILS_DIR", &dir.path)
        .env("RAILS_SHELL_SECRET_FILE", dir.file("shell_secret"))
        .env("RAILS_KAS_SECRET_FILE", dir.file("kas_secret"))
        .env("RAILS_TCP", tcp.to_string())
        .env("RAILS_SOCKET", dir.file("rails.sock"))
        .env("RAILS_RELATIVE_ROOT", if root.is_empty() { "/" } else { root })
        .env("RAILS_ERA", era)
        .env("RAILS_BOOTED_AT", booted_at.as_secs_f64().to_string())
        .env("RAILS_THREADS", threads.to_string());
    Process::start(command, dir.file("puma.log"))
}

/// A gateway, on a TCP and on a unix socket.
pub struct Gateway {
    pub tcp: Peer,
    pub unix: Peer,
    pub admin: Peer,
    config: PathBuf,
    process: Process,
}

impl Gateway {
    pub fn peers(&self) -> [&Peer; 2] {
        [&self.tcp, &self.unix]
    }

    /// Asks the gateway to end, as systemd does.
    pub fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.process.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Runs `railgate purge`, `inspect` or `doctor` with its configuration: whether it said that all went well, and
    /// what it wrote.
    pub fn operate(&self, operation: &str, what: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        let output = command.arg(operation).arg("--config").arg(&self.config).args(what).output().unwrap();
        let written = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(written).unwrap())
    }

    /// Waits until the gateway has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.wait_for_end()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Waits, for as long as it takes, until something is true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        pause();
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn is_ok(peer: &Peer, path: &str) -> bool {
    peer.try_send(&Ask::new("GET", path)).is_ok_and(|answer| answer.status == 200)
}

/// A child process that does not outlive its test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let out = File::create(&log).unwrap();
        let err = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| panic!("{error}: {command:?}"));
        Self { child, log }
    }

    fn wait_until(&mut self, what: &str, mut is_true: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_true() {
            let end = self.child.try_wait().unwrap();
            let is_over = end.is_some() || start.elapsed() > PATIENCE;
            assert!(!is_over, "never came true: {what}\n(exit: {end:?})\n{}", self.log());
            pause();
        }
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            pause();
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A directory that goes when the test ends.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let name =
            format!("railgate-acceptance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A port that nobody has. Not one of those that the system hands out by itself: some outgoing
/// connection could take such a port before the server does.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
