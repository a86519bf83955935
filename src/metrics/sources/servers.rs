//! What is known of each server of Rails. The labels are those of the configuration.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::clock::Clock;
use crate::histogram::UPSTREAM_BOUNDS;
use crate::metrics::encode::{encode_counters_of_each, encode_histograms};
use crate::upstream::{ServerStatus, UpstreamServerState};

fn gauge(value: u64) -> ConstGauge<u64> {
    ConstGauge::new(value)
}

/// A series: its name, and what it says.
type NameAndHelp = (&'static str, &'static str);

pub(super) fn encode(
    servers: &[Arc<UpstreamServerState>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let count = |of: fn(&UpstreamServerState) -> u64| {
        move |server: &UpstreamServerState| ConstCounter::new(of(server))
    };
    let open = ("upstream_connections", "Connections to Rails, used or kept");
    encode_each(servers, encoder, open, |server| gauge(server.connections.open() as u64))?;
    let opened = ("upstream_connections_opened", "Connections made to Rails");
    encode_each(servers, encoder, opened, count(|server| server.connections.opened.load(Relaxed)))?;
    let refused = ("upstream_connect_failures", "Attempts to connect to Rails that failed");
    encode_each(servers, encoder, refused, count(|server| server.connections.failed.load(Relaxed)))?;
    let unreachable = (
        "upstream_unreachable",
        "Requests, and tries for those that wait, that found no connection, by cause",
    );
    let causes = servers.iter().map(|server| (server.name.as_str(), &server.unreachable_by_cause));
    encode_counters_of_each(encoder, unreachable, ["server", "cause"], causes)?;
    let failures =
        ("upstream_failures_in_a_row", "Failed requests since this server last answered or came back");
    encode_each(servers, encoder, failures, |server| gauge(server.health.consecutive_failures()))?;
    encode_server_status(servers, encoder)?;
    let ejections = ("upstream_ejections", "How often a server was ejected, by its last failure");
    let reasons = servers.iter().map(|server| (server.name.as_str(), &server.health.ejections));
    encode_counters_of_each(encoder, ejections, ["server", "reason"], reasons)?;
    let checks = ("upstream_health_checks", "Health checks, if there are several servers");
    let results = servers.iter().map(|server| (server.name.as_str(), &server.health.checks));
    encode_counters_of_each(encoder, checks, ["server", "result"], results)?;
    let resent = ("upstream_resent", "Requests that were sent again since this server did not answer them");
    let reasons = servers.iter().map(|server| (server.name.as_str(), &server.resends));
    encode_counters_of_each(encoder, resent, ["server", "reason"], reasons)?;
    let times = (
        "upstream_server_duration_seconds",
        "From sending a request to this server to the head of its answer, or to the failure to get one",
    );
    let histograms = servers.iter().map(|server| (server.name.as_str(), &server.response_times));
    encode_histograms(encoder, times, "server", (histograms, &UPSTREAM_BOUNDS))
}

fn encode_server_status(
    servers: &[Arc<UpstreamServerState>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let help = "1 for the state that a server of Rails is in, 0 for the others";
    let mut family = encoder.encode_descriptor("upstream_server_state", help, None, MetricType::Gauge)?;
    let now = Clock::System.now();
    for server in servers {
        let current = server.health.status(now);
        for status in ServerStatus::ALL {
            let labels = [("server", server.name.as_str()), ("state", status.as_str())];
            ConstGauge::new(i64::from(status == current)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_each<M: EncodeMetric>(
    servers: &[Arc<UpstreamServerState>],
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): NameAndHelp,
    of: impl Fn(&UpstreamServerState) -> M,
) -> fmt::Result {
    let Some(kind) = servers.first().map(|server| of(server).metric_type()) else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for server in servers {
        of(server).encode(family.encode_family(&[("server", server.name.as_str())])?)?;
    }
    Ok(())
}
