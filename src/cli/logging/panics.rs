//! A panic is an event like any other. The standard library would write it to standard error, on the
//! thread on which it happens, and for as long as that is not read.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

/// Panics are logged from now on. A backtrace comes with them if `RUST_BACKTRACE` asks for it.
pub(super) fn log() {
    std::panic::set_hook(Box::new(write));
}

fn write(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        what = panic.payload_as_str().unwrap_or("something that is no text"),
        place = panic.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        backtrace,
        "a panic, which is a bug in railgate"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::logging::json::JsonLines;
    use crate::cli::logging::lines::{BOUNDS, Lines};
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn a_panic_is_an_error_in_the_log() {
        let lines = Arc::new(Lines::new(BOUNDS, Arc::default()));
        let subscriber = tracing_subscriber::registry().with(JsonLines::new(Arc::clone(&lines)));
        let before = std::panic::take_hook();
        log();
        let outcome = tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| std::hint::black_box(Vec::<u8>::new())[0])
        });
        std::panic::set_hook(before);
        assert!(outcome.is_err());
        let written = lines.waiting();
        assert!(
            written.contains(r#""level":"ERROR","message":"a panic, which is a bug in railgate""#),
            "{written}"
        );
        assert!(written.contains("but the index is 0") && written.contains("panics.rs:"), "{written}");
    }
}
