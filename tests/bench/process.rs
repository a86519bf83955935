//! Processes: pinned to a core, measured with all their children, and ended reliably.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;

use crate::{Fallible, interrupt};

/// The first and the last core that this program may use, before it is pinned to one itself. The same if there is one.
static CORES: LazyLock<(usize, usize)> = LazyLock::new(|| {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let first = cores.next().unwrap_or_default();
    (first, cores.next_back().unwrap_or(first))
});

/// The core of the measured process.
pub(crate) fn gateway_core() -> usize {
    CORES.0
}

/// That of the load and Rails.
pub(crate) fn load_core() -> usize {
    CORES.1
}

const START: Duration = Duration::from_secs(15);
const STOP: Duration = Duration::from_secs(20);
const LOG_TAIL: usize = 1500;

/// A command that is pinned to one core, and ends with this program in any case.
pub(crate) fn pinned(core: usize, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string(), "setpriv", "--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A command that runs this program with another subcommand.
pub(crate) fn own_executable(core: usize) -> Fallible<Command> {
    Ok(pinned(core, std::env::current_exe()?))
}

/// A process that is stopped when this is dropped.
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
        // A process group of its own: Ctrl-C is for this program, which then stops the others in order.
        command.process_group(0);
        let child = command.spawn().map_err(|error| format!("{name}: cannot be started: {error}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until the process accepts connections at `port`.
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

    /// Sends SIGTERM, so that it can end its children; later SIGKILL.
    fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let process_tree = process_tree(self.pid());
        kill("-TERM", &[self.pid()]);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < STOP {
            std::thread::sleep(Duration::from_millis(5));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            kill("-KILL", &process_tree);
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
pub(crate) fn process_tree(pid: u32) -> Vec<u32> {
    let mut process_tree = vec![pid];
    let mut next = 0;
    while let Some(pid) = process_tree.get(next).copied() {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            process_tree
                .extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    process_tree
}

fn tasks(pid: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok();
    tasks.into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The CPU time of all threads of these processes, by the scheduler's count.
pub(crate) fn cpu_time(pids: &[u32]) -> Duration {
    let ran = |task: PathBuf| {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let nanos = pids.iter().flat_map(|pid| tasks(*pid)).filter_map(ran).sum();
    Duration::from_nanos(nanos)
}

/// How often they slept so far, waiting for something.
pub(crate) fn sleeps(pids: &[u32]) -> u64 {
    let slept = |task: PathBuf| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    pids.iter().flat_map(|pid| tasks(*pid)).filter_map(slept).sum()
}

/// Bytes of memory, of one kind (`VmRSS`, `VmHWM`), of a process and its descendants.
pub(crate) fn memory(pid: u32, kind: &str) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    process_tree(pid).into_iter().filter_map(of).sum::<u64>() * 1024
}

/// Resets `VmHWM`, the peak of the resident memory.
pub(crate) fn forget_peak(pid: u32) {
    for pid in process_tree(pid) {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}
