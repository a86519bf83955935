//! Waiting: for an unreachable Rails, and for a permit.

use std::time::{Duration, Instant};

use http::Response;

use super::connect_failure::ConnectFailure;
use super::deadlines::Deadlines;
use super::options::{SendOptions, SendReport, WaitPolicy};
use super::spans::{begin_wait, end_wait};
use crate::body::Permit;
use crate::clock::Clock;
use crate::route::Class;
use crate::upstream::client::Upstream;
use crate::upstream::connection::cause::UnreachableCause;
use crate::upstream::connection::error::ConnectError;
use crate::upstream::error::{Error, TimeLimit};
use crate::upstream::queue::admission::ClassAdmission;
use crate::upstream::queue::hold::HoldFull;
use crate::upstream::response::is_away_response;
use crate::upstream::servers::balance::{ServerSet, choose};
use crate::upstream::servers::health::EjectionReason;
use crate::upstream::servers::health_check;
use crate::upstream::servers::server::UpstreamServer;
use crate::upstream::state::UpstreamState;

/// The pause between two attempts to connect, while requests wait.
pub(super) const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// The same where a proxy reports the outage, so that each attempt sends a probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The failure of a connection behind which Rails is unreachable.
fn proxy_outage_error() -> ConnectError {
    ConnectError::not_attempted(UnreachableCause::Proxy, "a proxy there reports that Rails is away")
}

impl Upstream {
    /// Waits for a permit among the requests of its class.
    pub(super) async fn admit(
        &self,
        class: &ClassAdmission,
        options: &SendOptions,
        deadlines: &Deadlines,
        report: &mut SendReport,
    ) -> Result<Permit, Error> {
        if !deadlines.has_total_ended()
            && let Some(permit) = class.try_admit()
        {
            return Ok(permit);
        }
        let (begun, span) = (now(), begin_wait(options, "queue"));
        let permit =
            Box::pin(deadlines.within_send_by(class.admit(options.wait_policy != WaitPolicy::Never))).await;
        report.waited += now().saturating_duration_since(begun);
        let admitted = match permit {
            Some(Ok(permit)) if !deadlines.has_total_ended() => Ok(permit),
            Some(Err(shed)) => Err(Error::Shed(shed)),
            _ => Err(self.deadline_error(deadlines)),
        };
        end_wait(span, &admitted);
        admitted
    }

    /// Waits until Rails is reachable again, and returns the index of a server that accepts connections, and whose it
    /// is: that of the settings that are in effect by then. `None` if time is over and the request may be sent to a proxy
    /// all the same.
    pub(super) async fn wait_for_rails(
        &self,
        class: Class,
        deadlines: &Deadlines,
        report: &mut SendReport,
    ) -> Result<(&Self, Option<usize>), Error> {
        let begun = now();
        let waited = self.wait_until_reachable(class, deadlines).await;
        report.waited += now().saturating_duration_since(begun);
        match &waited {
            Err(Error::Connect(_, error)) => self.record_fruitless_wait(class, error),
            Err(Error::Timeout { .. }) => {
                self.record_fruitless_wait(class, &self.state.reachability.last_error(None));
            }
            _ => {}
        }
        match waited {
            // The proxy's own response is as good as ours, and perhaps only the probe fails.
            Err(Error::Connect(..)) if self.state.hold.proxy_reports_away() => Ok((self.current(), None)),
            waited => waited.map(|(upstream, index)| (upstream, Some(index))),
        }
    }

    async fn wait_until_reachable(
        &self,
        class: Class,
        deadlines: &Deadlines,
    ) -> Result<(&Self, usize), Error> {
        let UpstreamState { hold, reachability, .. } = &*self.state;
        let max_held = self.max_held_of(class);
        let entry = if deadlines.tries_once {
            if reachability.timed_out_recently(now()) {
                return Err(self.deadline_error(deadlines));
            }
            hold.enter_to_try_once(class, max_held)
        } else {
            reachability.record_waiting(now());
            hold.enter(class, max_held)
        };
        let entry =
            entry.map_err(|HoldFull| Error::HoldFull(self.server_names(), reachability.last_error(None)))?;
        let Some(_permit) = deadlines.within_hold(entry.acquire()).await else {
            return Err(self.deadline_error(deadlines));
        };
        loop {
            while hold.must_yield(class) {
                if deadlines.within_hold(tokio::time::sleep(CONNECT_RETRY_INTERVAL)).await.is_none() {
                    return Err(self.deadline_error(deadlines));
                }
            }
            // Those of now, each time.
            let current = self.current();
            let unreachable = match deadlines.within_hold_or_once(current.connect_to_any(class)).await {
                Some(Ok(index)) => return Ok((current, index)),
                Some(Err(unreachable)) if unreachable.is_transient() => unreachable,
                Some(Err(unreachable)) => return Err(unreachable.into()),
                None => return Err(self.deadline_error(deadlines)),
            };
            let pause = if hold.proxy_reports_away() { PROBE_INTERVAL } else { CONNECT_RETRY_INTERVAL };
            if deadlines.within_hold(tokio::time::sleep(pause)).await.is_none() {
                return Err(self.final_connect_error(unreachable, deadlines));
            }
        }
    }

    /// Records that a request has waited for as long as it may. Requests without a credential do not count.
    pub(super) fn record_fruitless_wait(&self, class: Class, error: &ConnectError) {
        if class != Class::Other && error.is_transient() {
            self.state.reachability.record_fruitless_wait(error, now());
        }
    }

    /// Records that no server could be connected to.
    pub(super) fn record_unreachable(&self, class: Class, error: &ConnectError) {
        let reachability = &self.state.reachability;
        if class == Class::Other {
            reachability.record_uncredentialed_failure(error, now());
        } else {
            reachability.record_failure(error, now());
        }
    }

    /// Records what the response to a request sent at `sent` says about the way to Rails.
    pub(super) fn record_response<B>(&self, class: Class, response: &Response<B>, sent: Instant) {
        let reachability = &self.state.reachability;
        match class {
            Class::Other => {}
            _ if is_away_response(response) => reachability.record_failure(&proxy_outage_error(), now()),
            _ => reachability.record_reached(sent, now()),
        }
    }

    /// How many requests of a class may be held at one time. Those without a credential get no more than
    /// their queue for permits holds.
    fn max_held_of(&self, class: Class) -> usize {
        match class {
            Class::Other => self.max_held.min(self.limits.admission.of(class).settings().queue),
            _ => self.max_held,
        }
    }

    /// Makes a connection to the first server that accepts one and has Rails behind it.
    async fn connect_to_any(&self, class: Class) -> Result<usize, ConnectFailure> {
        let (mut tried, mut unreachable) = (ServerSet::default(), None);
        while let Some(server) = choose(&self.servers, class, tried, now()) {
            tried.insert(server.index);
            let begun = now();
            let error = match server.connections.preconnect(class).await {
                Ok(()) if self.is_rails_behind(server).await => {
                    self.state.reachability.record_reached(begun, now());
                    return Ok(server.index);
                }
                Ok(()) => proxy_outage_error(),
                Err(error) => {
                    server.state.count_unreachable(&error);
                    // Requests without a credential do not count.
                    if class != Class::Other && !error.is_resource_exhaustion() {
                        server.state.health.record_failure(begun, EjectionReason::Unreachable, now());
                    }
                    error
                }
            };
            unreachable = Some(ConnectFailure::new(&server.name, error).prefer_transient(unreachable));
        }
        let unreachable = unreachable.unwrap_or_else(ConnectFailure::all_drained);
        self.record_unreachable(class, unreachable.error());
        Err(unreachable)
    }

    /// Whether Rails is behind a connection. Any response of its own is proof enough.
    async fn is_rails_behind(&self, server: &UpstreamServer) -> bool {
        let (Some(uri), timeout) = &self.probe else { return true };
        if !self.state.hold.proxy_reports_away() {
            return true;
        }
        let response = tokio::time::timeout(*timeout, health_check::fetch(server, uri)).await;
        let is_rails_behind = matches!(response, Ok(Ok(response)) if !is_away_response(&response));
        if is_rails_behind {
            self.state.hold.set_proxy_reports_away(false);
        }
        is_rails_behind
    }

    /// The error of a request that stops waiting for an unreachable Rails.
    pub(super) fn final_connect_error(&self, unreachable: ConnectFailure, deadlines: &Deadlines) -> Error {
        match self.deadline_error(deadlines) {
            Error::Connect(..) => unreachable.into(),
            _ if !deadlines.has_hold() || !unreachable.is_transient() => unreachable.into(),
            other => other,
        }
    }

    /// The error for the deadline that is over.
    fn deadline_error(&self, deadlines: &Deadlines) -> Error {
        let now = now();
        if deadlines.end.is_some_and(|end| now >= end) {
            return Error::Timeout {
                after: deadlines.total_timeout,
                limit: TimeLimit::Total,
                is_silent: false,
                unreachable: self.state.reachability.last_failure(),
            };
        }
        if deadlines.credential_expires.is_some_and(|expires| now >= expires) {
            return Error::CredentialExpires(self.server_names(), self.state.reachability.last_failure());
        }
        let detail = if deadlines.tries_once {
            "not waited for, since other requests have waited in vain"
        } else {
            "it has been away for as long as `hold` allows"
        };
        Error::Connect(self.server_names(), self.state.reachability.last_error(Some(detail)))
    }

    /// All servers, for an error that concerns them all.
    fn server_names(&self) -> String {
        self.servers.iter().map(|server| &*server.name).collect::<Vec<_>>().join(", ")
    }
}

fn now() -> Instant {
    Clock::System.now()
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::FutureExt as _;
    use rustix::io::Errno;

    use super::*;
    use crate::upstream::connection::target::UpstreamTarget;
    use crate::upstream::settings::UpstreamSettings;

    fn upstream(max_held: usize) -> Upstream {
        let target = UpstreamTarget::parse("http://127.0.0.1:1").unwrap();
        Upstream::standalone(UpstreamSettings { max_held, ..UpstreamSettings::new(target) })
    }

    async fn wait(upstream: &Upstream, class: Class) -> Error {
        let options = SendOptions { class, wait_policy: WaitPolicy::ForRails, ..SendOptions::default() };
        let deadlines = Deadlines::new(&options, upstream.limits.admission.of(class).settings(), false);
        upstream.wait_for_rails(class, &deadlines, &mut SendReport::default()).await.unwrap_err()
    }

    /// They have not tried to connect themselves, and must not report an outage of Rails if the last attempt failed
    /// for want of files, memory or buffers.
    #[tokio::test(start_paused = true)]
    async fn requests_that_only_waited_report_the_cause_of_the_last_attempt() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNREFUSED] {
            let is_exhaustion = errno != Errno::CONNREFUSED;
            for class in [Class::Lookup, Class::Access] {
                let (upstream, full) = (upstream(2), upstream(1));
                for upstream in [&upstream, &full] {
                    let trying = upstream.state.hold.enter(class, 1).unwrap();
                    let _permit = trying.acquire().now_or_never().unwrap();
                    upstream
                        .state
                        .reachability
                        .record_failure(&io::Error::from_raw_os_error(errno.raw_os_error()).into(), now());
                    let error = wait(upstream, class).await;
                    let (Error::Connect(_, error) | Error::HoldFull(_, error)) = error else {
                        panic!("{error:?}");
                    };
                    assert_eq!(error.is_resource_exhaustion(), is_exhaustion, "{error}");
                    let has_waited = upstream.max_held == 2;
                    if class == Class::Lookup {
                        assert_eq!(
                            upstream.state.reachability.has_recent_fruitless_wait(now()),
                            has_waited && !is_exhaustion
                        );
                    }
                }
            }
        }
    }

    /// There may be masses of them, over connections of their own, which a busy Rails may not accept while it answers
    /// others.
    #[tokio::test(start_paused = true)]
    async fn requests_without_a_credential_do_not_prolong_a_remembered_outage() {
        let upstream = upstream(2);
        let silent = ConnectError::timed_out("no connection within 1s");
        upstream.record_unreachable(Class::Lookup, &silent);
        upstream.record_fruitless_wait(Class::Lookup, &silent);
        for _ in 0..4 {
            assert!(upstream.state.reachability.has_recent_fruitless_wait(now()));
            let sent = now();
            tokio::time::advance(Duration::from_secs(3)).await;
            let _ = wait(&upstream, Class::Other).await;
            let response = Response::new(());
            upstream.record_response(Class::Lookup, &response, sent);
            if !upstream.state.reachability.has_recent_fruitless_wait(now()) {
                return;
            }
        }
        panic!("still remembered, though look-ups are answered");
    }
}
