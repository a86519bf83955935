//! Who is compared, and how each is configured and started. The configurations are in `peers/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ask::Place;
use crate::process::{self, GATEWAY_CORE, Process};
use crate::stage::Stage;
use crate::{Fallible, credentials, machine};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Software {
    Railgate,
    Nginx,
    Haproxy,
    Varnish,
    /// Bare hyper: a limit, not a peer. It checks no secret and asks nobody.
    Floor,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) software: Software,
    /// Writes a line of JSON for every request.
    logs: bool,
}

pub(crate) const PEERS: [Peer; 7] = [
    Peer { name: "railgate", software: Software::Railgate, logs: false },
    Peer { name: "railgate-log", software: Software::Railgate, logs: true },
    Peer { name: "nginx", software: Software::Nginx, logs: false },
    Peer { name: "nginx-log", software: Software::Nginx, logs: true },
    Peer { name: "haproxy", software: Software::Haproxy, logs: false },
    Peer { name: "varnish", software: Software::Varnish, logs: false },
    Peer { name: "bare-hyper", software: Software::Floor, logs: false },
];

/// railgate as it is measured alone.
pub(crate) const RAILGATE: Peer = PEERS[0];

/// A peer that answers.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) socket: PathBuf,
}

impl Running {
    /// Both ways in.
    pub(crate) fn places(&self) -> [Place; 2] {
        [Place::Port(self.port), Place::Socket(self.socket.clone())]
    }
}

impl Peer {
    pub(crate) fn start(self, stage: &Stage) -> Fallible<Running> {
        self.start_with(stage, None)
    }

    /// With so many workers, where a peer is railgate.
    pub(crate) fn start_with(self, stage: &Stage, workers: Option<u32>) -> Fallible<Running> {
        let directory = stage.scratch.folder(self.name)?;
        let port = machine::free_port()?;
        let command = self.command(stage, &directory, port, workers)?;
        let mut process = Process::start(self.name, command, &directory)?;
        process.wait_for(port)?;
        Ok(Running { peer: self, process, port, socket: directory.join("s.sock") })
    }

    /// Writes the configuration, and says how to start with it.
    pub(crate) fn command(
        self,
        stage: &Stage,
        directory: &Path,
        port: u16,
        workers: Option<u32>,
    ) -> Fallible<Command> {
        let places = [
            ("@DIRECTORY@", directory.display().to_string()),
            ("@PORT@", port.to_string()),
            ("@RAILS@", stage.rails.port.to_string()),
            ("@SECRET@", credentials::shared_secret()),
            ("@KAS_SECRET@", credentials::KAS_SECRET.to_owned()),
        ];
        let write = |name: &str, template: &str, more: &[(&str, String)]| {
            let fill = |text: String, (mark, value): &(&str, String)| text.replace(mark, value);
            let text = places.iter().chain(more).fold(template.to_owned(), fill);
            let path = directory.join(name);
            fs::write(&path, text).map(|()| path)
        };
        let mut command;
        match self.software {
            Software::Railgate => {
                let workers = workers.map(|workers| format!("workers = {workers}")).unwrap_or_default();
                let more = [("@LOG@", self.logs.to_string()), ("@WORKERS@", workers)];
                let path = write("railgate.toml", include_str!("peers/railgate.toml"), &more)?;
                write_secrets(directory)?;
                command = process::pinned(GATEWAY_CORE, railgate()?);
                command.arg("run").arg("--config").arg(path);
            }
            Software::Nginx => {
                let log = if self.logs {
                    format!("access_log {}/access.log json buffer=64k flush=1s;", directory.display())
                } else {
                    "access_log off;".to_owned()
                };
                let cache = stage.scratch.folder_in_memory(self.name)?.display().to_string();
                let more = [("@LOG@", log), ("@CACHE@", cache)];
                let path = write("nginx.conf", include_str!("peers/nginx.conf"), &more)?;
                command = process::pinned(GATEWAY_CORE, "nginx");
                command.arg("-p").arg(directory).arg("-c").arg(path);
            }
            Software::Haproxy => {
                let path = write("haproxy.cfg", include_str!("peers/haproxy.cfg"), &[])?;
                command = process::pinned(GATEWAY_CORE, "haproxy");
                command.arg("-db").arg("-f").arg(path);
            }
            Software::Varnish => {
                let path = write("varnish.vcl", include_str!("peers/varnish.vcl"), &[])?;
                command = varnish(directory, port);
                command.arg("-f").arg(path);
            }
            Software::Floor => {
                command = process::myself(GATEWAY_CORE)?;
                command.arg("floor").arg(port.to_string()).arg(directory.join("s.sock"));
            }
        }
        Ok(command)
    }
}

fn varnish(directory: &Path, port: u16) -> Command {
    let mut command = process::pinned(GATEWAY_CORE, "varnishd");
    command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,256m", "-p", "http_gzip_support=off"]);
    command.arg("-n").arg(directory.join("varnish"));
    command.args(["-a", &format!("tcp=127.0.0.1:{port}")]);
    command.args(["-a", &format!("uds={},mode=666", directory.join("s.sock").display())]);
    command
}

/// The binary as it is released: beside the folder that this program is in.
pub(crate) fn railgate() -> Fallible<PathBuf> {
    let myself = std::env::current_exe()?;
    let binary = myself.ancestors().nth(2).unwrap_or(Path::new("/")).join("railgate");
    if binary.is_file() { Ok(binary) } else { Err(format!("{} is not built", binary.display()).into()) }
}

pub(crate) fn write_secrets(directory: &Path) -> Fallible<()> {
    fs::write(directory.join("shell_secret"), format!("{}\n", credentials::SHELL_SECRET))?;
    fs::write(directory.join("kas_secret"), format!("{}\n", credentials::kas_secret_file()))?;
    Ok(())
}
