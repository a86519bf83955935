//! Panics as events of the log. The standard library would write them to standard error, and block the panicking
//! thread for as long as that is not read.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

/// Logs panics from now on, with a backtrace if `RUST_BACKTRACE` asks for one.
pub(super) fn log() {
    std::panic::set_hook(Box::new(write));
}

fn write(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        what = panic.payload_as_str().unwrap_or("a value that is not text"),
        place = panic.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        backtrace,
        "a panic, which is a bug in railgate"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::logging::json::JsonLayer;
    use crate::cli::logging::queue::{LogQueue, QUEUE_LIMITS};
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn a_panic_is_logged_as_an_error() {
        let queue = Arc::new(LogQueue::new(QUEUE_LIMITS, Arc::default()));
        let subscriber = tracing_subscriber::registry().with(JsonLayer::new(Arc::clone(&queue)));
        let before = std::panic::take_hook();
        log();
        let outcome = tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| std::hint::black_box(Vec::<u8>::new())[0])
        });
        std::panic::set_hook(before);
        assert!(outcome.is_err());
        let written = queue.waiting();
        assert!(
            written.contains(r#""level":"ERROR","message":"a panic, which is a bug in railgate""#),
            "{written}"
        );
        assert!(written.contains("but the index is 0") && written.contains("panics.rs:"), "{written}");
    }
}
