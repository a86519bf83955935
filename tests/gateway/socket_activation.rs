//! Sockets that a supervisor holds, as systemd does. Here the test is the supervisor.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::client::{Address, Request, eventually};
use super::fake_rails::FakeRails;
use super::harness::{Scratch, Setup};

/// Three sockets of a supervisor: two on TCP, one in the file system.
struct Supervisor {
    tcp: TcpListener,
    unix: UnixListener,
    other: TcpListener,
    dir: Scratch,
}

impl Supervisor {
    fn new() -> Self {
        let dir = Scratch::new();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(dir.file("supervised.sock")).unwrap();
        Self { tcp: bind(), unix, other: bind(), dir }
    }

    fn addresses(&self) -> [Address; 3] {
        let of = |socket: &TcpListener| Address::Tcp(socket.local_addr().unwrap());
        [of(&self.tcp), Address::Unix(self.dir.file("supervised.sock")), of(&self.other)]
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.file("log")).unwrap_or_default()
    }

    /// Starts the gateway with the sockets, in this order, as descriptors from 3 on. `variables` may say otherwise.
    fn start(&self, config: &str, names: &str, variables: &str) -> Running {
        let file = self.dir.file("railgate.toml");
        fs::write(&file, config).unwrap();
        // A shell, since only it can give descriptors other numbers here, and knows the number of the process.
        let script = format!(
            "exec 3<&0 4<&1 5<&2 </dev/null >>{} 2>&1; \
             export LISTEN_FDS=3 LISTEN_PID=$$ LISTEN_FDNAMES={names}; {variables} exec \"$@\"",
            self.dir.file("log").display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_railgate"), "run", "--config"]).arg(&file);
        let socket = |socket: OwnedFd| Stdio::from(socket);
        command.stdin(socket(self.tcp.try_clone().unwrap().into()));
        command.stdout(socket(self.unix.try_clone().unwrap().into()));
        command.stderr(socket(self.other.try_clone().unwrap().into()));
        Running(command.spawn().unwrap())
    }

    async fn wait_for_log(&self, text: &str, count: usize) {
        eventually(text, async || (self.log().matches(text).count() >= count).then_some(())).await;
    }
}

struct Running(Child);

impl Running {
    async fn wait(&mut self) -> Option<i32> {
        eventually("the end of the gateway", || std::future::ready(self.0.try_wait().unwrap())).await.code()
    }

    async fn stop(mut self) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(self.wait().await, Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A configuration whose two listeners for clients have these addresses.
fn config_with(setup: &Setup, rails: &FakeRails, [tcp, unix]: [&str; 2]) -> String {
    let text = setup.config(&rails.address);
    let socket = format!("unix:{}", setup.socket().display());
    text.replace("[[listen]]\naddress = \"127.0.0.1:0\"", &format!("[[listen]]\naddress = \"{tcp}\""))
        .replace(&socket, unix)
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_refused_while_the_gateway_is_restarted() {
    let (supervisor, rails) = (Supervisor::new(), FakeRails::listen_tcp().await);
    let setup = Setup::new().text("admin.address", "systemd:admin").set("workers", 2);
    let config = config_with(&setup, &rails, ["systemd:clients", "systemd:local"]);
    let [tcp, unix, admin] = supervisor.addresses();
    let names = "clients:local:admin";
    let mut running = supervisor.start(&config, names, "");
    supervisor.wait_for_log(r#""message":"ready""#, 1).await;
    assert_eq!(admin.send(&Request::new("GET", "/live").header("Host", "localhost")).await.status, 200);

    let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for address in [&tcp, &unix, &tcp, &unix] {
        let (address, is_over) = (address.clone(), Arc::clone(&is_over));
        let answered = Arc::clone(&answered);
        clients.push(tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                // Panics if it is refused.
                let mut connection = address.connect().await;
                connection.write(&allowed().to_bytes("close")).await;
                let response = connection.read_response().await;
                assert_eq!(response.status, 200, "{response}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for restart in 1..4 {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests", async || (answered.load(Ordering::Relaxed) > before + 50).then_some(())).await;
        running.stop().await;
        // Connections wait for the next one.
        running = supervisor.start(&config, names, "");
        supervisor.wait_for_log(r#""message":"ready""#, restart + 1).await;
    }
    let before = answered.load(Ordering::Relaxed);
    eventually("requests", async || (answered.load(Ordering::Relaxed) > before + 50).then_some(())).await;
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    println!("{answered:?} answered during 3 restarts, none cut off");
    running.stop().await;
    let Address::Unix(path) = unix else { unreachable!() };
    assert!(path.exists(), "the file is the supervisor's");
    let line =
        supervisor.log().lines().find(|line| line.contains(r#""message":"ready""#)).unwrap().to_owned();
    let Address::Tcp(address) = tcp else { unreachable!() };
    assert!(line.contains(&format!("\"listen\":\"{address}, unix:{}\"", path.display())), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_for_hooks_can_be_passed_too() {
    let (supervisor, rails) = (Supervisor::new(), FakeRails::listen_tcp().await);
    let setup = Setup::new();
    let token = setup.dir.file("hook_token");
    fs::write(&token, "h00k\n").unwrap();
    let setup =
        setup.text("hooks.address", "systemd:hooks").text("hooks.token_file", &token.display().to_string());
    let socket = format!("unix:{}", setup.socket().display());
    let config =
        config_with(&setup, &rails, ["systemd:hooks2", &socket]).replace("systemd:hooks2", "systemd:clients");
    let running = supervisor.start(&config, "clients:nobody:hooks", "");
    supervisor.wait_for_log(r#""message":"ready""#, 1).await;
    let [clients, _, hooks] = supervisor.addresses();
    assert_eq!(clients.send(&allowed()).await.status, 200);
    let event = Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Token", "h00k");
    assert_eq!(hooks.send(&event.json(r#"{"event_name":"project_create"}"#)).await.status, 200);
    assert!(supervisor.log().contains("systemd has passed a socket that no listener has as its address"));
    assert!(supervisor.log().contains(r#""name":"nobody""#), "{}", supervisor.log());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_not_passed_is_an_error_with_the_names_that_were() {
    let (supervisor, rails) = (Supervisor::new(), FakeRails::listen_tcp().await);
    let setup = Setup::new();
    let socket = format!("unix:{}", setup.socket().display());
    let config = config_with(&setup, &rails, ["systemd:web", &socket]);
    for (names, variables, expected) in [
        (
            "clients:local:admin",
            "",
            "cannot listen on systemd:web: systemd has passed no socket by this name (passed were: admin, clients, local; set FileDescriptorName= in the .socket unit)",
        ),
        (
            "",
            "",
            "cannot listen on systemd:web: systemd has passed no socket by this name (passed were: unknown; ",
        ),
        (
            "web:web:admin",
            "",
            "cannot listen on systemd:web: systemd has passed 2 sockets by this name; give each a .socket unit of its own",
        ),
        (
            "web:local:admin",
            "LISTEN_PID=1",
            "cannot listen on systemd:web: systemd has passed no socket by this name (none was passed at all; start the .socket unit, which starts the gateway)",
        ),
        (
            "web:local:admin",
            "unset LISTEN_FDS;",
            "cannot listen on systemd:web: systemd has passed no socket by this name (none was passed at all; ",
        ),
        (
            "web:local:admin",
            "exec 3</dev/null;",
            "cannot listen on systemd:web: systemd has passed something else than a stream socket by this name; use ListenStream=",
        ),
    ] {
        let _ = fs::remove_file(supervisor.dir.file("log"));
        let mut running = supervisor.start(&config, names, variables);
        assert_eq!(running.wait().await, Some(1), "{names} {variables}");
        assert!(supervisor.log().contains(expected), "{names} {variables}: {}", supervisor.log());
    }
    // The commands that ask a running gateway cannot know where it is.
    let config = config.replace("admin.address = \"127.0.0.1:0\"", "admin.address = \"systemd:admin\"");
    let file = supervisor.dir.file("admin.toml");
    fs::write(&file, config).unwrap();
    let print = |address: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("servers").arg("--config").arg(&file);
        command.envs(address.map(|address| ("RAILGATE_ADMIN__ADDRESS", address)));
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let printed = print(None);
    assert!(printed.contains("admin.address systemd:admin: is a socket of systemd"), "{printed}");
    assert!(printed.contains("set RAILGATE_ADMIN__ADDRESS to what"), "{printed}");
    // They are told.
    let nobody = format!("unix:{}", supervisor.dir.file("nobody.sock").display());
    let printed = print(Some(&nobody));
    assert!(printed.contains(&format!("no response from a gateway on admin.address {nobody}")), "{printed}");
}
