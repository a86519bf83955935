#!/usr/bin/env bash
# serde_json 1.0.145: ignored values are parsed less strictly than `Value`.
#
# Two documents that RFC 8259 allows are errors for `serde_json::Value`, with the default features: a number beyond
# the range of f64 (`1e999`, "number out of range"), and an unpaired surrogate escape (`"\ud800"`, "unexpected
# end of hex escape", RFC 8259 §8.2). As an unknown member of a struct, or as `serde::de::IgnoredAny`, the same
# text is accepted. So a parser that is changed from `Value` to a struct with the one member it needs accepts
# documents that it refused before; and a document that one service ignores may be an error in the next one.
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
serde = { version = "=1.0.228", features = ["derive"] }
serde_json = "=1.0.145"
TOML
cat >src/main.rs <<'RUST'
use serde::de::IgnoredAny;
use serde_json::{from_str, Value};

#[derive(serde::Deserialize)]
struct Wanted {
    id: u32,
}

fn main() {
    for text in [r#"{"id":7,"other":1e999}"#, r#"{"id":7,"other":"\ud800"}"#, r#"{"id":7,"other":1}"#] {
        let kept = match from_str::<Value>(text) {
            Ok(_) => "read".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        let skipped = from_str::<IgnoredAny>(text).is_ok();
        let wanted = from_str::<Wanted>(text).map(|wanted| wanted.id).ok();
        println!("{text}: Value {kept}; IgnoredAny read: {skipped}; struct: {wanted:?}");
    }
}
RUST
output=$(cargo run --quiet)
printf '%s\n' "$output"
expected='{"id":7,"other":1e999}: Value refused: number out of range at line 1 column 21; IgnoredAny read: true; struct: Some(7)
{"id":7,"other":"\ud800"}: Value refused: unexpected end of hex escape at line 1 column 24; IgnoredAny read: true; struct: Some(7)
{"id":7,"other":1}: Value read; IgnoredAny read: true; struct: Some(7)'
[ "$output" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
