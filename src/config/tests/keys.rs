//! Keys from the environment, hints about unknown keys, and what describes the configuration: `explain`, the schema,
//! and `show`.

use std::ffi::OsString;

use super::shipped::uncommented;
use super::*;

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

/// What the file and these variables give.
pub(super) fn load(files: &Files, text: &str, pairs: &[(&str, &str)]) -> Result<LoadedConfig, Vec<String>> {
    let shown = |error: ConfigError| error.0.iter().map(Diagnostic::to_string).collect::<Vec<_>>();
    parse_with("test.toml", &files.with_paths(text), variables(pairs)).map_err(shown)
}

#[test]
fn every_key_can_come_from_the_environment() {
    let files = Files::new();
    let keys = read::keys();
    let settable: Vec<_> = keys.iter().filter_map(KeyRead::variable).collect();
    assert!(settable.len() > 90 && settable.contains(&"RAILGATE_UPSTREAM__CLASSES__KAS__HOLD".to_owned()));
    for key in keys.iter().filter(|key| key.variable().is_some()) {
        // What is wrong for every kind: the error shows that the value has reached the reader.
        let wrong = "\u{1f6ab}";
        let errors = load(&files, BASE, &[(&key.variable().unwrap(), wrong)]).err().unwrap_or_default();
        // A section that exists only because of the variable lacks others.
        let path = if key.scope.contains('[') { String::new() } else { format!("{}: ", key.path()) };
        let begin = format!("{}: {path}", key.variable().unwrap());
        let any_text = [
            "upstream.tls.server_name",
            "auth.kas.audience",
            "tracing.service_name",
            "tracing.tls.server_name",
            "fleet.tls.server_name",
        ];
        let takes_any_text = any_text.contains(&key.path().as_str());
        let is_reported = errors.iter().any(|error| error.starts_with(&begin));
        assert!(is_reported || takes_any_text, "{begin}{errors:?}");
    }
}

#[test]
fn variables_override_the_file() {
    let files = Files::new();
    let pairs = [
        ("RAILGATE_UPSTREAM__URL", "http://10.1.1.1"),
        ("RAILGATE_UPSTREAM__CLASSES__LOOKUP__HOLD", "2s"),
        ("RAILGATE_AUTH__SHELL__ACCEPT", r#"["jwt"]"#),
        ("RAILGATE_CACHE__MAX_ENTRIES", "1_000"),
        ("RAILGATE_LOG__REQUESTS", "false"),
        ("RAILGATE_LOG__FORMAT", "pretty"),
        ("RAILGATE_LISTEN", r#"[{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2", "connections": 5}]"#),
        ("RAILGATE_CONFIG", "/somewhere"),
        ("HOME", "/root"),
    ];
    let text = format!("{BASE}[log]\nrequests = true\nlevel = 'warn'\n[[listen]]\naddress = '127.0.0.1:9'\n");
    let config = load(&files, &text, &pairs).unwrap().config;
    assert_eq!(config.upstream.servers[0].target, UpstreamTarget::parse("http://10.1.1.1").unwrap());
    assert_eq!(crate::route::Class::Lookup.of(&config.upstream.classes).hold.as_secs(), 2);
    assert!(config.auth.accept_jwt && !config.auth.accept_shared_secret);
    assert_eq!(config.cache.max_entries, 1_000);
    let expected =
        LogSettings { format: crate::log::LogFormat::Pretty, level: tracing::Level::WARN, requests: false };
    assert_eq!(config.log, expected);
    let listen: Vec<_> = config.listen.iter().map(|one| (one.address.to_string(), one.connections)).collect();
    assert_eq!(listen, [("127.0.0.1:1".to_owned(), 10_000), ("127.0.0.1:2".to_owned(), 5)]);

    // No file has to have anything.
    let secret = files.with_paths("DIR/gitlab_shell_secret");
    let pairs = [("RAILGATE_UPSTREAM__URL", "http://h"), ("RAILGATE_AUTH__SHELL__SECRET_FILE", &secret)];
    assert!(load(&files, "", &pairs).is_ok());
}

#[test]
fn mistakes_in_variables_name_the_variable() {
    let files = Files::new();
    for (name, value, expected) in [
        ("RAILGATE_UPSTREAM__ULR", "x", "sets no key; did you mean RAILGATE_UPSTREAM__URL"),
        ("RAILGATE_UPSTREAM_URL", "x", "sets no key; did you mean RAILGATE_UPSTREAM__URL"),
        ("RAILGATE_URL", "x", "sets no key; did you mean RAILGATE_FLEET__URL or RAILGATE_UPSTREAM__URL"),
        ("RAILGATE_upstream__url", "x", "sets no key; "),
        ("RAILGATE_UPSTREAM", "x", "sets no key; "),
        ("RAILGATE_LISTEN__ADDRESS", "x", "sets no key; did you mean RAILGATE_LISTEN__0__ADDRESS"),
        ("RAILGATE_LISTEN__FIRST__ADDRESS", "x", "sets no key; did you mean RAILGATE_LISTEN__0__ADDRESS"),
        ("RAILGATE_LISTEN__00__ADDRESS", "x", "sets no key; did you mean RAILGATE_LISTEN__0__ADDRESS"),
        ("RAILGATE_LISTEN__-1__ADDRESS", "x", "sets no key; did you mean RAILGATE_LISTEN__0__ADDRESS"),
        (
            "RAILGATE_LISTEN__99999999999999999999__ADDRESS",
            "x",
            "sets no key; did you mean RAILGATE_LISTEN__0__",
        ),
        ("RAILGATE_LISTEN__0__ADRESS", "x", "sets no key; did you mean RAILGATE_LISTEN__0__ADDRESS"),
        ("RAILGATE_LISTEN__0", "x", "sets no key; "),
        ("RAILGATE_0__ADDRESS", "x", "sets no key; "),
        ("RAILGATE_UPSTREAM__0__URL", "x", "sets no key; did you mean RAILGATE_UPSTREAM__URL"),
        ("RAILGATE_LISTEN__0__ADDRESS", "x", "listen.address: expected an IP address"),
        (
            "RAILGATE_LISTEN__1__ADDRESS",
            "127.0.0.1:1",
            "listen.address: leaves a gap: the next section [[listen]] has the number 0",
        ),
        (
            "RAILGATE_LISTEN__1000000000__ADDRESS",
            "127.0.0.1:1",
            "listen.address: leaves a gap: the next section [[listen]] has the number 0",
        ),
        ("RAILGATE_LISTEN", "[{ address = '127.0.0.1:1', tls = { z = 1 } }]", "listen.tls.z: unknown key"),
        ("RAILGATE_ZZZ", "x", "sets no key; a key such as upstream.url is set by RAILGATE_UPSTREAM__URL"),
        ("RAILGATE_UPSTREAM__URL", "", "upstream.url: "),
        ("RAILGATE_UPSTREAM__URL", "ftp://x", "upstream.url: must begin with http://"),
        ("RAILGATE_LIMITS__HEADERS", "many", "limits.headers: expected a whole number from 8 to 1000, found"),
        ("RAILGATE_LIMITS__HEADERS", "7", "limits.headers: expected a whole number from 8 to 1000, found"),
        ("RAILGATE_LOG__REQUESTS", "yes", "log.requests: expected true or false"),
        (
            "RAILGATE_AUTH__SHELL__ACCEPT",
            "jwt",
            "auth.shell.accept: expected a list in TOML or JSON, such as",
        ),
        ("RAILGATE_LISTEN", "[1]", "listen: expected sections"),
        ("RAILGATE_LISTEN", "[{ adress = 'x' }]", "listen.adress: unknown key; did you mean \"address\"?"),
        ("RAILGATE_LISTEN", "[{ address = 'x' }]", "listen.address: expected an IP address"),
        ("RAILGATE_AUTH__SHELL__SECRET_FILE", "/nowhere", "auth.shell.secret_file: /nowhere cannot be read"),
    ] {
        let errors = load(&files, BASE, &[(name, value)]).unwrap_err();
        let begin = format!("{name}: {expected}");
        assert!(errors.iter().all(|error| error.starts_with(&format!("{name}: "))), "{errors:?}");
        assert!(errors.iter().any(|error| error.starts_with(&begin)), "{begin}\n{errors:?}");
    }
    let bytes = <OsString as std::os::unix::ffi::OsStringExt>::from_vec(vec![0xff]);
    let pairs = vec![("RAILGATE_LOG__LEVEL".into(), bytes)];
    let ConfigError(errors) = parse_with("test.toml", &files.with_paths(BASE), pairs).unwrap_err();
    assert_eq!(errors[0].to_string(), "RAILGATE_LOG__LEVEL: log.level: holds bytes that are not UTF-8");
}

#[test]
fn variables_set_the_keys_of_one_section_of_several() {
    let files = Files::new();
    let text = format!(
        "{BASE}[[listen]]\naddress = '127.0.0.1:1'\nconnections = 5\n[[listen]]\naddress = '[::1]:1'"
    );
    let listen = |pairs: &[(&str, &str)]| {
        let config = load(&files, &text, pairs)?.config;
        Ok(config.listen.iter().map(|one| (one.address.to_string(), one.connections)).collect::<Vec<_>>())
    };
    let are = |listen: &[(&str, usize)]| -> Result<Vec<(String, usize)>, Vec<String>> {
        Ok(listen.iter().map(|(address, connections)| ((*address).to_owned(), *connections)).collect())
    };
    // Of one that is there; and a new one behind the last, in the order of numbers.
    let pairs = [("RAILGATE_LISTEN__0__ADDRESS", "127.0.0.1:2"), ("RAILGATE_LISTEN__1__CONNECTIONS", "7")];
    assert_eq!(listen(&pairs), are(&[("127.0.0.1:2", 5), ("[::1]:1", 7)]));
    let names: Vec<_> = (2..12).map(|number| format!("RAILGATE_LISTEN__{number}__ADDRESS")).collect();
    let addresses: Vec<_> = (2..12).map(|number| format!("127.0.0.1:{number}")).collect();
    let pairs: Vec<_> = names.iter().zip(&addresses).map(|(name, address)| (&**name, &**address)).collect();
    let all: Vec<_> = addresses.iter().map(|address| (&**address, 10_000)).collect();
    assert_eq!(listen(&pairs), are(&[&[("127.0.0.1:1", 5), ("[::1]:1", 10_000)][..], &all].concat()));
    // Into a list that a variable has as a whole.
    let whole = ("RAILGATE_LISTEN", "[{ address = '127.0.0.1:8' }]");
    let pairs =
        [("RAILGATE_LISTEN__0__CONNECTIONS", "9"), ("RAILGATE_LISTEN__1__ADDRESS", "127.0.0.1:9"), whole];
    assert_eq!(listen(&pairs), are(&[("127.0.0.1:8", 9), ("127.0.0.1:9", 10_000)]));
    // A gap, and mistakes: each names its variable.
    let gap = [("RAILGATE_LISTEN__3__ADDRESS", "127.0.0.1:3")];
    let expected = "RAILGATE_LISTEN__3__ADDRESS: listen.address: leaves a gap: the next section [[listen]] has the number 2";
    assert_eq!(listen(&gap), Err(vec![expected.to_owned()]));
    let pairs =
        [("RAILGATE_LISTEN__0__CONNECTIONS", "x"), ("RAILGATE_LISTEN__2__TLS__KEY_FILE", "/none"), whole];
    let errors = listen(&pairs).unwrap_err();
    for begin in
        ["RAILGATE_LISTEN__0__CONNECTIONS: listen.connections: ", "RAILGATE_LISTEN__2__TLS__KEY_FILE: listen"]
    {
        assert!(errors.iter().any(|error| error.starts_with(begin)), "{errors:?}");
    }

    let text = BASE.replace("url = ", "[[upstream.server]]\nurl = ");
    let pairs =
        [("RAILGATE_UPSTREAM__SERVER__0__BACKUP", "true"), ("RAILGATE_UPSTREAM__SERVER__1__URL", "http://b")];
    let servers = load(&files, &text, &pairs).unwrap().config.upstream.servers;
    let servers: Vec<_> = servers.iter().map(|server| (server.name(), server.is_backup)).collect();
    assert_eq!(servers, [("127.0.0.1:8080".to_owned(), true), ("b:80".to_owned(), false)]);
}

/// Whatever a variable holds is a string of the same characters.
#[test]
fn odd_characters_in_variables_are_kept() {
    let files = Files::new();
    let odd = "a\u{7f}\n\u{1}\"\\'\u{1f6ab}";
    let errors = load(&files, BASE, &[("RAILGATE_UPSTREAM__HOST", odd)]).unwrap_err();
    let expected = format!(
        "RAILGATE_UPSTREAM__HOST: upstream.host: expected a host name, perhaps with a port, found {odd:?}"
    );
    assert_eq!(errors, [expected]);
    let nested = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for name in ["RAILGATE_LISTEN", "RAILGATE_AUTH__SHELL__ACCEPT", "RAILGATE_CACHE__MAX_ENTRIES"] {
        assert!(load(&files, BASE, &[(name, &nested)]).is_err(), "{name}");
    }
}

/// A Service named `railgate` sets these in every container of its namespace.
#[test]
fn the_variables_of_kubernetes_are_no_keys() {
    let files = Files::new();
    let pairs = [
        ("RAILGATE_SERVICE_HOST", "10.0.0.1"),
        ("RAILGATE_SERVICE_PORT", "8181"),
        ("RAILGATE_SERVICE_PORT_HTTP", "8181"),
        ("RAILGATE_PORT", "tcp://10.0.0.1:8181"),
        ("RAILGATE_PORT_8181_TCP", "tcp://10.0.0.1:8181"),
        ("RAILGATE_PORT_8181_TCP_PROTO", "tcp"),
        ("RAILGATE_PORT_8181_TCP_ADDR", "10.0.0.1"),
        ("RAILGATE_ADMIN_SERVICE_HOST", "10.0.0.2"),
        ("RAILGATE_ADMIN_PORT_9181_TCP_PORT", "9181"),
    ];
    assert!(load(&files, BASE, &pairs).is_ok());
}

#[test]
fn unknown_keys_have_a_hint() {
    let files = Files::new();
    for (text, expected) in [
        (
            "[cahce]\nmax_entires = 1\n[cahce.discovr]\nttl = '1s'\nttt = '1s'\n",
            &[
                "test.toml:5: cahce: unknown key; did you mean \"cache\"?",
                "test.toml:6: cahce.max_entires: unknown key; did you mean \"max_entries\"?",
                "test.toml:7: cahce.discovr: unknown key; did you mean \"discover\"?",
                "test.toml:9: cahce.discovr.ttt: unknown key; did you mean \"ttl\"?",
            ][..],
        ),
        (
            "[[listne]]\nadress = 'x'\n",
            &[
                "test.toml:5: listne: unknown key; did you mean \"listen\"?",
                "test.toml:6: listne.adress: unknown key; did you mean \"address\"?",
            ],
        ),
        (
            "[limits]\nmax_idle = 5\n",
            &["test.toml:6: limits.max_idle: unknown key; known here: connections, head, headers, target, \
                 first_byte_timeout, head_timeout, idle_timeout, drain_timeout; there is upstream.max_idle"],
        ),
        (
            "[discover]\nttl = '1s'\n",
            &[
                "test.toml:5: discover: unknown key; known here: workers, listen, admin, hooks, upstream, auth, cache, \
               limits, log, upgrade, tracing, fleet; there is cache.discover",
            ],
        ),
    ] {
        let errors = files.errors(&format!("{BASE}{text}"));
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

#[test]
fn the_reader_describes_the_same_keys_as_the_annotated_file() {
    let mut known = BTreeSet::new();
    super::shipped::collect_known_keys("", &mut known);
    let described = read::keys();
    let is_leaf = |key: &&KeyRead| !matches!(key.kind, key::KeyKind::Section | key::KeyKind::SectionArray);
    let described = described.iter().filter(is_leaf);
    let described: BTreeSet<_> =
        described.map(|key| super::shipped::with_generic_class(&key.path())).collect();
    assert_eq!(described, known);
}

#[test]
fn every_key_is_explained() {
    for key in read::keys() {
        let text = explain(&key.path()).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        assert!(!text.contains("]("), "{text}");
        let is_section = matches!(key.kind, key::KeyKind::Section | key::KeyKind::SectionArray);
        let parts = if is_section { &["Its keys:"][..] } else { &["Default: ", "Range: "] };
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        let has_comment = reference::comment(&key.path()).is_some();
        let is_class = key.path().starts_with("upstream.classes");
        assert!(has_comment || is_section || is_class, "{} has no comment", key.path());
    }
    let text = explain("cache.discover.ttl").unwrap();
    for part in
        ["Default: 60s\n", "Range: 0s to 24h\n", "RAILGATE_CACHE__DISCOVER__TTL", "Which user is this?"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    for (wrong, expected) in [
        ("cache.discover.tll", "did you mean cache.discover.ttl"),
        ("negative_ttl", "cache.discover.negative_ttl or cache.authorized_keys.negative_ttl"),
        ("zzz", "config/README.md has all"),
    ] {
        assert!(explain(wrong).unwrap_err().contains(expected), "{:?}", explain(wrong));
    }
}

#[test]
fn the_schema_accepts_what_the_reader_accepts() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let json = |text: &str| serde_json::to_value(text.parse::<Table>().unwrap()).unwrap();
    for text in [ANNOTATED, MINIMAL, &uncommented()] {
        let errors: Vec<_> = validator.iter_errors(&json(text)).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    for wrong in [
        "colour = 'red'",
        "[cache]\nttl = '1s'",
        "[[listen]]\nadress = '127.0.0.1:1'",
        "[listen]\naddress = '127.0.0.1:1'",
        "workers = 0",
        "workers = '2'",
        "[cache]\nwait = 60",
        "[cache]\nwait = '60 s'",
        "[cache]\nmax_bytes = '2GB'",
        "[log]\nformat = 'text'",
        "[auth.shell]\naccept = 'jwt'",
        "[upstream.classes.looup]\nhold = '1s'",
    ] {
        assert!(!validator.is_valid(&json(wrong)), "{wrong}");
    }
    let discover = &schema["properties"]["cache"]["properties"]["discover"]["properties"]["ttl"];
    assert_eq!(discover["default"], "60s");
    assert!(discover["description"].as_str().unwrap().contains("Range: 0s to 24h"), "{discover}");
}

#[test]
fn what_is_shown_can_be_read_again() {
    let files = Files::new();
    let several = "\
        [[listen]]\naddress = 'unix:/run/a.sock'\nmode = '0600'\n[[listen]]\naddress = '127.0.0.1:1'\n\
        [upstream.classes.other]\nconcurrency = 3\n[hooks]\naddress = '127.0.0.1:2'\ntoken_file = 'DIR/hook_token'\n\
        [admin]\nhosts = [\n  'a.example', # a comment\n  \"b.example\",\n]\n[limits]\nconnections = 0x10\n";
    let pairs = [("RAILGATE_LOG__LEVEL", "debug"), ("RAILGATE_UPSTREAM__MAX_IDLE", "7")];
    for text in [ANNOTATED, MINIMAL, BASE, &format!("{BASE}{several}")] {
        let text = files.with_paths(text);
        let shown = show_with("test.toml", &text, variables(&pairs)).unwrap();
        let again = files.load(&shown);
        let loaded = parse_with("test.toml", &text, variables(&pairs)).unwrap();
        assert_eq!(format!("{:#?}", loaded.config), format!("{again:#?}"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("h00k"), "{shown}");
    }
    let shown =
        show_with("test.toml", &files.with_paths(&format!("{BASE}{several}")), variables(&pairs)).unwrap();
    for line in [
        "url = \"http://127.0.0.1:8080\"  # test.toml:2",
        "max_idle = 7  # RAILGATE_UPSTREAM__MAX_IDLE",
        "#connect_timeout = \"1s\"  # default",
        "mode = \"0600\"  # test.toml:7",
        // The limit of a listener is that of all.
        "#connections = 16  # default",
        "hosts = [\"a.example\", \"b.example\"]  # test.toml:16",
        "[upstream.classes.other]",
        "concurrency = 3  # test.toml:11",
        "#[cache.shadow]",
        "#hold = \"5s\"  # default",
        "level = \"debug\"  # RAILGATE_LOG__LEVEL",
        "#host: host of each URL; localhost for a socket",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
}
