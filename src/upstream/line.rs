//! Waiting: for a Rails that is away, and for a permit.

use std::io;
use std::time::{Duration, Instant};

use http::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::attempt::says_that_rails_is_away;
use super::balance::{ServerSet, choose};
use super::cause::{Cause, is_for_want_of_resources};
use super::check;
use super::health::Reason;
use super::hold::Full;
use super::lanes::Lane;
use super::plan::{Course, Limits, MayWait, Plan};
use super::server::Server;
use super::{Error, State, Upstream, may_pass, now};
use crate::route::Class;

/// How long after one attempt to connect the next one comes, while requests wait.
pub(super) const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(25);

/// The same where something has to be asked.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

/// A server that could not be connected to.
pub(super) struct Unreachable {
    name: String,
    error: io::Error,
}

impl Unreachable {
    pub(super) fn new(name: &str, error: io::Error) -> Self {
        Self { name: name.to_owned(), error }
    }

    /// There is none that may be tried.
    pub(super) fn all_drained() -> Self {
        Self::new("any server", Cause::Drained.error("all are drained"))
    }

    /// Which of two to remember: one that may pass is worth waiting for.
    pub(super) fn or(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if may_pass(&earlier.error) && !may_pass(&self.error) => earlier,
            _ => self,
        }
    }

    /// Whether it may be over in a while.
    pub(super) fn may_pass(&self) -> bool {
        may_pass(&self.error)
    }

    pub(super) fn error(&self) -> &io::Error {
        &self.error
    }
}

fn proxy_says_away() -> io::Error {
    Cause::Proxy.error("a proxy answers there that Rails is away")
}

impl From<Unreachable> for Error {
    fn from(Unreachable { name, error }: Unreachable) -> Self {
        Self::Connect(name, error)
    }
}

impl Upstream {
    /// Waits for its turn among those of its class.
    pub(super) async fn admit(
        &self,
        lane: &Lane,
        plan: &Plan,
        limits: &Limits,
        course: &mut Course,
    ) -> Result<OwnedSemaphorePermit, Error> {
        if !limits.are_over()
            && let Some(permit) = lane.try_admit()
        {
            return Ok(permit);
        }
        let begun = now();
        let permit = Box::pin(limits.in_time(lane.admit(plan.may_wait != MayWait::No))).await;
        course.waited += now().saturating_duration_since(begun);
        match permit {
            Some(Ok(permit)) if !limits.are_over() => Ok(permit),
            Some(Err(shed)) => Err(Error::Shed(shed)),
            _ => Err(self.too_late(limits)),
        }
    }

    /// Waits until a server accepts connections again, and there is somebody behind it. The place of that
    /// server; none, if time is over and a proxy may be asked all the same.
    pub(super) async fn wait_in_line(
        &self,
        class: Class,
        limits: &Limits,
        course: &mut Course,
    ) -> Result<Option<usize>, Error> {
        let begun = now();
        let waited = self.wait_until_it_is_back(class, limits).await;
        course.waited += now().saturating_duration_since(begun);
        match &waited {
            Err(Error::Connect(_, error)) => self.has_waited_in_vain(class, error),
            Err(Error::TotalTimeout(_)) => self.has_waited_in_vain(class, &self.state.away.error(None)),
            _ => {}
        }
        match waited {
            // Whatever it says is as good as what would be said here, and perhaps it is well but for our question.
            Err(Error::Connect(..)) if self.state.hold.proxy_says_away() => Ok(None),
            waited => waited.map(Some),
        }
    }

    async fn wait_until_it_is_back(&self, class: Class, limits: &Limits) -> Result<usize, Error> {
        let State { hold, away, .. } = &*self.state;
        let most = self.max_held_of(class);
        let place = if limits.is_brief {
            if away.was_just_tried_in_vain(now()) {
                return Err(self.too_late(limits));
            }
            hold.visit(class, most)
        } else {
            away.is_waited_for(now());
            hold.join(class, most)
        };
        let place = place.map_err(|Full| Error::HoldFull(self.names(), away.error(None)))?;
        let Some(_turn) = limits.held(place.turn()).await else { return Err(self.too_late(limits)) };
        loop {
            while hold.has_to_yield(class) {
                if limits.held(tokio::time::sleep(BETWEEN_ATTEMPTS)).await.is_none() {
                    return Err(self.too_late(limits));
                }
            }
            let unreachable = match limits.try_once(self.find_one(class)).await {
                Some(Ok(place)) => return Ok(place),
                Some(Err(unreachable)) if unreachable.may_pass() => unreachable,
                Some(Err(unreachable)) => return Err(unreachable.into()),
                None => return Err(self.too_late(limits)),
            };
            let pause = if hold.proxy_says_away() { BETWEEN_QUESTIONS } else { BETWEEN_ATTEMPTS };
            if limits.held(tokio::time::sleep(pause)).await.is_none() {
                return Err(self.given_up(unreachable, limits));
            }
        }
    }

    /// What is learned from a request that has waited for as long as it may. Those without a credential have
    /// no voice in it.
    pub(super) fn has_waited_in_vain(&self, class: Class, error: &io::Error) {
        if class != Class::Other && may_pass(error) {
            self.state.away.was_waited_for_in_vain(error, now());
        }
    }

    /// What is learned from servers none of which could be connected to.
    pub(super) fn note_unreachable(&self, class: Class, error: &io::Error) {
        let away = &self.state.away;
        if class == Class::Other { away.failed_for_other(error, now()) } else { away.failed(error, now()) }
    }

    /// What is learned from an answer to a request that was sent at `sent`.
    pub(super) fn note_answer<B>(&self, class: Class, answer: &Response<B>, sent: Instant) {
        let away = &self.state.away;
        match class {
            Class::Other => {}
            _ if says_that_rails_is_away(answer) => away.failed(&proxy_says_away(), now()),
            _ => away.is_back(sent, now()),
        }
    }

    /// How many requests of a class may wait at one time. Those without a credential get no more than
    /// they may have waiting for a permit.
    fn max_held_of(&self, class: Class) -> usize {
        match class {
            Class::Other => self.max_held.min(self.state.lanes.of(class).settings().queue),
            _ => self.max_held,
        }
    }

    /// Makes a connection to the first of all servers that accepts one, and has somebody behind it.
    async fn find_one(&self, class: Class) -> Result<usize, Unreachable> {
        let (mut tried, mut unreachable) = (ServerSet::default(), None);
        while let Some(server) = choose(&self.servers, class, tried, now()) {
            tried.insert(server.place);
            let begun = now();
            let error = match server.connections.open(class).await {
                Ok(()) if self.is_there(server).await => {
                    self.state.away.is_back(begun, now());
                    return Ok(server.place);
                }
                Ok(()) => proxy_says_away(),
                Err(error) => {
                    server.state.count_unreachable(&error);
                    // Requests without a credential have no voice in it.
                    if class != Class::Other && !is_for_want_of_resources(&error) {
                        server.state.health.failed(begun, Reason::Unreachable, now());
                    }
                    error
                }
            };
            unreachable = Some(Unreachable::new(&server.name, error).or(unreachable));
        }
        let unreachable = unreachable.unwrap_or_else(Unreachable::all_drained);
        self.note_unreachable(class, &unreachable.error);
        Err(unreachable)
    }

    /// Whether Rails is behind a connection. Any answer of its own is proof enough.
    async fn is_there(&self, server: &Server) -> bool {
        let (Some(uri), timeout) = &self.probe else { return true };
        if !self.state.hold.proxy_says_away() {
            return true;
        }
        let answer = tokio::time::timeout(*timeout, check::get(server, uri)).await;
        let is_there = matches!(answer, Ok(Ok(answer)) if !says_that_rails_is_away(&answer));
        if is_there {
            self.state.hold.set_proxy_says_away(false);
        }
        is_there
    }

    /// Why nobody waits any more for servers that cannot be reached.
    pub(super) fn given_up(&self, unreachable: Unreachable, limits: &Limits) -> Error {
        match self.too_late(limits) {
            Error::Connect(..) => unreachable.into(),
            _ if !limits.are_patient() || !unreachable.may_pass() => unreachable.into(),
            other => other,
        }
    }

    /// Which time is over.
    fn too_late(&self, limits: &Limits) -> Error {
        let now = now();
        if limits.end.is_some_and(|end| now >= end) {
            return Error::TotalTimeout(limits.total);
        }
        if limits.expires.is_some_and(|expires| now >= expires) {
            return Error::Expires(self.names());
        }
        let more = if limits.is_brief {
            "not waited for, since others have waited in vain"
        } else {
            "it has been away for as long as `hold` allows"
        };
        Error::Connect(self.names(), self.state.away.error(Some(more)))
    }

    /// All servers, for an error that concerns them all.
    fn names(&self) -> String {
        self.servers.iter().map(|server| &*server.name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use rustix::io::Errno;

    use super::super::Settings;
    use super::super::Target;
    use super::*;

    fn upstream(max_held: usize) -> Upstream {
        let target = Target::parse("http://127.0.0.1:1").unwrap();
        Upstream::alone(Settings { max_held, ..Settings::new(target) })
    }

    async fn wait(upstream: &Upstream, class: Class) -> Error {
        let plan = Plan { class, may_wait: MayWait::ForRails, ..Plan::default() };
        let limits = Limits::new(&plan, upstream.state.lanes.of(class).settings(), false);
        upstream.wait_in_line(class, &limits, &mut Course::default()).await.unwrap_err()
    }

    /// They have not tried to connect themselves, and must not take it for an outage of Rails if those who did
    /// lacked files, memory or buffers.
    #[tokio::test(start_paused = true)]
    async fn those_who_only_waited_are_told_what_has_kept_others_from_connecting() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNREFUSED] {
            let is_want = errno != Errno::CONNREFUSED;
            for class in [Class::Lookup, Class::Access] {
                let (upstream, full) = (upstream(2), upstream(1));
                for upstream in [&upstream, &full] {
                    let trying = upstream.state.hold.join(class, 1).unwrap();
                    let _turn = trying.turn().now_or_never().unwrap();
                    upstream.state.away.failed(&io::Error::from_raw_os_error(errno.raw_os_error()), now());
                    let error = wait(upstream, class).await;
                    let (Error::Connect(_, error) | Error::HoldFull(_, error)) = error else {
                        panic!("{error:?}");
                    };
                    assert_eq!(is_for_want_of_resources(&error), is_want, "{error}");
                    let has_waited = upstream.max_held == 2;
                    if class == Class::Lookup {
                        assert_eq!(upstream.state.away.is_remembered(now()), has_waited && !is_want);
                    }
                }
            }
        }
    }

    /// They come in any number, over connections of their own, which a busy Rails may not accept while it answers
    /// others.
    #[tokio::test(start_paused = true)]
    async fn those_without_a_credential_do_not_prolong_the_memory_of_a_rails_that_is_away() {
        let upstream = upstream(2);
        let silent = io::Error::from(io::ErrorKind::TimedOut);
        upstream.note_unreachable(Class::Lookup, &silent);
        upstream.has_waited_in_vain(Class::Lookup, &silent);
        for _ in 0..4 {
            assert!(upstream.state.away.is_remembered(now()));
            let sent = now();
            tokio::time::advance(Duration::from_secs(3)).await;
            let _ = wait(&upstream, Class::Other).await;
            let answer = Response::new(());
            upstream.note_answer(Class::Lookup, &answer, sent);
            if !upstream.state.away.is_remembered(now()) {
                return;
            }
        }
        panic!("still remembered, though look-ups are answered");
    }
}
