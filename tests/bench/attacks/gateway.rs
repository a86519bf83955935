//! The gateway under attack, with its defaults unless an attack changes them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::sleep;

use super::AttackEnvironment;
use super::client::{Outcome, Request, send};
use crate::http_client::Address;
use crate::{Fallible, credentials, machine, peers, process};

const START: Duration = Duration::from_secs(15);

/// The time limit for `/metrics`.
const METRICS: Duration = Duration::from_secs(10);

/// The token that GitLab sends with an event.
pub(crate) const HOOK_TOKEN: &str = "h00k";

/// How the gateway is started.
#[derive(Default)]
pub(crate) struct Setup {
    /// More keys in `[upstream]`.
    pub(crate) upstream: String,
    /// The port of Rails, if it is one server.
    pub(crate) rails: Option<u16>,
    pub(crate) sections: String,
    /// Its output is not read.
    pub(crate) log_stalls: bool,
    /// The limit of open files.
    pub(crate) files: Option<u32>,
}

impl Setup {
    pub(crate) fn new(rails: u16) -> Self {
        Self { rails: Some(rails), ..Self::default() }
    }

    pub(crate) fn upstream(self, keys: &str) -> Self {
        Self { upstream: format!("{keys}\n"), ..self }
    }

    pub(crate) fn sections(self, sections: &str) -> Self {
        Self { sections: sections.to_owned(), ..self }
    }
}

/// A running gateway. Killed when it is dropped.
pub(crate) struct Gateway {
    pub(crate) tcp: Address,
    pub(crate) unix: Address,
    pub(crate) admin: Address,
    pub(crate) hooks: Address,
    child: Child,
    log: PathBuf,
}

impl Gateway {
    pub(crate) async fn start(environment: &AttackEnvironment, setup: &Setup) -> Fallible<Self> {
        let directory = environment.scratch.folder("gateway")?;
        let (tcp, admin, hooks) = (machine::free_port()?, machine::free_port()?, machine::free_port()?);
        let config = directory.join("railgate.toml");
        peers::write_secrets(&directory)?;
        fs::write(directory.join("hook_token"), HOOK_TOKEN)?;
        fs::write(directory.join("signing_token"), format!("whsec_{}", STANDARD.encode("of GitLab")))?;
        fs::write(&config, setup.config(&directory.display().to_string(), tcp, admin, hooks))?;

        let log = directory.join("gateway.log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(files) = setup.files {
            command.args(["prlimit", &format!("--nofile={files}:{files}"), "--"]);
        }
        command.arg(&environment.binary).arg("run").arg("--config").arg(config).stdin(Stdio::null());
        if setup.log_stalls {
            // The pipe stays open in the handle of the child.
            command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        } else {
            let output = File::create(&log)?;
            command.stderr(output.try_clone()?).stdout(output);
        }
        let child = command.spawn().map_err(|error| format!("setpriv: {error}"))?;
        let mut gateway = Self {
            tcp: Address::Port(tcp),
            unix: Address::Socket(directory.join("s.sock")),
            admin: Address::Port(admin),
            hooks: Address::Port(hooks),
            child,
            log,
        };
        gateway.must_become_ready().await?;
        Ok(gateway)
    }

    async fn must_become_ready(&mut self) -> Fallible<()> {
        let begun = Instant::now();
        while !send(&self.admin, &Request::new("GET", "/ready"), Duration::from_secs(1)).await.is(200) {
            if self.child.try_wait()?.is_some() || begun.elapsed() > START {
                return Err(format!("the gateway is not ready\n{}", self.log()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the request of a Kubernetes liveness probe.
    pub(crate) async fn live(&self, limit: Duration) -> Outcome {
        send(&self.admin, &Request::new("GET", "/live"), limit).await
    }

    /// The sum of all series with this prefix.
    pub(crate) async fn metric(&self, series: &str) -> Fallible<u64> {
        let metrics = send(&self.admin, &Request::new("GET", "/metrics"), METRICS).await;
        if !metrics.is(200) {
            return Err("no metrics".into());
        }
        let lines = metrics.body.lines().filter(|line| line.starts_with(series));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        process::kill("-TERM", &[self.pid()]);
    }

    /// Waits for the end of the process. Returns the time, or none at the limit.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> Fallible<Option<Duration>> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.child.try_wait()?.is_some() {
                return Ok(Some(begun.elapsed()));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(None)
    }

    /// The CPU time of all its threads so far.
    pub(crate) fn cpu(&self) -> Duration {
        process::cpu_time(&[self.pid()])
    }

    pub(crate) fn cpu_since(&self, before: Duration) -> Duration {
        self.cpu().saturating_sub(before)
    }

    pub(crate) fn memory(&self) -> u64 {
        process::memory(self.pid(), "VmRSS")
    }

    /// The most memory since `forget_peak`.
    pub(crate) fn peak(&self) -> u64 {
        process::memory(self.pid(), "VmHWM")
    }

    pub(crate) fn forget_peak(&self) {
        process::forget_peak(self.pid());
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Setup {
    fn config(&self, directory: &str, tcp: u16, admin: u16, hooks: u16) -> String {
        let url = self.rails.map(|port| format!("url = \"http://127.0.0.1:{port}\"")).unwrap_or_default();
        let (upstream, sections) = (&self.upstream, &self.sections);
        format!(
            r#"
            [[listen]]
            address = "127.0.0.1:{tcp}"
            [[listen]]
            address = "unix:{directory}/s.sock"
            [admin]
            address = "127.0.0.1:{admin}"
            [hooks]
            address = "127.0.0.1:{hooks}"
            token_file = "{directory}/hook_token"
            signing_token_file = "{directory}/signing_token"
            [upstream]
            {url}
            {upstream}
            [auth.shell]
            secret_file = "{directory}/shell_secret"
            [auth.kas]
            secret_file = "{directory}/kas_secret"
            {sections}
            "#
        )
    }
}

/// The time until the end, for a table.
pub(crate) fn end(took: Option<Duration>, limit: Duration) -> String {
    took.map_or_else(|| format!("no, {}", super::time(limit)), super::time)
}

/// A form with the shared secret.
pub(crate) fn secret_in_a_form() -> String {
    format!(
        "secret_token={}&key_id=1&project=gnuwget/wget2&action=git-upload-pack",
        credentials::SHELL_SECRET
    )
}
