//! Where the gateway listens.

use super::*;

#[test]
fn listeners_that_exclude_each_other_are_refused() {
    let files = Files::new();
    let listen = |address: &str| format!("[[listen]]\naddress = \"{address}\"\n");
    let rest = LEAST;
    for (one, two, clash) in [
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
        assert_eq!(files.parse(&text).is_err(), clash, "{one} {two}");
        let text = format!("{}[admin]\naddress = \"{two}\"\n{rest}", listen(one));
        assert_eq!(files.parse(&text).is_err(), clash, "{one} {two} for admin");
    }
    let told = files.problems(&format!("{}{rest}", listen("127.0.0.1:9181")));
    assert_eq!(
        told,
        [
            "test.toml:2: admin.address: 127.0.0.1:9181, its default, is the address of a [[listen]] already; choose another port"
        ]
    );
    let told = files.problems(&format!("listen = []\n{rest}"));
    assert_eq!(
        told,
        [
            "test.toml:1: listen: is empty, so no client could connect; drop the key for the default, 127.0.0.1:8181"
        ]
    );
    let told = files.problems(&format!("[admin]\nmode = \"0660\"\n{rest}"));
    assert_eq!(told, ["test.toml:2: admin.mode: only a unix socket has a mode; drop the key"]);
}

#[test]
fn listeners_are_read_as_they_are_written() {
    let settings = Files::new().load(&format!(
        "{LEAST}
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
    let endpoints: Vec<_> = settings.listen.iter().map(|listen| listen.endpoint.clone()).collect();
    let expected = [
        Endpoint::Tcp("[::1]:8181".parse().unwrap()),
        unix("/run/railgate/a.sock", 0o660),
        unix("/run/railgate/b.sock", 0o600),
    ];
    assert_eq!(endpoints, expected);
    assert_eq!(settings.admin, unix("/run/railgate/admin.sock", 0o666));
}

#[test]
fn what_cannot_be_listened_on_is_refused_with_the_reason() {
    let long = |length: usize| format!("unix:/{}", "a".repeat(length - 1));
    for (address, told) in [
        (long(108).as_str(), "names a socket by 108 bytes, and the system takes 107; choose a shorter path"),
        (&long(5_000), "names a socket by 5000 bytes"),
        ("unix:/run/", "names a directory; name the socket in it, such as \"unix:/run/railgate.sock\""),
        ("unix:run/a", "expected an IP address with a port, or unix: and an absolute path"),
        ("127.0.0.1:99999", "found \"127.0.0.1:99999\"; a port is from 0 to 65535"),
        ("[::1]:99999", "; a port is from 0 to 65535"),
        ("127.0.0.1", "; a port is missing"),
        ("[::1]", "; a port is missing"),
        ("[fe80::1%eth0]:8181", "; a zone is a number here, as in"),
        ("localhost:8181", "found \"localhost:8181\""),
    ] {
        for section in ["[admin]", "[[listen]]", "[hooks]\ntoken_file = 'DIR/gitlab_shell_secret'"] {
            let problems = Files::new().problems(&format!("{LEAST}{section}\naddress = '{address}'"));
            assert!(problems.len() == 1 && problems[0].contains(told), "{address}: {problems:?}");
        }
    }
    assert!(Files::new().problems(&format!("{LEAST}[admin]\naddress = '{}'", long(107))).is_empty());
}

#[test]
fn each_listener_has_a_bound_of_its_own() {
    let settings = Files::new().load(&format!(
        "{LEAST}
        [[listen]]
        address = '127.0.0.1:8181'
        [[listen]]
        address = 'unix:/run/railgate/a.sock'
        connections = 7
        [limits]
        connections = 20"
    ));
    let bounds: Vec<_> = settings.listen.iter().map(|listen| listen.connections).collect();
    assert_eq!((bounds, settings.admin_connections), (vec![20, 7], DEFAULT_OPERATOR_CONNECTIONS));
}
