//! Three Rails behind one gateway: one is slow, one is killed, one is restarted, and nobody notices.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::keys;
use super::stage::{Gateway, Stage, eventually};
use super::wire::Ask;

/// Answers, before something happens and after it.
const SOME: usize = 200;
const CLIENTS: usize = 8;

/// Reads alone.
fn read(number: usize) -> Ask {
    match number % 2 {
        0 => Ask::get(&format!("authorized_keys?key={}", keys::of_root())),
        _ => Ask::get("discover?key_id=1"),
    }
}

/// Whatever there is.
fn any(number: usize) -> Ask {
    match number % 4 {
        0 | 1 => read(number),
        2 => Ask::post("allowed").form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&changes=_any"),
        _ => Ask::post("pre_receive").form("gl_repository=project-1"),
    }
}

/// What became of requests, other than a 200, that clients send for as long as `act` takes, and some
/// more. It is told how many answers there are so far.
fn failures(gateway: &Gateway, ask: fn(usize) -> Ask, act: impl FnOnce(&dyn Fn() -> usize)) -> Vec<String> {
    let (next, answered, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match gateway.peers()[number % 2].try_send(&ask(number).with_secret()) {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failed.lock().unwrap().push(format!("{number}: {answer}")),
                        Err(error) => failed.lock().unwrap().push(format!("{number}: {error}")),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let answers = || answered.load(Ordering::Relaxed);
        act(&answers);
        let so_far = answers();
        eventually("more answers", || answers() > so_far + SOME);
        is_over.store(true, Ordering::Relaxed);
    });
    failed.into_inner().unwrap()
}

/// How many requests were sent again, whatever the reason.
fn resent(gateway: &Gateway) -> usize {
    let metrics = gateway.admin.send(&Ask::new("GET", "/metrics"));
    let metrics = String::from_utf8(metrics.body).unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with("railgate_upstream_resent_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

fn served(rails: &Stage) -> u64 {
    rails.counters().values().sum()
}

#[test]
fn one_of_three_is_slow_one_is_killed_and_nobody_notices() {
    let (first, slow, mut killed) = (Stage::new(), Stage::new(), Stage::new());
    slow.control("POST", "/-/slow?ms=300");
    let gateway = first.gateway_of_several(&[&slow, &killed]);

    // What a killed Rails has read is lost, unless asking changes nothing.
    let failed = failures(&gateway, read, |answers| {
        eventually("some answers", || answers() > SOME && served(&killed) > 0);
        killed.stop_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    let resent_first = resent(&gateway);
    assert!(resent_first > 0, "nobody has met the one that was killed");
    let (of_first, of_slow) = (served(&first), served(&slow));
    println!("asked: first {of_first}, slow {of_slow}");
    assert!(of_slow * 3 < of_first, "the slow one got {of_slow}, the first one {of_first}");

    // It comes back, and another one goes as in a deploy: it ends what it has begun.
    slow.control("POST", "/-/slow?ms=0");
    let mut first = first;
    let failed = failures(&gateway, any, |answers| {
        killed.restart_rails();
        let so_far = answers();
        eventually("some answers", || answers() > so_far + SOME);
        first.end_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    assert!(resent(&gateway) > resent_first, "nobody has met the one that went");
    first.restart_rails();
    eventually("all take part again", || {
        let (is_well, servers) = gateway.operate("servers", &[]);
        is_well && servers.lines().filter(|line| line.contains(r#""state":"up""#)).count() == 3
    });
}
