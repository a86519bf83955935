//! Series of each listener. The labels are the addresses of the configuration.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::metrics::encode::encode_single;
use crate::server::{Capacity, ServerTls};

/// `clients`: the listeners for clients, which are also counted together. `others`: those for operators
/// and hooks.
pub(super) fn encode(
    clients: &[Arc<Capacity>],
    others: &[Arc<Capacity>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let open = ConstGauge::new(clients.iter().map(|listener| listener.open()).sum::<usize>());
    let help =
        "Connections of clients; a stream of HTTP/2 beside others of its connection counts as one more";
    encode_single(encoder, "client_connections", help, &open)?;
    let accepted = ConstCounter::new(clients.iter().map(|listener| listener.accepted()).sum::<u64>());
    let help = "Connections accepted from clients, with streams that count as such";
    encode_single(encoder, "client_connections_accepted", help, &accepted)?;
    let all: Vec<&Capacity> = clients.iter().chain(others).map(Arc::as_ref).collect();
    let open =
        ("listener_connections", "Connections that are open on a listener, with streams that count as such");
    encode_each(&all, encoder, open, |listener| ConstGauge::new(listener.open()))?;
    let limit = ("listener_max_connections", "Connections that may be open on a listener");
    encode_each(&all, encoder, limit, |listener| ConstGauge::new(listener.max_connections()))?;
    let evicted = (
        "listener_evictions",
        "Connections that were closed, and streams that were reset, to make room for others",
    );
    encode_each(&all, encoder, evicted, |listener| ConstCounter::new(listener.evicted()))?;
    let turned_away = (
        "listener_turned_away",
        "Connections that were closed, and streams that were refused, since the listener was full",
    );
    encode_each(&all, encoder, turned_away, |listener| ConstCounter::new(listener.rejected()))?;
    let help = "Connections that were closed before HTTP, by why: a peer or a PROXY header that is not allowed, or TLS";
    let mut family = encoder.encode_descriptor("listener_refused", help, None, MetricType::Counter)?;
    for listener in clients {
        for (reason, count) in listener.refused() {
            let labels = [("listener", listener.name()), ("reason", reason.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Only listeners with TLS have these series.
pub(super) fn encode_certificates(
    certificates: &[(String, ServerTls)],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    if certificates.is_empty() {
        return Ok(());
    }
    let help = "When the certificate of a listener expires, in seconds since 1970";
    let mut family = encoder.encode_descriptor(
        "certificate_not_after_timestamp_seconds",
        help,
        None,
        MetricType::Gauge,
    )?;
    for (listener, tls) in certificates {
        ConstGauge::new(tls.not_after()).encode(family.encode_family(&[("listener", listener.as_str())])?)?;
    }
    let help = "How often the files of a certificate had changed and were read again";
    let mut family = encoder.encode_descriptor("certificate_reloads", help, None, MetricType::Counter)?;
    for (listener, tls) in certificates {
        for (result, count) in ["ok", "failed"].into_iter().zip(tls.reload_counts()) {
            let labels = [("listener", listener.as_str()), ("result", result)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_each<M: EncodeMetric>(
    listeners: &[&Capacity],
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    of: impl Fn(&Capacity) -> M,
) -> fmt::Result {
    let Some(kind) = listeners.first().map(|listener| of(listener).metric_type()) else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for listener in listeners {
        of(listener).encode(family.encode_family(&[("listener", listener.name())])?)?;
    }
    Ok(())
}
