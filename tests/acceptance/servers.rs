//! Three Rails behind one gateway: one is slow, one is killed, one is restarted, without failing requests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::client::Request;
use super::harness::{Gateway, Harness, eventually};
use super::keys;

/// How many responses must come before and after each event.
const MIN_RESPONSES: usize = 200;
const CLIENTS: usize = 8;

/// Only reads.
fn read(number: usize) -> Request {
    match number % 2 {
        0 => Request::get(&format!("authorized_keys?key={}", keys::of_root())),
        _ => Request::get("discover?key_id=1"),
    }
}

/// Requests of all kinds.
fn any(number: usize) -> Request {
    match number % 4 {
        0 | 1 => read(number),
        2 => Request::post("allowed")
            .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any"),
        _ => Request::post("pre_receive").form("gl_repository=project-1"),
    }
}

/// Runs `act` while clients send requests, and some more. Returns the outcomes other than 200. `act` can ask
/// for the number of responses so far.
fn failures(
    gateway: &Gateway,
    request: fn(usize) -> Request,
    act: impl FnOnce(&dyn Fn() -> usize),
) -> Vec<String> {
    let (next, answered, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match gateway.addresses()[number % 2].try_send(&request(number).with_secret()) {
                        Ok(response) if response.status == 200 => {}
                        Ok(response) => failed.lock().unwrap().push(format!("{number}: {response}")),
                        Err(error) => failed.lock().unwrap().push(format!("{number}: {error}")),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let responses = || answered.load(Ordering::Relaxed);
        act(&responses);
        let so_far = responses();
        eventually("more answers", || responses() > so_far + MIN_RESPONSES);
        is_over.store(true, Ordering::Relaxed);
    });
    failed.into_inner().unwrap()
}

/// How many requests were retried, for any reason.
fn resent(gateway: &Gateway) -> usize {
    let metrics = gateway.admin.send(&Request::new("GET", "/metrics"));
    let metrics = String::from_utf8(metrics.body).unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with("railgate_upstream_resent_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

fn served(rails: &Harness) -> u64 {
    rails.counters().values().sum()
}

#[test]
fn requests_succeed_while_servers_are_slow_killed_and_restarted() {
    let (first, slow, mut killed) = (Harness::new(), Harness::new(), Harness::new());
    slow.control("POST", "/-/slow?ms=300");
    let gateway = first.gateway_with_servers(&[&slow, &killed]);

    // What a killed Rails has read is lost, except reads, which are retried.
    let failed = failures(&gateway, read, |responses| {
        eventually("some answers", || responses() > MIN_RESPONSES && served(&killed) > 0);
        killed.kill_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    let resent_first = resent(&gateway);
    assert!(resent_first > 0, "no request met the killed server");
    let (of_first, of_slow) = (served(&first), served(&slow));
    println!("asked: first {of_first}, slow {of_slow}");
    assert!(of_slow * 3 < of_first, "the slow one got {of_slow}, the first one {of_first}");

    // It is started again, and another one is terminated as in a deployment: it finishes its requests.
    slow.control("POST", "/-/slow?ms=0");
    let mut first = first;
    let failed = failures(&gateway, any, |responses| {
        killed.restart_rails();
        let so_far = responses();
        eventually("some answers", || responses() > so_far + MIN_RESPONSES);
        first.terminate_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    assert!(resent(&gateway) > resent_first, "no request met the terminated server");
    first.restart_rails();
    eventually("all to be in rotation again", || {
        let (is_healthy, servers) = gateway.run_command("servers", &[]);
        is_healthy && servers.lines().filter(|line| line.contains(r#""state":"up""#)).count() == 3
    });
}
