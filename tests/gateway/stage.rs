//! Puts a gateway in front of a scripted Rails, each test its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use railgate::{Gateway, config};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Ask, Peer, Wire, eventually, soon};
use super::credentials::{KAS_SECRET, SHELL_SECRET};
use super::fake::{Rails, Reply, Request};
use super::log;

/// The configuration of a gateway, key by key, and the directory with its files.
pub struct Setup {
    keys: BTreeMap<String, String>,
    root: String,
    is_tls: bool,
    mode: Option<&'static str>,
    pub dir: Scratch,
}

impl Setup {
    /// Entries live for an hour and everybody waits for as long as it takes, unless a test says
    /// otherwise: none may depend on how fast the machine is.
    pub fn new() -> Self {
        let dir = Scratch::new();
        fs::write(dir.file("shell_secret"), format!("{SHELL_SECRET}\n")).unwrap();
        fs::write(dir.file("kas_secret"), STANDARD.encode(KAS_SECRET)).unwrap();
        let setup = Self { keys: BTreeMap::new(), root: String::new(), is_tls: false, mode: None, dir };
        let (shell, kas) = (setup.dir.file("shell_secret"), setup.dir.file("kas_secret"));
        setup
            .text("admin.address", "127.0.0.1:0")
            // As the test's client calls it.
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

    /// Sets a key to a text.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.set(key, format!("{value:?}"))
    }

    /// Leaves a key out.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.remove(key).unwrap();
        self
    }

    /// Rails lives below this path.
    pub fn below(mut self, root: &str) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// Rails speaks TLS, and is called `localhost`.
    pub fn over_tls(mut self) -> Self {
        self.is_tls = true;
        self
    }

    /// The permissions of the gateway's unix socket.
    pub fn mode(mut self, mode: &'static str) -> Self {
        self.mode = Some(mode);
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

    /// The file.
    pub fn config(&self, rails: &Peer) -> String {
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
        lines.push(format!("[[listen]]\naddress = \"unix:{}\"", self.socket().display()));
        lines.extend(self.mode.map(|mode| format!("mode = \"{mode}\"")));
        lines.join("\n")
    }

    /// What a gateway is made of.
    pub fn settings(&self, rails: &Peer) -> config::Settings {
        Self::parsed(&self.config(rails))
    }

    /// The same in front of servers, each a section of the file.
    pub fn settings_of(&self, servers: &str) -> config::Settings {
        Self::parsed(&format!("{}\n{servers}", self.lines(None)))
    }

    fn parsed(text: &str) -> config::Settings {
        config::parse("test.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}")).settings
    }

    /// A gateway in front of a Rails that answers like a small GitLab, over TCP.
    pub async fn start(self) -> Stage {
        let rails = Rails::on_tcp().await;
        self.in_front_of(rails)
    }

    /// A gateway in front of this Rails.
    pub fn in_front_of(self, rails: Rails) -> Stage {
        let gateway = Running::start(self.settings(&rails.peer));
        Stage { rails, gateway, dir: self.dir }
    }
}

/// A gateway that runs.
pub struct Running {
    pub tcp: Peer,
    pub unix: Peer,
    pub admin: Peer,
    pub hooks: Option<Peer>,
    shutdown: CancellationToken,
    ended: Option<JoinHandle<std::io::Result<bool>>>,
}

impl Running {
    pub fn start(settings: config::Settings) -> Self {
        log::capture();
        let gateway = Gateway::bind(settings, Arc::default()).unwrap();
        let endpoints = gateway.endpoints().to_vec();
        let admin = Peer::parse(&gateway.admin_endpoint().unwrap());
        let hooks = gateway.hooks_endpoint().unwrap().map(|endpoint| Peer::parse(&endpoint));
        let shutdown = CancellationToken::new();
        let ended = Some(tokio::spawn(gateway.run(shutdown.clone())));
        Self {
            tcp: Peer::parse(&endpoints[0]),
            unix: Peer::parse(&endpoints[1]),
            admin,
            hooks,
            shutdown,
            ended,
        }
    }

    /// All series.
    pub async fn metrics(&self) -> String {
        let answer = self.admin.send(&Ask::new("GET", "/metrics")).await;
        assert_eq!(answer.status, 200, "{answer}");
        String::from_utf8(answer.body).unwrap()
    }

    /// The value of a series, named with its labels; of all servers together, if it names none.
    pub async fn metric(&self, series: &str) -> Option<usize> {
        let metrics = self.metrics().await;
        let lines =
            metrics.lines().map(|line| if series.contains(SERVER) { line.into() } else { of_any(line) });
        let values =
            lines.filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse::<usize>().ok());
        values.fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
    }

    /// Waits until a series has this value. Counters move when an answer has been sent, which may
    /// be a moment after the client has it.
    #[track_caller]
    pub fn reaches<'s>(&'s self, series: &'s str, value: usize) -> impl Future<Output = ()> + 's {
        eventually(
            series,
            move || async move { self.metric(series).await.filter(|is| *is == value).map(drop) },
        )
    }

    /// Tells the gateway to stop.
    pub fn drain(&self) {
        self.shutdown.cancel();
    }

    /// Waits until it has. True if nothing had to be dropped.
    pub async fn ended(&mut self) -> bool {
        let ended = self.ended.take().expect("the end is waited for once");
        soon("the gateway to stop", ended).await.unwrap().unwrap()
    }
}

const SERVER: &str = "server=\"";

/// A line of the metrics without the server in it.
fn of_any(line: &str) -> String {
    let Some((before, (_, after))) =
        line.split_once(SERVER).and_then(|(before, rest)| Some((before, rest.split_once('"')?)))
    else {
        return line.to_owned();
    };
    format!("{before}{}", after.strip_prefix(',').unwrap_or(after)).replace("{}", "")
}

/// A gateway and the Rails behind it.
pub struct Stage {
    pub rails: Rails,
    pub gateway: Running,
    pub dir: Scratch,
}

impl Stage {
    /// The usual one.
    pub async fn new() -> Self {
        Setup::new().start().await
    }

    /// The usual one with a script.
    pub async fn with(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let stage = Self::new().await;
        stage.rails.answer(script);
        stage
    }

    /// Sends one request over a TCP connection of its own.
    pub async fn send(&self, ask: &Ask) -> Answer {
        self.gateway.tcp.send(ask).await
    }

    /// Begins to, and leaves the answer to whoever reads it.
    pub async fn begin(&self, ask: &Ask) -> Wire {
        let mut wire = self.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        wire
    }

    /// The same, and how many requests reached Rails meanwhile.
    pub async fn send_counting(&self, ask: &Ask) -> (Answer, usize) {
        let before = self.rails.count();
        let answer = self.send(ask).await;
        (answer, self.rails.count() - before)
    }

    /// Sends one request, and shows how it arrived at Rails.
    pub async fn pass(&self, ask: &Ask) -> (Answer, Request) {
        let (answer, arrived) = self.send_counting(ask).await;
        assert_eq!(arrived, 1, "{ask} reached Rails once: {answer}");
        (answer, self.rails.last())
    }

    /// Whether the gateway still does its work.
    pub async fn assert_alive(&self) {
        let answer = self.send(&Ask::post("allowed").with_secret()).await;
        assert_eq!(answer.status, 200, "{answer}");
    }

    /// What operators see.
    pub async fn metrics(&self) -> String {
        self.gateway.metrics().await
    }

    /// The value of a series, named with its labels.
    pub async fn metric(&self, series: &str) -> Option<usize> {
        self.gateway.metric(series).await
    }

    /// See [`Running::reaches`].
    #[track_caller]
    pub fn reaches<'s>(&'s self, series: &'s str, value: usize) -> impl Future<Output = ()> + 's {
        self.gateway.reaches(series, value)
    }
}

/// A directory that goes when the test is over.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("railgate-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
