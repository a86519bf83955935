//! `[fleet]`: what it gives, and its mistakes.

use std::time::Duration;

use super::*;
use crate::fleet::settings::{FleetSettings, SharedSettings, ValkeyCredential, ValkeyServers};
use crate::upstream::UpstreamAddress;

const URL: &str = "url = 'redis://10.0.0.5'\n";
const SENTINELS: &str = "sentinels = ['10.0.0.1', '10.0.0.2:5000', '[fd00::3]']\nmaster = 'mymaster'\n";

fn text(keys: &str) -> String {
    format!("{BASE}[fleet]\n{keys}")
}

fn tcp_address(host: &str, port: u16) -> UpstreamAddress {
    UpstreamAddress::Tcp(host.to_owned(), port)
}

#[test]
fn a_url_is_enough_and_the_rest_has_the_defaults() {
    let fleet = Files::new().load(&text(URL)).fleet.unwrap();
    let defaults = FleetSettings::new(tcp_address("10.0.0.5", 6_379));
    assert_eq!(*fleet, defaults);
    assert!(fleet.shared.is_none() && fleet.tls.is_none());
    assert!(Files::new().load(BASE).fleet.is_none());
}

#[test]
fn sentinels_may_take_the_place_of_the_url() {
    let files = Files::new();
    let keys = "user = 'railgate'\npassword_file = 'DIR/valkey_password'\nsentinel_password_file = 'DIR/sentinel_password'\n";
    let fleet = files.load(&text(&format!("{SENTINELS}{keys}[fleet.tls]\n[fleet.shared]\n"))).fleet.unwrap();
    let sentinels =
        vec![tcp_address("10.0.0.1", 26_379), tcp_address("10.0.0.2", 5_000), tcp_address("fd00::3", 26_379)];
    let credential =
        ValkeyCredential { user: None, password_file: Some(files.dir.join("sentinel_password")) };
    assert_eq!(
        fleet.servers,
        ValkeyServers::Sentinels { sentinels, master: "mymaster".to_owned(), credential }
    );
    assert_eq!(fleet.credential.user.as_deref(), Some("railgate"));
    assert_eq!(fleet.shared, Some(SharedSettings::default()));
    assert!(fleet.tls.is_some(), "the section alone turns it on");
    assert!(files.load(&text(SENTINELS)).fleet.unwrap().tls.is_none());
    let two = text("sentinels = ['a', 'b']\nmaster = 'm'");
    assert_eq!(
        files.warnings(&two),
        [
            "test.toml:6: fleet.sentinels: are two: more than half of them have to agree, so that none may fail; list at \
          least three"
        ]
    );
}

#[test]
fn every_value_is_read() {
    let keys = "name = 'a'\nidentity = 'b'\npoll = '1s'\nalone_after = '1500ms'\nalone_ttl = '0s'\nreplicas = 2\n\
                bus_entries = 1000\n[fleet.shared]\nttl = '1h'\ntimeout = '1ms'\nlock = '1m'\nwait = '0s'";
    let fleet = Files::new().load(&text(&format!("url = 'unix:/run/valkey.sock'\n{keys}"))).fleet.unwrap();
    assert_eq!(fleet.servers, ValkeyServers::One(UpstreamAddress::Unix("/run/valkey.sock".into())));
    assert_eq!((fleet.name.as_str(), fleet.identity.as_deref()), ("a", Some("b")));
    assert_eq!(
        [fleet.poll, fleet.alone_after, fleet.alone_ttl].map(|time| time.as_millis()),
        [1_000, 1_500, 0]
    );
    assert_eq!((fleet.replicas, fleet.bus_entries), (2, 1_000));
    let shared = fleet.shared.unwrap();
    assert_eq!(
        [shared.ttl, shared.timeout, shared.lock, shared.wait],
        [Duration::from_secs(3_600), Duration::from_millis(1), Duration::from_secs(60), Duration::ZERO]
    );
}

#[test]
fn mistakes_name_the_key_and_what_to_do() {
    let files = Files::new();
    for (keys, expected) in [
        (
            "",
            "fleet.url: is required in [fleet]: where Valkey is, such as \"redis://10.0.0.5:6379\"; or sentinels and master",
        ),
        (
            &format!("{URL}{SENTINELS}"),
            "fleet.url: is for one server; with sentinels, these say where it is: drop one of the two",
        ),
        (
            "sentinels = ['a']",
            "fleet.master: is required with sentinels: the name that they have for the master",
        ),
        (&format!("{URL}master = 'm'"), "fleet.master: is for Sentinels, and there are none; drop it"),
        (
            &format!("{URL}sentinel_password_file = 'DIR/sentinel_password'"),
            "fleet.sentinel_password_file: is for Sentinels, and there are none; drop it",
        ),
        ("sentinels = ['a', 'a', 'b']\nmaster = 'm'", "fleet.sentinels: a:26379 is listed twice"),
        (&format!("{URL}user = 'railgate'"), "fleet.user: needs fleet.password_file: a user has a password"),
        (&format!("{URL}user = ''"), "fleet.user: expected the name of a user of Valkey, found \"\""),
        (
            &format!("{URL}poll = '2s'"),
            "fleet.alone_after: 2s (the default) is too short: a poll of 2s may take half a second more; set at least 2500ms",
        ),
        (
            &format!("{URL}alone_after = '999ms'"),
            "fleet.alone_after: 999ms is too short: a poll of 500ms may take half a second more; set at least 1s",
        ),
        (
            &format!("{URL}[fleet.tls]"),
            "fleet.tls: is for a url that begins with rediss://, or for sentinels; drop the section",
        ),
        (
            "url = 'rediss://10.0.0.5'\n[fleet.tls]\ncertificate_file = 'DIR/client.pem'",
            "fleet.tls: certificate_file and key_file go together; name both or none",
        ),
        (
            &format!("{URL}[[fleet.shared]]"),
            "fleet.shared: has two brackets, [[fleet.shared]]; write one, [fleet.shared]: there is only one such section",
        ),
        (&format!("{URL}replica = 1"), "fleet.replica: unknown key; did you mean \"replicas\"?"),
        (
            "url = 'redis://127.0.0.1:9181'",
            "fleet.url: leads to the gateway's own listener on 127.0.0.1:9181; use the address of Valkey",
        ),
        (
            &format!("{URL}name = 'a b'"),
            "fleet.name: expected up to 64 letters, digits, \"-\", \"_\", \".\" and \":\", found \"a b\"",
        ),
        (
            &format!("{URL}password_file = '/nowhere'"),
            "fleet.password_file: /nowhere cannot be read: No such file or directory (os error 2); check the path, and that this user may read it",
        ),
    ] {
        let errors = files.errors(&text(keys));
        let found = errors.iter().map(|error| error.splitn(3, ':').nth(2).unwrap_or(error).trim());
        assert_eq!(found.collect::<Vec<_>>(), [expected], "{keys}");
    }
}

#[test]
fn no_error_and_no_excerpt_quotes_a_password() {
    let files = Files::new();
    for keys in [
        "url = 'redis://:s3cret@10.0.0.5'",
        "url = 'redis://railgate:s3cret@10.0.0.5:6379/0'",
        "url = 's3cret@10.0.0.5'",
        "url = ['redis://:s3cret@10.0.0.5']",
        "sentinels = ['10.0.0.1', 'redis://:s3cret@10.0.0.2']\nmaster = 'm'",
        "sentinels = 'redis://:s3cret@10.0.0.1'\nmaster = 'm'",
        "sentinels = [':s3cret@10.0.0.1']\nmaster = 'm'",
        "url = 'redis://10.0.0.5'\npassword = 's3cret'",
    ] {
        let ConfigError(errors) = files.parse(&text(keys)).unwrap_err();
        assert_eq!(errors.len(), 1, "{keys}");
        let shown = format!("{} {errors:?}", errors[0]);
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    // A variable of the environment is named, not quoted.
    let variables = [("RAILGATE_FLEET__URL".into(), "redis://:s3cret@10.0.0.5".into())];
    let ConfigError(errors) = parse_with("test.toml", &files.with_paths(BASE), variables).unwrap_err();
    let shown = format!("{errors:?}");
    assert!(shown.contains("RAILGATE_FLEET__URL") && !shown.contains("s3cret"), "{shown}");
}
