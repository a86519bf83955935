//! Which alerts of `deploy/prometheus` hold now, as far as a single look at `/metrics` can say. For how long they have
//! held is not known, so an alert that waits for minutes may not fire yet.

use super::finding::Finding;
use super::scrape::{Sample, Scrape};

/// An alert that needs no history.
struct Alert {
    name: &'static str,
    /// Its row of "At 3 a.m." in deploy/README.md.
    row: &'static str,
    is_page: bool,
    /// What is wrong now, each in a few words.
    judge: fn(&Scrape<'_>, now: f64) -> Vec<String>,
}

const fn page(name: &'static str, row: &'static str, judge: fn(&Scrape<'_>, f64) -> Vec<String>) -> Alert {
    Alert { name, row, is_page: true, judge }
}

const fn ticket(name: &'static str, row: &'static str, judge: fn(&Scrape<'_>, f64) -> Vec<String>) -> Alert {
    Alert { name, row, is_page: false, judge }
}

const DAY: f64 = 86_400.0;

/// The conditions are those of the rules, without `for`.
const ALERTS: [Alert; 15] = [
    page("RailgateRailsUnreachable", "rails-unreachable", |scrape, _| {
        each(scrape, "railgate_upstream_away", |away| {
            (away.value > 0.0).then(|| "the running gateway finds Rails away".into())
        })
    }),
    page("RailgateRailsFails", "rails-fails", |scrape, _| rails_fails(scrape)),
    ticket("RailgateServerOutOfRotation", "server-without-requests", |scrape, _| {
        each(scrape, "railgate_upstream_server_state", |server| {
            let state = server.label("state");
            let is_out = server.value > 0.0 && ["ejected", "unhealthy", "drained"].contains(&state);
            is_out.then(|| format!("{} gets no requests: {state}", server.label("server")))
        })
    }),
    ticket("RailgateQueueFills", "gitlab-is-busy", |scrape, _| {
        each(scrape, "railgate_upstream_queue", |queue| {
            let class = queue.label("class");
            let limit = scrape.sum_where("railgate_upstream_concurrency_limit", "class", class);
            let is_full = queue.value > limit;
            is_full.then(|| {
                format!(
                    "{} requests of the class {class} wait, and Rails has {limit} at one time",
                    queue.value
                )
            })
        })
    }),
    ticket("RailgateClocksDiffer", "a-caller-gets-a-401", |scrape, _| {
        each(scrape, "railgate_clock_skew_seconds", |skew| {
            let differs = skew.value.abs() >= 5.0;
            differs.then(|| {
                format!("the clocks of the callers ({}) differ by {} s", skew.label("caller"), skew.value)
            })
        })
    }),
    ticket("RailgateSecretUnusable", "secret-unusable", |scrape, _| {
        each(scrape, "railgate_secret_file_usable", |file| {
            (file.value < 1.0).then(|| format!("the file of the secret {} holds none", file.label("secret")))
        })
    }),
    page("RailgateFleetPurgesWait", "fleet-untold", |scrape, _| {
        each(scrape, "railgate_fleet_untold_seconds", |untold| {
            let waits = untold.value > 30.0;
            waits.then(|| format!("purges have waited for Valkey for {:.0} s", untold.value))
        })
    }),
    ticket("RailgateFleetAlone", "fleet-alone", |scrape, _| {
        each(scrape, "railgate_fleet_state", |fleet| {
            let state = fleet.label("state");
            let is_alone = fleet.value > 0.0 && ["alone", "joining"].contains(&state);
            is_alone.then(|| format!("it does not hear the other gateways: {state}"))
        })
    }),
    ticket("RailgateReloadFailed", "reload-failed", |scrape, _| {
        each(scrape, "railgate_config_last_reload_successful", |reload| {
            (reload.value < 1.0).then(|| "the configuration file had mistakes when it was read again".into())
        })
    }),
    ticket("RailgateCertificateExpiresSoon", "certificate", |scrape, now| expire(scrape, now, 3.0..14.0)),
    page("RailgateCertificateExpires", "certificate", |scrape, now| expire(scrape, now, f64::MIN..3.0)),
    ticket("RailgateConnectionsNearLimit", "listener-full", |scrape, _| {
        each(scrape, "railgate_listener_connections", |open| {
            let listener = open.label("listener");
            let limit = scrape.sum_where("railgate_listener_max_connections", "listener", listener);
            let is_near = open.value > 0.8 * limit;
            is_near.then(|| format!("{listener} has {} of {limit} connections", open.value))
        })
    }),
    ticket("RailgateOpenFilesNearLimit", "open-files", |scrape, _| {
        each(scrape, "process_open_fds", |open| {
            let limit = scrape.sum("process_max_fds");
            (open.value > 0.8 * limit).then(|| format!("{} of {limit} files are open", open.value))
        })
    }),
    page("RailgateThreadHangs", "thread-hangs", |scrape, _| {
        each(scrape, "railgate_thread_silent_seconds", |thread| {
            let hangs = thread.value >= 10.0;
            hangs.then(|| format!("{} has not responded for {} s", thread.label("thread"), thread.value))
        })
    }),
    ticket("RailgatePanicked", "failures", |scrape, _| {
        let panics = scrape.sum_where("railgate_failures_total", "reason", "panicked");
        Vec::from_iter(
            (panics > 0.0).then(|| format!("{panics} requests ended in a bug of railgate: keep the log")),
        )
    }),
];

/// About the gateway with these samples. `now`: seconds since 1970.
pub(super) fn findings(scrape: &Scrape<'_>, now: f64) -> Vec<Finding> {
    let judged = ALERTS.iter().flat_map(|alert| {
        let runbook = format!("deploy/README.md#{}", alert.row);
        (alert.judge)(scrape, now)
            .into_iter()
            .map(move |what| firing(alert.name, alert.is_page, &what, &runbook))
    });
    let mut found: Vec<_> = judged.collect();
    if found.is_empty() {
        let count = ALERTS.len();
        found.push(Finding::ok(format!(
            "no alert holds, of the {count} that need no history (--prometheus asks for all)"
        )));
    }
    found
}

/// An alert that holds. `runbook`: where its row of "At 3 a.m." is.
pub(super) fn firing(name: &str, is_page: bool, what: &str, runbook: &str) -> Finding {
    let (summary, advice) = (format!("{name}: {what}"), format!("its row of \"At 3 a.m.\" is {runbook}"));
    if is_page { Finding::failed(summary, &advice) } else { Finding::warning(summary, Some(&advice)) }
}

fn each(scrape: &Scrape<'_>, name: &str, judge: impl Fn(&Sample<'_>) -> Option<String>) -> Vec<String> {
    scrape.of(name).filter_map(judge).collect()
}

fn rails_fails(scrape: &Scrape<'_>) -> Vec<String> {
    let mut found = each(scrape, "railgate_cache_outage", |outage| {
        (outage.value > 0.0)
            .then(|| format!("stale answers are given for {}, since Rails fails", outage.label("route")))
    });
    let fewest = scrape.of("railgate_upstream_failures_in_a_row").map(|server| server.value);
    if fewest.reduce(f64::min).is_some_and(|fewest| fewest >= 3.0) {
        found.push("every server of Rails has failed three requests in a row".to_owned());
    }
    found
}

/// Certificates that have so many days left.
fn expire(scrape: &Scrape<'_>, now: f64, days: std::ops::Range<f64>) -> Vec<String> {
    each(scrape, "railgate_certificate_not_after_timestamp_seconds", |end| {
        let left = (end.value - now) / DAY;
        let listener = end.label("listener");
        days.contains(&left).then(|| format!("the certificate of {listener} expires in {left:.1} days"))
    })
}

#[cfg(test)]
mod tests;
