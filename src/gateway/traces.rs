//! Spans, from the threads of the workers to the collector of the day.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::otlp::{BATCH, ExportSettings, Exporter};
use crate::trace::{SpanQueue, Tracer};

/// The queue of spans, and where its exporter finds the settings.
#[derive(Debug)]
pub(crate) struct Tracing {
    pub(crate) queue: Arc<SpanQueue>,
    settings: watch::Sender<Option<Arc<ExportSettings>>>,
}

/// The task that exports.
pub(crate) struct RunningExporter {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// How long the last spans may take once all requests have ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

impl Tracing {
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        let tracing = Self { queue: Arc::new(SpanQueue::new(BATCH)), settings: watch::Sender::new(None) };
        tracing.reload(config);
        tracing
    }

    /// By these settings from now on. A batch that is being exported goes on if it would be exported alike.
    pub(crate) fn reload(&self, config: &GatewayConfig) {
        self.queue.set_max(config.tracing.as_ref().map_or(0, |settings| settings.queue));
        let new = config.tracing.as_ref().map(|settings| Arc::clone(&settings.export));
        self.settings.send_if_modified(|current| {
            let is_changed = *current != new;
            if is_changed {
                *current = new;
            }
            is_changed
        });
    }

    /// What decides on the requests of a worker.
    pub(crate) fn tracer(&self, config: &GatewayConfig) -> Option<Tracer> {
        let ratio = config.tracing.as_ref()?.sample_ratio;
        Some(Tracer::new(Arc::clone(&self.queue), Clock::System, ratio))
    }

    pub(crate) fn start(&self) -> RunningExporter {
        let stop = CancellationToken::new();
        let exporter = Exporter::new(Arc::clone(&self.queue), self.settings.subscribe(), stop.clone());
        RunningExporter { stop, task: tokio::spawn(exporter.run()) }
    }
}

impl RunningExporter {
    /// Sends what is left.
    pub(crate) async fn flush(self) {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        if tokio::time::timeout(FLUSH_TIMEOUT, self.task).await.is_err() {
            abort.abort();
        }
    }
}
