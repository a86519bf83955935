//! Processes: started on a core of their own, measured with all their children, ended with certainty.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Fallible, interrupt};

/// The core of whatever is measured, and that of the load and Rails.
pub(crate) const GATEWAY_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

const START: Duration = Duration::from_secs(15);
const STOP: Duration = Duration::from_secs(20);
const LOG_TAIL: usize = 1500;

/// A command that runs on one core, and ends when this program does, however that comes about.
pub(crate) fn pinned(core: usize, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string(), "setpriv", "--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// This program in another role.
pub(crate) fn myself(core: usize) -> Fallible<Command> {
    Ok(pinned(core, std::env::current_exe()?))
}

/// A process that runs until this is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a process whose output goes to a file in `directory`.
    pub(crate) fn start(name: &str, mut command: Command, directory: &Path) -> Fallible<Self> {
        let log = directory.join("output.log");
        let output = File::create(&log)?;
        command.current_dir(directory).stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        // A group of its own: Ctrl-C is for this program, which then ends the others in order.
        command.process_group(0);
        let child = command.spawn().map_err(|error| format!("{name}: cannot be started: {error}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until something answers the phone at `port`.
    pub(crate) fn wait_for(&mut self, port: u16) -> Fallible<()> {
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} exited: {status}\n{}", self.name, self.log_tail()).into());
            }
            if begun.elapsed() > START {
                return Err(format!("{} does not listen\n{}", self.name, self.log_tail()).into());
            }
            interrupt::pause(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// An error if the process has ended.
    pub(crate) fn must_run(&mut self) -> Fallible<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} exited: {status}\n{}", self.name, self.log_tail()).into()),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(LOG_TAIL)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }

    /// Asks it to end, so that it can end its children; then insists.
    fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let family = family(self.pid());
        kill("-TERM", &[self.pid()]);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < STOP {
            std::thread::sleep(Duration::from_millis(5));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            kill("-KILL", &family);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The standard library knows no signal but KILL; every shell does.
pub(crate) fn kill(signal: &str, pids: &[u32]) {
    let pids = pids.iter().map(|pid| OsString::from(pid.to_string()));
    let script = r#"kill "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", signal]).args(pids).stderr(Stdio::null());
    let _ = command.status();
}

/// A process and its descendants, itself first.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            family.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    family
}

fn tasks(pid: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok();
    tasks.into_iter().flatten().flatten().map(|entry| entry.path())
}

/// How long all threads of these processes ran on a core, by the scheduler's count.
pub(crate) fn cpu_time(pids: &[u32]) -> Duration {
    let ran = |task: PathBuf| {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let nanos = pids.iter().flat_map(|pid| tasks(*pid)).filter_map(ran).sum();
    Duration::from_nanos(nanos)
}

/// Bytes of memory, of one kind (`VmRSS`, `VmHWM`), of a process and its descendants.
pub(crate) fn memory(pid: u32, kind: &str) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    family(pid).into_iter().filter_map(of).sum::<u64>() * 1024
}

/// `VmHWM`, the most memory that was held, counts from here on.
pub(crate) fn forget_peak(pid: u32) {
    for pid in family(pid) {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}
