//! The Valkey or Redis of the fleet, and its Sentinels.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine::{self, Scratch};
use crate::process::{self, Process};
use crate::{Fallible, interrupt};

/// Debian's package `redis-tools` has the server as `redis-check-rdb`; its name makes it one.
const PROGRAMS: [&str; 3] = ["/usr/bin/valkey-server", "/usr/bin/redis-server", "/usr/bin/redis-check-rdb"];

const DEADLINE: Duration = Duration::from_secs(20);

/// What the Sentinels call the master.
pub(super) const MASTER: &str = "fleet";

/// A running server or Sentinel, which keeps nothing on disk.
pub(super) struct Valkey {
    pub(super) port: u16,
    process: Process,
}

impl Valkey {
    pub(super) fn start(scratch: &Scratch, name: &str) -> Fallible<Self> {
        Self::run(&scratch.folder(name)?, "redis-server", &["--save", ""])
    }

    /// A copy of this server, which has all that it had.
    pub(super) fn start_replica(&self, scratch: &Scratch, name: &str) -> Fallible<Self> {
        let master = format!("127.0.0.1 {}", self.port);
        let arguments = ["--save", "", "--repl-diskless-sync-delay", "0", "--replicaof", &master];
        let replica = Self::run(&scratch.folder(name)?, "redis-server", &arguments)?;
        replica.wait_until("INFO replication", &["master_link_status:up"])?;
        Ok(replica)
    }

    /// Three Sentinels that know each other, this master and its replica. They take the master for dead after half a second.
    pub(super) fn start_sentinels(&self, scratch: &Scratch) -> Fallible<[Self; 3]> {
        let start = |name: &str| {
            let folder = scratch.folder(name)?;
            let config = folder.join("sentinel.conf");
            let text = format!(
                "sentinel monitor {MASTER} 127.0.0.1 {} 2\nsentinel down-after-milliseconds {MASTER} 500\n\
                 sentinel failover-timeout {MASTER} 2000\n",
                self.port
            );
            fs::write(&config, text)?;
            Self::run(&folder, "redis-sentinel", &[&config.display().to_string()])
        };
        let sentinels = [start("sentinel-1")?, start("sentinel-2")?, start("sentinel-3")?];
        for sentinel in &sentinels {
            let known = ["num-other-sentinels\r\n$1\r\n2\r\n", "num-slaves\r\n$1\r\n1\r\n"];
            sentinel.wait_until(&format!("SENTINEL MASTER {MASTER}"), &known)?;
        }
        Ok(sentinels)
    }

    /// `role` is the name of the program, which makes it a server or a Sentinel.
    fn run(folder: &Path, role: &str, arguments: &[&str]) -> Fallible<Self> {
        let program = PROGRAMS.iter().find(|program| Path::new(program).exists());
        let link = folder.join(role);
        symlink(program.ok_or("there is no Valkey and no Redis; tests/bench/compare installs one")?, &link)?;
        let port = machine::free_port()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(link).args(arguments);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        let mut process = Process::start(role, command, folder)?;
        process.wait_for(port)?;
        Ok(Self { port, process })
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops it where it is, ends it without a warning, or the like.
    pub(super) fn signal(&self, signal: &str) {
        process::kill(signal, &[self.pid()]);
    }

    /// What it replies to a command.
    pub(super) fn command(&self, command: &str) -> Fallible<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        // It closes the connection then. A Sentinel does not know `QUIT`.
        stream.shutdown(Shutdown::Write)?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    /// Waits until the reply to a command has all these texts in it.
    pub(super) fn wait_until(&self, command: &str, texts: &[&str]) -> Fallible<()> {
        let begun = Instant::now();
        // A replica that becomes a master ends its connections.
        while !self.command(command).is_ok_and(|reply| texts.iter().all(|text| reply.contains(text))) {
            if begun.elapsed() > DEADLINE {
                return Err(format!("{command} never had {texts:?} in it").into());
            }
            interrupt::pause(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// How many bytes it has read and written.
    pub(super) fn bytes(&self) -> Fallible<f64> {
        let info = self.command("INFO stats")?;
        let mut sum = 0.0;
        for field in ["total_net_input_bytes:", "total_net_output_bytes:"] {
            let value = info.lines().find_map(|line| line.strip_prefix(field));
            sum += value.ok_or_else(|| format!("no {field} in {info}"))?.trim().parse::<f64>()?;
        }
        Ok(sum)
    }
}
