//! The first command of the README, on machines that lack some programs. What it would install or build is
//! only recorded.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use super::harness::Scratch;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A machine with these programs and those of every Debian.
struct Machine {
    dir: Scratch,
}

impl Machine {
    fn with(programs: &[(&str, &str)]) -> Self {
        let machine = Self { dir: Scratch::new() };
        for tool in ["bash", "cut", "dirname", "env", "grep", "head", "sed", "sort"] {
            let real = ["/usr/bin", "/bin"].iter().map(|dir| PathBuf::from(dir).join(tool));
            symlink(real.into_iter().find(|path| path.exists()).unwrap(), machine.dir.file(tool)).unwrap();
        }
        for (name, does) in programs {
            let log = machine.dir.file("log");
            let script = format!("#!/bin/bash\nlog() {{ echo \"$@\" >> {}; }}\n{does}\n", log.display());
            fs::write(machine.dir.file(name), script).unwrap();
            fs::set_permissions(machine.dir.file(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        machine
    }

    /// Runs the script. Returns whether it succeeded, its output, and the recorded actions.
    fn run(&self) -> (bool, String, Vec<String>) {
        let mut command = Command::new(format!("{REPOSITORY}/deploy/demo"));
        command.args(["--port", "0"]).env_clear().env("PATH", self.dir.path()).env("HOME", self.dir.path());
        command.env("SSL_CERT_FILE", self.dir.file(CERTIFICATES.0));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let done = fs::read_to_string(self.dir.file("log")).unwrap_or_default();
        let printed = String::from_utf8([stdout, stderr].concat()).unwrap();
        (status.success(), printed, done.lines().map(str::to_owned).collect())
    }
}

const CARGO: (&str, &str) = ("cargo", r#"[ "$1" = --version ] && echo cargo 1.95.0 || log cargo "$@""#);
const RUSTC: (&str, &str) = ("rustc", "echo 'rustc 1.95.0 (59807616e 2026-04-14)'");
const CC: (&str, &str) = ("cc", ":");
const CERTIFICATES: (&str, &str) = ("certificates", "");
const CURL: (&str, &str) = ("curl", ":");
const APT: (&str, &str) = ("apt-get", r#"log apt-get "$@""#);
const DPKG: (&str, &str) = ("dpkg-query", "exit 1");
const ROOT: (&str, &str) = ("id", "echo 0");
const USER: (&str, &str) = ("id", "echo 1000");
const SUDO: (&str, &str) = ("sudo", r#"log sudo; exec "$@""#);

const UPDATE: &str = "apt-get update -qq";
const RUN: &str = "cargo run --locked --release -- demo --port 0";

#[test]
fn missing_packages_are_installed_or_named_and_the_demo_runs() {
    let install = |what: &str| format!("apt-get install -y -qq --no-install-recommends {what}");
    let (all, curl) = (install("gcc libc6-dev ca-certificates curl"), install("curl"));
    let old = ("rustc", "echo 'rustc 1.63.0'");
    let newer = ("rustc", "echo 'rustc 1.100.0-nightly (0 2026-12-01)'");
    let (certificates, compiler) = (install("ca-certificates"), install("gcc libc6-dev"));
    for (programs, done, message) in [
        (
            &[CARGO, RUSTC, APT, DPKG, ROOT][..],
            Some(vec![UPDATE, &all, RUN]),
            "missing: gcc libc6-dev ca-certificates curl",
        ),
        (
            &[CARGO, RUSTC, CERTIFICATES, CURL, APT, DPKG, ROOT],
            Some(vec![UPDATE, &compiler, RUN]),
            "missing: gcc",
        ),
        (&[CARGO, RUSTC, CC, CERTIFICATES, APT, DPKG, ROOT], Some(vec![UPDATE, &curl, RUN]), "missing: curl"),
        (&[CARGO, RUSTC, CC, CURL, APT, DPKG, ROOT], Some(vec![UPDATE, &certificates, RUN]), "missing: ca-"),
        (&[CARGO, RUSTC, CC, CERTIFICATES, CURL, APT], Some(vec![RUN]), "nothing is missing"),
        // Elsewhere, certificates are in other places.
        (&[CARGO, RUSTC, CC, CURL], Some(vec![RUN]), "nothing is missing"),
        (&[CARGO, newer, CC, CURL], Some(vec![RUN]), "nothing is missing"),
        (
            &[CARGO, RUSTC, CC, CERTIFICATES, APT, DPKG, USER, SUDO],
            Some(vec!["sudo", UPDATE, "sudo", &curl, RUN]),
            "missing: curl",
        ),
        (
            &[CARGO, RUSTC, CERTIFICATES, APT, DPKG, USER],
            None,
            "please install, as root: apt-get install gcc libc6-dev curl",
        ),
        (
            &[CARGO, RUSTC, USER],
            None,
            "this is not a Debian; please install the equivalent of: gcc libc6-dev curl",
        ),
        // Nothing is installed where the build could not begin.
        (&[CC, CURL], None, "cargo is missing; please install Rust 1.95 or later"),
        (&[APT, DPKG, ROOT], None, "cargo is missing; please install Rust 1.95 or later"),
        (&[CARGO, old, APT, DPKG, ROOT], None, "this is Rust 1.63.0, but 1.95 or later"),
    ] {
        let machine = Machine::with(programs);
        let (is_ok, printed, log) = machine.run();
        assert_eq!(is_ok, done.is_some(), "{printed}");
        assert!(printed.contains(message), "{message}: {printed}");
        assert_eq!(log, done.unwrap_or_default(), "{printed}");
    }
}

#[test]
fn the_readme_begins_with_the_script_and_the_plain_command() {
    let readme = fs::read_to_string(format!("{REPOSITORY}/README.md")).unwrap();
    let commands: Vec<_> = readme.lines().filter_map(|line| line.strip_prefix("    ")).take(2).collect();
    assert_eq!(commands[0].split_whitespace().next(), Some("deploy/demo"));
    assert_eq!(commands[1], "cargo run --release -- demo");
}
