//! Another process goes on with the sockets, and no client notices: it takes them over from the one that runs, or a
//! service manager keeps them in between.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::task::JoinHandle;

use super::client::{Address, Connection, Request, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, Latch, Reply, gitlab};
use super::harness::Setup;
use super::valkey::Valkey;

/// Clients that send one request after the other, and count what goes wrong.
struct Load {
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// With a connection for each request, and with one that is kept as long as the gateway wants.
    fn start(addresses: &[&Address]) -> Self {
        let mut load = Self {
            answered: Arc::default(),
            failures: Arc::default(),
            is_over: Arc::default(),
            clients: Vec::new(),
        };
        for (address, is_kept) in addresses.iter().flat_map(|address| [(address, true), (address, false)]) {
            for client in 0..2 {
                let (answered, failures) = (Arc::clone(&load.answered), Arc::clone(&load.failures));
                let (address, is_over) = ((*address).clone(), Arc::clone(&load.is_over));
                load.clients.push(tokio::spawn(async move {
                    let mut kept = None;
                    let mut sent = client;
                    while !is_over.load(Ordering::Relaxed) {
                        sent += 1;
                        let request = if sent % 2 == 0 { user() } else { allowed() };
                        match exchange(&address, &mut kept, is_kept, &request).await {
                            Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            Err(error) => {
                                failures.lock().unwrap().push(format!("{address:?} {is_kept}: {error}"));
                            }
                        }
                    }
                }));
            }
        }
        load
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    async fn wait_for(&self, requests: usize) {
        eventually("requests", async || (self.answered() >= requests).then_some(())).await;
    }

    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failures: {:?}", failures.len(), &failures[..failures.len().min(5)]);
        self.answered.load(Ordering::Relaxed)
    }
}

async fn exchange(
    address: &Address,
    kept: &mut Option<Connection>,
    is_kept: bool,
    request: &Request,
) -> Result<(), String> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => address.try_connect().await.map_err(|error| error.to_string())?,
    };
    connection.write(&request.to_bytes(if is_kept { "keep-alive" } else { "close" })).await;
    let response = connection.try_read_response().await.map_err(|error| error.to_string())?;
    if response.status != 200 {
        return Err(response.to_string());
    }
    if response.header("connection") != Some("close") {
        *kept = Some(connection);
    }
    Ok(())
}

pub fn user() -> Request {
    Request::get("discover?username=root").with_secret()
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

/// `railgate run` with a configuration of its own.
pub struct Gateway {
    pub process: Process,
    pub tcp: Address,
    pub admin: Address,
    hooks: Option<Address>,
}

impl Gateway {
    pub async fn start(setup: &Setup, config: &str) -> Self {
        let file = setup.dir.file("railgate.toml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(file);
        Self::ready(Process::spawn_piped(command)).await
    }

    async fn ready(process: Process) -> Self {
        process.wait_for_output("\"message\":\"ready\"").await;
        let printed = eventually("a whole line", async || {
            Some(process.printed()).filter(|printed| printed.ends_with('\n'))
        })
        .await;
        let (tcp, admin, hooks) = Self::addresses(&printed);
        Self { process, tcp, admin, hooks }
    }

    /// The first one for clients, that for operators, and that for hooks, in the log.
    pub fn addresses(printed: &str) -> (Address, Address, Option<Address>) {
        let line = printed.lines().find(|line| line.contains("\"message\":\"ready\"")).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        let tcp = line["listen"].as_str().unwrap().split(", ").next().unwrap();
        let admin = Address::parse(line["admin"].as_str().unwrap());
        (Address::parse(tcp), admin, line["hooks"].as_str().map(Address::parse))
    }

    pub async fn end(mut self) -> String {
        let code = self.process.wait_for_end().await;
        assert!(code.success(), "{code}: {}", self.process.printed());
        self.process.printed()
    }
}

pub fn setup() -> Setup {
    let setup = Setup::new();
    let file = |name: &str| setup.dir.file(name).display().to_string();
    let (snapshot, socket, token) = (file("cache"), file("upgrade.sock"), file("hook_token"));
    fs::write(&token, "h00k\n").unwrap();
    setup
        .text("cache.snapshot", &snapshot)
        .text("upgrade.socket", &socket)
        .text("hooks.address", "127.0.0.1:0")
        .text("hooks.token_file", &token)
        .text("hooks.settle", "0s")
        .set("workers", 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_another_process_takes_over() {
    let (setup, rails) = (setup(), FakeRails::listen_tcp().await);
    let config = setup.config(&rails.address);
    let mut running = Gateway::start(&setup, &config).await;
    let (tcp, unix) = (running.tcp.clone(), Address::Unix(setup.socket()));
    assert_eq!(tcp.send(&user()).await.status, 200);
    let load = Load::start(&[&tcp, &unix]);
    // More and fewer threads than there are sockets to take over.
    for workers in [3, 1, 4, 2] {
        load.wait_for(load.answered() + 2_000).await;
        let config = config.replace("workers = 2", &format!("workers = {workers}"));
        let next = Gateway::start(&setup, &config).await;
        let printed = running.end().await;
        assert!(printed.contains("another process has taken over; this one drains"), "{printed}");
        let shown = |gateway: &Gateway| format!("{:?} {:?} {:?}", gateway.tcp, gateway.admin, gateway.hooks);
        assert!(next.process.printed().contains("takes over from another process"));
        assert!(setup.socket().exists() && setup.dir.file("upgrade.sock").exists());
        let live = next.admin.send(&Request::new("GET", "/live")).await;
        assert_eq!(live.status, 200, "{live}");
        let event = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k");
        let event = event.json(r#"{"event_name":"project_create"}"#);
        assert_eq!(next.hooks.as_ref().unwrap().send(&event).await.status, 200);
        assert!(!shown(&next).contains(":0"), "{}", shown(&next));
        running = next;
    }
    load.wait_for(10_000).await;
    let answered = load.end().await;
    println!("{answered} answered by 5 processes, 0 failures");
    // The cache went along: marked as stale, since there are hooks, but none of it was lost.
    let printed = running.process.printed();
    assert!(
        printed.contains("\"message\":\"cache loaded\"") && printed.contains("\"entries\":1"),
        "{printed}"
    );
    running.process.signal("-TERM");
    running.end().await;
    for file in [setup.socket(), setup.dir.file("upgrade.sock")] {
        assert!(!file.exists(), "{}", file.display());
    }
    assert!(setup.dir.file("cache").exists());
}

/// Else what is purged in the next process would still be served by the one before, on connections that it has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_replaced_answers_nothing_from_its_cache() {
    let (setup, rails) = (setup(), FakeRails::listen_tcp().await);
    let config = setup.config(&rails.address);
    let before = Gateway::start(&setup, &config).await;
    let mut kept = before.tcp.connect().await;
    for expected in [1, 1] {
        assert_eq!(kept.exchange(&user()).await.status, 200);
        assert_eq!(rails.request_count(), expected);
    }
    let latch = Latch::closed();
    let held = Reply::json(200, "{}").after(&latch);
    rails.respond_with(move |request| if request.is_for("allowed") { held.clone() } else { gitlab(request) });
    let mut slow = before.tcp.connect().await;
    slow.write(&allowed().to_bytes("keep-alive")).await;
    rails.wait_for_requests(2).await;

    let next = Gateway::start(&setup, &config).await;
    // It hands over first, and drains then.
    for count in 3.. {
        let answer = kept.exchange(&user()).await;
        assert_eq!((answer.status, answer.is_hit(), rails.request_count()), (200, false, count), "{answer}");
        if answer.header("connection") == Some("close") {
            break;
        }
    }
    // The one before may have accepted a connection just before it ended to.
    eventually("what was saved", async || next.tcp.send(&user()).await.is_hit().then_some(())).await;
    // What runs ends where it began.
    latch.open();
    assert_eq!(slow.read_response().await.status, 200);
    let printed = before.end().await;
    assert!(!setup.dir.file("cache").exists(), "only the next one saves its cache: {printed}");
    drop(next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_start_changes_nothing() {
    let (setup, rails) = (setup(), FakeRails::listen_tcp().await);
    let config = setup.config(&rails.address);
    let running = Gateway::start(&setup, &config).await;
    assert_eq!(running.tcp.send(&user()).await.status, 200);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("{config}\n[[listen]]\naddress = \"{}\"", taken.local_addr().unwrap());
    let file = setup.dir.file("more.toml");
    fs::write(&file, more).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_railgate")).arg("run").arg("--config").arg(&file).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process listens there"), "{output:?}");
    running.process.wait_for_output("has not taken over").await;
    let unix = Address::Unix(setup.socket());
    for address in [&running.tcp, &unix] {
        assert!(address.send(&user()).await.is_hit());
    }

    // One that ends when it is nearly done, and some that say something else.
    let upgrade = setup.dir.file("upgrade.sock");
    for (said, expected) in [
        ("railgate upgrade 1\nbound\n", "another process has failed to take over; this one goes on"),
        ("railgate upgrade 2\n", "instead of"),
        ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1"),
        (&"x".repeat(5_000), "more than was asked for"),
        ("", "it has closed the connection"),
    ] {
        let before = running.process.printed().len();
        let mut stream = std::os::unix::net::UnixStream::connect(&upgrade).unwrap();
        let _ = std::io::Write::write_all(&mut stream, said.as_bytes());
        if said.contains("bound") {
            running.process.wait_for_output("cache saved").await;
        }
        drop(stream);
        eventually(expected, async || running.process.printed()[before..].contains(expected).then_some(()))
            .await;
        let live = running.admin.send(&Request::new("GET", "/live")).await;
        assert_eq!(live.status, 200, "operators are answered again: {live}");
        assert!(running.tcp.send(&user()).await.is_hit());
        eventually("no saved cache", async || (!setup.dir.file("cache").exists()).then_some(())).await;
    }
    running.process.signal("-TERM");
    running.end().await;
}

/// The process before goes on after all: the fleet does not take this one for one that was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_take_over_takes_leave_of_its_fleet() {
    let valkey = Valkey::start().await;
    let in_fleet = |setup: Setup| setup.text("fleet.url", &valkey.url()).text("fleet.identity", "test");
    let other = in_fleet(Setup::new()).start().await;
    let (setup, rails) = (in_fleet(setup()), FakeRails::listen_tcp().await);
    let upgrade = setup.dir.file("upgrade.sock");
    let before = tokio::net::UnixListener::bind(&upgrade).unwrap();
    let file = setup.dir.file("railgate.toml");
    fs::write(&file, setup.config(&rails.address)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(file);
    let mut process = Process::spawn_piped(command);
    let (stream, _) = before.accept().await.unwrap();
    fs::remove_file(upgrade).unwrap();
    let mut stream = BufReader::new(stream);
    for (due, answer) in [("railgate upgrade 1", "end\n"), ("bound", "saved\n"), ("serving", "")] {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line.trim_end(), due, "{}", process.printed());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    other.wait_for_metric("railgate_fleet_members", 1).await;
    drop(stream);
    assert!(!process.wait_for_end().await.success(), "{}", process.printed());
    other.wait_for_metric("railgate_fleet_members", 0).await;
}

/// Without `upgrade.socket`, a second process must not take connections from the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_key_a_second_process_does_not_start() {
    let (setup, rails) = (Setup::new(), FakeRails::listen_tcp().await);
    let config = setup.config(&rails.address);
    let running = Gateway::start(&setup, &config).await;
    let output = Command::new(env!("CARGO_BIN_EXE_railgate"))
        .arg("run")
        .arg("--config")
        .arg(setup.dir.file("railgate.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(running.tcp.send(&user()).await.status, 200);
}

/// systemd's side of `FDSTORE=1`: keeps what it gets, by name.
struct Store {
    path: PathBuf,
    kept: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Store {
    fn listen(setup: &Setup) -> Self {
        let path = setup.dir.file("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        let kept = Arc::<Mutex<Vec<(String, OwnedFd)>>>::default();
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let (received, said) = (Arc::clone(&kept), Arc::clone(&messages));
        std::thread::spawn(move || {
            loop {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
                let (mut ancillary, mut bytes) = (RecvAncillaryBuffer::new(&mut space), [0; 4096]);
                let message = recvmsg(
                    &socket,
                    &mut [IoSliceMut::new(&mut bytes)],
                    &mut ancillary,
                    RecvFlags::CMSG_CLOEXEC,
                );
                let Ok(message) = message else { return };
                let text = String::from_utf8(bytes[..message.bytes].to_vec()).unwrap();
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
                let mut kept = received.lock().unwrap();
                if text.contains("FDSTOREREMOVE=1") {
                    kept.retain(|(known, _)| known != name);
                }
                for message in ancillary.drain() {
                    let RecvAncillaryMessage::ScmRights(sockets) = message else { continue };
                    assert!(text.contains("FDSTORE=1"), "{text}");
                    for socket in sockets {
                        // As systemd does, the same one is not kept twice.
                        if !kept.iter().any(|(_, known)| identity(known) == identity(&socket)) {
                            kept.push((name.to_owned(), socket));
                        }
                    }
                }
                said.lock().unwrap().push(text);
            }
        });
        Self { path, kept, messages }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.kept.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    async fn wait_for_names(&self, expected: &[String]) {
        eventually("sockets to be kept", async || (self.names() == expected).then_some(())).await;
    }

    /// Starts the gateway with what is kept, at most three sockets.
    async fn start(&self, file: &std::path::Path) -> Gateway {
        // A shell, since only it can give descriptors other numbers here, and knows the number of the process.
        let script = "exec 3<&0 4<&1 5<&2 </dev/null >\"$LOG\" 2>&1; export LISTEN_PID=$$; exec \"$@\"";
        let log = file.with_extension("log");
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_railgate"), "run", "--config"]).arg(file);
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "16").env("LOG", &log);
        let (mut names, mut sockets) = (Vec::new(), Vec::new());
        for (name, socket) in &*self.kept.lock().unwrap() {
            names.push(name.clone());
            sockets.push(Stdio::from(socket.try_clone().unwrap()));
        }
        assert!(sockets.len() <= 3);
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut sockets = sockets.into_iter();
        let mut next = || sockets.next().unwrap_or_else(Stdio::null);
        command.stdin(next()).stdout(next()).stderr(next());
        fs::write(&log, "").unwrap();
        let child = command.spawn().unwrap();
        let read = || fs::read_to_string(&log).unwrap();
        eventually("the gateway to be ready", async || {
            read().contains("\"message\":\"ready\"").then_some(())
        })
        .await;
        let printed =
            eventually("a whole line", async || Some(read()).filter(|text| text.ends_with('\n'))).await;
        let (tcp, admin, hooks) = Gateway::addresses(&printed);
        Gateway { process: Process::of(child), tcp, admin, hooks }
    }
}

fn identity(socket: &OwnedFd) -> (u64, u64) {
    let found = rustix::fs::fstat(socket).unwrap();
    (found.st_dev, found.st_ino)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_during_restarts_if_the_service_manager_keeps_the_sockets() {
    // A thread for each socket that the test can pass on.
    let setup = Setup::new().set("workers", 1);
    let (store, rails) = (Store::listen(&setup), FakeRails::listen_tcp().await);
    let file = setup.dir.file("railgate.toml");
    fs::write(&file, setup.config(&rails.address)).unwrap();
    let mut running = store.start(&file).await;
    let escaped = |address: &str| format!("railgate.{}", address.replace(':', "%3A"));
    let unix_name = escaped(&format!("unix:{}", setup.socket().display()));
    let names = [escaped("127.0.0.1:0"), escaped("127.0.0.1:0"), unix_name.clone()];
    store.wait_for_names(&names).await;
    let (tcp, unix) = (running.tcp.clone(), Address::Unix(setup.socket()));
    let load = Load::start(&[&tcp, &unix]);
    for _ in 0..4 {
        load.wait_for(load.answered() + 2_000).await;
        running.process.signal("-TERM");
        running.end().await;
        assert!(setup.socket().exists());
        running = store.start(&file).await;
        assert_eq!(format!("{:?}", running.tcp), format!("{tcp:?}"));
        assert_eq!(running.admin.send(&Request::new("GET", "/live")).await.status, 200);
        assert_eq!(store.names(), names, "{:?}", store.messages.lock().unwrap());
    }
    load.wait_for(10_000).await;
    let answered = load.end().await;
    println!("{answered} answered over 4 restarts, 0 failures");

    // A listener that is gone is not kept any more: else connections to it would wait for ever.
    let without = setup.config(&rails.address);
    let (without, _) = without.rsplit_once("[[listen]]").unwrap();
    fs::write(&file, without).unwrap();
    running.process.signal("-TERM");
    running.end().await;
    let running = store.start(&file).await;
    store.wait_for_names(&names[..2]).await;
    assert!(unix.try_connect().await.is_err());
    assert!(matches!(running.tcp, Address::Tcp(SocketAddr::V4(_))));
    assert_eq!(running.tcp.send(&user()).await.status, 200);
}

/// Whichever of the two accepts a purge, the others of the fleet hear it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_hears_all_purges_while_another_process_takes_over() {
    let valkey = Valkey::start().await;
    let in_fleet = |setup: Setup| setup.text("fleet.url", &valkey.url()).text("fleet.identity", "test");
    let other = in_fleet(Setup::new()).start().await;
    let (setup, rails) = (in_fleet(setup()), FakeRails::listen_tcp().await);
    let config = setup.config(&rails.address);
    let mut running = Gateway::start(&setup, &config).await;
    let mut accepted = 0;
    for _ in 0..3 {
        other.wait_for_metric("railgate_fleet_members", 1).await;
        eventually("an answer to be kept", async || running.tcp.send(&user()).await.is_hit().then_some(()))
            .await;
        let admin = running.admin.clone();
        let has_taken_over = AtomicBool::new(false);
        let (next, ()) = tokio::join!(
            async {
                let next = Gateway::start(&setup, &config).await;
                has_taken_over.store(true, Ordering::SeqCst);
                next
            },
            async {
                while !has_taken_over.load(Ordering::SeqCst) {
                    let purge = json!({"user_id": 1_000_000 + accepted}).to_string();
                    let purge = Request::new("POST", "/purge").json(&purge);
                    // Each takes a message of its own, since the one before was told.
                    accepted += usize::from(exchange(&admin, &mut None, false, &purge).await.is_ok());
                }
            }
        );
        let printed = running.end().await;
        assert!(!printed.contains("purges were not told"), "{printed}");
        // It brings what the one before has kept, and may have missed a purge of that.
        assert!(!next.tcp.send(&user()).await.is_hit());
        running = next;
    }
    assert!(accepted > 0);
    eventually("all purges to be heard", async || {
        let heard = other.metric("railgate_fleet_heard_total").await;
        heard.is_some_and(|heard| heard >= accepted).then_some(())
    })
    .await;
    other.wait_for_metric("railgate_fleet_members", 1).await;
    assert_eq!(other.metric("railgate_fleet_doubts_total{reason=\"counter\"}").await, Some(0));
    running.process.signal("-TERM");
    running.end().await;
    other.wait_for_metric("railgate_fleet_members", 0).await;
}
