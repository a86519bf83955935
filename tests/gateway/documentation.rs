//! The tables of commands and exit codes in the documentation are those of the program, and its sections name what
//! operators need.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use super::harness::Scratch;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILES: [&str; 4] = ["README.md", "config/README.md", "deploy/README.md", "tests/README.md"];

/// The rows of the one table with this header, cell by cell, in whichever README has it.
fn table(header: &str) -> Vec<Vec<String>> {
    let texts = FILES.iter().filter_map(|file| fs::read_to_string(Path::new(ROOT).join(file)).ok());
    let cells = |row: &str| row.trim_matches(['|', ' ']).split(" | ").map(str::to_owned).collect();
    let tables: Vec<Vec<_>> = texts
        .flat_map(|text| {
            let tables = text.split("\n\n").filter(|block| block.trim_start().starts_with(header));
            tables.map(|table| table.trim().lines().skip(2).map(cells).collect()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(tables.len(), 1, "{header}");
    tables.into_iter().next().unwrap()
}

fn railgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_railgate"))
        .args(arguments)
        .env_remove("CLICOLOR_FORCE")
        .env_remove("RAILGATE_CONFIG")
        .output()
        .unwrap()
}

/// All commands, such as `hook install`, by the program's own help.
pub fn commands(prefix: &[&str]) -> BTreeSet<String> {
    let help = String::from_utf8(railgate(&[prefix, &["--help"]].concat()).stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return BTreeSet::from([prefix.join(" ")]) };
    let names = list.lines().take_while(|line| !line.is_empty());
    // What continues a description is indented further.
    let names =
        names.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").flat_map(|name| commands(&[prefix, &[name]].concat())).collect()
}

/// The commands in back quotes in a text, without their options.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.map(|command| {
        let words = command.split(' ').skip_while(|word| *word == "railgate");
        words.take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect::<Vec<_>>().join(" ")
    });
    words.filter(|command| !command.is_empty()).collect()
}

/// What an operator cannot find out by a test of the gateway: facts about what stands around it.
#[test]
fn sections_name_what_operators_have_to_set_elsewhere() {
    for (file, heading, words) in [
        (
            "deploy/README.md",
            "## Install",
            &[
                "Point `upstream.url` at Workhorse",
                "LFS files in object storage",
                "`orbit`",
                "429",
                "upstream_needs_workhorse",
                "gitlab_kas['gitlab_address']",
                "upstream.forward_prefixes = [\"/api/v4/geo/\"]",
                "topology_service",
                "14.50",
            ][..],
        ),
        (
            "deploy/README.md",
            "### SELinux",
            &[
                "AuthorizedKeysCommand",
                "gitlab_shell_t",
                "semodule -i railgate.pp",
                "restorecon -R /run/railgate",
                "semanage port -m -t http_cache_port_t -p tcp 8181",
                "intermapper_port_t",
                "ausearch -m avc",
            ],
        ),
        (
            "deploy/README.md",
            "### On another host than Rails",
            &["gitlab_rails['trusted_proxies']", "600 calls of `/allowed` a minute"],
        ),
        (
            "deploy/README.md",
            "## System Hooks",
            &[
                "a user is blocked, banned or deactivated",
                "a key expires",
                "usage type",
                "in bulk",
                "Silent Mode",
                "a user is unblocked",
                "A 429 means",
            ],
        ),
        ("config/README.md", "### Long queries", &["object_pool_members", "PUMA_QUERY_STRING_MAX_LENGTH"]),
        ("config/README.md", "### Look-ups", &["gitlab-sshd", "10 s", "4 s in all"]),
        ("config/README.md", "## Authentication", &[r#"{"error":"Unauthorized"}"#]),
        ("config/README.md", "## The cache", &["`traceparent`, `tracestate` and `baggage`"]),
    ] {
        let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
        let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{heading}"));
        let level = heading.split(' ').next().unwrap();
        // A section goes on until the next one of its level.
        let section = section.split(&format!("\n{level} ")).next().unwrap();
        let section = section.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(section.contains(word), "{file}, {heading}: {word}");
        }
    }
}

#[test]
fn every_command_is_in_the_table_of_commands() {
    let documented = table("| Command | What it does |").iter().flat_map(|cells| named(&cells[0])).collect();
    assert!(commands(&[]).len() > 6, "{:?}", commands(&[]));
    assert_eq!(commands(&[]), documented);
}

#[test]
fn exit_codes_are_those_in_the_table() {
    let table = table("| Exit code | Meaning |");
    let codes: Vec<_> = table.iter().map(|cells| cells[0].as_str()).collect();
    assert_eq!(codes, ["0", "1", "2"]);
    assert_eq!(named(&table[0][1]), commands(&[]), "what 0 means for each command");
    let scratch = Scratch::new();
    let (valid, invalid) = (scratch.file("valid.toml"), scratch.file("invalid.toml"));
    let secret = scratch.file("secret");
    fs::write(&secret, "s3cret").unwrap();
    let text = format!(
        "upstream.url = 'http+unix://%2Fnone'\nauth.shell.secret_file = '{}'\nadmin.address = 'unix:{}'",
        secret.display(),
        scratch.file("none").display()
    );
    fs::write(&valid, &text).unwrap();
    fs::write(&invalid, format!("{text}\nadmin.connections = 0")).unwrap();
    let [valid, invalid] = [valid.to_str().unwrap(), invalid.to_str().unwrap()];
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    for (arguments, code) in [
        (&["check", "--config", valid][..], 0),
        (&["--version"], 0),
        (&["check", "--config", invalid], 1),
        (&["run", "--config", invalid], 1),
        (&["doctor", "--config", valid], 1),
        (&["purge", "--all", "--config", valid], 1),
        (&["inspect", "--config", valid], 1),
        (&["servers", "--config", invalid], 1),
        (&["hook", "install", "--config", valid], 1),
        (&["config", "show", "--config", valid], 0),
        (&["config", "show", "--config", invalid], 1),
        (&["config", "schema"], 0),
        (&["check", "--explain", "cache.discover.ttl"], 0),
        (&["check", "--explain", "cache.discover.tll"], 1),
        (&["health", "--config", valid], 1),
        (&["top", "--once", "--config", valid], 1),
        (&["token", "shell", "--config", valid], 0),
        (&["token", "kas", "--config", valid], 1),
        (&["token", "shell", "--ttl", "0", "--config", valid], 2),
        (&["completions", "fish"], 0),
        (&["completions", "tcsh"], 2),
        (&["man"], 0),
        (&["man", "--directory", valid], 1),
        (&["demo", "--port", &taken], 1),
        (&["purge", "--config", valid], 2),
        (&["check"], 2),
        (&["chekc"], 2),
    ] {
        let output = railgate(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
}
