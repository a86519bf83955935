//! Series of the fleet. Without one, there are none.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::fleet::counters::{DELAY_BOUNDS, FleetCounters};
use crate::fleet::message::process_name;
use crate::fleet::shared::counters::SharedCounters;
use crate::fleet::{Fleet, FleetPhase, FleetState};
use crate::metrics::encode::{encode_counters, encode_histogram, encode_single};

pub(super) fn encode(fleet: &Fleet, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (Some(state), Some(counters)) = (fleet.state(), fleet.counters()) else { return Ok(()) };
    encode_state(&state, encoder)?;
    encode_counts(counters, encoder)?;
    fleet.shared().map_or(Ok(()), |shared| encode_shared(shared.counters(), encoder))
}

fn encode_shared(counters: &SharedCounters, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let results = ("fleet_shared", "Looks for answers that other gateways have shared, by what they brought");
    encode_counters(encoder, results, "result", &counters.results)?;
    let locks = ("fleet_lock", "Answers that were not shared yet, by how it was decided who asks Rails");
    encode_counters(encoder, locks, "result", &counters.locks)?;
    let reports =
        ("fleet_reports", "Reports of known purges for gateways that begin, by what became of them");
    encode_counters(encoder, reports, "result", &counters.reports)
}

fn encode_state(state: &FleetState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "The name of the fleet, which all of its gateways have, and that of this process";
    let mut family = encoder.encode_descriptor("fleet_info", help, None, MetricType::Gauge)?;
    let process = process_name(state.publisher);
    let labels = [("fleet", state.fleet.as_str()), ("process", process.as_str())];
    ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
    let help = "Whether this is how the gateway is in its fleet";
    let mut family = encoder.encode_descriptor("fleet_state", help, None, MetricType::Gauge)?;
    for phase in FleetPhase::ALL {
        let is = ConstGauge::new(i64::from(phase == state.phase));
        is.encode(family.encode_family(&[("state", phase.as_str())])?)?;
    }
    if let Some(silent) = state.silent_for {
        let help = "How long ago all was heard that the others tell";
        encode_single(encoder, "fleet_silent_seconds", help, &ConstGauge::new(silent.as_secs_f64()))?;
    }
    let members = ConstGauge::new(i64::try_from(state.members.len()).unwrap_or(i64::MAX));
    encode_single(encoder, "fleet_members", "Other gateways that are heard", &members)?;
    let outbox = ConstGauge::new(i64::try_from(state.outbox).unwrap_or(i64::MAX));
    encode_single(encoder, "fleet_outbox", "Purges that Valkey has not taken yet", &outbox)?;
    let untold = state.untold_for.unwrap_or(Duration::ZERO).as_secs_f64();
    let help = "How long the oldest of them has waited";
    encode_single(encoder, "fleet_untold_seconds", help, &ConstGauge::new(untold))
}

fn encode_counts(counters: &FleetCounters, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let connections = ("fleet_connections", "Connections to Valkey, by what became of them");
    encode_counters(encoder, connections, "result", &counters.connections)?;
    let told =
        ("fleet_told", "Purges that were accepted here, by what their callers were told of the others");
    encode_counters(encoder, told, "result", &counters.told)?;
    for (name, help, count) in [
        ("fleet_heard", "Purges of other gateways that were heard", &counters.heard),
        ("fleet_again", "Purges that were told again, since Valkey had lost them", &counters.again),
        (
            "fleet_collapsed",
            "Purges that were made one of everything, since too many waited for Valkey",
            &counters.collapsed,
        ),
    ] {
        encode_single(encoder, name, help, &ConstCounter::new(count.load(Relaxed)))?;
    }
    let doubts = ("fleet_doubts", "How often everything was doubted that is kept, by reason");
    encode_counters(encoder, doubts, "reason", &counters.doubts)?;
    let unreadable = (
        "fleet_unreadable",
        "Entries of the stream that no gateway of the fleet has written, by what is wrong",
    );
    encode_counters(encoder, unreadable, "what", &counters.unreadable)?;
    let delay = (
        "fleet_delay_seconds",
        "From the acceptance of a purge at another gateway, by its clock, until it had its effect here",
    );
    encode_histogram(encoder, delay, &counters.delay, &DELAY_BOUNDS)
}
