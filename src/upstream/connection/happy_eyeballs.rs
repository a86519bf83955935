//! Connects to one of the addresses of a name (RFC 8305, "Happy Eyeballs").
//!
//! Differs from `TcpStream::connect` with a name, which tries one address after another until the system gives
//! up on each: there, a silent first address takes the time of all others.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, sleep_until, timeout_at};

use super::error::ConnectError;
use crate::clock::Clock;

/// How long after one attempt the next address is tried beside it (RFC 8305 §5), and the least of it, where many
/// addresses have to share the time.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
const MIN_ATTEMPT_DELAY: Duration = Duration::from_millis(10);

/// How many addresses an error lists.
const MAX_LISTED: usize = 8;

/// Resolves a name and opens a connection to one of its addresses with `open`, all of it within `within`. The
/// address `first` is tried first, if the name still has it. With the connection comes what became of the
/// addresses before it; an error lists every address and its cause.
pub(crate) async fn connect<T, F>(
    host: &str,
    port: u16,
    first: Option<SocketAddr>,
    within: Duration,
    open: impl Fn(SocketAddr) -> F,
) -> Result<(T, FailedAddresses), ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let begun = Clock::System.now();
    let Ok(addresses) = timeout_at((begun + within).into(), tokio::net::lookup_host((host, port))).await
    else {
        let text = format!("the name was not resolved within {within:?}");
        return Err(ConnectError::unresolved(text, true));
    };
    let addresses = addresses.map_err(|error| ConnectError::resolving(&error))?;
    let addresses = preferring(interleaved(addresses.collect()), first);
    let (outcome, mut failed) = connect_first(&addresses, (begun, within), open).await;
    if let Some(connection) = outcome {
        return Ok((connection, failed));
    }
    // The text of the single error suffices where the host is an address.
    let only = failed.0.pop_if(|_| host.parse::<std::net::IpAddr>().is_ok());
    Err(only.map_or_else(|| failed.into_error(), |(_, error)| error))
}

/// The families by turns, so that an unroutable family costs one attempt (RFC 8305 §4); the family that the
/// system prefers is first.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == is_v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(first.next().into_iter().chain(second.next()));
        if all.len() == before {
            return all;
        }
    }
}

fn preferring(mut addresses: Vec<SocketAddr>, first: Option<SocketAddr>) -> Vec<SocketAddr> {
    if let Some(index) = addresses.iter().position(|address| Some(*address) == first) {
        let first = addresses.remove(index);
        addresses.insert(0, first);
    }
    addresses
}

/// The first connection that is made, and what became of the other addresses until then.
pub(super) async fn connect_first<T, F>(
    addresses: &[SocketAddr],
    (begun, within): (Instant, Duration),
    open: impl Fn(SocketAddr) -> F,
) -> (Option<T>, FailedAddresses)
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let share = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let end = begun + within;
    let delay =
        (end.saturating_duration_since(Clock::System.now()) / share).clamp(MIN_ATTEMPT_DELAY, ATTEMPT_DELAY);
    let mut deadline = pin!(sleep_until(end.into()));
    let mut failed = FailedAddresses(Vec::new());
    let mut attempts = FuturesUnordered::new();
    let mut left = addresses.iter();
    loop {
        if let Some(address) = left.next() {
            attempts.push(async { (*address, open(*address).await) });
        } else if attempts.is_empty() {
            return (None, failed);
        }
        tokio::select! {
            biased;
            Some((address, outcome)) = attempts.next() => match outcome {
                Ok(connection) => {
                    let before = addresses.iter().take_while(|other| **other != address);
                    let took = Clock::System.now().saturating_duration_since(begun).as_millis();
                    let took = Duration::from_millis(u64::try_from(took).unwrap_or(u64::MAX));
                    return (Some(connection), failed.with_pending(before, |_| timed_out(took)));
                }
                // The next address is tried at once.
                Err(error) => failed.0.push((address, error)),
            },
            () = &mut deadline => break,
            () = sleep(delay), if !left.as_slice().is_empty() => {}
        }
    }
    let not_tried = || ConnectError::timed_out("not tried, for want of time");
    let why = |address: &SocketAddr| {
        if left.as_slice().contains(address) { not_tried() } else { timed_out(within) }
    };
    (None, failed.with_pending(addresses.iter(), why))
}

/// The error of an attempt that took all of its time.
pub(crate) fn timed_out(within: Duration) -> ConnectError {
    ConnectError::timed_out(format!("no connection within {within:?}"))
}

/// Addresses that could not be connected to, and why.
#[derive(Debug)]
pub(crate) struct FailedAddresses(Vec<(SocketAddr, ConnectError)>);

impl FailedAddresses {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an attempt timed out, or was still pending when another one succeeded.
    pub(super) fn has_silent(&self) -> bool {
        self.0.iter().any(|(_, error)| error.is_timeout())
    }

    /// Adds the addresses of `all` without an outcome so far, and puts all into that order.
    fn with_pending<'a>(
        mut self,
        all: impl Iterator<Item = &'a SocketAddr>,
        why: impl Fn(&SocketAddr) -> ConnectError,
    ) -> Self {
        let with_all = all.map(|address| {
            let failed = self.0.iter().position(|(failed, _)| failed == address);
            failed.map_or_else(|| (*address, why(address)), |index| self.0.swap_remove(index))
        });
        let mut with_all: Vec<_> = with_all.collect();
        with_all.append(&mut self.0);
        Self(with_all)
    }

    /// The error of all of them.
    fn into_error(self) -> ConnectError {
        ConnectError::of_all(self.0.iter().map(|(_, error)| error), self.to_string())
    }
}

impl fmt::Display for FailedAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("the name has no address");
        }
        for (index, (address, error)) in self.0.iter().take(MAX_LISTED).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        match self.0.len().saturating_sub(MAX_LISTED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more addresses"),
        }
    }
}

#[cfg(test)]
mod tests;
