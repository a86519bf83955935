//! Real servers of Valkey or Redis, Sentinels and clusters of them, one set for each test, and a proxy in front that can
//! fall silent. All end with the test.

use std::net::TcpListener as StdTcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use railgate::upstream::UpstreamAddress;
use redis::Value;
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::scratch::Scratch;
use super::waiting::eventually;

/// A server that has a TCP port on 127.0.0.1, a unix socket, and TLS if it is asked for. Nothing survives its end, unless
/// it is persistent.
pub struct Valkey {
    pub port: u16,
    /// Zero without TLS.
    pub tls_port: u16,
    /// Where the nodes of a cluster talk; zero without one.
    pub bus_port: u16,
    pub dir: Scratch,
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
}

/// What a server is started with.
#[derive(Default)]
pub struct ValkeySetup {
    arguments: Vec<String>,
    tls: Option<[PathBuf; 3]>,
    is_node: bool,
}

impl ValkeySetup {
    /// Adds an option of the server, such as `maxmemory` `10mb`.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([format!("--{name}"), value.to_owned()]);
        self
    }

    /// Keeps everything over a restart.
    pub fn persistent(self) -> Self {
        self.option("appendonly", "yes").option("appendfsync", "always")
    }

    /// A copy of this server.
    pub fn replica_of(self, master: &Valkey) -> Self {
        self.option("replicaof", &format!("127.0.0.1 {}", master.port))
            .option("repl-diskless-sync-delay", "0")
    }

    /// A node of a cluster, without any other.
    pub fn node(self) -> Self {
        Self { is_node: true, ..self }.option("cluster-enabled", "yes")
    }

    /// TLS in addition, with these files: a certificate, its key, and the authority.
    pub fn tls(self, files: [PathBuf; 3]) -> Self {
        Self { tls: Some(files), ..self }
    }

    pub async fn start(self) -> Valkey {
        let dir = Scratch::new();
        let program = server_program(&dir, "server");
        let mut server =
            Valkey { port: 0, tls_port: 0, bus_port: 0, dir, program, arguments: Vec::new(), process: None };
        let common = [
            "--save",
            "",
            "--protected-mode",
            "no",
            "--enable-debug-command",
            "local",
            "--bind",
            "127.0.0.1",
        ];
        server.arguments.extend(common.map(str::to_owned));
        server.arguments.extend(["--dir".to_owned(), server.dir.path().display().to_string()]);
        server.arguments.extend(["--unixsocket".to_owned(), server.socket().display().to_string()]);
        server.arguments.extend(self.arguments);
        if let Some(files) = &self.tls {
            let names = ["--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file"];
            for (name, file) in names.iter().zip(files) {
                server.arguments.extend([(*name).to_owned(), file.display().to_string()]);
            }
            server.arguments.extend(["--tls-auth-clients".to_owned(), "no".to_owned()]);
        }
        // Another process may take a port before the server does.
        for _ in 0..50 {
            server.port = free_port();
            server.tls_port = if self.tls.is_some() { free_port() } else { 0 };
            server.bus_port = if self.is_node { free_port() } else { 0 };
            if server.try_start().await {
                return server;
            }
        }
        panic!("no server could be started");
    }
}

impl Valkey {
    /// A server with nothing special.
    pub async fn start() -> Self {
        ValkeySetup::default().start().await
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> UpstreamAddress {
        UpstreamAddress::Tcp("127.0.0.1".to_owned(), self.port)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.file("valkey.sock")
    }

    async fn try_start(&mut self) -> bool {
        let mut command = Command::new("setpriv");
        // Also if the test is killed.
        command.args(["--pdeathsig", "KILL"]).arg(&self.program).args(&self.arguments);
        command.args(["--port", &self.port.to_string()]);
        if self.tls_port != 0 {
            command.args(["--tls-port", &self.tls_port.to_string()]);
        }
        if self.bus_port != 0 {
            command.args(["--cluster-port", &self.bus_port.to_string()]);
        }
        let log = std::fs::File::create(self.dir.file("log")).unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let id = child.id().to_string();
        self.process = Some(child);
        loop {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.process = None;
                return false;
            }
            // Another server may have the port; and one that loads its data tells about itself already.
            if let Ok(Value::BulkString(info)) = self.try_command(&["INFO", "server"]).await
                && String::from_utf8(info).unwrap().contains(&format!("process_id:{id}\r"))
                && self.try_command(&["PING"]).await.is_ok()
            {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Runs a command over a connection of its own.
    pub async fn command(&self, arguments: &[&str]) -> Value {
        self.try_command(arguments).await.unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// The same, where the server may answer with an error.
    pub async fn try_command(&self, arguments: &[&str]) -> redis::RedisResult<Value> {
        let mut command = redis::Cmd::new();
        for argument in arguments {
            command.arg(argument);
        }
        command.query_async(&mut self.client().await?).await
    }

    /// A connection of the test.
    pub async fn client(&self) -> redis::RedisResult<MultiplexedConnection> {
        redis::Client::open(self.url())?.get_multiplexed_async_connection().await
    }

    /// A field of `INFO`.
    pub async fn info(&self, field: &str) -> String {
        self.try_info(field).await.unwrap_or_else(|error| panic!("{field}: {error}"))
    }

    async fn try_info(&self, field: &str) -> redis::RedisResult<String> {
        let Value::BulkString(info) = self.try_command(&["INFO", "everything"]).await? else {
            panic!("no INFO")
        };
        let info = String::from_utf8(info).unwrap();
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value.unwrap_or_else(|| panic!("no {field} in {info}")).trim().to_owned())
    }

    /// Waits until a field of `INFO` has this value.
    #[track_caller]
    pub fn wait_for_info<'s>(&'s self, field: &'s str, value: &'s str) -> impl Future<Output = ()> + 's {
        eventually(field, move || async move {
            // A replica that becomes a master ends its connections.
            (self.try_info(field).await.ok()? == value).then_some(())
        })
    }

    /// Ends the connections whose name (`CLIENT SETNAME`) begins so. How many there were.
    pub async fn kill_clients(&self, name: &str) -> usize {
        let mut killed = 0;
        for id in self.clients(name).await {
            killed += usize::from(self.command(&["CLIENT", "KILL", "ID", &id]).await == Value::Int(1));
        }
        killed
    }

    /// Waits until so many clients whose name begins so are connected.
    pub async fn wait_for_clients(&self, name: &str, count: usize) {
        eventually("clients of Valkey", async || (self.clients(name).await.len() == count).then_some(()))
            .await;
    }

    /// The ids of the clients whose name begins so.
    async fn clients(&self, name: &str) -> Vec<String> {
        let Value::BulkString(list) = self.command(&["CLIENT", "LIST"]).await else { panic!("no list") };
        let list = String::from_utf8(list).unwrap();
        let named = list.lines().filter(|line| line.contains(&format!(" name={name}")));
        named.map(|line| line.split_once("id=").unwrap().1.split(' ').next().unwrap().to_owned()).collect()
    }

    /// Stops the process where it is: its sockets stay open, and nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.cast_signed()).unwrap(), signal).unwrap();
    }

    /// Ends it without a warning, so that nothing more is written anywhere.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it again, on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        for _ in 0..50 {
            if self.try_start().await {
                return;
            }
        }
        panic!("the server does not start: {}", self.log());
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.file("log")).unwrap()
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Which servers are started: `redis` or `valkey`. Redis, if it is not set.
const FAMILY: &str = "FLEET_SERVER";

/// A `server` or `sentinel`, under a name that makes it one. Debian's packages `redis-tools` and `valkey-tools` have it as
/// `redis-check-rdb` and `valkey-check-rdb`, and only the packages that would also start services have links with the other
/// names.
fn server_program(dir: &Scratch, role: &str) -> PathBuf {
    let family = std::env::var(FAMILY).unwrap_or_else(|_| "redis".to_owned());
    let link = dir.file(&format!("{family}-{role}"));
    let names = [role, "check-rdb"].map(|name| format!("{family}-{name}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).flat_map(|dir| names.each_ref().map(|name| dir.join(name)));
    let found = found.into_iter().find(|path| path.exists());
    let found = found.unwrap_or_else(|| panic!("neither {names:?} is there: install {family}-tools"));
    std::os::unix::fs::symlink(found, &link).unwrap();
    link
}

/// Below those that the system gives to clients.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if StdTcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Two nodes of a cluster, of which the first one has this key.
pub async fn cluster(key: &str) -> [Valkey; 2] {
    let nodes = [ValkeySetup::default().node().start().await, ValkeySetup::default().node().start().await];
    nodes[0].command(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]).await;
    nodes[1].command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).await;
    let ports = [nodes[1].port, nodes[1].bus_port].map(|port| port.to_string());
    nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &ports[0], &ports[1]]).await;
    for node in &nodes {
        eventually("the cluster to be complete", async || {
            let Value::BulkString(info) = node.command(&["CLUSTER", "INFO"]).await else { panic!("no info") };
            String::from_utf8(info).unwrap().contains("cluster_state:ok").then_some(())
        })
        .await;
    }
    let is_first = nodes[0].slot_of(key).await.parse::<u16>().unwrap() < 8_192;
    let [one, other] = nodes;
    if is_first { [one, other] } else { [other, one] }
}

impl Valkey {
    async fn slot_of(&self, key: &str) -> String {
        let Value::Int(slot) = self.command(&["CLUSTER", "KEYSLOT", key]).await else { panic!("no slot") };
        slot.to_string()
    }

    /// Hands the slot of a key over to another node of its cluster, with the key if it is there.
    pub async fn move_slot_of(&self, key: &str, to: &Self) {
        let slot = self.slot_of(key).await;
        let [mut from_id, mut to_id] = [const { String::new() }; 2];
        for (node, id) in [(self, &mut from_id), (to, &mut to_id)] {
            *id = redis::from_redis_value(node.command(&["CLUSTER", "MYID"]).await).unwrap();
        }
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
        self.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
        self.command(&["MIGRATE", "127.0.0.1", &to.port.to_string(), key, "0", "5000"]).await;
        for node in [to, self] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
        }
    }
}

/// Sentinels of one master, which they call `fleet`.
pub struct Sentinels {
    all: Vec<Valkey>,
}

/// The name of the master.
pub const MASTER: &str = "fleet";

impl Sentinels {
    /// So many of them, a majority of which has to agree before they act. They take a master for dead after half a second.
    pub async fn start(count: usize, master: &Valkey) -> Self {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(start_sentinel(master, count / 2 + 1).await);
        }
        let sentinels = Self { all };
        let others = (count - 1).to_string();
        for sentinel in &sentinels.all {
            eventually("the Sentinels to know each other", async || {
                (sentinel.field("num-other-sentinels").await == others).then_some(())
            })
            .await;
        }
        sentinels
    }

    /// Waits until all of them know so many replicas.
    pub async fn wait_for_replicas(&self, count: usize) {
        let count = count.to_string();
        for sentinel in &self.all {
            eventually("the replicas to be known", async || {
                (sentinel.field("num-slaves").await == count).then_some(())
            })
            .await;
        }
    }

    /// The port of the master, as the Sentinel of this index knows it.
    pub async fn master_port(&self, index: usize) -> u16 {
        self.all[index].field("port").await.parse().unwrap()
    }

    /// Each of them.
    pub fn all(&self) -> &[Valkey] {
        &self.all
    }

    /// Makes one of them forget the others and name this server, as one that was cut off long ago does.
    pub async fn mislead(&self, index: usize, server: &Valkey) {
        let sentinel = &self.all[index];
        sentinel.command(&["SENTINEL", "REMOVE", MASTER]).await;
        let port = server.port.to_string();
        sentinel.command(&["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, "9"]).await;
    }
}

async fn start_sentinel(master: &Valkey, quorum: usize) -> Valkey {
    let dir = Scratch::new();
    let program = server_program(&dir, "sentinel");
    let config = dir.file("sentinel.conf");
    let text = format!(
        "dir {}\nsentinel monitor {MASTER} 127.0.0.1 {} {quorum}\nsentinel down-after-milliseconds {MASTER} 500\n\
         sentinel failover-timeout {MASTER} 2000\n",
        dir.path().display(),
        master.port,
    );
    std::fs::write(&config, text).unwrap();
    let arguments = vec![config.display().to_string(), "--bind".to_owned(), "127.0.0.1".to_owned()];
    let mut sentinel = Valkey { port: 0, tls_port: 0, bus_port: 0, dir, program, arguments, process: None };
    for _ in 0..50 {
        sentinel.port = free_port();
        if sentinel.try_start().await {
            return sentinel;
        }
    }
    panic!("no Sentinel could be started: {}", sentinel.log());
}

impl Valkey {
    /// A field of what a Sentinel knows of the master.
    async fn field(&self, name: &str) -> String {
        let Value::Array(fields) = self.command(&["SENTINEL", "MASTER", MASTER]).await else {
            panic!("no fields")
        };
        let texts: Vec<String> =
            fields.iter().map(|field| redis::from_redis_value_ref(field).unwrap()).collect();
        texts.chunks(2).find(|pair| pair[0] == name).unwrap_or_else(|| panic!("no {name}: {texts:?}"))[1]
            .clone()
    }
}

/// Forwards connections to a server, until it is told otherwise.
pub struct Proxy {
    pub port: u16,
    control: watch::Sender<Control>,
    accepted: Arc<AtomicUsize>,
}

/// What happens to the connections, counted in the order in which they were accepted.
#[derive(Clone, Copy, Default)]
struct Control {
    /// Those below it forward nothing more, and stay open.
    stalled_below: usize,
    /// Those below it are closed.
    cut_below: usize,
    /// Where new ones lead.
    target: u16,
}

impl Proxy {
    pub async fn start(server: &Valkey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (control, watched) = watch::channel(Control { target: server.port, ..Control::default() });
        let accepted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let index = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(forward(client, index, watched.clone()));
            }
        });
        Self { port, control, accepted }
    }

    pub fn address(&self) -> UpstreamAddress {
        UpstreamAddress::Tcp("127.0.0.1".to_owned(), self.port)
    }

    /// How many connections were made.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The connections that there are fall silent; new ones work.
    pub fn stall_existing(&self) {
        self.control.send_modify(|control| control.stalled_below = self.accepted());
    }

    /// All fall silent, new ones too.
    pub fn stall(&self) {
        self.control.send_modify(|control| control.stalled_below = usize::MAX);
    }

    /// New connections work again. Those that had fallen silent go on where they were.
    pub fn resume(&self) {
        self.control.send_modify(|control| control.stalled_below = 0);
    }

    /// Closes the connections that there are.
    pub fn cut(&self) {
        self.control.send_modify(|control| control.cut_below = self.accepted());
    }

    /// New connections lead to another server, as behind a virtual address.
    pub fn lead_to(&self, server: &Valkey) {
        self.control.send_modify(|control| control.target = server.port);
    }
}

async fn forward(mut client: TcpStream, index: usize, mut control: watch::Receiver<Control>) {
    let target = control.borrow().target;
    // A client whose server cannot be reached finds its connection closed.
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut to_server, mut to_client) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let now = *control.borrow_and_update();
        if index < now.cut_below {
            return;
        }
        let is_open = index >= now.stalled_below;
        let is_done = tokio::select! {
            changed = control.changed() => changed.is_err(),
            read = client.read(&mut to_server), if is_open => copy(read, &to_server, &mut server).await,
            read = server.read(&mut to_client), if is_open => copy(read, &to_client, &mut client).await,
        };
        if is_done {
            return;
        }
    }
}

/// Whether that was the end.
async fn copy(read: std::io::Result<usize>, buffer: &[u8], to: &mut TcpStream) -> bool {
    match read {
        Ok(count @ 1..) => to.write_all(&buffer[..count]).await.is_err(),
        _ => true,
    }
}
