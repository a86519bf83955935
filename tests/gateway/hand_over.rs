//! A hand-over during which one of the two processes ends: one of them goes on, or none, but never both; and no file of
//! a socket is left behind, nor taken from the one that goes on.

use std::fs::{self, File};
use std::future::ready;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use futures_util::future::join_all;
use rustix::fs::{FlockOperation, flock};

use super::client::{Address, Request, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, Latch, Reply};
use super::harness::Setup;
use super::upgrade::{Gateway, setup, user};

/// How far the hand-over is when a process ends. Both are where it says, until the test lets them go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The next one has connected, and was not answered yet.
    Asked,
    /// It has the sockets, and reads and binds.
    Passed,
    /// It has said `bound`.
    Bound,
    /// The one before has said `saved`.
    Saved,
    /// The next one has said `serving`.
    Serving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Before,
    Next,
}

/// One hand-over.
struct HandOver {
    setup: Setup,
    before: Gateway,
    next: Process,
    /// Keeps the next one from binding the last one of its listeners.
    lock: Option<File>,
}

impl HandOver {
    async fn reach(step: Step, rails: &FakeRails) -> Self {
        let setup = setup().text("log.level", "debug");
        let config = setup.config(&rails.address);
        let before = Gateway::start(&setup, &config).await;
        assert_eq!(before.tcp.send(&user()).await.status, 200);
        let folder = setup.dir.file("locked");
        fs::create_dir(&folder).unwrap();
        let lock = File::open(&folder).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        if step == Step::Asked {
            before.process.signal("-STOP");
        }
        let own = format!("\n[[listen]]\naddress = \"unix:{}\"", folder.join("own.sock").display());
        let file = setup.dir.file("next.toml");
        fs::write(&file, config + &own).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.arg("run").arg("--config").arg(file);
        let next = Process::spawn_piped(command);
        let mut hand_over = Self { setup, before, next, lock: Some(lock) };
        hand_over.go_on_until(step).await;
        hand_over
    }

    async fn go_on_until(&mut self, step: Step) {
        let (before, next) = (&self.before.process, &self.next);
        if step == Step::Asked {
            // The system lists the socket that listens, and each connection that waits there.
            let path = self.setup.dir.file("upgrade.sock").display().to_string();
            let sockets = || fs::read_to_string("/proc/net/unix").unwrap().matches(&path).count();
            eventually("a connection", async || (sockets() >= 2).then_some(())).await;
            return;
        }
        next.wait_for_output("takes over from another process").await;
        waits_for(before, "bound").await;
        if step >= Step::Bound {
            before.signal("-STOP");
            self.lock = None;
            waits_for(next, "saved").await;
        }
        if step >= Step::Saved {
            next.signal("-STOP");
            before.signal("-CONT");
            waits_for(before, "serving").await;
        }
        if step >= Step::Serving {
            before.signal("-STOP");
            next.signal("-CONT");
            waits_for(next, "yours").await;
        }
    }

    /// Sends the signal, and lets that process end, then the other one go on. Returns who has not ended.
    async fn end(&mut self, signal: &str, to: Side) -> Vec<Side> {
        let (before, next) = (&mut self.before.process, &mut self.next);
        let (ends, other, side, words) = match to {
            Side::Before => (before, next, Side::Next, ["\"message\":\"ready\""; 2]),
            Side::Next => (next, before, Side::Before, ["has not taken over", "this one goes on"]),
        };
        ends.signal(signal);
        // One that has ended is there until it is waited for.
        ends.signal("-CONT");
        ends.wait_for_end().await;
        other.signal("-CONT");
        self.lock = None;
        let mut goes_on_or_ended =
            || other.has_ended() || words.iter().any(|words| other.printed().contains(words));
        eventually("the other one to go on or to end", || ready(goes_on_or_ended().then_some(()))).await;
        if other.has_ended() { Vec::new() } else { vec![side] }
    }

    /// It answers clients at all addresses, operators, and who wants to take over.
    async fn assert_serves(&self, side: Side) {
        let printed = if side == Side::Before { &self.before.process } else { &self.next };
        let (tcp, admin, _) = Gateway::addresses(&printed.printed());
        let unix = Address::Unix(self.setup.socket());
        for address in [&tcp, &unix] {
            let response = address.send(&user()).await;
            assert_eq!(response.status, 200, "{response}");
        }
        let live = admin.send(&Request::new("GET", "/live")).await;
        assert_eq!(live.status, 200, "{live}");
        assert!(UnixStream::connect(self.setup.dir.file("upgrade.sock")).is_ok());
    }

    fn files(&self) -> [PathBuf; 3] {
        let file = |name| self.setup.dir.file(name);
        [self.setup.socket(), file("upgrade.sock"), file("locked/own.sock")]
    }
}

async fn waits_for(process: &Process, word: &str) {
    process.wait_for_output(&format!("\"due\":\"{word}\"")).await;
}

async fn check(step: Step, (signal, to): (&str, Side), allowed: &[&[Side]]) {
    let what = format!("{step:?} {signal} {to:?}");
    let rails = FakeRails::listen_tcp().await;
    let mut hand_over = HandOver::reach(step, &rails).await;
    let left = hand_over.end(signal, to).await;
    let printed = format!("{what}:\n{}\n{}", hand_over.before.process.printed(), hand_over.next.printed());
    assert!(allowed.contains(&&*left), "{left:?} {printed}");
    for side in left {
        hand_over.assert_serves(side).await;
        let process = if side == Side::Before { &mut hand_over.before.process } else { &mut hand_over.next };
        process.signal("-TERM");
        assert!(process.wait_for_end().await.success(), "{printed}");
    }
    for file in hand_over.files() {
        // Of a process that was killed, what it had bound for itself alone stays.
        let is_own = file.ends_with("own.sock") && (signal, to) == ("-KILL", Side::Next);
        assert!(!file.exists() || is_own, "{} {printed}", file.display());
    }
}

const BEFORE: &[Side] = &[Side::Before];
const NEXT: &[Side] = &[Side::Next];
const NONE: &[Side] = &[];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_ends_during_a_hand_over_one_process_goes_on_or_none() {
    for step in [Step::Asked, Step::Passed, Step::Bound, Step::Saved, Step::Serving] {
        let rows: [(&str, Side, &[&[Side]]); 4] = [
            // One that was not asked yet need not be heard; then the next one may find its addresses in use still.
            ("-TERM", Side::Before, if step == Step::Asked { &[NEXT, NONE] } else { &[NEXT] }),
            ("-KILL", Side::Before, &[NEXT]),
            // It may hear first that all is saved, and have the last word before it hears the signal.
            ("-TERM", Side::Next, if step == Step::Saved { &[BEFORE, NONE] } else { &[BEFORE] }),
            ("-KILL", Side::Next, &[BEFORE]),
        ];
        join_all(rows.map(|(signal, to, allowed)| check(step, (signal, to), allowed))).await;
    }
}

/// Asks for the sockets, as the next process does.
fn ask(setup: &Setup) -> UnixStream {
    let mut next = UnixStream::connect(setup.dir.file("upgrade.sock")).unwrap();
    next.write_all(b"railgate upgrade 1\n").unwrap();
    listen_until("end", &mut next);
    next
}

fn listen_until(word: &str, next: &mut UnixStream) {
    let (mut said, end) = (String::new(), format!("{word}\n"));
    while !said.ends_with(&end) {
        let mut byte = [0];
        next.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {said:?}"));
        said.push(char::from(byte[0]));
    }
}

/// It may have to wait for long requests: who goes on with its sockets need not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_drains_says_so_to_the_next_one_at_once() {
    for said in ["", "bound\n"] {
        let (setup, rails) = (setup().text("limits.drain_timeout", "1h"), FakeRails::listen_tcp().await);
        let mut before = Gateway::start(&setup, &setup.config(&rails.address)).await;
        let latch = Latch::closed();
        rails.respond_always(Reply::json(200, "{}").after(&latch));
        let mut slow = before.tcp.connect().await;
        slow.write(&Request::post("allowed").with_secret().json("{}").to_bytes("close")).await;
        rails.wait_for_requests(1).await;
        let mut next = ask(&setup);
        next.write_all(said.as_bytes()).unwrap();
        if !said.is_empty() {
            listen_until("saved", &mut next);
        }
        before.process.signal("-TERM");
        listen_until("ending", &mut next);
        assert!(!before.process.has_ended());
        latch.open();
        assert_eq!(slow.read_response().await.status, 200);
        before.end().await;
        assert!(!setup.socket().exists() && !setup.dir.file("upgrade.sock").exists());
    }
}

/// It has said that it serves, and does not hear the answer: it has given up, or has died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_not_heard_at_the_end_goes_on_and_keeps_answers_again() {
    let (setup, rails) = (setup(), FakeRails::listen_tcp().await);
    let before = Gateway::start(&setup, &setup.config(&rails.address)).await;
    assert_eq!(before.tcp.send(&user()).await.status, 200);
    let mut next = ask(&setup);
    next.write_all(b"bound\n").unwrap();
    listen_until("saved", &mut next);
    assert!(setup.dir.file("cache").exists());
    next.shutdown(Shutdown::Read).unwrap();
    next.write_all(b"serving\n").unwrap();
    before.process.wait_for_output("another process has failed to take over; this one goes on").await;
    eventually("no saved cache", async || (!setup.dir.file("cache").exists()).then_some(())).await;
    let live = before.admin.send(&Request::new("GET", "/live")).await;
    assert_eq!(live.status, 200, "{live}");
    eventually("an answer from memory", async || before.tcp.send(&user()).await.is_hit().then_some(())).await;
    before.process.signal("-TERM");
    before.end().await;
    assert!(!setup.socket().exists() && setup.dir.file("cache").exists());
}
