//! Clients that show no credential ask for more than Rails can do. Callers that show one do not notice.
//!
//! How long an answer takes decides nothing: Rails is made so slow that the clients without a credential
//! would fill all of its time for longer than the gateway waits, if they were given all of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::keys;
use super::stage::{Gateway, Stage, Way, eventually};
use super::wire::{Ask, Peer};

/// How many clients without a credential there are.
const CROWD: usize = 600;

/// How many requests a Rails answers at one time, as a GitLab of six Puma workers does.
const THREADS: u8 = 24;

/// So many answers mean that all of them have asked.
const ROUND: usize = 30;

/// How long they wait when it was the gateway that refused them. The machine is the test's too, and a
/// loop without a pause would only show how much CPU time a loop takes.
const PAUSE: Duration = Duration::from_millis(500);

/// Rails takes half a second for each request: over 6 s for what the crowd asks of two of them, over 12 s
/// for what it asks of one.
const SLOW: &str = "/-/slow?ms=500";

/// Less than the crowd would take, and far more than an answer takes.
const IN_TIME: &str = r#"
    [upstream.classes.lookup]
    response_timeout = "4s"
    [upstream.classes.access]
    response_timeout = "4s"
    [upstream.classes.other]
    response_timeout = "4s"
"#;

/// A caller for whom there is a stale answer waits for 5 s. It waits behind the crowd, if there is one
/// line: over a connection that was kept, it would not.
const PATIENT: &str = "[upstream.classes.lookup]\nresponse_timeout = \"30s\"";

/// Runs `act` while the crowd asks, each client over one connection after another.
fn beside_a_crowd<T>(gateway: &Gateway, act: impl FnOnce() -> T) -> T {
    let Peer::Tcp(address) = gateway.tcp else { panic!("{:?} is no TCP address", gateway.tcp) };
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CROWD {
            let client = thread::Builder::new().stack_size(128 * 1024);
            let asks = || {
                while !is_over.load(Ordering::Relaxed) {
                    if ask_without_a_credential(address, &is_over) == Some(404) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        pause(&is_over);
                    }
                }
            };
            client.spawn_scoped(scope, asks).unwrap();
        }
        // A panic must end the crowd too, or the scope would wait for it for ever.
        let _ends = Ends(&is_over);
        eventually("Rails is busy with the crowd", || {
            let asked = sum(gateway, r#"railgate_upstream_in_flight{class="other"}"#);
            asked > 0 && answered.load(Ordering::Relaxed) >= ROUND
        });
        act()
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn pause(is_over: &AtomicBool) {
    let step = Duration::from_millis(50);
    for _ in 0..PAUSE.as_millis() / step.as_millis() {
        if !is_over.load(Ordering::Relaxed) {
            thread::sleep(step);
        }
    }
}

/// The status, if there is an answer before all is over.
fn ask_without_a_credential(address: SocketAddr, is_over: &AtomicBool) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    let request = "GET /api/v4/internal/unknown HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// The sum of all series whose names begin like this.
fn sum(gateway: &Gateway, series: &str) -> usize {
    let metrics = gateway.admin.send(&Ask::new("GET", "/metrics"));
    let metrics = String::from_utf8(metrics.body).unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Users that the gateway has not been asked about, and access checks: all of it is Rails' to say.
#[test]
fn callers_are_served_beside_a_crowd_without_a_credential() {
    let (first, second) = (Stage::of_threads(THREADS), Stage::of_threads(THREADS));
    let gateway = first.gateway_of_several_with(&[&second], IN_TIME);
    for rails in [&first, &second] {
        rails.control("POST", SLOW);
    }
    beside_a_crowd(&gateway, || {
        let caller = |number: usize| {
            let peer = gateway.peers()[number % 2];
            for round in 0..2 {
                let user = Ask::get(&format!("discover?user_id={}", 1_000 + 10 * number + round));
                let access = Ask::post("allowed")
                    .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any");
                for ask in [user, access] {
                    let answer = peer.send(&ask.with_secret());
                    assert_eq!(answer.status, 200, "{answer}");
                }
            }
        };
        thread::scope(|scope| {
            let callers: Vec<_> = (0..2).map(|number| scope.spawn(move || caller(number))).collect();
            for caller in callers {
                caller.join().unwrap();
            }
        });
        assert_eq!(sum(&gateway, "railgate_upstream_ejections_total{"), 0);
        let up = r#"railgate_upstream_server_state{server=""#;
        let servers = String::from_utf8(gateway.admin.send(&Ask::new("GET", "/metrics")).body).unwrap();
        let up = servers.lines().filter(|line| line.starts_with(up) && line.ends_with(r#"state="up"} 1"#));
        assert_eq!(up.count(), 2, "{servers}");
    });
}

/// Rails is busy, it has not failed: nothing is a reason to say of a deleted key what was true once.
#[test]
fn a_crowd_without_a_credential_does_not_bring_back_a_deleted_key() {
    let stage = Stage::of_threads(THREADS);
    let life = "negative_ttl = \"1ms\"\nstale_while_revalidate = \"0s\"\nstale_if_error = \"1h\"";
    let gateway = stage.gateway_of_short_memory_with(Way::Tcp, life, ("max_idle = 0", PATIENT));
    let key = Ask::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    stage.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    stage.control("POST", SLOW);
    let is_unknown = || {
        for peer in gateway.peers() {
            let answer = peer.send(&key);
            assert_eq!(answer.status, 404, "{answer}");
        }
    };
    beside_a_crowd(&gateway, || (0..3).for_each(|_| is_unknown()));
    is_unknown();
}
