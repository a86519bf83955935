//! How long purges take through a fail-over that loses the last of them, and while a gateway does not reach Valkey.

use std::thread;
use std::time::{Duration, Instant};

use super::proxy::Proxy;
use super::steady::{self, Outcome};
use super::valkey::{MASTER, Valkey};
use super::{FleetEnvironment, Options, following, members, pause, print_heading, print_percentiles};
use crate::Fallible;

/// For how long the replica has not had what was told when the master is killed, and one gateway has not heard it.
const TAIL: Duration = Duration::from_millis(500);

/// For how long the proxy is stopped: longer than old answers may be given.
const STOP: Duration = Duration::from_secs(14);

/// What is printed, and the delay of a purge that it is about.
type Row = (&'static str, fn(&Outcome) -> Option<f64>);

const AFTER_A_FAIL_OVER: &[Row] = &[
    ("until both others have dropped the answer", |purge| Some(purge.delays[0].max(purge.delays[1]))),
    ("from the answer `told` on: one that asks the Sentinels", |purge| after_told(purge, 0)),
    ("from the answer `told` on: one that has not heard the tail", |purge| after_told(purge, 1)),
    ("answered `queued`: one that asks the Sentinels", |purge| of_queued(purge, 0)),
    ("answered `queued`: one that has not heard the tail", |purge| of_queued(purge, 1)),
];

fn after_told(purge: &Outcome, gateway: usize) -> Option<f64> {
    let delay = purge.delays.get(gateway).filter(|_| purge.answer.is_told)?;
    Some((delay - purge.answer.after).max(0.0))
}

fn of_queued(purge: &Outcome, gateway: usize) -> Option<f64> {
    purge.delays.get(gateway).filter(|_| !purge.answer.is_told).copied()
}

const CUT_OFF: &[Row] = &[
    ("until the gateway that reaches Valkey has dropped the answer", |purge| Some(purge.delays[0])),
    ("until the one that is cut off does not give it any more", |purge| Some(purge.delays[1])),
];

fn print_rows(outcomes: &[Outcome], rows: &[Row]) {
    for (what, delay) in rows {
        print_percentiles(what, outcomes.iter().filter_map(delay).collect());
    }
    let told = outcomes.iter().filter(|outcome| outcome.answer.is_told).count();
    println!("\n{told} of them were answered `told`.");
}

/// Two gateways ask the Sentinels. The third reaches the master by a virtual address, which leads nowhere until it leads to
/// the new one, so that it has to learn of all that is lost.
pub(super) fn fail_over(environment: &FleetEnvironment, options: &Options) -> Fallible<()> {
    let scratch = &environment.scratch;
    let master = Valkey::start(scratch, "master")?;
    let replica = master.start_replica(scratch, "replica")?;
    let sentinels = master.start_sentinels(scratch)?;
    let proxy = Proxy::start(master.port)?;
    let addresses: Vec<String> =
        sentinels.iter().map(|sentinel| format!("\"127.0.0.1:{}\"", sentinel.port)).collect();
    let by_sentinels = format!("[fleet]\nsentinels = [{}]\nmaster = \"{MASTER}\"\n", addresses.join(", "));
    let by_proxy = following(&proxy.url());
    let mut members = members(environment, [&by_sentinels, &by_sentinels, &by_proxy])?;
    let mut away = Duration::ZERO;
    let outcomes = steady::purge_during(&mut members, options.purges, || {
        pause((steady::INTERVAL * options.purges / 2).saturating_sub(TAIL))?;
        replica.signal("-STOP");
        // Else its kernel would still take them.
        master.command("CLIENT KILL TYPE replica")?;
        proxy.stop();
        thread::sleep(TAIL);
        master.signal("-KILL");
        let killed = Instant::now();
        replica.signal("-CONT");
        replica.wait_until("INFO replication", &["role:master"])?;
        proxy.lead_to(replica.port);
        away = killed.elapsed();
        Ok(())
    })?;
    print_heading(&format!("{} purges, 100 a second, through a fail-over", options.purges));
    print_rows(&outcomes, AFTER_A_FAIL_OVER);
    let again = members[0].metric("railgate_fleet_again_total")?;
    let away = away.as_secs_f64();
    println!("\nThere was no master for {away:.1} s. {again} messages were told again.");
    Ok(())
}

/// The third gateway reaches Valkey by a proxy that stops.
pub(super) fn cut_off(environment: &FleetEnvironment, options: &Options) -> Fallible<()> {
    let valkey = Valkey::start(&environment.scratch, "valkey")?;
    let proxy = Proxy::start(valkey.port)?;
    let (direct, by_proxy) = (following(&valkey.url()), following(&proxy.url()));
    let mut members = members(environment, [&direct, &direct, &by_proxy])?;
    let outcomes = steady::purge_during(&mut members, options.purges, || {
        pause(steady::INTERVAL * options.purges / 10)?;
        proxy.stop();
        pause(STOP)?;
        proxy.lead_to(valkey.port);
        Ok(())
    })?;
    print_heading(&format!(
        "{} purges, 100 a second, and one gateway cut off for {} s after a tenth of them",
        options.purges,
        STOP.as_secs()
    ));
    print_rows(&outcomes, CUT_OFF);
    Ok(())
}
