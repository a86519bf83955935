//! Writes an event in the form that is set now.
//!
//! Differs from `tracing_subscriber::reload` in that it takes no lock. Both layers keep the fields of spans, so that the
//! form can change while a request runs.

use std::sync::Arc;

use railgate::log::{LogCounters, LogFormat};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// A layer that writes events only while its form is the one that is set.
pub(super) struct FormatLayer<L> {
    layer: L,
    format: LogFormat,
    counts: Arc<LogCounters>,
}

impl<L> FormatLayer<L> {
    pub(super) fn new(layer: L, format: LogFormat, counts: &Arc<LogCounters>) -> Self {
        Self { layer, format, counts: Arc::clone(counts) }
    }
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for FormatLayer<L> {
    fn on_layer(&mut self, subscriber: &mut S) {
        self.layer.on_layer(subscriber);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.layer.on_new_span(attributes, id, context);
    }

    fn on_record(&self, span: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.layer.on_record(span, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.counts.switch.format() == self.format {
            self.layer.on_event(event, context);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::cli::logging::json::JsonLayer;
    use crate::cli::logging::pretty;
    use crate::cli::logging::queue::{LogQueue, QUEUE_LIMITS};

    #[test]
    fn each_event_is_written_once_in_the_form_of_now() {
        let (queue, counts) =
            (Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::default())), Arc::<LogCounters>::default());
        let json = FormatLayer::new(JsonLayer::new(Arc::clone(&queue)), LogFormat::Json, &counts);
        let pretty = pretty::layer(Arc::clone(&queue), false);
        let pretty = FormatLayer::new(pretty, LogFormat::Pretty, &counts);
        let subscriber = tracing_subscriber::registry().with(json).with(pretty);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::error_span!("request", route = "allowed");
            let _entered = span.entered();
            tracing::info!("one");
            counts.switch.set_format(LogFormat::Pretty);
            tracing::info!("two");
            counts.switch.set_format(LogFormat::Json);
            tracing::info!("three");
        });
        let written = queue.waiting();
        let lines: Vec<&str> = written.lines().collect();
        let [one, two, three] = lines[..] else { panic!("{written}") };
        for (line, message) in [(one, "one"), (three, "three")] {
            assert!(line.ends_with(&format!("\"message\":\"{message}\",\"route\":\"allowed\"}}")), "{line}");
        }
        assert!(two.contains("INFO") && two.ends_with("two route=\"allowed\""), "{two}");
    }
}
