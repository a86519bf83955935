//! The machine: its cores, ports and directories.

use std::collections::BTreeSet;
use std::fs;
use std::hint;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::Fallible;
use crate::process::{self, Process, load_core};

/// The directories of one run. Removed when this is dropped.
pub(crate) struct Scratch {
    directory: PathBuf,
    /// A directory in memory, for caches that are files.
    in_memory: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Fallible<Self> {
        let name = format!("railgate-compare-{}", std::process::id());
        let memory = Path::new("/dev/shm");
        let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = Self {
            directory: std::env::temp_dir().join(&name),
            in_memory: memory.join(format!("{name}-memory")),
        };
        fs::create_dir_all(&scratch.directory)?;
        fs::create_dir_all(&scratch.in_memory)?;
        Ok(scratch)
    }

    /// A new directory.
    pub(crate) fn folder(&self, name: &str) -> Fallible<PathBuf> {
        new_folder(self.directory.join(name))
    }

    /// A new directory in memory.
    pub(crate) fn folder_in_memory(&self, name: &str) -> Fallible<PathBuf> {
        new_folder(self.in_memory.join(name))
    }
}

fn new_folder(folder: PathBuf) -> Fallible<PathBuf> {
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir_all(&self.in_memory);
    }
}

static ALLOCATED_PORTS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A free port. Below those that the kernel gives to clients, and above the default ports of all programs
/// used.
pub(crate) fn free_port() -> Fallible<u16> {
    let mut allocated = ALLOCATED_PORTS.lock().map_err(|_| "poisoned")?;
    for port in 21_100..32_000 {
        if !allocated.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            allocated.insert(port);
            return Ok(port);
        }
    }
    Err("no free port between 21100 and 32000".into())
}

/// Requires two cores, and pins this program to the load core.
pub(crate) fn pin_to_load_core() -> Fallible<()> {
    if thread::available_parallelism()?.get() < 2 {
        return Err("two cores are needed: one for the gateway, one for the load and Rails".into());
    }
    let pid = std::process::id().to_string();
    let mut command = Command::new("taskset");
    command.args(["--pid", "--cpu-list", &load_core().to_string(), &pid]);
    let done = command.output().map_err(|error| format!("taskset: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).trim().into())
}

/// Keeps a core from halting, at a priority that gives way to everything else. In a virtual machine a
/// halt costs an exit to the host and a wake-up, which drowns figures at low load.
pub(crate) fn keep_awake(core: usize, scratch: &Scratch) -> Fallible<Process> {
    let mut command = process::pinned(core, "chrt");
    command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("spin");
    let name = format!("spinner-{core}");
    Process::start(&name, command, &scratch.folder(&name)?)
}

/// The body of the process that keeps a core awake.
pub(crate) fn spin() -> ! {
    loop {
        hint::spin_loop();
    }
}

/// The machine's CPU time so far: all of it, idle, and stolen by the host.
#[derive(Clone, Copy, Default)]
pub(crate) struct Time {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Time {
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let fields: Vec<u64> =
            line.split_ascii_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        Self { all: fields.iter().sum(), idle: field(3), stolen: field(7) }
    }

    /// The shares of idle and stolen time since then.
    pub(crate) fn shares_since(self, before: Self) -> (f64, f64) {
        let all = (self.all - before.all).max(1) as f64;
        ((self.idle - before.idle) as f64 / all, (self.stolen - before.stolen) as f64 / all)
    }
}
