//! Spans that wait to be exported.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::span::Span;
use crate::counters::Counters;

/// What became of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanResult {
    /// The collector has it.
    Exported,
    /// The queue was full.
    Dropped,
    /// The collector was away for too long, or has refused it.
    Failed,
}

impl SpanResult {
    /// In the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Exported, Self::Dropped, Self::Failed];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exported => "exported",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

crate::counters::label!(SpanResult);

/// Spans of all threads. It never makes anyone wait.
#[derive(Debug)]
pub struct SpanQueue {
    spans: Mutex<VecDeque<Span>>,
    max: AtomicUsize,
    batch: usize,
    /// There is a batch.
    full_batch: Notify,
    results: Counters<SpanResult>,
}

impl SpanQueue {
    /// The exporter is woken when there are `batch` spans.
    pub fn new(batch: usize) -> Self {
        Self {
            spans: Mutex::default(),
            max: AtomicUsize::new(0),
            batch,
            full_batch: Notify::new(),
            results: Counters::default(),
        }
    }

    /// How many spans may wait.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Adds spans of one trace: all of them, or none if there is no room.
    pub fn push(&self, spans: Vec<Span>) {
        let count = spans.len();
        let mut queued = self.spans.lock();
        if queued.len() + count > self.max.load(Ordering::Relaxed) {
            drop(queued);
            return self.count(SpanResult::Dropped, count);
        }
        let before = queued.len();
        queued.extend(spans);
        let is_batch = before < self.batch && queued.len() >= self.batch;
        drop(queued);
        if is_batch {
            self.full_batch.notify_one();
        }
    }

    /// Takes up to a batch.
    pub fn take(&self) -> Vec<Span> {
        let mut queued = self.spans.lock();
        let count = queued.len().min(self.batch);
        queued.drain(..count).collect()
    }

    /// How many spans wait.
    pub fn len(&self) -> usize {
        self.spans.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns once there is a batch.
    pub async fn wait_for_batch(&self) {
        while self.len() < self.batch {
            self.full_batch.notified().await;
        }
    }

    /// Counts what became of spans.
    pub fn count(&self, result: SpanResult, spans: usize) {
        self.results.add(result, spans as u64);
    }

    /// What became of all spans so far.
    pub fn results(&self) -> &Counters<SpanResult> {
        &self.results
    }
}
