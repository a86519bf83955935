//! The environment of every measurement: directories, Rails, cores that do not sleep, and the load.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use crate::machine::{self, Scratch, Time};
use crate::process::{self, Process, gateway_core, load_core};
use crate::{Fallible, http_client, interrupt, load};

/// Fields are dropped in this order.
pub(crate) struct Environment {
    _spinners: Vec<Process>,
    pub(crate) rails: Rails,
    pub(crate) scratch: Scratch,
    /// That of railgate.
    pub(crate) binary: PathBuf,
}

impl Environment {
    /// Keeps the core of the measured process awake. In a comparison with sleeping load also that of load
    /// and Rails; otherwise they yield to each other, and would yield to the spinner.
    pub(crate) fn for_comparison(sleeps: bool, binary: PathBuf) -> Fallible<Self> {
        let awake: &[usize] = if sleeps { &[gateway_core(), load_core()] } else { &[gateway_core()] };
        Self::set(awake, sleeps, binary)
    }

    pub(crate) fn for_railgate_alone(binary: PathBuf) -> Fallible<Self> {
        Self::set(&[gateway_core()], false, binary)
    }

    /// Nothing is measured, so one core suffices, and whatever else runs there does not matter.
    pub(crate) fn for_training(binary: PathBuf) -> Fallible<Self> {
        let scratch = Scratch::new()?;
        Ok(Self { _spinners: Vec::new(), rails: Rails::start(&scratch, true)?, scratch, binary })
    }

    fn set(awake: &[usize], sleeps: bool, binary: PathBuf) -> Fallible<Self> {
        machine::pin_to_load_core()?;
        let scratch = Scratch::new()?;
        let rails = Rails::start(&scratch, sleeps)?;
        let spinners: Fallible<Vec<_>> =
            awake.iter().map(|core| machine::keep_awake(*core, &scratch)).collect();
        Ok(Self { _spinners: spinners?, rails, scratch, binary })
    }
}

/// The stand-in for Rails.
pub(crate) struct Rails {
    _process: Process,
    pub(crate) port: u16,
}

impl Rails {
    pub(crate) fn start(scratch: &Scratch, sleeps: bool) -> Fallible<Self> {
        let port = machine::free_port()?;
        let directory = scratch.folder("rails")?;
        let mut command = process::own_executable(load_core())?;
        command.arg("rails").arg(port.to_string()).arg(directory.join("s.sock"));
        if sleeps {
            command.arg("--sleeps");
        }
        let mut process = Process::start("rails", command, &directory)?;
        process.wait_for(port)?;
        Ok(Self { _process: process, port })
    }

    /// The number of requests so far.
    pub(crate) fn count(&self) -> Fallible<u64> {
        let response = http_client::get(self.port, "/__count", &[])?;
        Ok(String::from_utf8_lossy(&response.body).parse()?)
    }

    /// Pads key rows to so many bytes from now on.
    pub(crate) fn set_row(&self, bytes: usize) -> Fallible<()> {
        http_client::get(self.port, &format!("/__rows?bytes={bytes}"), &[]).map(|_| ())
    }

    /// Whether it knows any key from now on.
    pub(crate) fn set_knows_keys(&self, knows: bool) -> Fallible<()> {
        http_client::get(self.port, &format!("/__known?keys={}", u8::from(knows)), &[]).map(|_| ())
    }

    pub(crate) fn set_latency(&self, milliseconds: u64) -> Fallible<()> {
        http_client::get(self.port, &format!("/__latency?ms={milliseconds}"), &[]).map(|_| ())
    }
}

/// Runs the load generator.
pub(crate) fn run_load(options: &load::Options) -> Fallible<load::Figures> {
    let mut command = process::own_executable(load_core())?;
    command.args(options.to_arguments());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let before = Time::now();
    let mut child = command.spawn()?;
    let status = interrupt::wait(&mut child);
    if status.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output()?;
    if !status?.success() {
        return Err(format!("load: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let mut figures = load::Figures::from_json(&output.stdout)?;
    (_, figures.steal) = Time::now().shares_since(before);
    Ok(figures)
}
