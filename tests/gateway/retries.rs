//! Rails is away, as a login meets it: GitLab Shell and gitlab-sshd try again by a schedule of their own, and
//! gitlab-sshd gives up after a while. What they hear must not come much later than from Rails itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::client::{Ask, Peer, Wire};
use super::credentials::{KAS_HEADER, kas_token, now};
use super::fake::{PADDED_KEY, ROOT_KEY, Rails, Reply, UNKNOWN_KEY};
use super::stage::{Running, Setup};

const HOLDS: &str = "railgate_upstream_holds_total";
const HELD: &str = "railgate_upstream_held";
const UNHELD: &str = "railgate_upstream_unheld_total";
const AWAY: &str = "railgate_upstream_away";

/// What gitlab-sshd gives the look-up of one key, its tries included.
const DEADLINE: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What a login was told of a key: the last status, if there was any, and after how long. Pauses between tries
/// count, but are not slept.
#[derive(Debug)]
struct Told {
    status: Option<u16>,
    tries: u32,
    after: Duration,
}

/// Looks a key up as GitLab Shell 14.56 does: three tries, again after no answer, 429 and 5xx but 501, with pauses
/// that double, or are what `Retry-After` says.
async fn look_up(peer: &Peer, key: &str) -> Told {
    let ask = Ask::get(&format!("authorized_keys?key={}", key.replace('+', "%2B"))).with_secret();
    let mut told = Told { status: None, tries: 0, after: Duration::ZERO };
    loop {
        let begun = Instant::now();
        let answer = match peer.try_connect().await {
            Ok(mut wire) => {
                wire.write(&ask.to_bytes("close")).await;
                wire.try_answer().await.ok()
            }
            Err(_) => None,
        };
        told.after += begun.elapsed();
        told.tries += 1;
        told.status = answer.as_ref().map(|answer| answer.status);
        let is_final = told.status.is_some_and(|status| status == 501 || status < 500 && status != 429);
        if is_final || told.tries == TRIES || told.after > DEADLINE {
            return told;
        }
        let says = answer.as_ref().filter(|answer| matches!(answer.status, 429 | 503));
        let says =
            says.and_then(|answer| answer.header("retry-after")?.parse().ok()).map(Duration::from_secs);
        told.after += says.unwrap_or((SHORTEST_PAUSE * 2_u32.pow(told.tries - 1)).min(LONGEST_PAUSE));
    }
}

/// A port that refuses connections until Rails moves in.
struct Port(Socket);

impl Port {
    fn closed() -> Self {
        let port = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        port.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(port)
    }

    fn peer(&self) -> Peer {
        Peer::Tcp(self.0.local_addr().unwrap().as_socket().unwrap())
    }

    fn open(self) -> Rails {
        self.0.listen(1_024).unwrap();
        self.0.set_nonblocking(true).unwrap();
        Rails::on(tokio::net::TcpListener::from_std(self.0.into()).unwrap())
    }
}

/// What the gateway does if nothing is configured.
fn as_shipped() -> Setup {
    ["upstream.hold", "upstream.total_timeout", "upstream.response_timeout", "upstream.connect_timeout"]
        .into_iter()
        .fold(Setup::new(), Setup::without)
}

async fn begin(gateway: &Running, ask: &Ask) -> Wire {
    let mut wire = gateway.tcp.connect().await;
    wire.write(&ask.to_bytes("close")).await;
    wire
}

fn allowed() -> Ask {
    Ask::post("allowed").with_secret().json("{}")
}

/// A user offers keys, one after another. Each is tried three times, and only the first try of all has waited.
#[tokio::test]
async fn a_login_is_told_within_twice_the_time_of_going_straight_to_rails() {
    for keys in [&[UNKNOWN_KEY][..], &[UNKNOWN_KEY, PADDED_KEY, ROOT_KEY], &[ROOT_KEY, ROOT_KEY]] {
        let port = Port::closed();
        let gateway = Running::start(as_shipped().settings(&port.peer()));
        let (mut straight, mut through) = (Duration::ZERO, Duration::ZERO);
        for key in keys {
            straight += look_up(&port.peer(), key).await.after;
            let told = look_up(&gateway.tcp, key).await;
            assert_eq!((told.status, told.tries), (Some(503), TRIES), "{told:?}");
            assert!(told.after < DEADLINE, "{told:?}");
            through += told.after;
        }
        println!("{} keys: {through:.1?}, straight to Rails {straight:.1?}", keys.len());
        assert!(through <= straight * 2, "{through:?} instead of {straight:?} for {keys:?}");
        // Whatever the machine does: these, and no more, have waited.
        gateway.reaches(HOLDS, 1).await;
        gateway.reaches(UNHELD, TRIES as usize * keys.len() - 1).await;
        gateway.reaches(AWAY, 1).await;
        gateway
            .reaches(r#"railgate_failures_total{reason="upstream_unreachable"}"#, TRIES as usize * keys.len())
            .await;
    }
}

/// What is remembered is that Rails is away, and nothing of any key; and that only until it is back.
#[tokio::test]
async fn the_first_look_up_after_rails_is_back_is_answered() {
    let port = Port::closed();
    let gateway = Running::start(as_shipped().settings(&port.peer()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(503));
    let rails = port.open();
    for (key, status) in [(ROOT_KEY, 200), (UNKNOWN_KEY, 404), (PADDED_KEY, 200)] {
        let told = look_up(&gateway.tcp, key).await;
        assert_eq!((told.status, told.tries), (Some(status), 1), "{key}");
    }
    assert_eq!(rails.count(), 3);
    gateway.reaches(AWAY, 0).await;
    gateway.reaches(HELD, 0).await;
}

/// A login does not wait behind what does.
#[tokio::test]
async fn while_others_wait_for_rails_look_ups_are_told_at_once_that_it_is_away() {
    let port = Port::closed();
    let setup = as_shipped().text("upstream.classes.access.hold", "10m");
    let gateway = Running::start(setup.settings(&port.peer()));
    let mut patient = begin(&gateway, &allowed()).await;
    gateway.reaches(HELD, 1).await;
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    gateway.reaches(UNHELD, 2).await;
    gateway.reaches(HOLDS, 2).await;
    let rails = port.open();
    assert_eq!(patient.answer().await.status, 200);
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(200));
    assert_eq!(rails.count(), 2);
    gateway.reaches(UNHELD, 2).await;
}

/// Only look-ups have so little time.
#[tokio::test]
async fn all_others_wait_however_long_others_have() {
    let port = Port::closed();
    let gateway = Running::start(as_shipped().settings(&port.peer()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    let mut waiting = Vec::new();
    for ask in [allowed(), Ask::post("pre_receive").with_secret().form("a=b"), Ask::get("lfs").with_secret()]
    {
        waiting.push(begin(&gateway, &ask).await);
    }
    gateway.reaches(HELD, 3).await;
    let _rails = port.open();
    for wire in &mut waiting {
        assert_eq!(wire.answer().await.status, 200);
    }
}

/// Who does not want look-ups to wait gets what Rails would say; there is nothing to remember.
#[tokio::test]
async fn nothing_is_remembered_where_no_look_up_waits() {
    let port = Port::closed();
    let gateway = Running::start(as_shipped().text("upstream.hold", "0s").settings(&port.peer()));
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    gateway.reaches(UNHELD, 0).await;
    gateway.reaches(HOLDS, 0).await;
    gateway.reaches(AWAY, 0).await;
}

/// A key that is known is answered while Rails is away.
#[tokio::test]
async fn a_known_key_never_waits_for_rails() {
    let rails = Rails::on_tcp().await;
    let setup = as_shipped().set("upstream.max_idle", 0);
    let setup = setup.text("cache.authorized_keys.ttl", "1ms");
    let setup = setup.text("cache.authorized_keys.stale_while_revalidate", "0s");
    let gateway = Running::start(setup.settings(&rails.peer));
    assert_eq!(look_up(&gateway.tcp, ROOT_KEY).await.status, Some(200));
    drop(rails);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(look_up(&gateway.tcp, UNKNOWN_KEY).await.status, Some(503));
    for _ in 0..3 {
        let told = look_up(&gateway.tcp, ROOT_KEY).await;
        assert_eq!((told.status, told.tries), (Some(200), 1));
    }
}

/// A server that drops what it is sent costs each try a whole `connect_timeout`; not each of them makes one.
#[tokio::test]
async fn a_login_is_told_in_time_if_rails_is_silent() {
    let port = Port::closed();
    port.0.listen(0).unwrap();
    let Peer::Tcp(address) = port.peer() else { unreachable!("it is bound to an address") };
    let _fills_the_backlog = std::net::TcpStream::connect(address).unwrap();
    let gateway = Running::start(as_shipped().settings(&port.peer()));
    for key in [UNKNOWN_KEY, ROOT_KEY] {
        let told = look_up(&gateway.tcp, key).await;
        assert_eq!((told.status, told.tries), (Some(503), TRIES), "{told:?}");
        assert!(told.after < DEADLINE, "{told:?}");
    }
    gateway.reaches(UNHELD, 2 * TRIES as usize - 1).await;
}

/// A proxy that answers for a Rails that is away is quick itself, so it is asked by each.
#[tokio::test]
async fn behind_a_proxy_look_ups_get_its_answer_once_some_have_waited() {
    let stage = as_shipped().start().await;
    stage.rails.always(Reply::new(502, "Content-Type: text/html\r\n", "away"));
    // The first try learns that Rails is away, the second one waits, and from the third on they do not.
    for (key, unheld) in [(UNKNOWN_KEY, TRIES - 2), (PADDED_KEY, 2 * TRIES - 2)] {
        let told = look_up(&stage.gateway.tcp, key).await;
        assert_eq!((told.status, told.tries), (Some(502), TRIES));
        stage.gateway.reaches(UNHELD, unheld as usize).await;
    }
    stage.rails.recover();
    assert_eq!(look_up(&stage.gateway.tcp, ROOT_KEY).await.status, Some(200));
    stage.gateway.reaches(HELD, 0).await;
}

/// Where waiting is cut off by the end of all the time, it was in vain just the same.
#[tokio::test]
async fn a_look_up_whose_time_ends_while_it_waits_is_remembered_too() {
    let port = Port::closed();
    let setup = Setup::new().text("upstream.hold", "10m");
    let setup = setup.text("upstream.classes.lookup.total_timeout", "200ms");
    let gateway = Running::start(setup.settings(&port.peer()));
    let told = look_up(&gateway.tcp, UNKNOWN_KEY).await;
    assert_eq!((told.status, told.tries), (Some(503), TRIES));
    gateway.reaches(HOLDS, 1).await;
    gateway.reaches(UNHELD, TRIES as usize - 1).await;
    gateway.reaches(r#"railgate_failures_total{reason="upstream_total_timeout"}"#, 1).await;
}

/// One that would not have waited says nothing of whether waiting is in vain.
#[tokio::test]
async fn a_token_that_ends_too_soon_to_wait_with_is_no_reason_for_others_not_to_wait() {
    let port = Port::closed();
    let setup = Setup::new().text("upstream.hold", "10m");
    let gateway = Running::start(setup.settings(&port.peer()));
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now() + 1 });
    let ask = Ask::post("kubernetes/usage_metrics").json("{}").header(KAS_HEADER, &kas_token(&claims));
    let _not_sent = gateway.tcp.send(&ask).await;
    let mut waits =
        begin(&gateway, &Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()).await;
    gateway.reaches(HELD, 1).await;
    gateway.reaches(UNHELD, 0).await;
    let _rails = port.open();
    assert_eq!(waits.answer().await.status, 200);
}

/// A Rails that accepts connections and says nothing takes all of the time that a look-up has, and counts as one
/// that fails: who can have a stale answer gets it, whatever else would be waited for.
#[tokio::test]
async fn a_rails_that_hangs_uses_up_the_time_of_a_look_up_and_no_more() {
    let setup = Setup::new()
        .text("upstream.classes.lookup.total_timeout", "1s")
        .text("cache.stale_wait", "1h")
        .text("cache.authorized_keys.ttl", "1ms")
        .text("cache.authorized_keys.stale_while_revalidate", "0s");
    let stage = setup.start().await;
    let key = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    assert_eq!(stage.send(&key).await.status, 200);
    tokio::time::sleep(Duration::from_millis(5)).await;
    stage.rails.always(Reply::silence());
    // The first one asks, the second one waits for its answer.
    let mut wires = [stage.begin(&key).await, stage.begin(&key).await];
    for wire in &mut wires {
        let answer = wire.answer().await;
        assert!(answer.cache_status().ends_with("detail=stale_if_error"), "{answer}");
    }
    let unknown = Ask::get(&format!("authorized_keys?key={UNKNOWN_KEY}")).with_secret();
    let mut wires = [stage.begin(&unknown).await, stage.begin(&unknown).await];
    for wire in &mut wires {
        wire.answer().await.assert_failure(504);
    }
}
