use super::*;
use crate::cli::logging::json::JsonLines;
use crate::cli::logging::lines::{BOUNDS, Lines};
use serde_json::Value;
use tracing_subscriber::layer::SubscriberExt as _;

/// What is logged, line by line, while `act` runs.
fn logged(suppress: &Arc<Suppress>, act: impl FnOnce()) -> Vec<Value> {
    let lines = Arc::new(Lines::new(BOUNDS, Arc::default()));
    let subscriber = tracing_subscriber::registry()
        .with(SuppressLayer(Arc::clone(suppress)))
        .with(JsonLines::new(Arc::clone(&lines)));
    tracing::subscriber::with_default(subscriber, act);
    lines.waiting().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn suppress() -> Arc<Suppress> {
    Arc::new(Suppress::new(Arc::default()))
}

/// Moves all that has happened into the past.
fn pass(suppress: &Suppress, time: Duration) {
    for place in suppress.places.lock().values_mut() {
        place.begun = place.begun.checked_sub(time).unwrap();
    }
}

fn fail(number: u32) {
    tracing::error!(number, "it failed");
}

#[test]
fn a_burst_is_counted_and_told_once() {
    let suppress = suppress();
    let told = logged(&suppress, || (0..1_000).for_each(fail));
    assert_eq!((told.len(), MOST), (5, 5));
    assert_eq!(suppress.counts.suppressed.load(Ordering::Relaxed), 995);
    assert_eq!(logged(&suppress, || suppress.tell(Instant::now())).len(), 0, "the burst may go on");
    pass(&suppress, WINDOW);
    let told = logged(&suppress, || {
        suppress.tell(Instant::now());
        suppress.tell(Instant::now());
        suppress.tell_all();
    });
    let [told] = &told[..] else { panic!("{told:?}") };
    assert_eq!((&told["level"], &told["suppressed"]), (&"ERROR".into(), &995.into()));
    assert_eq!(told["like"], "it failed");
    assert!(told["from"].as_str().unwrap().ends_with("suppress::tests"), "{told}");
    assert_eq!(logged(&suppress, || fail(0)).len(), 1, "another second");
}

#[test]
fn what_is_left_out_is_told_at_the_end_too() {
    let suppress = suppress();
    let told = logged(&suppress, || {
        (0..=MOST).for_each(fail);
        suppress.tell_all();
    });
    assert_eq!(told.last().unwrap()["suppressed"], 1);
}

#[test]
fn a_line_every_now_and_then_is_never_suppressed() {
    let suppress = suppress();
    for number in 0..100 {
        assert_eq!(logged(&suppress, || fail(number)).len(), 1);
        pass(&suppress, WINDOW / MOST);
    }
    assert_eq!(suppress.counts.suppressed.load(Ordering::Relaxed), 0);
}

#[test]
fn other_lines_are_left_alone() {
    let suppress = suppress();
    let told = logged(&suppress, || {
        for _ in 0..100 {
            tracing::error!(target: ACCESS_LOG, "request");
            tracing::warn!(target: UNLIMITED, "configuration");
            tracing::info!("purged");
        }
        (0..100).for_each(fail);
        // From another place.
        tracing::error!("it failed");
    });
    assert_eq!(told.len(), 301 + MOST as usize);
}
