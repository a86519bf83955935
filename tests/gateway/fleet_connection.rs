//! A connection of the fleet to a real Valkey: its commands, and how each way to fail ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use railgate::certificates::read_authorities;
use railgate::fleet::FleetPhase;
use railgate::fleet::acl::acl_line;
use railgate::fleet::connection::{Connection, ConnectionError};
use railgate::fleet::settings::{FleetSettings, FleetTls, ValkeyCredential};
use railgate::fleet::stream::{Envelope, StreamId};
use railgate::upstream::tls::Tls;
use railgate::upstream::{Protocol, UpstreamAddress};
use redis::Value;

use super::certificates::CertificateAuthority;
use super::client::{eventually, within_deadline};
use super::harness::Scratch;
use super::pods::{Pod, pods, settings, user};
use super::valkey::{Proxy, Valkey, ValkeySetup};

const BUS: &str = "railgate:{0011223344556677}:bus";
const KEY: &str = "railgate:{0011223344556677}:a:x";
const POLL: Duration = Duration::from_millis(200);

async fn open(address: &UpstreamAddress) -> Connection {
    Connection::open(address, &ValkeyCredential::default(), None, "test").await.unwrap()
}

/// The error of a connection that must not be made.
async fn refused(address: &UpstreamAddress, credential: &ValkeyCredential, tls: Option<&FleetTls>) -> String {
    Connection::open(address, credential, tls, "test").await.unwrap_err().to_string()
}

fn message(number: u64) -> Envelope {
    Envelope { publisher: *b"\0\r\n\xff1234", number, sealed: vec![0, 13, 10, 255] }
}

fn tls(authority: &Path, name: &str, server_name: Option<&str>) -> FleetTls {
    let tls = Tls::new(read_authorities(authority).unwrap(), None, name, Protocol::Http1).unwrap();
    FleetTls::new(tls, server_name.map(str::to_owned))
}

/// Whether it can be used for everything that the fleet does.
async fn try_everything(connection: &Connection) {
    let known = connection.identity().await.unwrap().unwrap();
    assert_eq!((known.run_id.len(), known.replid.len()), (40, 40));
    assert_eq!(connection.last_id(BUS).await.unwrap(), None);
    let first = connection.add(BUS, &message(1), 1_000).await.unwrap();
    let second = connection.add(BUS, &message(2), 1_000).await.unwrap();
    assert!(first < second);
    assert_eq!(connection.last_id(BUS).await.unwrap(), Some(second));
    let missing = StreamId::from_milliseconds(1);
    let all = connection.range(BUS, StreamId::default(), 10).await.unwrap();
    let found = connection.entries_at(BUS, &[second, missing, first]).await.unwrap();
    assert_eq!(found, [Some(all[1].clone()), None, Some(all[0].clone())]);
    assert_eq!(all.iter().map(|entry| entry.id).collect::<Vec<_>>(), [first, second]);
    assert_eq!(all[0].envelope, Some(message(1)));
    assert_eq!(connection.range(BUS, first.next(), 1).await.unwrap(), all[1..]);

    let poll = connection.poll(BUS, first, (POLL, 10)).await.unwrap();
    assert_eq!((poll.is_master, poll.anchor_found, poll.entries.as_slice()), (true, true, &all[1..]));
    let poll = connection.poll(BUS, StreamId::default(), (POLL, 1)).await.unwrap();
    assert_eq!((poll.anchor_found, poll.entries.as_slice()), (false, &all[..1]));

    assert_eq!(connection.get(KEY).await.unwrap(), None);
    assert!(connection.set_nx_px(KEY, b"a\r\n\xff", Duration::from_mins(1)).await.unwrap());
    assert!(!connection.set_nx_px(KEY, b"b", Duration::from_mins(1)).await.unwrap());
    assert_eq!(connection.get(KEY).await.unwrap().unwrap(), b"a\r\n\xff");
    connection.set_px(KEY, b"c", Duration::from_millis(20)).await.unwrap();
    eventually("the key to expire", async || connection.get(KEY).await.unwrap().is_none().then_some(()))
        .await;
    connection.set_px(KEY, b"c", Duration::from_mins(1)).await.unwrap();
    assert_eq!(connection.del(&[KEY.to_owned(), format!("{KEY}y")]).await.unwrap(), 1);
    assert_eq!(connection.del(&[]).await.unwrap(), 0);
    assert_eq!(connection.wait(0).await.unwrap(), 0);
    connection.ping().await.unwrap();
    assert!(!connection.has_ended());
}

/// Of a server that is called `localhost`.
fn certificates(authority: &CertificateAuthority, files: &Scratch) -> [PathBuf; 3] {
    let [certificate, key] = authority.issue_to_files(files, "localhost");
    [certificate, key, authority.write_certificate(files, "valkey-ca.pem")]
}

#[tokio::test]
async fn every_command_works_over_tcp_a_unix_socket_and_tls() {
    let (authority, files) = (CertificateAuthority::new(), Scratch::new());
    let server = ValkeySetup::default().tls(certificates(&authority, &files)).start().await;
    let trusted = tls(&files.file("valkey-ca.pem"), "localhost", None);
    let tls_address = UpstreamAddress::Tcp("localhost".to_owned(), server.tls_port);
    for (address, tls) in [
        (server.address(), None),
        (UpstreamAddress::Unix(server.socket()), None),
        (tls_address, Some(&trusted)),
    ] {
        let connection =
            Connection::open(&address, &ValkeyCredential::default(), tls, "railgate-test").await.unwrap();
        try_everything(&connection).await;
        let Value::BulkString(clients) = server.command(&["CLIENT", "LIST"]).await else { panic!() };
        assert!(String::from_utf8(clients).unwrap().contains("name=railgate-test "), "{address}");
        server.command(&["FLUSHALL"]).await;
    }
}

/// A gateway that cannot tell whether it is the right Valkey says nothing to it, and hears nothing.
#[tokio::test]
async fn a_fleet_over_tls_hears_its_purges_and_who_does_not_trust_the_server_takes_no_part() {
    let (authority, files) = (CertificateAuthority::new(), Scratch::new());
    let server = ValkeySetup::default().tls(certificates(&authority, &files)).start().await;
    let other = CertificateAuthority::new().write_certificate(&files, "other.pem");
    let trusting = |authority: &Path| FleetSettings {
        tls: Some(tls(authority, "localhost", None)),
        ..settings(UpstreamAddress::Tcp("localhost".to_owned(), server.tls_port))
    };
    let (rails, [one, two]) = pods(|_| trusting(&files.file("valkey-ca.pem"))).await;
    assert_eq!(one.purge_key().await, "told");
    two.wait_until_dropped().await;
    assert!(two.send(&user()).await.is_hit());

    let distrustful = Pod::begin(&rails, trusting(&other), |setup| setup);
    assert_eq!(distrustful.purge_key().await, "queued");
    assert_eq!(distrustful.gateway.fleet.state().unwrap().phase, FleetPhase::Joining);
    one.purge_until_told().await;
    two.wait_until_heard(2).await;
    assert_eq!((one.heard(), distrustful.heard()), (0, 0));
}

#[tokio::test]
async fn a_server_has_to_prove_its_name_by_a_trusted_authority() {
    let (authority, files) = (CertificateAuthority::new(), Scratch::new());
    let server = ValkeySetup::default().tls(certificates(&authority, &files)).start().await;
    let right = files.file("valkey-ca.pem");
    let other = CertificateAuthority::new().write_certificate(&files, "other.pem");
    let none = ValkeyCredential::default();
    let by_ip = UpstreamAddress::Tcp("127.0.0.1".to_owned(), server.tls_port);
    let error = refused(&by_ip, &none, Some(&tls(&right, "127.0.0.1", None))).await;
    assert!(error.contains("not valid for name"), "{error}");
    let error = refused(&by_ip, &none, Some(&tls(&other, "127.0.0.1", Some("localhost")))).await;
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    // Sentinels name addresses, so the name may have to be said.
    let named = tls(&right, "127.0.0.1", Some("localhost"));
    Connection::open(&by_ip, &none, Some(&named), "test").await.unwrap().ping().await.unwrap();
    // A server without TLS at that port.
    let plain = UpstreamAddress::Tcp("localhost".to_owned(), server.port);
    refused(&plain, &none, Some(&tls(&right, "localhost", None))).await;
}

#[tokio::test]
async fn a_poll_waits_is_woken_and_says_what_it_does_not_know_any_more() {
    let server = Valkey::start().await;
    let (reader, writer) = (open(&server.address()).await, open(&server.address()).await);
    let anchor = writer.add(BUS, &message(1), 1_000).await.unwrap();
    let idle = reader.poll(BUS, anchor, (POLL, 10)).await.unwrap();
    assert_eq!((idle.is_master, idle.anchor_found, idle.entries.len()), (true, true, 0));

    // Woken by what is written while it waits.
    let (poll, added) = tokio::join!(reader.poll(BUS, anchor, (Duration::from_mins(1), 10)), async {
        server.wait_for_info("blocked_clients", "1").await;
        writer.add(BUS, &message(2), 1_000).await.unwrap()
    });
    assert_eq!(poll.unwrap().entries[0].id, added);

    // A stream that is gone, and one that was made anew, are both noticed although nothing came.
    for damage in [&["DEL", BUS][..], &["XADD", BUS, "1-1", "a", "b"]] {
        server.command(damage).await;
        let poll = reader.poll(BUS, added, (POLL, 10)).await.unwrap();
        assert_eq!((poll.anchor_found, poll.entries.len()), (false, 0), "{damage:?}");
    }

    // What others write has no message, but does not end anything.
    server.command(&["DEL", BUS]).await;
    server.command(&["XADD", BUS, "*", "a", "b"]).await;
    let poll = reader.poll(BUS, StreamId::default(), (POLL, 10)).await.unwrap();
    assert_eq!(poll.entries.iter().map(|entry| &entry.envelope).collect::<Vec<_>>(), [&None]);
    server.command(&["DEL", BUS]).await;
    server.command(&["SET", BUS, "no stream"]).await;
    let wrong = reader.poll(BUS, added, (POLL, 10)).await.unwrap_err();
    assert!(wrong.is_refusal() && wrong.code() == Some("WRONGTYPE"), "{wrong}");
}

#[tokio::test]
async fn a_demoted_server_says_so_in_the_next_poll_and_is_not_connected_to() {
    let (server, other) = (Valkey::start().await, Valkey::start().await);
    let connection = open(&server.address()).await;
    let before = connection.identity().await.unwrap().unwrap();
    let anchor = connection.add(BUS, &message(1), 1_000).await.unwrap();
    assert!(connection.poll(BUS, anchor, (POLL, 10)).await.unwrap().is_master);
    server.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    server.wait_for_info("master_link_status", "up").await;
    // The resync closes no connection of a client. A blocked one would have been woken.
    assert!(!connection.poll(BUS, anchor, (POLL, 10)).await.unwrap().is_master);
    assert!(matches!(connection.identity().await, Err(ConnectionError::NotMaster)));
    let refused = connection.add(BUS, &message(2), 1_000).await.unwrap_err();
    assert!(refused.is_refusal() && refused.code() == Some("READONLY"), "{refused}");
    // Promoted again, it is the same process with another life of its data.
    server.command(&["REPLICAOF", "NO", "ONE"]).await;
    let after = connection.identity().await.unwrap().unwrap();
    assert_eq!(after.run_id, before.run_id);
    assert_ne!(after.replid, before.replid);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let server = Valkey::start().await;
    let connection = open(&server.address()).await;
    let anchor = connection.add(BUS, &message(1), 1_000).await.unwrap();
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = connection.add(BUS, &message(2), 1_000).await.unwrap_err();
    assert!(refused.is_refusal() && refused.code() == Some("OOM"), "{refused}");
    let poll = connection.poll(BUS, anchor, (POLL, 10)).await.unwrap();
    assert!(poll.is_master && poll.anchor_found && poll.entries.is_empty());
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    connection.add(BUS, &message(2), 1_000).await.unwrap();
}

/// Behind the greatest ID, there is none.
#[tokio::test]
async fn an_entry_is_put_at_the_place_that_is_asked_for_unless_the_stream_has_had_a_greater_one() {
    let server = Valkey::start().await;
    let connection = open(&server.address()).await;
    let first = connection.add(BUS, &message(1), 1_000).await.unwrap();
    let second = first.behind(5);
    assert_eq!(connection.add_at(BUS, second, &message(2)).await.unwrap(), second);
    for place in [first, first.next(), second, StreamId::default()] {
        let refused = connection.add_at(BUS, place, &message(3)).await.unwrap_err();
        assert!(refused.is_refusal() && refused.code() == Some("ERR"), "{place}: {refused}");
    }
    connection.add_at(BUS, StreamId::MAX, &message(3)).await.unwrap();
    let refused = connection.add(BUS, &message(4), 1_000).await.unwrap_err();
    assert!(refused.is_refusal() && refused.code() == Some("ERR"), "{refused}");
    let poll = connection.poll(BUS, StreamId::MAX, (POLL, 10)).await.unwrap();
    assert!(poll.is_master && poll.anchor_found && poll.entries.is_empty());
    let all = connection.range(BUS, StreamId::default(), 10).await.unwrap();
    let numbers: Vec<_> =
        all.iter().map(|entry| (entry.id, entry.envelope.clone().unwrap().number)).collect();
    assert_eq!(numbers, [(first, 1), (second, 2), (StreamId::MAX, 3)]);
}

#[tokio::test]
async fn replicas_are_waited_for_only_so_long() {
    let master = Valkey::start().await;
    let replica = ValkeySetup::default().replica_of(&master).start().await;
    replica.wait_for_info("master_link_status", "up").await;
    let connection = open(&master.address()).await;
    eventually("the replica to have a message", async || {
        connection.add(BUS, &message(1), 1_000).await.unwrap();
        (connection.wait(1).await.unwrap() == 1).then_some(())
    })
    .await;
    replica.freeze();
    connection.add(BUS, &message(2), 1_000).await.unwrap();
    assert_eq!(connection.wait(1).await.unwrap(), 0);
    replica.thaw();
}

#[tokio::test]
async fn a_silent_server_ends_every_command_and_every_attempt_to_connect() {
    let server = Valkey::start().await;
    let connection = open(&server.address()).await;
    let anchor = connection.add(BUS, &message(1), 1_000).await.unwrap();
    server.freeze();
    let (poll, ping, opened) = within_deadline("the deadlines", async {
        let (address, none) = (server.address(), ValkeyCredential::default());
        // Blocked behind the poll.
        let connect = Connection::open(&address, &none, None, "test");
        tokio::join!(connection.poll(BUS, anchor, (POLL, 10)), connection.ping(), connect)
    })
    .await;
    assert!(matches!(poll, Err(ConnectionError::Late("XREAD", _))), "{poll:?}");
    assert!(matches!(ping, Err(ConnectionError::Late("PING", _))), "{ping:?}");
    // The system accepts for the server, so only the first command shows it.
    assert!(matches!(opened, Err(ConnectionError::Late("AUTH", _))), "{opened:?}");
    server.thaw();
}

#[tokio::test]
async fn a_dead_path_ends_the_old_connection_only() {
    let (server, other) = (Valkey::start().await, Valkey::start().await);
    let proxy = Proxy::start(&server).await;
    let old = open(&proxy.address()).await;
    old.ping().await.unwrap();
    proxy.stall_existing();
    assert!(matches!(old.ping().await, Err(ConnectionError::Late("PING", _))));
    let new = open(&proxy.address()).await;
    new.ping().await.unwrap();
    assert_eq!(proxy.accepted(), 2);

    // A path on which everything is lost.
    proxy.stall();
    assert!(matches!(new.ping().await, Err(ConnectionError::Late("PING", _))));
    let none = ValkeyCredential::default();
    let opened = Connection::open(&proxy.address(), &none, None, "test").await;
    assert!(matches!(opened, Err(ConnectionError::Late("AUTH", _))), "{opened:?}");
    proxy.resume();
    let new = open(&proxy.address()).await;
    let identity = new.identity().await.unwrap();

    // A path that ends, and leads elsewhere from then on.
    proxy.lead_to(&other);
    proxy.cut();
    within_deadline("the end", new.ended()).await;
    assert_ne!(open(&proxy.address()).await.identity().await.unwrap(), identity);
}

#[tokio::test]
async fn each_start_of_a_server_has_an_identity_of_its_own_whether_its_data_survive_or_not() {
    let mut forgetful = Valkey::start().await;
    let mut persistent = ValkeySetup::default().persistent().start().await;
    for (server, survives) in [(&mut forgetful, false), (&mut persistent, true)] {
        let connection = open(&server.address()).await;
        let before = connection.identity().await.unwrap().unwrap();
        assert_eq!(connection.identity().await.unwrap(), Some(before.clone()));
        let id = connection.add(BUS, &message(1), 1_000).await.unwrap();
        server.restart().await;
        let connection = open(&server.address()).await;
        assert_ne!(connection.identity().await.unwrap().unwrap().run_id, before.run_id);
        assert_eq!(connection.entries_at(BUS, &[id]).await.unwrap()[0].is_some(), survives);
    }
}

#[tokio::test]
async fn a_closed_connection_is_noticed_at_once_whether_something_waits_or_not() {
    let mut server = Valkey::start().await;
    let (idle, waiting) = (open(&server.address()).await, open(&server.address()).await);
    let anchor = idle.add(BUS, &message(1), 1_000).await.unwrap();
    let (poll, killed) = tokio::join!(waiting.poll(BUS, anchor, (Duration::from_mins(10), 10)), async {
        server.wait_for_info("blocked_clients", "1").await;
        server.kill_clients("test").await
    });
    assert_eq!(killed, 2);
    assert!(matches!(poll, Err(ConnectionError::Closed("XREAD", _))), "{poll:?}");
    within_deadline("the idle one to end", idle.ended()).await;
    assert!(idle.has_ended());
    assert!(matches!(idle.ping().await, Err(ConnectionError::Closed("PING", _))));
    // A dropped connection leaves nothing behind, although it waits.
    let dropped = open(&server.address()).await;
    let poll = dropped.poll(BUS, anchor, (Duration::from_mins(10), 10));
    tokio::time::timeout(POLL, poll).await.unwrap_err();
    server.wait_for_info("blocked_clients", "1").await;
    drop(dropped);
    server.wait_for_info("blocked_clients", "0").await;
    server.kill();
    let refused = refused(&server.address(), &ValkeyCredential::default(), None).await;
    assert!(refused.contains("refused"), "{refused}");
}

#[tokio::test]
async fn a_reply_of_more_than_64_mib_ends_the_connection() {
    let server = Valkey::start().await;
    let connection = open(&server.address()).await;
    let large = Envelope { sealed: vec![b'x'; 1 << 20], ..message(1) };
    for _ in 0..70 {
        connection.add(BUS, &large, 1_000).await.unwrap();
    }
    let some = connection.range(BUS, StreamId::default(), 60).await.unwrap();
    assert_eq!(some.len(), 60);
    let error = connection.range(BUS, StreamId::default(), 70).await.unwrap_err();
    assert!(error.to_string().ends_with("the reply has more than 64 MiB"), "{error}");
    assert!(error.is_of_length(), "{error:?}");
    within_deadline("the end", connection.ended()).await;
}

#[tokio::test]
async fn a_password_is_read_for_each_connection_and_is_in_no_error() {
    let server = Valkey::start().await;
    let dir = Scratch::new();
    let file = dir.file("password");
    let credential = |user: Option<&str>| ValkeyCredential {
        user: user.map(str::to_owned),
        password_file: Some(file.clone()),
    };
    server.command(&["ACL", "SETUSER", "railgate", "on", ">s3cret wörd", "~*", "+@all"]).await;
    std::fs::write(&file, "s3cret wörd\n").unwrap();
    let address = server.address();
    let connection = Connection::open(&address, &credential(Some("railgate")), None, "test").await.unwrap();
    assert_eq!(server.command(&["ACL", "WHOAMI"]).await, Value::BulkString(b"default".to_vec()));
    connection.ping().await.unwrap();
    // Exchanged on both sides: what is connected stays, and the next connection has the new one.
    server.command(&["ACL", "SETUSER", "railgate", "resetpass", ">n3w"]).await;
    let error = refused(&address, &credential(Some("railgate")), None).await;
    assert_eq!(error, "the server accepts neither user nor password (WRONGPASS)");
    std::fs::write(&file, "n3w").unwrap();
    Connection::open(&address, &credential(Some("railgate")), None, "test").await.unwrap();
    connection.ping().await.unwrap();

    // The user `default`, of a server that wants a password.
    server.command(&["CONFIG", "SET", "requirepass", "f0r all"]).await;
    let error = refused(&address, &ValkeyCredential::default(), None).await;
    assert_eq!(error, "the server accepts neither user nor password (NOAUTH)");
    std::fs::write(&file, "f0r all\n").unwrap();
    Connection::open(&address, &credential(None), None, "test").await.unwrap().ping().await.unwrap();
    std::fs::write(&file, "\n").unwrap();
    let error = refused(&address, &credential(None), None).await;
    assert!(error.contains(&file.display().to_string()) && error.contains("is empty"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = refused(&address, &credential(None), None).await;
    assert!(error.contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn the_user_of_the_acl_line_may_do_everything_needed_and_nothing_else() {
    let server = Valkey::start().await;
    let dir = Scratch::new();
    std::fs::write(dir.file("password"), "s3cret").unwrap();
    let line = acl_line("railgate", "0011223344556677").replace("PASSWORD", "s3cret");
    server.command(&line.split(' ').collect::<Vec<_>>()).await;
    let credential =
        ValkeyCredential { user: Some("railgate".to_owned()), password_file: Some(dir.file("password")) };
    let connection = Connection::open(&server.address(), &credential, None, "railgate-test").await.unwrap();
    try_everything(&connection).await;
    let Value::BulkString(clients) = server.command(&["CLIENT", "LIST"]).await else { panic!() };
    assert!(String::from_utf8(clients).unwrap().contains("name=railgate-test "));

    // Keys of others, those of another fleet included, and any other command.
    let refused = connection.get("railgate:{8899aabbccddeeff}:a:x").await.unwrap_err();
    assert_eq!(refused.code(), Some("NOPERM"), "{refused}");
    assert_eq!(connection.get("session:1").await.unwrap_err().code(), Some("NOPERM"));
    assert_eq!(connection.last_id("other").await.unwrap_err().code(), Some("NOPERM"));
    let url = format!("redis://railgate:s3cret@127.0.0.1:{}", server.port);
    let mut client = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    for command in [
        "FLUSHALL",
        "KEYS *",
        "SCAN 0",
        "CONFIG GET *",
        "EVAL return 0",
        "XTRIM x MAXLEN 0",
        "CLIENT LIST",
        "SHUTDOWN",
    ] {
        let mut parts = command.split(' ');
        let mut refused = redis::cmd(parts.next().unwrap());
        parts.for_each(|part| {
            refused.arg(part);
        });
        let error = refused.query_async::<Value>(&mut client).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{command}: {error}");
    }

    // No command of the line is superfluous: each is missed once it is not allowed.
    for command in line.split(' ').filter_map(|word| word.strip_prefix('+')) {
        server.command(&["ACL", "SETUSER", "railgate", &format!("-{command}")]).await;
        server.command(&["ACL", "LOG", "RESET"]).await;
        let connection = Connection::open(&server.address(), &credential, None, "test").await.unwrap();
        let _ = connection.identity().await;
        let _ = connection.last_id(BUS).await;
        let _ = connection.add(BUS, &message(1), 1_000).await;
        let _ = connection.range(BUS, StreamId::default(), 1).await;
        let _ = connection.poll(BUS, StreamId::default(), (POLL, 1)).await;
        let _ = (connection.get(KEY).await, connection.set_px(KEY, b"", POLL).await);
        let _ = (connection.del(&[KEY.to_owned()]).await, connection.wait(0).await, connection.ping().await);
        let log = format!("{:?}", server.command(&["ACL", "LOG"]).await);
        assert!(log.contains(&format!("'\"{command}\"'")), "{command}: {log}");
        server.command(&["ACL", "SETUSER", "railgate", &format!("+{command}")]).await;
    }
}

#[tokio::test]
async fn a_managed_service_that_does_not_tell_what_it_is_counts_as_a_master_without_identity() {
    let server = Valkey::start().await;
    server.command(&["ACL", "SETUSER", "default", "-info", "-role", "-client|setname"]).await;
    let connection = open(&server.address()).await;
    assert_eq!(connection.identity().await.unwrap(), None);
    let anchor = connection.add(BUS, &message(1), 1_000).await.unwrap();
    let poll = connection.poll(BUS, anchor, (POLL, 10)).await.unwrap();
    assert!(poll.is_master && poll.anchor_found);
}
