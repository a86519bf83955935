//! Exports spans to a collector of OpenTelemetry: OTLP over HTTP, in protobuf.
//!
//! One task takes batches from the queue of [`trace`](crate::trace). A collector that is away, slow or silent costs that
//! task its time, and spans that do not fit into the queue; never a request.

mod client;
mod messages;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::client::{Collector, ExportError};
use self::messages::Resource;
pub use self::settings::*;
use crate::trace::{Span, SpanQueue, SpanResult};

/// Spans of one request to the collector.
pub const BATCH: usize = 512;

/// The pauses before a batch is sent again. Then it is given up.
const RETRY_PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// The task that exports.
#[derive(Debug)]
pub struct Exporter {
    queue: Arc<SpanQueue>,
    settings: watch::Receiver<Option<Arc<ExportSettings>>>,
    stop: CancellationToken,
    /// The collector took the last batch, as far as is known; so a change is told, and not each failure.
    is_well: bool,
    instance: String,
}

/// Spans that are being exported. Those of which nothing is known in the end have failed.
struct Batch<'q> {
    queue: &'q SpanQueue,
    spans: Vec<Span>,
    exported: usize,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.count(SpanResult::Exported, self.exported);
        self.queue.count(SpanResult::Failed, self.spans.len().saturating_sub(self.exported));
    }
}

impl Exporter {
    /// Exports what comes into the queue, by the settings of the day, until `stop`.
    pub fn new(
        queue: Arc<SpanQueue>,
        settings: watch::Receiver<Option<Arc<ExportSettings>>>,
        stop: CancellationToken,
    ) -> Self {
        let instance = format!("{:016x}", fastrand::u64(..));
        Self { queue, settings, stop, is_well: true, instance }
    }

    /// Returns once it was stopped, and all that was queued until then was sent once.
    pub async fn run(mut self) {
        let (mut settings, stop) = (self.settings.clone(), self.stop.clone());
        loop {
            let current = settings.borrow_and_update().clone();
            // Nothing is known of this collector.
            self.is_well = true;
            let exports = async {
                match &current {
                    Some(current) => self.export_by(current).await,
                    None => stop.cancelled().await,
                }
            };
            tokio::select! {
                () = exports => return,
                // Without a sender, the gateway is gone.
                changed = settings.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn export_by(&mut self, settings: &ExportSettings) {
        let resource = Resource::new(&settings.service_name, &self.instance);
        let (collector, stop) = (Collector::new(settings), self.stop.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.queue.wait_for_batch() => {}
                () = tokio::time::sleep(settings.interval) => {}
            }
            // Less than a batch waits for more.
            loop {
                let spans = self.queue.take();
                if spans.is_empty() {
                    break;
                }
                let is_full = spans.len() == BATCH;
                self.export(spans, &resource, &collector).await;
                if !is_full && !stop.is_cancelled() {
                    break;
                }
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn export(&mut self, spans: Vec<Span>, resource: &Resource, collector: &Collector) {
        let queue = Arc::clone(&self.queue);
        let mut batch = Batch { queue: &queue, spans, exported: 0 };
        let body = resource.request(&batch.spans);
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let error = match collector.send(body.clone()).await {
                Ok(rejected) => {
                    batch.exported = batch.spans.len().saturating_sub(rejected.count);
                    match rejected.why() {
                        Some(why) => self.report(collector, why),
                        None => self.report_well(collector),
                    }
                    return;
                }
                Err(error) => error,
            };
            let pause = pauses.next().filter(|_| error.is_transient());
            self.report(collector, error.to_string());
            let Some(pause) = pause else { return };
            let pause = pause_before_retry(pause, &error);
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn report(&mut self, collector: &Collector, why: String) {
        if std::mem::replace(&mut self.is_well, false) {
            let collector = collector.name();
            tracing::warn!(
                collector,
                why,
                "spans are not exported; railgate_tracing_spans_total counts them. This is not said again until it works"
            );
        }
    }

    fn report_well(&mut self, collector: &Collector) {
        if !std::mem::replace(&mut self.is_well, true) {
            let collector = collector.name();
            tracing::info!(collector, "spans are exported again");
        }
    }
}

/// At least what the collector asks for. Spread, so that gateways do not come back together.
fn pause_before_retry(pause: Duration, error: &ExportError) -> Duration {
    pause.max(error.retry_after()).mul_f32(1.0 + fastrand::f32() / 5.0)
}

#[cfg(test)]
mod tests;
