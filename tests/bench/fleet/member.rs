//! A gateway whose log is read, and a client of it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::FleetEnvironment;
use crate::load::ResponseParser;
use crate::{Fallible, interrupt, machine, peers};

const DEADLINE: Duration = Duration::from_secs(10);

/// A cache that keeps no more than it has to.
pub(super) const KEPT_FOR_ONE_REQUEST: &str = "[cache]\nmax_entries = 1\n[cache.shadow]\none_in = 0\n";

/// A cache that keeps answers for so long, and none for longer.
pub(super) fn kept_for(ttl: &str) -> String {
    let section = |name: &str| {
        format!("[cache.{name}]\nttl = \"{ttl}\"\nstale_while_revalidate = \"0s\"\nstale_if_error = \"0s\"\n")
    };
    format!("[cache.shadow]\none_in = 0\n{}{}", section("authorized_keys"), section("discover"))
}

/// A running gateway. Killed when it is dropped.
pub(super) struct Member {
    pub(super) port: u16,
    pub(super) admin: u16,
    child: Child,
    /// When it said that it had dropped something.
    dropped: Receiver<Instant>,
}

impl Member {
    pub(super) fn start(
        environment: &FleetEnvironment,
        name: &str,
        rails: u16,
        sections: &str,
    ) -> Fallible<Self> {
        let directory = environment.scratch.folder(name)?;
        let (port, admin) = (machine::free_port()?, machine::free_port()?);
        peers::write_secrets(&directory)?;
        let path = directory.display();
        let config = format!(
            "[[listen]]\naddress = \"127.0.0.1:{port}\"\n[admin]\naddress = \"127.0.0.1:{admin}\"\n\
             [upstream]\nurl = \"http://127.0.0.1:{rails}\"\n[auth.shell]\nsecret_file = \"{path}/shell_secret\"\n\
             [log]\nlevel = \"debug\"\nrequests = false\n{sections}"
        );
        let file = directory.join("railgate.toml");
        fs::write(&file, config)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&environment.binary)
            .arg("run")
            .arg("--config")
            .arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(directory.join("errors"))?);
        let mut child = command.spawn().map_err(|error| format!("setpriv: {error}"))?;
        let log = child.stdout.take().ok_or("no log")?;
        let (sender, dropped) = channel();
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if line.contains("dropped what other gateways have purged") {
                    // No receiver is left at the end.
                    let _ = sender.send(Instant::now());
                }
            }
        });
        let member = Self { port, admin, child, dropped };
        member.wait_until("it is ready", |member| {
            Ok(Connection::open(member.admin)?.send(&get("/ready"))?.contains(" 200 "))
        })?;
        Ok(member)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn wait_until_following(&self) -> Fallible<()> {
        const FOLLOWING: &str = "railgate_fleet_state{state=\"following\"} 1";
        self.wait_until("it hears the others", |member| {
            Ok(Connection::open(member.admin)?.send(&get("/metrics"))?.contains(FOLLOWING))
        })
    }

    /// The value of a metric without labels.
    pub(super) fn metric(&self, name: &str) -> Fallible<u64> {
        let metrics = Connection::open(self.admin)?.send(&get("/metrics"))?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.ok_or_else(|| format!("no metric {name}"))?.parse()?)
    }

    fn wait_until(&self, what: &str, is_true: impl Fn(&Self) -> Fallible<bool>) -> Fallible<()> {
        let begun = Instant::now();
        while !is_true(self).unwrap_or(false) {
            if begun.elapsed() > DEADLINE {
                return Err(format!("never came true of a gateway: {what}").into());
            }
            interrupt::pause(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Waits until it has dropped something more, but not for longer than that.
    pub(super) fn wait_for_drop(&self, at_most: Duration) {
        let _ = self.dropped.recv_timeout(at_most);
    }

    /// The time at which it had dropped what was purged next.
    pub(super) fn wait_until_dropped(&self) -> Fallible<Instant> {
        Ok(self.dropped.recv_timeout(DEADLINE).map_err(|_| "a gateway has not dropped what was purged")?)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// A kept connection, for one request after the other.
pub(super) struct Connection(TcpStream);

impl Connection {
    pub(super) fn open(port: u16) -> Fallible<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(stream))
    }

    /// The whole response, as text.
    pub(super) fn send(&mut self, request: &[u8]) -> Fallible<String> {
        self.0.write_all(request)?;
        let (mut response, mut bytes) = (ResponseParser::new(), Vec::new());
        let mut buffer = [0; 16 << 10];
        loop {
            let count = self.0.read(&mut buffer)?;
            let came =
                buffer.get(..count).filter(|came| !came.is_empty()).ok_or("the connection was closed")?;
            bytes.extend_from_slice(came);
            if response.push(came) {
                return Ok(String::from_utf8(bytes)?);
            }
        }
    }
}
