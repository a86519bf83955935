//! The service manager that has started `railgate run`, as it says in the environment.

use std::time::Duration;

use railgate::service_manager::ServiceManager;

/// The one of `NOTIFY_SOCKET`, if it is set. Its watchdog is the one of `WATCHDOG_USEC`, unless `WATCHDOG_PID` says
/// that it is for another process.
pub(super) fn service_manager() -> ServiceManager {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return ServiceManager::default() };
    let variable = |name| std::env::var(name).ok();
    let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
    // Set by systemd 254 and later, and by deploy/railgate.service for earlier ones.
    let store = variable("FDSTORE").and_then(|count| count.parse().ok()).unwrap_or_default();
    let found = ServiceManager::at(&socket, watchdog).unwrap_or_else(|error| {
        tracing::warn!(%error, socket = ?socket, "NOTIFY_SOCKET cannot be used, so the service manager is told nothing");
        ServiceManager::default()
    });
    found.with_store(store)
}

fn watchdog(microseconds: Option<String>, for_process: Option<String>, own: u32) -> Option<Duration> {
    let is_for_other = for_process.is_some_and(|process| process.parse() != Ok(own));
    microseconds?.parse().ok().filter(|_| !is_for_other).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watchdog_for_this_process_is_fed() {
        for (microseconds, process, expected) in [
            (None, None, None),
            (Some("2000000"), None, Some(2)),
            (Some("2000000"), Some("7"), Some(2)),
            (Some("2000000"), Some("8"), None),
            (Some("2000000"), Some(""), None),
            (Some("-1"), None, None),
            (Some("soon"), Some("7"), None),
        ] {
            let found = watchdog(microseconds.map(str::to_owned), process.map(str::to_owned), 7);
            assert_eq!(found, expected.map(Duration::from_secs), "{microseconds:?} {process:?}");
        }
    }
}
