//! The Valkey or Redis of the fleet.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Fallible;
use crate::machine::{self, Scratch};
use crate::process::Process;

/// Debian's package `redis-tools` has the server as `redis-check-rdb`; its name makes it one.
const PROGRAMS: [&str; 3] = ["/usr/bin/valkey-server", "/usr/bin/redis-server", "/usr/bin/redis-check-rdb"];

/// A running server, which keeps nothing on disk.
pub(super) struct Valkey {
    port: u16,
    process: Process,
}

impl Valkey {
    pub(super) fn start(scratch: &Scratch) -> Fallible<Self> {
        let directory = scratch.folder("valkey")?;
        let program = PROGRAMS.iter().find(|program| Path::new(program).exists());
        let link = directory.join("redis-server");
        symlink(program.ok_or("there is no Valkey and no Redis; tests/bench/compare installs one")?, &link)?;
        let port = machine::free_port()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(link).args(["--save", "", "--bind", "127.0.0.1"]);
        command.args(["--port", &port.to_string()]);
        let mut process = Process::start("valkey", command, &directory)?;
        process.wait_for(port)?;
        Ok(Self { port, process })
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How many bytes it has read and written.
    pub(super) fn bytes(&self) -> Fallible<f64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"INFO stats\r\nQUIT\r\n")?;
        let mut info = String::new();
        stream.read_to_string(&mut info)?;
        let mut sum = 0.0;
        for field in ["total_net_input_bytes:", "total_net_output_bytes:"] {
            let value = info.lines().find_map(|line| line.strip_prefix(field));
            sum += value.ok_or_else(|| format!("no {field} in {info}"))?.trim().parse::<f64>()?;
        }
        Ok(sum)
    }
}
