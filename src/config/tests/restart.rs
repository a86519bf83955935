//! What a reload takes over, and what it names instead: each key is one of the two.

use super::keys::load;
use super::shipped::{FLEET_URL, uncommented};
use super::*;
use crate::config::key::KeyKind;

/// The annotated file with every key, each with a value, and with several servers of Rails; or, for the key of one, less.
fn text_with(key: &KeyRead) -> String {
    match key.path().as_str() {
        "upstream.url" => return BASE.to_owned(),
        "fleet.url" => return format!("{BASE}[fleet]\n{FLEET_URL}"),
        _ => {}
    }
    uncommented()
        .replace(FLEET_URL, "")
        .replace("127.0.0.1:9181", "unix:/run/railgate/admin.sock")
        .replace("127.0.0.1:8282", "unix:/run/railgate/hooks.sock")
        .replace("http://127.0.0.1:4318", "https://127.0.0.1:4318")
        .replace("url = \"http+unix://%2Fvar%2Fopt%2Fgitlab%2Fgitlab-workhorse%2Fsockets%2Fsocket\"\n", "")
}

/// Values for a key, of which at least one can be used, and is another one than that in the file.
fn candidates(key: &KeyRead, files: &Files) -> Vec<String> {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    match &key.kind {
        KeyKind::Integer(range) => {
            (range.start..range.end).take(3).map(|number| number.to_string()).collect()
        }
        KeyKind::Fraction => texts(&["0.5", "0.25"]),
        KeyKind::Boolean => texts(&["true", "false"]),
        KeyKind::Choice(words) => texts(words),
        KeyKind::Duration(range) => {
            let mut all = texts(&["2s", "3s", "70s", "11m", "2h"]);
            all.push(format!("{}ms", range.start().as_millis()));
            all
        }
        KeyKind::Size(_) => texts(&["5KiB", "20KiB", "2MiB", "3MiB", "200MiB"]),
        KeyKind::Section | KeyKind::SectionArray => Vec::new(),
        KeyKind::StringList => {
            texts(&["[\"jwt\"]", "[\"kas\"]", "[\"10.9.0.0/16\"]", "[\"/other/\"]", "[\"other.example\"]"])
        }
        KeyKind::Text if key.name.ends_with("_file") => {
            let copies = fs::read_dir(&files.dir).unwrap().map(|entry| entry.unwrap().path());
            let ending = match key.name {
                "key_file" => Some("key"),
                "certificate_file" | "client_ca_file" | "ca_file" => Some("pem"),
                _ => None,
            };
            let is_alike = |path: &PathBuf| path.extension().and_then(|ending| ending.to_str()) == ending;
            let copies = copies.filter(|path| path.to_string_lossy().contains("copy-") && is_alike(path));
            copies.map(|path| path.display().to_string()).collect()
        }
        KeyKind::Text => texts(&[
            "127.0.0.1:7001",
            "unix:/run/railgate/another.sock",
            "0640",
            "1",
            "1.3",
            "http://10.9.9.9:80",
            "redis://10.9.9.9",
            "https://10.9.9.9",
            "http://10.9.9.9:80/gitlab",
            "https://10.9.9.9/gitlab",
            "/another",
            "DIR/another",
            "another.example",
            "[\"10.9.0.0/16\"]",
            "[\"uid:7\"]",
        ]),
    }
}

/// What a restart takes, as the log and the answer name it.
const RESTART: [&str; 17] = [
    "admin.address",
    "admin.connections",
    "auth.shell.max_unverified",
    "cache.max_bytes",
    "cache.max_entries",
    "cache.max_negative_entries",
    "cache.max_refreshes",
    "cache.shadow",
    "cache.snapshot",
    "fleet",
    "hooks.address",
    "hooks.connections",
    "limits.connections",
    "listen",
    "listen.connections",
    "upgrade.socket",
    "workers",
];

/// What is not shown, or does not change alone; it is part of what is taken over as a whole.
const OPAQUE: [&str; 11] = [
    "upstream.credential",
    "upstream.tls.ca_file",
    "upstream.tls.certificate_file",
    "upstream.tls.key_file",
    "tracing.headers_file",
    "tracing.tls.ca_file",
    "tracing.tls.certificate_file",
    "tracing.tls.key_file",
    "fleet.tls.ca_file",
    "fleet.tls.certificate_file",
    "fleet.tls.key_file",
];

#[test]
fn each_key_is_taken_over_or_named() {
    let files = Files::new();
    for entry in fs::read_dir(&files.dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_file() {
            let copy = files.dir.join(format!("copy-{}", entry.file_name().unwrap().display()));
            fs::copy(&entry, copy).unwrap();
        }
    }
    let kept_for = [std::time::Duration::MAX; 2];
    let mut known: Option<(String, String, GatewayConfig)> = None;
    let (mut named, mut swapped, mut without) = (BTreeSet::new(), 0, Vec::new());
    for key in read::keys() {
        let Some(variable) = key.variable().filter(|_| key.kind != KeyKind::SectionArray) else { continue };
        if OPAQUE.contains(&&*key.path()) {
            continue;
        }
        // The first listener is on TCP, the second one on a unix socket; and a first server that is a backup is a mistake.
        let is_of_second = ["mode", "owner", "group", "backup"].contains(&key.name);
        let variable = if is_of_second { variable.replace("__0__", "__1__") } else { variable };
        let text = text_with(&key);
        if known.as_ref().is_none_or(|(of, ..)| *of != text) {
            let running = load(&files, &text, &[]).unwrap().config;
            known = Some((text.clone(), format!("{running:?}"), running));
        }
        let Some((_, before, running)) = &known else { unreachable!() };
        let changed = candidates(&key, &files).into_iter().find_map(|value| {
            let value = value.replace("DIR", files.dir.to_str().unwrap());
            let loaded = load(&files, &text, &[(&variable, &value)]).ok()?.config;
            (format!("{loaded:?}") != *before).then_some(loaded)
        });
        let Some(mut changed) = changed else {
            without.push(variable);
            continue;
        };
        let wanted = format!("{changed:?}");
        let keys = changed.keep_until_restart(running, kept_for);
        let after = format!("{changed:?}");
        if keys.is_empty() {
            assert_eq!(after, wanted, "{variable} is neither taken over nor named");
            swapped += 1;
        } else {
            assert_ne!(after, wanted, "{variable}: {keys:?} is named, and taken over all the same");
            named.extend(keys);
        }
    }
    assert_eq!(without, [""; 0], "no other value is tried");
    let expected: BTreeSet<_> = RESTART.into_iter().collect();
    assert_eq!(named, expected);
    assert!(swapped > 60, "{swapped}");
    // A field that is new here has to be taken over in `gateway/live.rs`, or kept in `config/restart.rs`.
    let GatewayConfig {
        workers: _,
        listen: _,
        admin: _,
        hooks: _,
        upstream: _,
        upstream_credential: _,
        forward_prefixes: _,
        auth: _,
        cache: _,
        secrets: _,
        limits: _,
        log: _,
        upgrade_socket: _,
        tracing: _,
        fleet: _,
    } = files.load(BASE);
}
