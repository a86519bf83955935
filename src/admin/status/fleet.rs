//! The fleet, as the page and `railgate fleet` show it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};

use crate::counters::{Counters, Label};
use crate::fleet::Fleet;
use crate::fleet::counters::DELAY_BOUNDS;
use crate::fleet::members::Member;
use crate::fleet::message::process_name;
use crate::histogram::quantile;

/// `null` without a fleet.
pub(super) fn figures(fleet: &Fleet) -> Value {
    let (Some(state), Some(counters)) = (fleet.state(), fleet.counters()) else { return Value::Null };
    let (_, _, delays) = counters.delay.snapshot(&DELAY_BOUNDS);
    let [p50, p99] = [0.5, 0.99].map(|q| quantile(&delays, q));
    json!({
        "fleet": state.fleet,
        "process": process_name(state.publisher),
        "state": state.phase.as_str(),
        "silent_s": state.silent_for.map(|silent| silent.as_secs_f64()),
        "outbox": state.outbox,
        "untold_s": state.untold_for.map(|untold| untold.as_secs_f64()),
        "members": state.members.iter().map(member).collect::<Vec<_>>(),
        "connections": by_label(&counters.connections),
        "told": by_label(&counters.told),
        "heard": counters.heard.load(Relaxed),
        "again": counters.again.load(Relaxed),
        "doubts": by_label(&counters.doubts),
        "unreadable": by_label(&counters.unreadable),
        "delay": { "p50": p50, "p99": p99 },
    })
}

fn member((member, heard): &(Member, Duration)) -> Value {
    json!({
        "process": process_name(member.publisher),
        "host": member.host,
        "heard_s": heard.as_secs_f64(),
        "purges": member.purges,
    })
}

fn by_label<L: Label>(counters: &Counters<L>) -> BTreeMap<&'static str, u64> {
    counters.iter().map(|(label, count)| (label.as_str(), count)).collect()
}
