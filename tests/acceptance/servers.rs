//! Three Rails behind one gateway: one is slow, one is killed, one is restarted, and nobody notices.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::keys;
use super::stage::{Gateway, Stage, eventually};
use super::wire::Ask;

const REQUESTS: usize = 600;
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

/// The statuses other than 200 while `act` runs, which is told how many answers there are so far.
fn failures(gateway: &Gateway, ask: fn(usize) -> Ask, act: impl FnOnce(&dyn Fn() -> usize)) -> Vec<String> {
    let (next, answered, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    match gateway.peers()[number % 2].try_send(&ask(number).with_secret()) {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failed.lock().unwrap().push(format!("{number}: {answer}")),
                        Err(error) => failed.lock().unwrap().push(format!("{number}: {error}")),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        act(&|| answered.load(Ordering::Relaxed));
    });
    failed.into_inner().unwrap()
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
    let failed = failures(&gateway, read, |answered| {
        eventually("some answers", || answered() > REQUESTS / 3);
        assert!(served(&killed) > 0);
        killed.stop_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    let (of_first, of_slow) = (served(&first), served(&slow));
    println!("asked: first {of_first}, slow {of_slow}");
    assert!(of_slow * 3 < of_first, "the slow one got {of_slow}, the first one {of_first}");

    // It comes back, and another one goes as in a deploy: it ends what it has begun.
    slow.control("POST", "/-/slow?ms=0");
    let mut first = first;
    let failed = failures(&gateway, any, |answered| {
        killed.restart_rails();
        eventually("some answers", || answered() > REQUESTS / 3);
        first.end_rails();
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", gateway.log());
    first.restart_rails();
    eventually("all take part again", || {
        let (is_well, servers) = gateway.operate("servers", &[]);
        is_well && servers.lines().filter(|line| line.contains(r#""state":"up""#)).count() == 3
    });
}
