//! The real Rails of the acceptance tests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::client::{Request, send};
use crate::http_client::Address;
use crate::machine::Scratch;
use crate::process::Process;
use crate::{Fallible, machine, peers};

const START: Duration = Duration::from_secs(60);

/// How it is started; see `tests/rails/serve`.
#[derive(Clone, Copy)]
pub(crate) struct PumaSettings {
    pub(crate) threads: u8,
    pub(crate) gc_off: bool,
}

pub(crate) struct Puma {
    pub(crate) port: u16,
    process: Process,
}

impl Puma {
    pub(crate) async fn start(scratch: &Scratch, name: &str, settings: PumaSettings) -> Fallible<Self> {
        let directory = scratch.folder(name)?;
        let port = machine::free_port()?;
        peers::write_secrets(&directory)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rails/serve"))
            .env("RAILS_DIR", &directory)
            .env("RAILS_SHELL_SECRET_FILE", directory.join("shell_secret"))
            .env("RAILS_KAS_SECRET_FILE", directory.join("kas_secret"))
            .env("RAILS_TCP", format!("127.0.0.1:{port}"))
            .env("RAILS_THREADS", settings.threads.to_string())
            .env("RAILS_GC", if settings.gc_off { "off" } else { "on" });
        let mut puma = Self { port, process: Process::start(name, command, &directory)? };
        puma.must_answer().await?;
        // This log grows with every request.
        let _ = fs::write(directory.join("arrived.log"), "");
        Ok(puma)
    }

    async fn must_answer(&mut self) -> Fallible<()> {
        let begun = Instant::now();
        while !send(&self.address(), &Request::new("GET", "/-/readiness"), Duration::from_secs(2))
            .await
            .is(200)
        {
            self.process.must_run()?;
            if begun.elapsed() > START {
                return Err("Rails does not answer; tests/run installs what it needs".into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    pub(crate) fn address(&self) -> Address {
        Address::Port(self.port)
    }
}
