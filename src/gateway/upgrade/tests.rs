use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::channel::{Channel, Line};
use super::predecessor::ask;
use super::*;

/// A process that takes part by a script, and has ended once this is dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell that plays the process before: it has passed no sockets, and does this once all is bound.
fn predecessor(script: &str, timeout: Duration) -> (Peer, Predecessor) {
    let (own, other) = UnixStream::pair().unwrap();
    let other: OwnedFd = other.into();
    let (read, write) = (Stdio::from(other.try_clone().unwrap()), Stdio::from(other));
    let script = format!("read version; echo end; read word; {script}");
    let child = Command::new("sh").args(["-c", &script]).stdin(read).stdout(write).spawn().unwrap();
    let mut channel = Channel::new(own).unwrap();
    let sockets = ask(&mut channel).unwrap();
    assert_eq!((sockets.len(), channel.process), (0, i32::try_from(child.id()).unwrap()));
    let mut predecessor = Predecessor::new(channel).unwrap();
    predecessor.timeout = timeout;
    (Peer(child), predecessor)
}

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);

/// Two processes with the same sockets would each have a cache and secrets of their own.
#[tokio::test]
async fn the_next_process_goes_on_alone_only_if_the_one_before_ends() {
    for (what, script, timeout, expected) in [
        ("has saved", "echo saved; read more", LONG, Ok(true)),
        ("ends", "echo ending; exec 0<&- >&-; sleep 60", LONG, Ok(false)),
        ("has ended", "exit", LONG, Ok(false)),
        ("was killed", "kill -9 $$", LONG, Ok(false)),
        ("lives, but has hung up", "exec 0<&- >&-; sleep 60", SHORT, Err("it has not said")),
        ("hangs", "sleep 60", SHORT, Err("no answer in time")),
        ("says something else", "echo what; read more", LONG, Err("\"what\"")),
    ] {
        let (peer, predecessor) = predecessor(script, timeout);
        let process = peer.0.id();
        let outcome = predecessor.wait_until_saved(&CancellationToken::new()).await;
        match (outcome, expected) {
            (Ok(outcome), Ok(goes_on)) => assert_eq!(outcome.is_some(), goes_on, "{what}"),
            (Err(error), Err(words)) => {
                let error = error.to_string();
                for part in [words, "it goes on", &format!("kill -9 {process}")] {
                    assert!(error.contains(part), "{what}: {error}");
                }
            }
            (outcome, _) => panic!("{what}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn the_word_that_decides_may_be_that_of_an_end() {
    for (script, expected) in [
        ("echo saved; read word; echo yours; sleep 60", Ok(())),
        ("echo saved; echo ending; exec 0<&- >&-; sleep 60", Ok(())),
        ("echo saved; exit", Ok(())),
        ("echo saved; read word; exec 0<&- >&-; sleep 60", Err(())),
    ] {
        let (_peer, mut predecessor) = predecessor(script, LONG);
        let shutdown = CancellationToken::new();
        predecessor = predecessor.wait_until_saved(&shutdown).await.unwrap().unwrap();
        predecessor.timeout = if expected.is_ok() { LONG } else { SHORT };
        assert_eq!(predecessor.replace(&shutdown).await.map_err(drop), expected, "{script}");
    }
}

#[tokio::test]
async fn a_next_process_that_is_told_to_end_hangs_up() {
    let (_peer, predecessor) = predecessor("read more; sleep 60", LONG);
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let error = predecessor.wait_until_saved(&shutdown).await.unwrap_err();
    assert!(error.to_string().contains("was told to end"), "{error}");
}

/// Else one side could take as said what the other has not heard.
#[test]
fn a_word_is_heard_or_its_sender_knows_that_it_was_not() {
    let (one, other) = UnixStream::pair().unwrap();
    let (mut listens, says) = (Channel::new(one).unwrap(), Channel::new(other).unwrap());
    says.send("yours").unwrap();
    let heard = listens.receive_last("yours", Duration::ZERO).unwrap();
    assert!(matches!(&heard, Line::Word(word) if word == "yours"), "{heard:?}");
    let error = listens.receive_last("yours", Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(says.send("yours").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn the_last_word_is_heard_before_the_end_of_the_connection() {
    let (one, mut other) = UnixStream::pair().unwrap();
    Channel::new(one).unwrap().hangup().unwrap().say("ending");
    let mut heard = String::new();
    other.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "ending\n");
    // No other process is kept waiting for one that does not read.
    let (one, _unread) = UnixStream::pair().unwrap();
    let channel = Channel::new(one.try_clone().unwrap()).unwrap();
    one.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &one, &[0; 4096]).is_ok() {}
    one.set_nonblocking(false).unwrap();
    channel.hangup().unwrap().say("ending");
}
