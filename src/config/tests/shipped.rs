//! The example configurations.

use super::*;

/// The annotated file with its commented-out keys active. Prose has a space behind the `#`.
pub(super) fn uncommented() -> String {
    let is_key = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let lines =
        ANNOTATED.lines().map(|line| line.strip_prefix('#').filter(|rest| is_key(rest)).unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Either it or the Sentinels can be used.
pub(super) const FLEET_URL: &str = "url = \"redis://10.0.0.5:6379\"\n";

#[test]
fn the_annotated_file_has_the_defaults() {
    let files = Files::new();
    let annotated = files.load(ANNOTATED);
    let minimal = files.load(MINIMAL);
    assert_eq!(format!("{annotated:#?}"), format!("{minimal:#?}"));

    let GatewayConfig {
        workers: _,
        listen,
        admin,
        hooks,
        upstream,
        upstream_credential,
        forward_prefixes,
        auth,
        secrets,
        cache,
        limits,
        log,
        upgrade_socket,
        tracing,
        fleet,
    } = annotated;
    assert!(fleet.is_none());
    assert!(
        admin.token.is_none() && admin.hosts.is_empty() && hooks.is_none() && upstream_credential.is_none()
    );
    let listen_at =
        |address, connections| ListenSettings { address, connections, options: ListenOptions::default() };
    assert_eq!((listen, admin.address), (vec![listen_at(tcp(8181), 10_000)], tcp(9181)));
    assert_eq!(admin.connections, DEFAULT_OPERATOR_CONNECTIONS);
    let url = "http+unix://%2Fvar%2Fopt%2Fgitlab%2Fgitlab-workhorse%2Fsockets%2Fsocket";
    let expected = upstream::UpstreamSettings::new(UpstreamTarget::parse(url).unwrap());
    assert_eq!(format!("{upstream:?}"), format!("{expected:?}"));
    assert_eq!(forward_prefixes, [""; 0]);
    let auth::AuthSettings { shell_secret, accept_jwt, accept_shared_secret, max_body, max_unverified, kas } =
        auth;
    assert!(shell_secret.matches(b"s3cret") && accept_jwt && accept_shared_secret && kas.is_none());
    assert_eq!((max_body, max_unverified), (auth::DEFAULT_MAX_BODY, auth::DEFAULT_MAX_UNVERIFIED));
    assert_eq!(cache, cache::CacheSettings::default());
    assert_eq!((secrets.overlap, secrets.files.len()), (SecretSettings::default().overlap, 1));
    assert_eq!(limits, ServerLimits::default());
    assert!(tracing.is_none());
    assert_eq!((log, upgrade_socket), (LogSettings::default(), None));
}

#[test]
fn every_key_of_the_annotated_file_is_accepted() {
    // A mode needs a unix socket.
    let text = uncommented()
        .replace("127.0.0.1:9181", "unix:/run/railgate/admin.sock")
        .replace("127.0.0.1:8282", "unix:/run/railgate/hooks.sock")
        .replace("http://127.0.0.1:4318", "https://127.0.0.1:4318")
        .replace(FLEET_URL, "")
        // Either one server or several.
        .replace("url = \"http+unix://%2Fvar%2Fopt%2Fgitlab%2Fgitlab-workhorse%2Fsockets%2Fsocket\"\n", "");
    let settings = Files::new().load(&text);
    assert_eq!(settings.workers, 2);
    let addresses: Vec<_> = settings.listen.iter().map(|listen| listen.address.clone()).collect();
    let owned = |path| {
        let owner = SocketOwner { user: Some(0), group: Some(0) };
        ListenAddress::Unix { path: PathBuf::from(path), mode: 0o660, owner }
    };
    assert_eq!(addresses, [tcp(8181), owned("/run/railgate/railgate.sock")]);
    let options = &settings.listen[0].options;
    assert!(options.tls.is_some() && options.allow_peers.is_some() && options.trusted_proxies.is_some());
    assert_eq!(settings.admin.address, owned("/run/railgate/admin.sock"));
    let upgrade = settings.upgrade_socket.map(|address| address.to_string());
    assert_eq!(upgrade.as_deref(), Some("unix:/run/railgate/upgrade.sock"));
    assert!(settings.admin.token.is_some() && settings.admin.hosts == ["railgate.example"]);
    let hooks = settings.hooks.unwrap();
    assert_eq!(hooks.address, owned("/run/railgate/hooks.sock"));
    assert!(hooks.token.unwrap().matches(b"h00k") && hooks.signing_token.is_some());
    assert_eq!(hooks.settle.as_secs(), 5);
    let servers = &settings.upstream.servers;
    assert!(servers[0].tls.is_some() && !servers[0].is_backup && settings.upstream_credential.is_some());
    assert!(servers.len() == 2 && servers[1].tls.is_none() && servers[1].is_backup);
    let shown = |ejection, checks| format!("{ejection:?} {checks:?}");
    assert_eq!(
        shown(settings.upstream.ejection, settings.upstream.health_checks),
        shown(upstream::EjectionSettings::default(), upstream::HealthCheckSettings::default())
    );
    assert_eq!(settings.upstream.host.as_deref(), Some("gitlab.example.com"));
    let tracing = settings.tracing.unwrap();
    assert!(tracing.export.collector.tls.is_some() && tracing.sample_ratio < 0.011 && tracing.queue == 2048);
    assert_eq!(tracing.export.headers.0["authorization"], "Bearer c0llector");
    assert_eq!(tracing.export.headers.0["x-scope-orgid"], "a");
    assert!(!format!("{tracing:?}").contains("c0llector"));
    assert_eq!(settings.auth.kas.unwrap().audience.as_deref(), Some("gitlab"));
}

#[test]
fn the_annotated_file_has_every_key() {
    let mut in_file = BTreeSet::new();
    collect_keys("", &Value::Table(uncommented().parse::<Table>().unwrap()), &mut in_file);
    let mut known = BTreeSet::new();
    collect_known_keys("", &mut known);
    assert!(known.len() > 30, "the lists of known keys were not found: {known:?}");
    assert_eq!(in_file, known);
}

fn collect_keys(path: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                collect_keys(&join(path, key), value, keys);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_table) => {
            for item in items {
                collect_keys(path, item, keys);
            }
        }
        _ => drop(keys.insert(with_generic_class(path))),
    }
}

/// All classes of routes have the same keys.
pub(super) fn with_generic_class(path: &str) -> String {
    let class = path.strip_prefix("upstream.classes.").and_then(|rest| rest.split_once('.'));
    class.map_or_else(|| path.to_owned(), |(_, key)| format!("upstream.classes.CLASS.{key}"))
}

/// Collects the keys below `path` from the error about an unknown key, which lists the known keys of the
/// section. A path that gives no such error is itself a key.
pub(super) fn collect_known_keys(path: &str, keys: &mut BTreeSet<String>) {
    const UNKNOWN: &str = "surely_an_unknown_key";
    let headers =
        if path.is_empty() { vec![String::new()] } else { vec![format!("[{path}]"), format!("[[{path}]]")] };
    let lists = headers.iter().find_map(|header| {
        let ConfigError(errors) = parse("", &format!("{header}\n{UNKNOWN} = 1")).unwrap_err();
        let unknown = errors.into_iter().find(|error| error.mistake.key == join(path, UNKNOWN))?;
        Some(unknown.mistake.message.strip_prefix("unknown key; known here: ")?.to_owned())
    });
    match lists {
        Some(list) => list.split(", ").for_each(|key| collect_known_keys(&join(path, key), keys)),
        None => drop(keys.insert(with_generic_class(path))),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[test]
fn the_minimal_file_is_minimal() {
    let files = Files::new();
    files.load(MINIMAL);
    let mut keys = BTreeSet::new();
    collect_keys("", &Value::Table(MINIMAL.parse::<Table>().unwrap()), &mut keys);
    assert_eq!(keys.iter().collect::<Vec<_>>(), ["auth.shell.secret_file", "upstream.url"]);
    for (at, line) in MINIMAL.lines().enumerate().filter(|(_, line)| line.contains('=')) {
        let rest: Vec<&str> =
            MINIMAL.lines().enumerate().filter(|(other, _)| *other != at).map(|(_, line)| line).collect();
        assert_eq!(files.errors(&rest.join("\n")).len(), 1, "without {line}");
    }
}

#[test]
fn the_configurations_for_kubernetes_are_valid() {
    for (text, has_kas) in [
        (include_str!("../../../deploy/kubernetes/base/railgate.toml"), true),
        (include_str!("../../../deploy/kubernetes/sidecar.toml"), false),
    ] {
        let settings = Files::new().load(&text.replace("NAMESPACE", "gitlab"));
        assert!(settings.admin.token.is_some() && settings.auth.kas.is_some() == has_kas, "{text}");
    }
}

#[test]
fn the_configuration_in_the_kubernetes_example_is_valid() {
    let (_, block) = KUBERNETES.split_once("railgate.toml: |\n").unwrap();
    let lines =
        block.lines().map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") });
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let settings = Files::new().load(&text);
    assert!(settings.auth.kas.is_some() && settings.listen.len() == 1, "{text}");
    // Not Puma's: see `deploy/README.md`.
    let workhorse = UpstreamTarget::parse("http+unix://%2Frun%2Fworkhorse%2Fworkhorse.sock").unwrap();
    let servers: Vec<_> = settings.upstream.servers.iter().map(|server| &server.target.address).collect();
    assert_eq!(servers, [&workhorse.address]);
    let mounts = KUBERNETES.matches("mountPath: /run/workhorse}").count();
    assert_eq!(mounts, 2, "both containers have the directory of its socket");
}
