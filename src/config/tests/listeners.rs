//! The listeners.

use super::*;

#[test]
fn listeners_with_overlapping_addresses_are_refused() {
    let files = Files::new();
    let listen = |address: &str| format!("[[listen]]\naddress = \"{address}\"\n");
    let rest = BASE;
    for (one, two, overlap) in [
        ("127.0.0.1:1000", "127.0.0.1:1000", true),
        ("0.0.0.0:1000", "127.0.0.1:1000", true),
        ("[::]:1000", "127.0.0.1:1000", true),
        ("0.0.0.0:1000", "[::1]:1000", false),
        ("127.0.0.1:1000", "127.0.0.2:1000", false),
        ("127.0.0.1:1000", "127.0.0.1:1001", false),
        ("127.0.0.1:0", "127.0.0.1:0", false),
        ("unix:/run/a", "unix:/run/a", true),
        ("unix:/run/a", "unix:/run/b", false),
    ] {
        let text = format!("{}{}{rest}", listen(one), listen(two));
        assert_eq!(files.parse(&text).is_err(), overlap, "{one} {two}");
        let text = format!("{}[admin]\naddress = \"{two}\"\n{rest}", listen(one));
        assert_eq!(files.parse(&text).is_err(), overlap, "{one} {two} for admin");
    }
    let errors = files.errors(&format!("{}{rest}", listen("127.0.0.1:9181")));
    assert_eq!(
        errors,
        [
            "test.toml:2: admin.address: 127.0.0.1:9181, its default, is the address of a [[listen]] already; choose another port"
        ]
    );
    let errors = files.errors(&format!("listen = []\n{rest}"));
    assert_eq!(
        errors,
        [
            "test.toml:1: listen: is empty, so no client could connect; drop the key for the default, 127.0.0.1:8181"
        ]
    );
    let errors = files.errors(&format!("[admin]\nmode = \"0660\"\n{rest}"));
    assert_eq!(errors, ["test.toml:2: admin.mode: only a unix socket has a mode; drop the key"]);
}

#[test]
fn addresses_and_modes_are_read() {
    let settings = Files::new().load(&format!(
        "{BASE}
        [[listen]]
        address = '[::1]:8181'
        [[listen]]
        address = 'unix:/run/railgate/a.sock'
        [[listen]]
        address = 'unix:/run/railgate/b.sock'
        mode = '0600'
        [admin]
        address = 'unix:/run/railgate/admin.sock'
        mode = '0666'"
    ));
    let addresses: Vec<_> = settings.listen.iter().map(|listen| listen.address.clone()).collect();
    let expected = [
        ListenAddress::Tcp("[::1]:8181".parse().unwrap()),
        unix("/run/railgate/a.sock", 0o660),
        unix("/run/railgate/b.sock", 0o600),
    ];
    assert_eq!(addresses, expected);
    assert_eq!(settings.admin.address, unix("/run/railgate/admin.sock", 0o666));
}

#[test]
fn invalid_addresses_are_refused_with_the_reason() {
    let long = |length: usize| format!("unix:/{}", "a".repeat(length - 1));
    for (address, expected) in [
        (
            long(108).as_str(),
            "has a socket path of 108 bytes, and the system allows 107; choose a shorter path",
        ),
        (&long(5_000), "has a socket path of 5000 bytes"),
        ("unix:/run/", "names a directory; name the socket in it, such as \"unix:/run/railgate.sock\""),
        (
            "unix:run/a",
            "expected an IP address with a port, unix: and an absolute path, or systemd: and a name",
        ),
        ("127.0.0.1:99999", "found \"127.0.0.1:99999\"; a port is from 0 to 65535"),
        ("[::1]:99999", "; a port is from 0 to 65535"),
        ("127.0.0.1", "; a port is missing"),
        ("[::1]", "; a port is missing"),
        ("[fe80::1%eth0]:8181", "; a zone is a number here, as in"),
        ("localhost:8181", "found \"localhost:8181\""),
    ] {
        for section in ["[admin]", "[[listen]]", "[hooks]\ntoken_file = 'DIR/gitlab_shell_secret'"] {
            let errors = Files::new().errors(&format!("{BASE}{section}\naddress = '{address}'"));
            assert!(errors.len() == 1 && errors[0].contains(expected), "{address}: {errors:?}");
        }
    }
    assert!(Files::new().errors(&format!("{BASE}[admin]\naddress = '{}'", long(107))).is_empty());
}

#[test]
fn each_listener_has_its_own_limit_of_connections() {
    let settings = Files::new().load(&format!(
        "{BASE}
        [[listen]]
        address = '127.0.0.1:8181'
        [[listen]]
        address = 'unix:/run/railgate/a.sock'
        connections = 7
        [limits]
        connections = 20"
    ));
    let limits: Vec<_> = settings.listen.iter().map(|listen| listen.connections).collect();
    assert_eq!((limits, settings.admin.connections), (vec![20, 7], DEFAULT_OPERATOR_CONNECTIONS));
}
