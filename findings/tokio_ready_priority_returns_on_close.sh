#!/usr/bin/env bash
# tokio 1.48.0 on Linux: `TcpStream::ready(Interest::PRIORITY)` returns when the peer closes its sending side, without
# urgent data, without a registration for it, and while there are unread bytes.
#
# The documentation of `Interest::PRIORITY` mentions only urgent data. `ready(Interest::READABLE)` cannot tell a close: it
# returns immediately while there is something to read, closed or not. So a task that does not want to read yet can still
# notice that its peer has disconnected; and one that waits for urgent data has to check the result, which has
# `is_read_closed` and not `is_priority`. The same holds for `UnixStream`.
#
# Needs cargo, and reaches crates.io.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
tokio = { version = "=1.48.0", features = ["io-util", "macros", "net", "rt", "time"] }
TOML
cat >src/main.rs <<'RUST'
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

/// How long to wait where nothing should happen.
const QUIET: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(30);

macro_rules! report {
    ($name:literal, $ours:ident, $theirs:ident) => {
        $theirs.write_all(b"bytes that are not read").await.unwrap();
        let readable = timeout(LONG, $ours.ready(Interest::READABLE)).await.unwrap().unwrap();
        let before = timeout(QUIET, $ours.ready(Interest::PRIORITY)).await.is_ok();
        $theirs.shutdown().await.unwrap();
        let after = timeout(LONG, $ours.ready(Interest::PRIORITY)).await.unwrap().unwrap();
        println!(
            "{}: readable {}; PRIORITY while open {}; after the close: priority {}, read closed {}",
            $name,
            readable.is_readable(),
            before,
            after.is_priority(),
            after.is_read_closed()
        );
    };
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    report!("TCP", ours, theirs);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    report!("unix", ours, theirs);
}
RUST
output=$(cargo run --quiet)
printf '%s\n' "$output"
expected='TCP: readable true; PRIORITY while open false; after the close: priority false, read closed true
unix: readable true; PRIORITY while open false; after the close: priority false, read closed true'
[ "$output" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
