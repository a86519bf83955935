//! Starts a gateway in front of a scripted Rails, one pair for each test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use railgate::fleet::Fleet;
use railgate::service_manager::ServiceManager;
use railgate::{Gateway, config};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Address, Connection, Request, Response, eventually, within_deadline};
use super::credentials::{KAS_SECRET, SHELL_SECRET};
use super::fake_rails::{FakeRails, ReceivedRequest, Reply};
use super::log;
pub use super::scratch::Scratch;

/// The configuration of a gateway, key by key, and the directory with its files.
pub struct Setup {
    keys: BTreeMap<String, String>,
    root: String,
    is_tls: bool,
    mode: Option<&'static str>,
    tcp_lines: Vec<String>,
    unix_lines: Vec<String>,
    pub dir: Scratch,
}

impl Setup {
    /// Entries live for an hour and time-outs are long, unless a test says otherwise: no test may depend on
    /// the speed of the machine.
    pub fn new() -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), format!("{SHELL_SECRET}\n")).unwrap();
        fs::write(dir.file("kas_secret"), STANDARD.encode(KAS_SECRET)).unwrap();
        let (root, tcp_lines, unix_lines) = (String::new(), Vec::new(), Vec::new());
        let setup =
            Self { keys: BTreeMap::new(), root, is_tls: false, mode: None, tcp_lines, unix_lines, dir };
        let (shell, kas) = (setup.dir.file("shell_secret"), setup.dir.file("kas_secret"));
        setup
            .text("admin.address", "127.0.0.1:0")
            // The host that the test's client sends.
            .set("admin.hosts", r#"["gateway.example"]"#)
            .text("auth.shell.secret_file", &shell.display().to_string())
            .text("auth.kas.secret_file", &kas.display().to_string())
            .text("upstream.connect_timeout", "10m")
            .text("upstream.response_timeout", "10m")
            .text("upstream.body_timeout", "10m")
            .text("upstream.max_connection_age", "0s")
            .text("upstream.total_timeout", "4h")
            .text("upstream.classes.lookup.queue_timeout", "10m")
            .text("upstream.hold", "0s")
            .set("upstream.resend_percent", 0)
            .text("cache.wait", "10m")
            .text("cache.authorized_keys.ttl", "1h")
            .text("cache.authorized_keys.negative_ttl", "1h")
            .text("cache.discover.ttl", "1h")
            .text("cache.discover.negative_ttl", "1h")
            .text("cache.check.ttl", "1h")
            .set("cache.jitter_percent", 0)
            .set("cache.shadow.one_in", 0)
            .text("limits.first_byte_timeout", "10m")
            .text("limits.head_timeout", "10m")
            .text("limits.idle_timeout", "10m")
            .text("limits.drain_timeout", "10m")
    }

    /// Sets a key, or another value for it.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.keys.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets a key to a string.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.set(key, format!("{value:?}"))
    }

    /// Removes a key.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.remove(key).unwrap();
        self
    }

    /// Leaves all but addresses and secrets to the defaults.
    pub fn with_default_times(mut self) -> Self {
        self.keys.retain(|key, _| key.starts_with("admin.") || key.starts_with("auth."));
        self
    }

    /// The relative URL root of Rails.
    pub fn root_path(mut self, root: &str) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// Rails speaks TLS, under the name `localhost`.
    pub fn over_tls(mut self) -> Self {
        self.is_tls = true;
        self
    }

    /// The permissions of the gateway's unix socket.
    pub fn mode(mut self, mode: &'static str) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Adds a line to the section of the listener on TCP.
    pub fn tcp(mut self, line: impl Into<String>) -> Self {
        self.tcp_lines.push(line.into());
        self
    }

    /// Adds a line to the section of the listener on a unix socket.
    pub fn unix(mut self, line: impl Into<String>) -> Self {
        self.unix_lines.push(line.into());
        self
    }

    /// The secret that Rails and GitLab Shell share.
    pub fn shell_secret(self, secret: &str) -> Self {
        fs::write(self.dir.file("shell_secret"), format!("{secret}\n")).unwrap();
        self
    }

    /// The gateway's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.file("gateway.sock")
    }

    /// The text of the configuration file.
    pub fn config(&self, rails: &Address) -> String {
        let url = if self.is_tls {
            rails.url().replace("http://127.0.0.1", "https://localhost")
        } else {
            rails.url()
        };
        self.lines(Some(format!("upstream.url = \"{url}{}\"", self.root)))
    }

    fn lines(&self, url: Option<String>) -> String {
        let mut lines = Vec::from_iter(url);
        lines.extend(self.keys.iter().map(|(key, value)| format!("{key} = {value}")));
        lines.push("[[listen]]\naddress = \"127.0.0.1:0\"".to_owned());
        lines.extend(self.tcp_lines.iter().cloned());
        lines.push(format!("[[listen]]\naddress = \"unix:{}\"", self.socket().display()));
        lines.extend(self.mode.map(|mode| format!("mode = \"{mode}\"")));
        lines.extend(self.unix_lines.iter().cloned());
        lines.join("\n")
    }

    /// The parsed configuration.
    pub fn settings(&self, rails: &Address) -> config::GatewayConfig {
        Self::parsed(&self.config(rails))
    }

    /// The parsed configuration with several servers, each a section of the file.
    pub fn settings_with_servers(&self, servers: &str) -> config::GatewayConfig {
        Self::parsed(&format!("{}\n{servers}", self.lines(None)))
    }

    fn parsed(text: &str) -> config::GatewayConfig {
        config::parse("test.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}")).config
    }

    /// Starts a gateway in front of a small GitLab on TCP.
    pub async fn start(self) -> Harness {
        let rails = FakeRails::listen_tcp().await;
        self.start_with(rails)
    }

    /// Starts a gateway in front of this Rails.
    pub fn start_with(self, rails: FakeRails) -> Harness {
        let gateway = RunningGateway::start(self.settings(&rails.address));
        Harness { rails, gateway, dir: self.dir }
    }
}

/// A gateway that runs in this process.
pub struct RunningGateway {
    pub tcp: Address,
    pub unix: Address,
    pub admin: Address,
    pub hooks: Option<Address>,
    pub fleet: Fleet,
    shutdown: CancellationToken,
    ended: Option<JoinHandle<std::io::Result<bool>>>,
}

impl RunningGateway {
    pub fn start(settings: config::GatewayConfig) -> Self {
        Self::start_from(settings, None, ServiceManager::default())
    }

    /// With a service manager, which is told how the gateway is.
    pub fn start_supervised(settings: config::GatewayConfig, manager: ServiceManager) -> Self {
        Self::start_from(settings, None, manager)
    }

    /// Starts with what is in a file, which can be read again.
    pub fn start_with_file(file: &Path) -> Self {
        let settings = config::load(file).unwrap_or_else(|error| panic!("{error}")).config;
        Self::start_from(settings, Some(file), ServiceManager::default())
    }

    fn start_from(settings: config::GatewayConfig, file: Option<&Path>, manager: ServiceManager) -> Self {
        log::capture();
        let gateway = Gateway::bind(settings, Arc::default()).unwrap().supervised_by(manager);
        if let Some(file) = file {
            gateway.reload_from(file.to_owned());
        }
        let addresses = gateway.addresses().to_vec();
        let admin = Address::parse(&gateway.admin_address().unwrap());
        let hooks = gateway.hooks_address().unwrap().map(|address| Address::parse(&address));
        let fleet = gateway.fleet();
        let shutdown = CancellationToken::new();
        let ended = Some(tokio::spawn(gateway.run(shutdown.clone())));
        Self {
            tcp: Address::parse(&addresses[0]),
            unix: Address::parse(&addresses[1]),
            admin,
            hooks,
            fleet,
            shutdown,
            ended,
        }
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let response = self.admin.send(&Request::new("GET", "/metrics")).await;
        assert_eq!(response.status, 200, "{response}");
        String::from_utf8(response.body).unwrap()
    }

    /// The value of a series, given with its labels; summed over all servers, if it names none.
    pub async fn metric(&self, series: &str) -> Option<usize> {
        let metrics = self.metrics().await;
        let lines =
            metrics.lines().map(|line| if series.contains(SERVER) { line.into() } else { of_any(line) });
        let values =
            lines.filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse::<usize>().ok());
        values.fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
    }

    /// Waits until a series has this value. Counters are updated when a response has been sent, which may be
    /// a moment after the client has read it.
    #[track_caller]
    pub fn wait_for_metric<'s>(&'s self, series: &'s str, value: usize) -> impl Future<Output = ()> + 's {
        eventually(
            series,
            move || async move { self.metric(series).await.filter(|is| *is == value).map(drop) },
        )
    }

    /// Starts a graceful shutdown.
    pub fn drain(&self) {
        self.shutdown.cancel();
    }

    /// Waits for the end of the shutdown. True if no request had to be dropped.
    pub async fn wait_for_end(&mut self) -> bool {
        let ended = self.ended.take().expect("the end is waited for once");
        within_deadline("the gateway to stop", ended).await.unwrap().unwrap()
    }
}

const SERVER: &str = "server=\"";

/// A line of the metrics without its label `server`.
fn of_any(line: &str) -> String {
    let Some((before, (_, after))) =
        line.split_once(SERVER).and_then(|(before, rest)| Some((before, rest.split_once('"')?)))
    else {
        return line.to_owned();
    };
    format!("{before}{}", after.strip_prefix(',').unwrap_or(after)).replace("{}", "")
}

/// A gateway and the Rails behind it.
pub struct Harness {
    pub rails: FakeRails,
    pub gateway: RunningGateway,
    pub dir: Scratch,
}

impl Harness {
    /// With the default setup and Rails.
    pub async fn new() -> Self {
        Setup::new().start().await
    }

    /// With the default setup and this script.
    pub async fn with(script: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static) -> Self {
        let harness = Self::new().await;
        harness.rails.respond_with(script);
        harness
    }

    /// Sends one request over a TCP connection of its own.
    pub async fn send(&self, request: &Request) -> Response {
        self.gateway.tcp.send(request).await
    }

    /// Sends a request, and returns the connection before the response.
    pub async fn start_request(&self, request: &Request) -> Connection {
        let mut connection = self.gateway.tcp.connect().await;
        connection.write(&request.to_bytes("close")).await;
        connection
    }

    /// Sends one request; also returns how many requests reached Rails meanwhile.
    pub async fn send_counting(&self, request: &Request) -> (Response, usize) {
        let before = self.rails.request_count();
        let response = self.send(request).await;
        (response, self.rails.request_count() - before)
    }

    /// Sends a request that must reach Rails exactly once; also returns how it arrived there.
    pub async fn send_forwarded(&self, request: &Request) -> (Response, ReceivedRequest) {
        let (response, arrived) = self.send_counting(request).await;
        assert_eq!(arrived, 1, "{request} reached Rails once: {response}");
        (response, self.rails.last_request())
    }

    /// Asserts that the gateway still forwards requests.
    pub async fn assert_alive(&self) {
        let response = self.send(&Request::post("allowed").with_secret()).await;
        assert_eq!(response.status, 200, "{response}");
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        self.gateway.metrics().await
    }

    /// Waits for the series that come last, a moment after the start.
    pub async fn wait_for_fingerprints(&self) {
        for secret in ["shell", "kas"] {
            let series = format!("railgate_secret_fingerprint{{secret=\"{secret}\"");
            eventually("a fingerprint", async || self.metrics().await.contains(&series).then_some(())).await;
        }
    }

    /// See [`RunningGateway::metric`].
    pub async fn metric(&self, series: &str) -> Option<usize> {
        self.gateway.metric(series).await
    }

    /// See [`RunningGateway::wait_for_metric`].
    #[track_caller]
    pub fn wait_for_metric<'s>(&'s self, series: &'s str, value: usize) -> impl Future<Output = ()> + 's {
        self.gateway.wait_for_metric(series, value)
    }
}
