//! A hundred purges a second at the first gateway, whatever happens, and for how long the others give the old answers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::member::{Connection, Member};
use super::{MEMBERS, purge, question};
use crate::{Fallible, interrupt, keys};

/// One in so much time.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);

/// How long all gateways have kept an answer, at least, before it is purged.
const KEPT: Duration = Duration::from_millis(10);

/// How often it is looked whether an old answer is still given, if the gateway has not said that it has dropped something.
const LOOK: Duration = Duration::from_millis(20);

/// For how long no old answer may go out of use.
const DEADLINE: Duration = Duration::from_secs(30);

/// What became of a purge.
pub(super) struct Outcome {
    pub(super) answer: Answer,
    /// From before its request until each of the others did not give the old answer any more, in milliseconds.
    pub(super) delays: [f64; MEMBERS - 1],
}

/// What its caller was answered.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub(super) is_told: bool,
    /// How long that took, in milliseconds.
    pub(super) after: f64,
}

/// Purges so many answers that all gateways keep, of one key each, while `incident` happens.
pub(super) fn purge_during(
    members: &mut [Member; MEMBERS],
    purges: u32,
    incident: impl FnOnce() -> Fallible<()>,
) -> Fallible<Vec<Outcome>> {
    let ports = members.each_ref().map(|member| member.port);
    let [teller, one, two] = members;
    let admin = teller.admin;
    let begun = Begun::default();
    let (answers, delays) = thread::scope(|scope| {
        let answers = scope.spawn(|| send(ports, admin, purges, &begun));
        let delays = [one, two].map(|member| scope.spawn(|| observe(member, purges, &begun)));
        incident()?;
        let answers = answers.join().map_err(|_| "the sender has panicked")??;
        let mut all = Vec::new();
        for observer in delays {
            all.push(observer.join().map_err(|_| "an observer has panicked")??);
        }
        Ok::<_, crate::Error>((answers, all))
    })?;
    let [one, two] = delays.as_slice() else { return Err("not all were observed".into()) };
    let order = begun.lock();
    let outcomes = order.iter().zip(one.iter().zip(two)).filter_map(|((number, _), (one, two))| {
        Some(Outcome { answer: *answers.get(*number as usize)?, delays: [*one, *two] })
    });
    Ok(outcomes.collect())
}

/// The purges so far, in the order of their requests, with the times just before these.
#[derive(Default)]
struct Begun(Mutex<Vec<(u32, Instant)>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Vec<(u32, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_question(number: u32) -> Vec<u8> {
    question(&format!("authorized_keys?key={}", keys::escaped(&keys::key(number.into()))))
}

/// Each purge has a thread, since its answer may take a second. Their answers, by number.
fn send(ports: [u16; MEMBERS], admin: u16, purges: u32, begun: &Begun) -> Fallible<Vec<Answer>> {
    let mut clients = Vec::new();
    for port in ports {
        clients.push(Connection::open(port)?);
    }
    let start = Instant::now();
    thread::scope(|scope| {
        let mut answers = Vec::new();
        for number in 0..purges {
            interrupt::pause((start + INTERVAL * number).saturating_duration_since(Instant::now()))?;
            for client in &mut clients {
                client.send(&key_question(number))?;
            }
            answers.push(scope.spawn(move || -> Fallible<Answer> {
                let mut admin = Connection::open(admin)?;
                let request = purge("ssh_key", &keys::key(number.into()));
                thread::sleep(KEPT);
                let since = Instant::now();
                begun.lock().push((number, since));
                let is_told = admin.send(&request)?.contains("told");
                Ok(Answer { is_told, after: since.elapsed().as_secs_f64() * 1e3 })
            }));
        }
        answers.into_iter().map(|answer| answer.join().map_err(|_| "a client has panicked")?).collect()
    })
}

/// The delays, in the order in which the purges began. Old answers go out of use in that order, too, so only the first one
/// that is left is asked for; one that would go before its turn is measured too long, never too short.
fn observe(member: &mut Member, purges: u32, begun: &Begun) -> Fallible<Vec<f64>> {
    let mut client = Connection::open(member.port)?;
    let (mut delays, mut last) = (Vec::new(), Instant::now());
    while delays.len() < purges as usize {
        let next = begun.lock().get(delays.len()).copied();
        if let Some((number, since)) = next
            && !client.send(&key_question(number))?.contains("railgate; hit")
        {
            last = Instant::now();
            delays.push((last - since).as_secs_f64() * 1e3);
            continue;
        }
        if last.elapsed() > DEADLINE {
            return Err(format!("an old answer is given for ever, after {} purges", delays.len()).into());
        }
        member.wait_for_drop(LOOK);
        interrupt::pause(Duration::ZERO)?;
    }
    Ok(delays)
}
