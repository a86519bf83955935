use redis::parse_redis_value;

use super::*;

fn parse(text: &str) -> Value {
    parse_redis_value(text.as_bytes()).unwrap()
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn array(parts: &[String]) -> String {
    format!("*{}\r\n{}", parts.len(), parts.concat())
}

fn texts(texts: &[&str]) -> String {
    array(&texts.iter().map(|text| bulk(text)).collect::<Vec<_>>())
}

fn entry_text(id: &str, fields: &[&str]) -> String {
    array(&[bulk(id), texts(fields)])
}

#[test]
fn entries_of_others_keep_their_place_but_have_no_message() {
    let message = entry_text("5-1", &["p", "12345678", "n", "7", "x", "sealed"]);
    let envelope = Envelope { publisher: *b"12345678", number: 7, sealed: b"sealed".to_vec() };
    for (fields, expected) in [
        (&["p", "12345678", "n", "7", "x", "sealed"][..], Some(envelope.clone())),
        (&["p", "1234567", "n", "7", "x", "sealed"], None),
        (&["p", "12345678", "n", "-7", "x", "sealed"], None),
        (&["p", "12345678", "n", "7", "y", "sealed"], None),
        (&["n", "7", "p", "12345678", "x", "sealed"], None),
        (&["p", "12345678", "n", "7"], None),
        (&["p", "12345678", "n", "7", "x", "sealed", "z", ""], None),
        (&["p"], None),
    ] {
        let read = entries(parse(&array(&[entry_text("4-0", fields), message.clone()]))).unwrap();
        assert_eq!(read.first().unwrap().envelope, expected, "{fields:?}");
        assert_eq!(read.last().unwrap().envelope, Some(envelope.clone()));
        let ids = read.iter().map(|entry| entry.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids, ["4-0", "5-1"]);
    }
}

#[test]
fn replies_that_are_none_are_not_taken_for_an_empty_stream() {
    let empty = array(&[]);
    assert_eq!(entries(parse(&empty)), Some(Vec::new()));
    assert_eq!(read_entries(parse("*-1\r\n")), Some(Vec::new()));
    let of_stream = array(&[array(&[bulk("bus"), array(&[entry_text("4-0", &["a", "b"])])])]);
    assert_eq!(read_entries(parse(&of_stream)).unwrap().len(), 1);
    for wrong in
        ["+OK\r\n", ":1\r\n", "$1\r\na\r\n", &texts(&["4-0"]), &array(&[entry_text("4", &["a", "b"])])]
    {
        assert_eq!(entries(parse(wrong)), None, "{wrong:?}");
        assert_eq!(read_entries(parse(wrong)), None, "{wrong:?}");
    }
}

#[test]
fn roles_and_identities_are_read_or_refused_by_a_service_that_does_not_tell() {
    let role = |name: &str| array(&[bulk(name), ":3129659\r\n".to_owned(), array(&[])]);
    for (text, expected) in [
        (role("master").as_str(), Some(true)),
        (&role("slave"), Some(false)),
        (&role("sentinel"), Some(false)),
        ("-NOPERM User default has no permissions to run the 'role' command\r\n", Some(true)),
        ("-ERR unknown command 'role'\r\n", Some(true)),
        ("-LOADING Redis is loading the dataset in memory\r\n", None),
        ("+OK\r\n", None),
        (&array(&[]), None),
    ] {
        assert_eq!(is_master(parse(text)).ok(), expected, "{text:?}");
    }
    let info = |text: &str| parse(&bulk(text));
    let server = || info("# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nrun_id_of_another:x\r\n");
    let replication = || info("# Replication\r\nrole:master\r\nmaster_replid:def\r\nmaster_replid2:000\r\n");
    let known = Identity { run_id: "abc".to_owned(), replid: "def".to_owned() };
    assert_eq!(identity(server(), replication()).unwrap(), Some(known));
    let refused = || parse("-NOPERM no permissions\r\n");
    assert_eq!(identity(refused(), replication()).unwrap(), None);
    assert_eq!(identity(server(), refused()).unwrap(), None);
    assert_eq!(identity(info("# Server\r\n"), replication()).unwrap(), None);
    assert_eq!(identity(info("run_id:\r\n"), replication()).unwrap(), None);
    let loading = identity(parse("-LOADING loading\r\n"), replication()).unwrap_err();
    assert_eq!(loading.code(), Some("LOADING"));
    assert!(matches!(identity(parse(":1\r\n"), replication()), Err(ConnectionError::Unexpected("INFO"))));
}

#[test]
fn errors_say_where_a_key_has_moved_to() {
    let error = |text: &str| accepted("XADD", parse(text)).unwrap_err();
    for (text, host) in [
        ("10.0.0.1:6381", "10.0.0.1"),
        ("fd00::1:6381", "fd00::1"),
        ("node-1.example:6381", "node-1.example"),
    ] {
        let moved = error(&format!("-MOVED 3999 {text}\r\n"));
        let expected = UpstreamAddress::Tcp(host.to_owned(), 6_381);
        assert!(matches!(&moved, ConnectionError::Moved(address) if *address == expected), "{moved}");
        assert!(!moved.is_refusal());
    }
    // A node that does not know the name of the other one.
    for unknown in ["-MOVED 3999 :6381\r\n", "-MOVED 3999\r\n", "-MOVED 3999 a:b\r\n"] {
        assert!(matches!(error(unknown), ConnectionError::Unexpected("XADD")), "{unknown:?}");
    }
    let refused = error("-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    assert!(refused.is_refusal());
    assert_eq!(refused.code(), Some("OOM"));
    assert_eq!(
        refused.to_string(),
        "XADD was refused: OOM command not allowed when used memory > 'maxmemory'."
    );
    assert_eq!(accepted("SET", parse("+OK\r\n")).unwrap(), Value::Okay);
}

#[test]
fn a_sentinel_says_where_the_master_is_or_that_it_knows_none() {
    let address = UpstreamAddress::Tcp("10.0.0.2".to_owned(), 6_379);
    assert_eq!(master_address(&parse(&texts(&["10.0.0.2", "6379"]))).unwrap(), Some(address));
    assert_eq!(master_address(&parse("*-1\r\n")).unwrap(), None);
    for wrong in
        [texts(&["10.0.0.2"]), texts(&["10.0.0.2", "x"]), texts(&["a", "1", "2"]), "+OK\r\n".to_owned()]
    {
        assert!(master_address(&parse(&wrong)).is_err(), "{wrong:?}");
    }
}
