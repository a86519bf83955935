//! A real Valkey or Redis, which a gateway follows.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use railgate::cache::Cache;
use railgate::fleet::keys::FleetKeys;
use railgate::fleet::settings::{FleetSettings, SharedSettings};
use railgate::fleet::{Fleet, FleetPhase};
use railgate::secret::ShellSecret;
use railgate::upstream::UpstreamAddress;

use crate::{Fallible, credentials};

/// Debian's package `redis-tools` has the server as `redis-check-rdb`; its name makes it one.
const PROGRAMS: [&str; 3] = ["/usr/bin/valkey-server", "/usr/bin/redis-server", "/usr/bin/redis-check-rdb"];

const START: Duration = Duration::from_mins(1);

/// A server on a unix socket. Killed when it is dropped.
pub(super) struct Valkey {
    child: Child,
    socket: PathBuf,
}

impl Valkey {
    pub(super) fn start(folder: &Path) -> Fallible<Self> {
        let (link, socket) = (folder.join("redis-server"), folder.join("valkey"));
        let program = PROGRAMS.iter().find(|program| Path::new(program).exists());
        symlink(program.ok_or("there is no Valkey and no Redis")?, &link)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(link).args(["--save", "", "--port", "0"]);
        command.arg("--unixsocket").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn()?, socket })
    }

    /// Has a gateway with this cache follow it, and share answers. What it does in the background is not counted: the
    /// only poll lasts longer than the run.
    pub(super) async fn follow(&self, cache: &Arc<Cache>) -> Fallible<Fleet> {
        let settings = FleetSettings {
            poll: Duration::from_hours(1),
            alone_after: Duration::from_hours(2),
            shared: Some(SharedSettings::default()),
            ..FleetSettings::new(UpstreamAddress::Unix(self.socket.clone()))
        };
        let secret = ShellSecret::from_text(credentials::SHELL_SECRET.as_bytes())?;
        let keys = FleetKeys::new(&secret, "a GitLab", "").ok_or("no keys")?;
        let fleet = Fleet::new(Arc::new(settings), &keys, Arc::clone(cache)).ok_or("no random numbers")?;
        fleet.start();
        let begun = Instant::now();
        while fleet.state().is_none_or(|state| state.phase != FleetPhase::Following) {
            if begun.elapsed() > START {
                return Err("the fleet is not heard".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(fleet)
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
