use super::*;
use crate::cli::logging::json::JsonLayer;
use crate::cli::logging::queue::{LogQueue, QUEUE_LIMITS};
use serde_json::Value;
use tracing_subscriber::layer::SubscriberExt as _;

/// The lines that are logged by `act`.
fn logged(filter: &Arc<RepeatFilter>, act: impl FnOnce()) -> Vec<Value> {
    let queue = Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::default()));
    let subscriber = tracing_subscriber::registry()
        .with(RepeatFilterLayer(Arc::clone(filter)))
        .with(JsonLayer::new(Arc::clone(&queue)));
    tracing::subscriber::with_default(subscriber, act);
    queue.waiting().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn filter() -> Arc<RepeatFilter> {
    Arc::new(RepeatFilter::new(Arc::default()))
}

/// Moves all windows into the past.
fn pass(filter: &RepeatFilter, time: Duration) {
    for state in filter.callsites.lock().values_mut() {
        state.window_start = state.window_start.checked_sub(time).unwrap();
    }
}

fn fail(number: u32) {
    tracing::error!(number, "it failed");
}

#[test]
fn a_burst_is_counted_and_reported_once() {
    let filter = filter();
    let lines = logged(&filter, || (0..1_000).for_each(fail));
    assert_eq!((lines.len(), MAX_PER_WINDOW), (5, 5));
    assert_eq!(filter.counts.suppressed.load(Ordering::Relaxed), 995);
    assert_eq!(logged(&filter, || filter.report(Instant::now())).len(), 0, "the burst may go on");
    pass(&filter, WINDOW);
    let lines = logged(&filter, || {
        filter.report(Instant::now());
        filter.report(Instant::now());
        filter.report_all();
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&line["level"], &line["suppressed"]), (&"ERROR".into(), &995.into()));
    assert_eq!(line["like"], "it failed");
    assert!(line["from"].as_str().unwrap().ends_with("repeat_filter::tests"), "{line}");
    assert_eq!(logged(&filter, || fail(0)).len(), 1, "another second");
}

#[test]
fn suppressed_events_are_reported_at_the_end_too() {
    let filter = filter();
    let lines = logged(&filter, || {
        (0..=MAX_PER_WINDOW).for_each(fail);
        filter.report_all();
    });
    assert_eq!(lines.last().unwrap()["suppressed"], 1);
}

#[test]
fn rare_events_are_never_suppressed() {
    let filter = filter();
    for number in 0..100 {
        assert_eq!(logged(&filter, || fail(number)).len(), 1);
        pass(&filter, WINDOW / MAX_PER_WINDOW);
    }
    assert_eq!(filter.counts.suppressed.load(Ordering::Relaxed), 0);
}

#[test]
fn other_events_are_not_filtered() {
    let filter = filter();
    let lines = logged(&filter, || {
        for _ in 0..100 {
            tracing::error!(target: ACCESS_LOG, "request");
            tracing::warn!(target: UNLIMITED, "configuration");
            tracing::info!("purged");
        }
        (0..100).for_each(fail);
        // From another place.
        tracing::error!("it failed");
    });
    assert_eq!(lines.len(), 301 + MAX_PER_WINDOW as usize);
}
