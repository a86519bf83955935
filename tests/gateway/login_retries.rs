//! Logins while Rails is away: GitLab Shell and gitlab-sshd retry by their own schedule, and gitlab-sshd
//! gives up after a while. They must not fail much later than without the gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::client::{Address, Connection, Request, within_deadline};
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake_rails::{FakeRails, Latch, PADDED_KEY, ROOT_KEY, Reply, UNKNOWN_KEY, gitlab};
use super::harness::{RunningGateway, Setup};
use super::log;

const HOLDS: &str = "railgate_upstream_holds_total";
const HELD: &str = "railgate_upstream_held";
const UNHELD: &str = "railgate_upstream_unheld_total";
const AWAY: &str = "railgate_upstream_away";

/// The time that gitlab-sshd allows for the lookup of one key, with all tries.
const DEADLINE: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The outcome of a lookup: the last status, if any, and the total time. Pauses between tries count, but are
/// not slept.
#[derive(Debug)]
struct Lookup {
    status: Option<u16>,
    tries: u32,
    after: Duration,
}

/// Looks up a key as GitLab Shell 14.56 does: three tries; it retries after no response, 429, and 5xx other
/// than 501, with pauses that double or follow `Retry-After`.
async fn look_up(address: &Address, key: &str) -> Lookup {
    look_up_with(address, key, TRIES, Pauses::Counted).await
}

/// Whether the pauses between two tries are slept, or only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pauses {
    Counted,
    Slept,
}

async fn look_up_with(address: &Address, key: &str, tries: u32, pauses: Pauses) -> Lookup {
    let request = Request::get(&format!("authorized_keys?key={}", key.replace('+', "%2B"))).with_secret();
    let mut lookup = Lookup { status: None, tries: 0, after: Duration::ZERO };
    loop {
        let begun = Instant::now();
        let response = match address.try_connect().await {
            Ok(mut connection) => {
                connection.write(&request.to_bytes("close")).await;
                connection.try_read_response().await.ok()
            }
            Err(_) => None,
        };
        lookup.after += begun.elapsed();
        lookup.tries += 1;
        lookup.status = response.as_ref().map(|response| response.status);
        let is_final = lookup.status.is_some_and(|status| status == 501 || status < 500 && status != 429);
        if is_final || lookup.tries == tries || lookup.after > DEADLINE {
            return lookup;
        }
        let retry_after = response.as_ref().filter(|response| matches!(response.status, 429 | 503));
        let retry_after = retry_after
            .and_then(|response| response.header("retry-after")?.parse().ok())
            .map(Duration::from_secs);
        let pause = retry_after.unwrap_or((SHORTEST_PAUSE * 2_u32.pow(lookup.tries - 1)).min(LONGEST_PAUSE));
        if pauses == Pauses::Slept {
            tokio::time::sleep(pause).await;
        }
        lookup.after += pause;
    }
}

/// A port that refuses connections until `open` is called.
struct Port(Socket);

impl Port {
    fn closed() -> Self {
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(port)
    }

    fn address(&self) -> Address {
        Address::Tcp(self.0.local_addr().unwrap().as_socket().unwrap())
    }

    fn open(self) -> FakeRails {
        self.0.listen(1_024).unwrap();
        self.0.set_nonblocking(true).unwrap();
        FakeRails::listen_on(tokio::net::TcpListener::from_std(self.0.into()).unwrap())
    }
}

/// The setup with the default time-outs.
fn default_setup() -> Setup {
    ["upstream.hold", "upstream.total_timeout", "upstream.response_timeout", "upstream.connect_timeout"]
        .into_iter()
        .fold(Setup::new(), Setup::without)
}

async fn start_request(gateway: &RunningGateway, request: &Request) -> Connection {
    let mut connection = gateway.tcp.connect().await;
    connection.write(&request.to_bytes("close")).await;
    connection
}

fn allowed() -> Request {
    Request::post("allowed").with_secret().json("{}")
}

/// A user offers several keys. Each is tried three times, and only the first try is held.
#[tokio::test]
async fn a_failing_login_takes_at_most_twice_as_long_as_without_the_gateway() {
    for keys in [&[UNKNOWN_KEY][..], &[UNKNOWN_KEY, PADDED_KEY, ROOT_KEY], &[ROOT_KEY, ROOT_KEY]] {
        let port = Port::closed();
        let gateway = RunningGateway::start(default_setup().settings(&port.address()));
        let (mut straight, mut through) = (Duration::ZERO, Duration::ZERO);
        for key in keys {
            straight += look_up(&port.address(), key).await.after;
            let lookup = look_up(&gateway.tcp, key).await;
            assert_eq!((lookup.status, lookup.tries), (Some(503), TRIES), "{lookup:?}");
            assert!(lookup.after < DEADLINE, "{lookup:?}");
            through += lookup.after;
        }
        println!("{} keys: {through:.1?}, straight to Rails {straight:.1?}", keys.len());
        assert!(through <= straight * 2, "{through:?} instead of {straight:?} for {keys:?}");
        // Independent of the machine's speed: only the first try was held.
        gateway.wait_for_metric(HOLDS, 1).await;
        gateway.wait_for_metric(UNHELD, TRIES as usize * keys.len() - 1).await;
        gateway.wait_for_metric(AWAY, 1).await;
        gateway
            .wait_for_metric(
                r#"railgate_failures_total{reason="upstream_unreachable"}"#,
                TRIES as usize * keys.len(),
            )
            .await;
    }
}

/// The kinds of clients: GitLab Shell, and one that does not retry, with one key or two.
const CLIENTS: [(&str, u32, &[&str]); 3] = [
    ("3 tries", TRIES, &[UNKNOWN_KEY]),
    ("3 tries, 2 keys", TRIES, &[UNKNOWN_KEY, PADDED_KEY]),
    ("1 try", 1, &[UNKNOWN_KEY]),
];

/// A login: one key after the other, until one is known.
async fn log_in(address: Address, tries: u32, keys: &'static [&'static str]) -> Lookup {
    let mut login = Lookup { status: None, tries: 0, after: Duration::ZERO };
    for key in keys {
        let lookup = look_up_with(&address, key, tries, Pauses::Slept).await;
        login = Lookup {
            status: lookup.status,
            tries: login.tries + lookup.tries,
            after: login.after + lookup.after,
        };
        if lookup.status == Some(200) {
            break;
        }
    }
    login
}

/// Rails is down for 20 s, the gateway has its default configuration, and clients sleep their pauses.
/// `tests/README.md` has the table that this prints.
#[tokio::test]
async fn logins_while_rails_is_down_fail_about_as_fast_as_without_the_gateway() {
    const DOWN: Duration = Duration::from_secs(20);
    // The hold of a look-up, and a margin for a busy machine.
    const MARGIN: Duration = Duration::from_secs(2);
    let port = Port::closed();
    let rails = port.address();
    let gateway = RunningGateway::start(Setup::new().with_default_times().settings(&rails));
    let mut logins = Vec::new();
    for begin in [0, 5, 10, 17, 21] {
        for (client, tries, keys) in CLIENTS {
            let addresses = [rails.clone(), gateway.tcp.clone()];
            logins.push(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(begin)).await;
                let [straight, through] = addresses.map(|address| log_in(address, tries, keys));
                let (straight, through) = tokio::join!(straight, through);
                (begin, client, straight, through)
            }));
        }
    }
    tokio::time::sleep(DOWN).await;
    let _rails = port.open();
    println!("| Begun after | Client | Straight to Rails | Through the gateway |");
    for login in logins {
        let (begin, client, straight, through) = within_deadline("a login", login).await.unwrap();
        let shown = |login: &Lookup| {
            let status = login.status.map_or("no answer".to_owned(), |status| status.to_string());
            format!("{status}, {} tries, {:.1} s", login.tries, login.after.as_secs_f64())
        };
        println!("| {begin} s | {client} | {} | {} |", shown(&straight), shown(&through));
        assert!(
            through.after <= straight.after * 2 + MARGIN,
            "{begin} s, {client}: {through:?}, {straight:?}"
        );
        if Duration::from_secs(begin) > DOWN {
            assert_eq!(through.status, straight.status, "{begin} s, {client}: {through:?}");
        }
    }
}

/// A look-up has 3 s, or 1 s if Rails has just left another one unanswered.
fn setup_with_a_silent_server() -> Setup {
    let setup = Setup::new().text("upstream.hold", "10m").text("upstream.connect_timeout", "500ms");
    setup.text("upstream.classes.lookup.total_timeout", "3s")
}

/// It costs a look-up all of its time only once, until it answers anything.
#[tokio::test]
async fn a_silent_rails_costs_the_following_look_ups_less_time() {
    let harness = setup_with_a_silent_server().start().await;
    let silent = async |id: &str, path: &str, expected: &str| {
        let response = harness.send(&Request::get(path).with_secret().header("X-Request-Id", id)).await;
        response.assert_failure(504);
        let line = log::wait_for_request_line(id).await;
        let error = line["error"].as_str().unwrap_or_default();
        assert!(error.starts_with(expected), "{id}: {error}");
    };
    let unknown_key = format!("authorized_keys?key={UNKNOWN_KEY}");
    for (round, answered) in [
        ("1", Request::get("discover?username=root").with_secret()),
        ("2", Request::get("lfs").with_secret()),
    ] {
        harness.rails.respond_always(Reply::silence());
        silent(&format!("silent-first-{round}"), "discover?user_id=5", "no answer within 3s").await;
        for path in [unknown_key.as_str(), "discover?user_id=6"] {
            let id = format!("silent-then-{round}-{}", path.len());
            silent(&id, path, "no answer within 1s").await;
        }
        harness.rails.recover();
        assert_eq!(harness.send(&answered).await.status, 200);
    }
}

/// A look-up that was cut short, and is left to its end, shows that. Nothing else has to ask Rails.
#[tokio::test]
async fn a_rails_that_was_silent_and_takes_its_time_is_given_it_again() {
    let harness = setup_with_a_silent_server().start().await;
    let look_up = async |id: usize| {
        harness.send(&Request::get(&format!("discover?user_id={id}")).with_secret()).await.status
    };
    harness.rails.respond_always(Reply::silence());
    assert_eq!(look_up(1).await, 504);
    // It has more than the time of one that is cut short, and less than all of it.
    let latch = Latch::closed();
    let held = latch.clone();
    harness.rails.respond_with(move |request| gitlab(request).after(&held));
    for id in 2..4 {
        assert_eq!(look_up(id).await, 504);
    }
    latch.open();
    harness.rails.respond_with(|request| gitlab(request).after_pause(Duration::from_millis(1_500)));
    let mut statuses = Vec::new();
    for id in 4..8 {
        statuses.push(look_up(id).await);
    }
    // On a slow machine, the request that was left has ended too early, and the first of these takes its place.
    assert!(matches!(statuses[..], [200 | 504, 200, 200, 200]), "{statuses:?}");
}

/// The gateway remembers that Rails is away until it is back, and nothing about keys.
#[tokio::test]
async fn the_first_lookup_after_rails_is_back_is_answered() {
    let port = Port::closed();
    let gateway = RunningGateway::start(default_setup().settings(&port.address()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(503));
    let rails = port.open();
    for (key, status) in [(ROOT_KEY, 200), (UNKNOWN_KEY, 404), (PADDED_KEY, 200)] {
        let lookup = look_up(&gateway.tcp, key).await;
        assert_eq!((lookup.status, lookup.tries), (Some(status), 1), "{key}");
    }
    assert_eq!(rails.request_count(), 3);
    gateway.wait_for_metric(AWAY, 0).await;
    gateway.wait_for_metric(HELD, 0).await;
}

#[tokio::test]
async fn lookups_fail_immediately_while_other_requests_are_held() {
    let port = Port::closed();
    let setup = default_setup().text("upstream.classes.access.hold", "10m");
    let gateway = RunningGateway::start(setup.settings(&port.address()));
    let mut patient = start_request(&gateway, &allowed()).await;
    gateway.wait_for_metric(HELD, 1).await;
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    gateway.wait_for_metric(UNHELD, 2).await;
    gateway.wait_for_metric(HOLDS, 2).await;
    let rails = port.open();
    assert_eq!(patient.read_response().await.status, 200);
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(200));
    assert_eq!(rails.request_count(), 2);
    gateway.wait_for_metric(UNHELD, 2).await;
}

/// Only lookups have so little time.
#[tokio::test]
async fn other_classes_are_held_after_a_lookup_timed_out() {
    let port = Port::closed();
    let gateway = RunningGateway::start(default_setup().settings(&port.address()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    let mut waiting = Vec::new();
    for request in
        [allowed(), Request::post("pre_receive").with_secret().form("a=b"), Request::get("lfs").with_secret()]
    {
        waiting.push(start_request(&gateway, &request).await);
    }
    gateway.wait_for_metric(HELD, 3).await;
    let _rails = port.open();
    for connection in &mut waiting {
        assert_eq!(connection.read_response().await.status, 200);
    }
}

#[tokio::test]
async fn outages_are_not_remembered_where_lookups_are_not_held() {
    let port = Port::closed();
    let gateway =
        RunningGateway::start(default_setup().text("upstream.hold", "0s").settings(&port.address()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    gateway.wait_for_metric(UNHELD, 0).await;
    gateway.wait_for_metric(HOLDS, 0).await;
    gateway.wait_for_metric(AWAY, 0).await;
}

#[tokio::test]
async fn a_known_key_is_never_held() {
    let rails = FakeRails::listen_tcp().await;
    let setup = default_setup().set("upstream.max_idle", 0);
    let setup = setup.text("cache.authorized_keys.ttl", "1ms");
    let setup = setup.text("cache.authorized_keys.stale_while_revalidate", "0s");
    let gateway = RunningGateway::start(setup.settings(&rails.address));
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(200));
    drop(rails);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    for _ in 0..3 {
        let lookup = look_up(&gateway.tcp, ROOT_KEY).await;
        assert_eq!((lookup.status, lookup.tries), (Some(200), 1));
    }
}

/// A full backlog costs a try the whole `connect_timeout`, but not each try waits for it.
#[tokio::test]
async fn a_login_fails_in_time_when_rails_does_not_accept() {
    let port = Port::closed();
    port.0.listen(0).unwrap();
    let Address::Tcp(address) = port.address() else { unreachable!("it is bound to an address") };
    let _fills_the_backlog = std::net::TcpStream::connect(address).unwrap();
    let gateway = RunningGateway::start(default_setup().settings(&port.address()));
    for key in [UNKNOWN_KEY, ROOT_KEY] {
        let lookup = look_up(&gateway.tcp, key).await;
        assert_eq!((lookup.status, lookup.tries), (Some(503), TRIES), "{lookup:?}");
        assert!(lookup.after < DEADLINE, "{lookup:?}");
    }
    gateway.wait_for_metric(UNHELD, 2 * TRIES as usize - 1).await;
}

/// The proxy responds quickly, so every request is sent to it.
#[tokio::test]
async fn behind_a_proxy_lookups_get_its_response_after_one_hold() {
    let harness = default_setup().start().await;
    harness.rails.respond_always(Reply::new(502, "Content-Type: text/html\r\n", "away"));
    // The first try learns that Rails is away, the second one is held, and later ones are not.
    for (key, unheld) in [(UNKNOWN_KEY, TRIES - 2), (PADDED_KEY, 2 * TRIES - 2)] {
        let lookup = look_up(&harness.gateway.tcp, key).await;
        assert_eq!((lookup.status, lookup.tries), (Some(502), TRIES));
        harness.gateway.wait_for_metric(UNHELD, unheld as usize).await;
    }
    harness.rails.recover();
    assert_eq!(look_up(&harness.gateway.tcp, ROOT_KEY).await.status, Some(200));
    harness.gateway.wait_for_metric(HELD, 0).await;
}

#[tokio::test]
async fn a_hold_ended_by_the_total_timeout_is_remembered() {
    let port = Port::closed();
    let setup = Setup::new().text("upstream.hold", "10m");
    let setup = setup.text("upstream.classes.lookup.total_timeout", "200ms");
    let gateway = RunningGateway::start(setup.settings(&port.address()));
    let lookup = look_up(&gateway.tcp, UNKNOWN_KEY).await;
    assert_eq!((lookup.status, lookup.tries), (Some(503), TRIES));
    gateway.wait_for_metric(HOLDS, 1).await;
    gateway.wait_for_metric(UNHELD, TRIES as usize - 1).await;
    gateway.wait_for_metric(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 1).await;
}

#[tokio::test]
async fn an_expiring_token_does_not_stop_others_from_being_held() {
    let port = Port::closed();
    let setup = Setup::new().text("upstream.hold", "10m");
    let gateway = RunningGateway::start(setup.settings(&port.address()));
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 1 });
    let request =
        Request::post("kubernetes/usage_metrics").json("{}").header(KAS_HEADER, &kas_token(&claims));
    let _not_sent = gateway.tcp.send(&request).await;
    let mut waits =
        start_request(&gateway, &Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret())
            .await;
    gateway.wait_for_metric(HELD, 1).await;
    gateway.wait_for_metric(UNHELD, 0).await;
    let _rails = port.open();
    assert_eq!(waits.read_response().await.status, 200);
}

/// A Rails that accepts connections and never responds counts as failing, so that stale answers are served.
#[tokio::test]
async fn a_hanging_rails_uses_at_most_the_total_timeout_of_a_lookup() {
    let setup = Setup::new()
        .text("upstream.classes.lookup.total_timeout", "1s")
        .text("cache.stale_wait", "1h")
        .text("cache.authorized_keys.ttl", "1ms")
        .text("cache.authorized_keys.stale_while_revalidate", "0s");
    let harness = setup.start().await;
    let key = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(harness.send(&key).await.status, 200);
    tokio::time::sleep(Duration::from_millis(5)).await;
    harness.rails.respond_always(Reply::silence());
    // The first one is the leader of the fill, the second one a follower.
    let mut connections = [harness.start_request(&key).await, harness.start_request(&key).await];
    for connection in &mut connections {
        let response = connection.read_response().await;
        assert!(response.cache_status().ends_with("detail=stale_if_error"), "{response}");
    }
    let unknown = Request::get(&format!("authorized_keys?key={UNKNOWN_KEY}")).with_secret();
    let mut connections = [harness.start_request(&unknown).await, harness.start_request(&unknown).await];
    for connection in &mut connections {
        connection.read_response().await.assert_failure(504);
    }
}
