//! Starts a real Rails and gateways in front of it, separate ones for each test.

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

use super::client::{Address, Request, Response};
use super::credentials::{KAS_SECRET, SHELL_SECRET};
use super::scratch::Scratch;

/// The time after which a test is considered broken.
const DEADLINE: Duration = Duration::from_mins(3);

const BOTH_CREDENTIALS: &str = r#"["jwt", "shared_secret"]"#;

/// Entries live for an hour.
const LONG_TTL: &str = r#"
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
const SHORT_TTL: &str = r#"
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

/// Keys of `[upstream]`, so that no test depends on the speed of the machine.
const LONG_TIMEOUTS: &str = r#"
    connect_timeout = "10m"
    response_timeout = "10m"
    total_timeout = "4h"
"#;

/// The socket over which a gateway reaches Rails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Unix,
}

/// Described in `tests/rails/serve`.
#[derive(Clone, Copy)]
struct RailsOptions {
    era: &'static str,
    root: &'static str,
    threads: u8,
}

const DEFAULT_RAILS: RailsOptions = RailsOptions { era: "both", root: "", threads: 4 };

/// A running Rails and its files. Stopped and removed when it is dropped.
pub struct Harness {
    pub tcp: Address,
    pub unix: Address,
    options: RailsOptions,
    process: Process,
    // Last, so that it is dropped last.
    dir: Scratch,
}

impl Harness {
    /// A Rails that accepts both kinds of shell credential.
    pub fn new() -> Self {
        Self::start(DEFAULT_RAILS)
    }

    /// A Rails of another era, as described in `tests/rails/serve`.
    pub fn with_era(era: &'static str) -> Self {
        Self::start(RailsOptions { era, ..DEFAULT_RAILS })
    }

    /// A Rails below a relative URL root.
    pub fn with_root(root: &'static str) -> Self {
        Self::start(RailsOptions { root, ..DEFAULT_RAILS })
    }

    /// A Rails with so many threads.
    pub fn with_threads(threads: u8) -> Self {
        Self::start(RailsOptions { threads, ..DEFAULT_RAILS })
    }

    fn start(options: RailsOptions) -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), format!("{SHELL_SECRET}\n")).unwrap();
        fs::write(dir.file("kas_secret"), STANDARD.encode(KAS_SECRET)).unwrap();
        let (tcp, unix) = (free_address(), dir.file("rails.sock"));
        let process = start_rails(&dir, options, tcp, Duration::ZERO);
        let mut harness = Self { tcp: Address::Tcp(tcp), unix: Address::Unix(unix), options, process, dir };
        harness.wait_for_rails();
        harness
    }

    fn wait_for_rails(&mut self) {
        let addresses = [&self.tcp, &self.unix];
        let what = "Rails answers; if it is not installed, run tests/run, which does that";
        self.process.wait_until(what, || addresses.iter().all(|address| is_ok(address, "/-/counters")));
    }

    /// A gateway that accepts both kinds of shell credential.
    pub fn gateway(&self, transport: Transport) -> Gateway {
        self.gateway_accepting(transport, BOTH_CREDENTIALS)
    }

    /// A gateway that accepts these kinds of shell credential.
    pub fn gateway_accepting(&self, transport: Transport, accept: &str) -> Gateway {
        let gateway = self.try_gateway(transport, accept);
        Self::ready(gateway)
    }

    /// A gateway whose entries are stale after a millisecond, with these keys for their stale times.
    pub fn gateway_with_short_ttl(&self, transport: Transport, cache: &str) -> Gateway {
        self.gateway_with_short_ttl_and(transport, cache, ("", ""))
    }

    /// The same, with more keys in `[upstream]`, and more sections.
    pub fn gateway_with_short_ttl_and(
        &self,
        transport: Transport,
        cache: &str,
        (upstream_keys, sections): (&str, &str),
    ) -> Gateway {
        let short = format!("ttl = \"1ms\"\n{cache}");
        let cache = format!(
            "[cache]\n[cache.shadow]\none_in = 0\n[cache.authorized_keys]\n{short}\n[cache.discover]\n{short}\n{sections}"
        );
        Self::ready(self.try_gateway_of(Some(transport), BOTH_CREDENTIALS, (upstream_keys, &cache)))
    }

    /// A gateway with the default time-outs, budgets and stale times, whose entries are stale after a millisecond.
    pub fn gateway_with_default_timeouts(&self, transport: Transport) -> Gateway {
        let cache = "[cache.shadow]\none_in = 0\n[cache.authorized_keys]\nttl = \"1ms\"\nstale_while_revalidate = \"0s\"
            [cache.discover]\nttl = \"1ms\"\nstale_while_revalidate = \"0s\"";
        Self::ready(self.start_gateway(Some(transport), BOTH_CREDENTIALS, ("", cache)))
    }

    /// A gateway that sends Rails this kind of credential, whatever its callers use.
    pub fn gateway_translating_to(&self, transport: Transport, wanted: &str) -> Gateway {
        let credential = format!("credential = \"{wanted}\"");
        Self::ready(self.try_gateway_of(Some(transport), BOTH_CREDENTIALS, (&credential, LONG_TTL)))
    }

    /// A gateway with a TTL of a millisecond that holds requests for minutes.
    pub fn gateway_with_long_hold(&self, transport: Transport) -> Gateway {
        let patient = ["lookup", "access", "callback", "kas", "other"]
            .map(|class| format!("[upstream.classes.{class}]\nhold = \"3m\"\nqueue_timeout = \"3m\"\n"));
        let cache = format!("{}{SHORT_TTL}", patient.concat());
        Self::ready(self.try_gateway_with(transport, BOTH_CREDENTIALS, &cache))
    }

    /// A gateway with a TTL of a millisecond in front of this Rails and others.
    pub fn gateway_with_servers(&self, others: &[&Self]) -> Gateway {
        self.gateway_with_servers_and(others, "")
    }

    /// The same, with more sections.
    pub fn gateway_with_servers_and(&self, others: &[&Self], more: &str) -> Gateway {
        let mut sections = String::new();
        for url in [self.tcp.url()].into_iter().chain(others.iter().map(|other| other.unix.url())) {
            writeln!(sections, "[[upstream.server]]\nurl = \"{url}\"").unwrap();
        }
        sections.push_str("[upstream.health]\ninterval = \"200ms\"\ntimeout = \"1m\"\n");
        sections.push_str(SHORT_TTL);
        sections.push_str(more);
        Self::ready(self.try_gateway_of(None, BOTH_CREDENTIALS, ("", &sections)))
    }

    /// A gateway with a TTL of an hour that compares each hit with Rails.
    pub fn gateway_with_shadow_checks(&self, transport: Transport) -> Gateway {
        let cache = LONG_TTL.replace("one_in = 0", "one_in = 1\nmax_per_second = 10_000\nslow = \"1h\"");
        Self::ready(self.try_gateway_with(transport, BOTH_CREDENTIALS, &cache))
    }

    /// A gateway with a TTL of an hour, and its listener for System Hooks.
    pub fn gateway_with_hooks(&self, transport: Transport) -> (Gateway, Address) {
        self.gateway_with_hooks_and(transport, "")
    }

    /// The same, with more sections.
    pub fn gateway_with_hooks_and(&self, transport: Transport, more: &str) -> (Gateway, Address) {
        let hooks = free_address();
        let file = self.dir.file("hook_token");
        fs::write(&file, "h00k").unwrap();
        let section = format!("[hooks]\naddress = \"{hooks}\"\ntoken_file = \"{}\"", file.display());
        let gateway =
            self.try_gateway_with(transport, BOTH_CREDENTIALS, &format!("{LONG_TTL}\n{section}\n{more}"));
        (Self::ready(gateway), Address::Tcp(hooks))
    }

    fn ready(mut gateway: Gateway) -> Gateway {
        let admin = gateway.admin.clone();
        gateway.process.wait_until("the gateway is ready", || is_ok(&admin, "/ready"));
        gateway
    }

    /// A gateway that may never become ready.
    pub fn try_gateway(&self, transport: Transport, accept: &str) -> Gateway {
        self.try_gateway_with(transport, accept, LONG_TTL)
    }

    fn try_gateway_with(&self, transport: Transport, accept: &str, sections: &str) -> Gateway {
        self.try_gateway_of(Some(transport), accept, ("", sections))
    }

    /// With more keys in `[upstream]`, and more sections, which name the servers if `transport` is none.
    fn try_gateway_of(
        &self,
        transport: Option<Transport>,
        accept: &str,
        (upstream_keys, sections): (&str, &str),
    ) -> Gateway {
        self.start_gateway(transport, accept, (&format!("{LONG_TIMEOUTS}{upstream_keys}"), sections))
    }

    /// The same with no time-outs but these.
    fn start_gateway(&self, transport: Option<Transport>, accept: &str, more: (&str, &str)) -> Gateway {
        let (tcp, admin) = (free_address(), free_address());
        let name = format!("gateway-{}", tcp.port());
        let socket = self.dir.file(&format!("{name}.sock"));
        let config = self.dir.file(&format!("{name}.toml"));
        fs::write(&config, self.config(transport, accept, more, (tcp, &socket, admin))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(&config);
        let process = Process::start(command, self.dir.file(&format!("{name}.log")));
        Gateway {
            tcp: Address::Tcp(tcp),
            unix: Address::Unix(socket),
            admin: Address::Tcp(admin),
            config,
            process,
        }
    }

    fn config(
        &self,
        transport: Option<Transport>,
        accept: &str,
        (upstream_keys, sections): (&str, &str),
        (tcp, unix, admin): (SocketAddr, &Path, SocketAddr),
    ) -> String {
        let url = |address: &Address| format!("url = \"{}{}\"", address.url(), self.options.root);
        let url = transport.map(|transport| match transport {
            Transport::Tcp => url(&self.tcp),
            Transport::Unix => url(&self.unix),
        });
        let url = url.unwrap_or_default();
        let (unix, dir) = (unix.display(), self.dir.path().display());
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

    /// Replaces a secret file, for gateways that are started later.
    pub fn write_secret(&self, name: &str, text: &str) {
        fs::write(self.dir.file(name), text).unwrap();
    }

    /// Runs `act`. Returns how many requests reached Rails meanwhile, and its result.
    pub fn arrivals<T>(&self, act: impl FnOnce() -> T) -> (u64, T) {
        self.control("POST", "/-/counters/reset");
        let result = act();
        (self.counters().values().sum(), result)
    }

    /// How many requests reached Rails since the last reset, by `GET /api/v4/internal/check`.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        serde_json::from_slice(&self.control("GET", "/-/counters").body).unwrap()
    }

    /// Controls Rails as described in `tests/rails/app/controls.rb`.
    pub fn control(&self, method: &str, path: &str) -> Response {
        let response = self.unix.send(&Request::new(method, path));
        assert_eq!(response.status, 200, "{method} {path}: {response}");
        response
    }

    /// Kills Rails.
    pub fn kill_rails(&mut self) {
        self.process.kill();
    }

    /// Ends Rails gracefully, as a deployment does: it finishes its requests.
    pub fn terminate_rails(&mut self) {
        let kill = format!("kill -TERM {}", self.process.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        self.process.wait_for_end();
    }

    /// The ids of the requests that reached Rails since its first start.
    pub fn arrived_request_ids(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.file("arrived.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Kills Rails, and starts it again at the same addresses.
    pub fn restart_rails(&mut self) {
        self.restart_rails_with_boot_time(Duration::ZERO);
    }

    /// The same with at least this boot time.
    pub fn restart_rails_with_boot_time(&mut self, boot: Duration) {
        self.kill_rails();
        let Address::Tcp(tcp) = self.tcp else { panic!("{:?} is no TCP address", self.tcp) };
        self.process = start_rails(&self.dir, self.options, tcp, boot);
        self.wait_for_rails();
    }
}

fn start_rails(
    dir: &Scratch,
    RailsOptions { era, root, threads }: RailsOptions,
    tcp: SocketAddr,
    boot: Duration,
) -> Process {
    let booted_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + boot;
    // A killed Rails leaves its socket behind.
    let _ = fs::remove_file(dir.file("rails.sock"));
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rails/serve"));
    command
        .env("RAILS_DIR", dir.path())
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
    pub tcp: Address,
    pub unix: Address,
    pub admin: Address,
    config: PathBuf,
    process: Process,
}

impl Gateway {
    pub fn addresses(&self) -> [&Address; 2] {
        [&self.tcp, &self.unix]
    }

    /// Sends SIGTERM, as systemd does.
    pub fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.process.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Runs a command of `railgate` with this gateway's configuration. Returns whether it succeeded, and its
    /// output.
    pub fn run_command(&self, operation: &str, what: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        let output = command.arg(operation).arg("--config").arg(&self.config).args(what).output().unwrap();
        let written = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(written).unwrap())
    }

    /// Waits until the gateway has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.wait_for_end()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Waits until a condition is true; fails the test after `DEADLINE`.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < DEADLINE, "never came true: {what}");
        pause();
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn is_ok(address: &Address, path: &str) -> bool {
    address.try_send(&Request::new("GET", path)).is_ok_and(|response| response.status == 200)
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
            let is_over = end.is_some() || start.elapsed() > DEADLINE;
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
            assert!(start.elapsed() < DEADLINE, "it does not end\n{}", self.log());
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

/// A free port, outside of the range that the system hands out itself: an outgoing connection could take
/// such a port before the server does.
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
