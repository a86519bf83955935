//! Time from exec to the first cache hit, idle memory, and size of the binary.
//!
//! The time includes two small programs, taskset and setpriv, that pin the process before they become it.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::environment::Environment;
use crate::load::ResponseParser;
use crate::peers::RAILGATE;
use crate::process::{self, Process};
use crate::report::{cell, median};
use crate::{Fallible, credentials, keys, machine};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The number of starts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
}

const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options, binary: PathBuf) -> Fallible<()> {
    let environment = Environment::for_railgate_alone(binary)?;
    let mut starts = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..options.starts {
        let (took, memory) = start(&environment)?;
        starts.push(took.as_secs_f64() * 1e3);
        idle.push(memory as f64 / f64::from(1 << 20));
    }
    let size = fs::metadata(&environment.binary)?.len() as f64 / f64::from(1 << 20);
    let milliseconds = median(starts.into_iter());
    println!("\n### Start (median of {})\n", options.starts);
    println!("| exec to the first answer from memory, ms | resident memory then, MiB | binary, MiB |");
    println!("|--:|--:|--:|");
    println!(
        "| {} | {} | {} |",
        cell(milliseconds, 2),
        cell(median(idle.into_iter()), 1),
        cell(Some(size), 1)
    );
    Ok(())
}

/// Starts a new process and sends two requests. Returns the time, and the memory of the process then.
fn start(environment: &Environment) -> Fallible<(Duration, u64)> {
    let directory = environment.scratch.folder(RAILGATE.name)?;
    let port = machine::free_port()?;
    let command: Command = RAILGATE.command(environment, &directory, port, None)?;
    let asked = environment.rails.count()?;
    let request = format!(
        "GET /api/v4/internal/authorized_keys?key={} HTTP/1.1\r\nHost: localhost\r\n{}: {}\r\n\r\n",
        keys::escaped(&keys::key(0)),
        credentials::SHELL_HEADER,
        credentials::shared_secret(),
    );

    let begun = Instant::now();
    let mut process = Process::start(RAILGATE.name, command, &directory)?;
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && begun.elapsed() < DEADLINE => {
                process.must_run()?;
                thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error.into()),
        }
    };
    stream.set_read_timeout(Some(DEADLINE))?;
    for _ in 0..2 {
        exchange(&mut stream, &request)?;
    }
    let took = begun.elapsed();

    if environment.rails.count()? != asked + 1 {
        return Err("the second answer did not come from memory".into());
    }
    Ok((took, process::memory(process.pid(), "VmRSS")))
}

fn exchange(stream: &mut TcpStream, request: &str) -> Fallible<()> {
    stream.write_all(request.as_bytes())?;
    let mut response = ResponseParser::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err("the connection was closed".into());
        }
        if response.push(buffer.get(..count).unwrap_or_default()) {
            break;
        }
    }
    if response.status == 200 { Ok(()) } else { Err(format!("answered {}", response.status).into()) }
}
