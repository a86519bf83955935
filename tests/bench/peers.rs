//! The compared peers, and how each is configured and started. The configurations are in `peers/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::Environment;
use crate::http_client::Address;
use crate::process::{self, Process, gateway_core};
use crate::{Fallible, credentials, machine};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Software {
    Railgate,
    Nginx,
    Haproxy,
    Varnish,
    /// Bare hyper: a lower limit, not a peer. It checks no secret, and has no upstream.
    BareHyper,
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
    Peer { name: "bare-hyper", software: Software::BareHyper, logs: false },
];

/// railgate when it is measured alone.
pub(crate) const RAILGATE: Peer = PEERS[0];

/// A running peer.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) socket: PathBuf,
}

impl Running {
    /// Both of its listeners.
    pub(crate) fn addresses(&self) -> [Address; 2] {
        [Address::Port(self.port), Address::Socket(self.socket.clone())]
    }
}

impl Peer {
    pub(crate) fn start(self, environment: &Environment) -> Fallible<Running> {
        self.start_with(environment, None)
    }

    /// With so many workers, if the peer is railgate.
    pub(crate) fn start_with(self, environment: &Environment, workers: Option<u32>) -> Fallible<Running> {
        let directory = environment.scratch.folder(self.name)?;
        let port = machine::free_port()?;
        let command = self.command(environment, &directory, port, workers)?;
        let mut process = Process::start(self.name, command, &directory)?;
        process.wait_for(port)?;
        Ok(Running { peer: self, process, port, socket: directory.join("s.sock") })
    }

    /// Writes the configuration, and returns the command to start the peer.
    pub(crate) fn command(
        self,
        environment: &Environment,
        directory: &Path,
        port: u16,
        workers: Option<u32>,
    ) -> Fallible<Command> {
        let addresses = [
            ("@DIRECTORY@", directory.display().to_string()),
            ("@PORT@", port.to_string()),
            ("@RAILS@", environment.rails.port.to_string()),
            ("@SECRET@", credentials::shared_secret()),
            ("@KAS_SECRET@", credentials::KAS_SECRET.to_owned()),
        ];
        let write = |name: &str, template: &str, more: &[(&str, String)]| {
            let fill = |text: String, (goal, value): &(&str, String)| text.replace(goal, value);
            let text = addresses.iter().chain(more).fold(template.to_owned(), fill);
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
                command = process::pinned(gateway_core(), &environment.binary);
                command.arg("run").arg("--config").arg(path);
            }
            Software::Nginx => {
                let log = if self.logs {
                    format!("access_log {}/access.log json buffer=64k flush=1s;", directory.display())
                } else {
                    "access_log off;".to_owned()
                };
                let cache = environment.scratch.folder_in_memory(self.name)?.display().to_string();
                let more = [("@LOG@", log), ("@CACHE@", cache)];
                let path = write("nginx.conf", include_str!("peers/nginx.conf"), &more)?;
                command = process::pinned(gateway_core(), "nginx");
                command.arg("-p").arg(directory).arg("-c").arg(path);
            }
            Software::Haproxy => {
                let path = write("haproxy.cfg", include_str!("peers/haproxy.cfg"), &[])?;
                command = process::pinned(gateway_core(), "haproxy");
                command.arg("-db").arg("-f").arg(path);
            }
            Software::Varnish => {
                let path = write("varnish.vcl", include_str!("peers/varnish.vcl"), &[])?;
                command = varnish(directory, port);
                command.arg("-f").arg(path);
            }
            Software::BareHyper => {
                command = process::own_executable(gateway_core())?;
                command.arg("bare-hyper").arg(port.to_string()).arg(directory.join("s.sock"));
            }
        }
        Ok(command)
    }
}

fn varnish(directory: &Path, port: u16) -> Command {
    let mut command = process::pinned(gateway_core(), "varnishd");
    command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,256m", "-p", "http_gzip_support=off"]);
    command.arg("-n").arg(directory.join("varnish"));
    command.args(["-a", &format!("tcp=127.0.0.1:{port}")]);
    command.args(["-a", &format!("uds={},mode=666", directory.join("s.sock").display())]);
    command
}

/// The release binary, in the directory above this program's.
pub(crate) fn release_build() -> Fallible<PathBuf> {
    let own_executable = std::env::current_exe()?;
    let binary = own_executable.ancestors().nth(2).unwrap_or(Path::new("/")).join("railgate");
    if binary.is_file() { Ok(binary) } else { Err(format!("{} is not built", binary.display()).into()) }
}

pub(crate) fn write_secrets(directory: &Path) -> Fallible<()> {
    fs::write(directory.join("shell_secret"), format!("{}\n", credentials::SHELL_SECRET))?;
    fs::write(directory.join("kas_secret"), format!("{}\n", credentials::kas_secret_file()))?;
    Ok(())
}
