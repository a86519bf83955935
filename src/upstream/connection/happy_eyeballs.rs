//! Connects to one of the addresses of a name (RFC 8305, "Happy Eyeballs").
//!
//! Differs from `TcpStream::connect` with a name, which tries one address after another until the system gives
//! up on each: there, a silent first address takes the time of all others.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, sleep_until, timeout_at};

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
pub(in crate::upstream) async fn connect<T, F>(
    host: &str,
    port: u16,
    first: Option<SocketAddr>,
    within: Duration,
    open: impl Fn(SocketAddr) -> F,
) -> io::Result<(T, FailedAddresses)>
where
    F: Future<Output = io::Result<T>>,
{
    let begun = Clock::System.now();
    let Ok(addresses) = timeout_at((begun + within).into(), tokio::net::lookup_host((host, port))).await
    else {
        let text = format!("the name was not resolved within {within:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    };
    let addresses = preferring(interleaved(addresses?.collect()), first);
    let (outcome, failed) = connect_first(&addresses, (begun, within), open).await;
    match outcome {
        Some(connection) => Ok((connection, failed)),
        // The message of the single error suffices where the host is an address.
        None if host.parse::<std::net::IpAddr>().is_ok() => Err(failed.into_single()),
        None => Err(io::Error::new(failed.kind(), failed)),
    }
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
pub(in crate::upstream) async fn connect_first<T, F>(
    addresses: &[SocketAddr],
    (begun, within): (Instant, Duration),
    open: impl Fn(SocketAddr) -> F,
) -> (Option<T>, FailedAddresses)
where
    F: Future<Output = io::Result<T>>,
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
    let not_tried = || io::Error::new(io::ErrorKind::TimedOut, "not tried, for want of time");
    let why = |address: &SocketAddr| {
        if left.as_slice().contains(address) { not_tried() } else { timed_out(within) }
    };
    (None, failed.with_pending(addresses.iter(), why))
}

/// The error of an attempt that took all of its time.
pub(in crate::upstream) fn timed_out(within: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {within:?}"))
}

/// Addresses that could not be connected to, and why.
#[derive(Debug)]
pub(in crate::upstream) struct FailedAddresses(Vec<(SocketAddr, io::Error)>);

impl FailedAddresses {
    pub(in crate::upstream) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an attempt timed out, or was still pending when another one succeeded.
    pub(in crate::upstream) fn has_silent(&self) -> bool {
        self.0.iter().any(|(_, error)| error.kind() == io::ErrorKind::TimedOut)
    }

    /// Adds the addresses of `all` without an outcome so far, and puts all into that order.
    fn with_pending<'a>(
        mut self,
        all: impl Iterator<Item = &'a SocketAddr>,
        why: impl Fn(&SocketAddr) -> io::Error,
    ) -> Self {
        let with_all = all.map(|address| {
            let failed = self.0.iter().position(|(failed, _)| failed == address);
            failed.map_or_else(|| (*address, why(address)), |index| self.0.swap_remove(index))
        });
        let mut with_all: Vec<_> = with_all.collect();
        with_all.append(&mut self.0);
        Self(with_all)
    }

    /// The kind of all of them: a time-out if there is one, else a transient one if there is one.
    fn kind(&self) -> io::ErrorKind {
        let errors = || self.0.iter().map(|(_, error)| error);
        errors()
            .find(|error| error.kind() == io::ErrorKind::TimedOut)
            .or_else(|| errors().find(|error| is_transient(error)))
            .or_else(|| errors().next())
            .map_or(io::ErrorKind::NotFound, io::Error::kind)
    }

    /// The error of the only address.
    fn into_single(mut self) -> io::Error {
        self.0.pop().map_or_else(|| io::ErrorKind::NotFound.into(), |(_, error)| error)
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

impl std::error::Error for FailedAddresses {}

/// Whether a failure to connect may be over in a while. An untrusted certificate is not, nor is a socket that may
/// not be opened.
pub fn is_transient(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied)
}

/// The errors that a failure to connect consists of: those of the addresses, or itself.
pub(in crate::upstream) fn causes(error: &io::Error) -> impl Iterator<Item = &io::Error> {
    let failed = error.get_ref().and_then(|error| error.downcast_ref::<FailedAddresses>());
    let alone = failed.is_none().then_some(error);
    failed.into_iter().flat_map(|failed| &failed.0).map(|(_, error)| error).chain(alone)
}

#[cfg(test)]
mod tests;
