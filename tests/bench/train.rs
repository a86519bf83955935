//! What callers send, for a binary that was built to count how often each of its branches is taken.
//!
//! Only the kinds of requests matter, and roughly how often they come; nothing is measured. The binary writes its
//! profile when it ends, to where `LLVM_PROFILE_FILE` says. `deploy/build` merges it and builds the release by it.

use std::path::PathBuf;

use crate::Fallible;
use crate::environment::{self, Environment};
use crate::load::{Credential, Kind, Options as Load};
use crate::peers::{RAILGATE, Running};

/// What is sent, and how many.
fn loads() -> [(&'static str, Load); 9] {
    let hits = Load { requests: 30_000, keys: 1_000, sleeps: true, ..Load::default() };
    let forwarded = Load { kind: Kind::Allowed, requests: 20_000, sleeps: true, ..Load::default() };
    [
        ("hits", hits.clone()),
        (
            "hits of callers with a token",
            Load { credential: Credential::Token, requests: 10_000, ..hits.clone() },
        ),
        ("users", Load { kind: Kind::Discover, requests: 10_000, ..hits.clone() }),
        (
            "hits, a connection for each",
            Load { short: true, connections: 16, requests: 10_000, ..hits.clone() },
        ),
        ("misses", Load { misses: 100, requests: 10_000, ..hits }),
        ("access checks", forwarded.clone()),
        ("calls of kas", Load { kind: Kind::Kas, ..forwarded.clone() }),
        ("large answers", Load { kind: Kind::Blob, ..large(&forwarded) }),
        ("large requests", Load { kind: Kind::Upload, ..large(&forwarded) }),
    ]
}

fn large(forwarded: &Load) -> Load {
    Load { requests: 4, connections: 2, mebibytes: 16, ..forwarded.clone() }
}

pub(crate) fn run(binary: PathBuf) -> Fallible<()> {
    let environment = Environment::for_training(binary)?;
    let mut running = RAILGATE.start(&environment)?;
    for (name, load) in loads() {
        for to in [running.port.to_string(), running.socket.display().to_string()] {
            send(name, Load { to, ..load.clone() }, &mut running)?;
        }
    }
    Ok(())
}

fn send(name: &str, load: Load, running: &mut Running) -> Fallible<()> {
    let figures = environment::run_load(&load)?;
    running.process.must_run()?;
    eprintln!("{name}: {} answers", figures.responses);
    if figures.errors > 0 || figures.responses != load.requests {
        return Err(format!(
            "{name}: {} errors, {} answers of {}",
            figures.errors, figures.responses, load.requests
        )
        .into());
    }
    Ok(())
}
