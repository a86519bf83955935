//! What is known of each server of Rails. The labels are those of the configuration.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::clock::Clock;
use crate::upstream::health::{Condition, Reason};
use crate::upstream::{Again, Cause, ServerState};

fn gauge(value: u64) -> ConstGauge<u64> {
    ConstGauge::new(value)
}

/// A series: its name, and what it says.
type Named = (&'static str, &'static str);

pub(super) fn encode(servers: &[Arc<ServerState>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let count = |of: fn(&ServerState) -> u64| move |server: &ServerState| ConstCounter::new(of(server));
    let open = ("upstream_connections", "Connections to Rails, used or kept");
    each(servers, encoder, open, |server| gauge(server.connections() as u64))?;
    let opened = ("upstream_connections_opened", "Connections made to Rails");
    each(servers, encoder, opened, count(|server| server.opened.load(Relaxed)))?;
    let refused = ("upstream_connect_failures", "Attempts to connect to Rails that failed");
    each(servers, encoder, refused, count(|server| server.refused.load(Relaxed)))?;
    let unreachable = (
        "upstream_unreachable",
        "Requests, and tries for those that wait, that found no connection, by cause",
    );
    by(servers, encoder, unreachable, "cause", Cause::ALL.map(Cause::as_str), |server| &server.unreachable)?;
    let failures =
        ("upstream_failures_in_a_row", "Failed requests since this server last answered or came back");
    each(servers, encoder, failures, |server| gauge(server.health.failures_in_a_row()))?;
    encode_states(servers, encoder)?;
    let ejections = ("upstream_ejections", "How often a server was ejected, by its last failure");
    by(servers, encoder, ejections, "reason", Reason::ALL.map(Reason::as_str), |server| {
        &server.health.ejections
    })?;
    let checks = ("upstream_health_checks", "Health checks, if there are several servers");
    by(servers, encoder, checks, "result", ["good", "bad"], |server| &server.health.checks)?;
    let resent = ("upstream_resent", "Requests that were sent again since this server did not answer them");
    by(servers, encoder, resent, "reason", Again::ALL.map(Again::as_str), |server| &server.resent)?;
    encode_durations(servers, encoder)
}

fn encode_states(servers: &[Arc<ServerState>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "1 for the state that a server of Rails is in, 0 for the others";
    let mut family = encoder.encode_descriptor("upstream_server_state", help, None, MetricType::Gauge)?;
    let now = Clock::System.now();
    for server in servers {
        let is = server.health.condition(now);
        for condition in Condition::ALL {
            let labels = [("server", server.name.as_str()), ("state", condition.as_str())];
            ConstGauge::new(i64::from(condition == is)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_durations(servers: &[Arc<ServerState>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (name, help) = (
        "upstream_server_duration_seconds",
        "From sending a request to this server to the head of its answer, or to the failure to get one",
    );
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for server in servers {
        let (sum, count, buckets) = server.took.parts();
        let labels = [("server", server.name.as_str())];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn each<M: EncodeMetric>(
    servers: &[Arc<ServerState>],
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): Named,
    of: impl Fn(&ServerState) -> M,
) -> fmt::Result {
    let Some(kind) = servers.first().map(|server| of(server).metric_type()) else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for server in servers {
        of(server).encode(family.encode_family(&[("server", server.name.as_str())])?)?;
    }
    Ok(())
}

fn by<const N: usize>(
    servers: &[Arc<ServerState>],
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): Named,
    label: &'static str,
    values: [&'static str; N],
    of: impl Fn(&ServerState) -> &[AtomicU64; N],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for server in servers {
        for (value, count) in values.iter().zip(of(server)) {
            let labels = [("server", server.name.as_str()), (label, value)];
            ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
