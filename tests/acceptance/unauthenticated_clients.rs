//! Unauthenticated clients send more requests than Rails can serve. Authenticated callers are not affected.
//!
//! No timing decides the outcome: Rails is so slow that the unauthenticated requests would occupy it for
//! longer than the gateway waits, if they got all of its threads.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::client::{Address, Request};
use super::harness::{Gateway, Harness, Transport, eventually};
use super::keys;

/// How many unauthenticated clients there are.
const CLIENTS: usize = 600;

/// The threads of each Rails, as in a GitLab with six Puma workers.
const RAILS_THREADS: u8 = 24;

/// After so many responses, all clients have sent a request.
const ENOUGH_RESPONSES: usize = 30;

/// How long they pause after a refusal by the gateway. The test shares the machine, and a loop without a
/// pause would only use up CPU time.
const PAUSE: Duration = Duration::from_millis(500);

/// Rails takes half a second for each request: over 6 s for one request of each client on two of them, over
/// 12 s on one.
const SLOW_RAILS: &str = "/-/slow?ms=500";

/// Less than all unauthenticated requests would take, and far more than one response takes.
const SHORT_RESPONSE_TIMEOUT: &str = r#"
    [upstream.classes.lookup]
    response_timeout = "4s"
    [upstream.classes.access]
    response_timeout = "4s"
    [upstream.classes.other]
    response_timeout = "4s"
"#;

/// A caller with a stale answer waits for 5 s. With a shared queue it would wait behind the unauthenticated
/// requests; over a kept connection it would not.
const LONG_RESPONSE_TIMEOUT: &str = "[upstream.classes.lookup]\nresponse_timeout = \"30s\"";

/// Runs `act` while the unauthenticated clients send requests, each over a new connection.
fn with_unauthenticated_load<T>(gateway: &Gateway, act: impl FnOnce() -> T) -> T {
    let Address::Tcp(address) = gateway.tcp else { panic!("{:?} is no TCP address", gateway.tcp) };
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let client = thread::Builder::new().stack_size(128 * 1024);
            let requests = || {
                while !is_over.load(Ordering::Relaxed) {
                    if send_unauthenticated(address, &is_over) == Some(404) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        pause(&is_over);
                    }
                }
            };
            client.spawn_scoped(scope, requests).unwrap();
        }
        // A panic must stop the clients too, or the scope would wait for them for ever.
        let _ends = SetOnDrop(&is_over);
        eventually("Rails to be busy with unauthenticated requests", || {
            let asked = sum(gateway, r#"railgate_upstream_in_flight{class="other"}"#);
            asked > 0 && answered.load(Ordering::Relaxed) >= ENOUGH_RESPONSES
        });
        act()
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
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

/// The status, if there is a response before the end of the test.
fn send_unauthenticated(address: SocketAddr, is_over: &AtomicBool) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    let request = "GET /api/v4/internal/unknown HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let (mut response, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => response.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    String::from_utf8_lossy(&response).split(' ').nth(1)?.parse().ok()
}

/// The sum of all series whose names begin like this.
fn sum(gateway: &Gateway, series: &str) -> usize {
    let metrics = gateway.admin.send(&Request::new("GET", "/metrics"));
    let metrics = String::from_utf8(metrics.body).unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// With uncached users and access checks, which need Rails.
#[test]
fn callers_are_served_beside_unauthenticated_load() {
    let (first, second) = (Harness::with_threads(RAILS_THREADS), Harness::with_threads(RAILS_THREADS));
    let gateway = first.gateway_with_servers_and(&[&second], SHORT_RESPONSE_TIMEOUT);
    for rails in [&first, &second] {
        rails.control("POST", SLOW_RAILS);
    }
    with_unauthenticated_load(&gateway, || {
        let caller = |number: usize| {
            let address = gateway.addresses()[number % 2];
            for round in 0..2 {
                let user = Request::get(&format!("discover?user_id={}", 1_000 + 10 * number + round));
                let access = Request::post("allowed")
                    .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any");
                for request in [user, access] {
                    let response = address.send(&request.with_secret());
                    assert_eq!(response.status, 200, "{response}");
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
        let servers = String::from_utf8(gateway.admin.send(&Request::new("GET", "/metrics")).body).unwrap();
        let up = servers.lines().filter(|line| line.starts_with(up) && line.ends_with(r#"state="up"} 1"#));
        assert_eq!(up.count(), 2, "{servers}");
    });
}

/// A busy Rails has not failed, so that no stale answer of a deleted key may be served.
#[test]
fn unauthenticated_load_does_not_bring_back_a_deleted_key() {
    let harness = Harness::with_threads(RAILS_THREADS);
    let life = "negative_ttl = \"1ms\"\nstale_while_revalidate = \"0s\"\nstale_if_error = \"1h\"";
    let gateway =
        harness.gateway_with_short_ttl_and(Transport::Tcp, life, ("max_idle = 0", LONG_RESPONSE_TIMEOUT));
    let key = Request::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
    let known = gateway.tcp.send(&key);
    assert_eq!(known.status, 200, "{known}");
    harness.control("DELETE", &format!("/-/keys/{}", known.json()["id"]));
    harness.control("POST", SLOW_RAILS);
    let is_unknown = || {
        for address in gateway.addresses() {
            let response = address.send(&key);
            assert_eq!(response.status, 404, "{response}");
        }
    };
    with_unauthenticated_load(&gateway, || (0..3).for_each(|_| is_unknown()));
    is_unknown();
}
