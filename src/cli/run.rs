//! `railgate run`: the gateway until a signal ends it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use railgate::Gateway;
use railgate::config::{self, Loaded};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{logging, say_error};

pub(super) fn main(file: &Path) -> ExitCode {
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(problems) => {
            say_error(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = logging::init(&loaded.settings.log) {
        say_error(&format!("cannot start the thread that writes the log: {error}"));
        return ExitCode::FAILURE;
    }
    // Requests are answered by the workers; this thread is for signals, operators and upkeep.
    let code = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(loaded)),
        Err(error) => {
            say_error(&format!("cannot start the runtime: {error}"));
            ExitCode::FAILURE
        }
    };
    logging::flush();
    code
}

async fn run(loaded: Loaded) -> ExitCode {
    for warning in &loaded.warnings {
        tracing::warn!(%warning, "configuration");
    }
    let gateway = match Gateway::bind(loaded.settings) {
        Ok(gateway) => gateway,
        Err(error) => {
            say_error(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let shutdown = CancellationToken::new();
    if let Err(error) = cancel_on_signal(&shutdown) {
        say_error(&format!("cannot listen for signals: {error}"));
        return ExitCode::FAILURE;
    }
    match gateway.run(shutdown).await {
        Ok(true) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            tracing::warn!(
                "stopped; requests that were still running after limits.drain_timeout were dropped"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            say_error(&format!("cannot start the workers: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// How long the log has for its last lines if the process is to end at once.
const LAST_LINES: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT begin to drain; a second one ends the process at once.
pub(super) fn cancel_on_signal(shutdown: &CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        // First, since a log that nobody reads may hold this up for ever.
        shutdown.cancel();
        tracing::info!(signal = name, "draining");
        next().await;
        logging::flush_within(LAST_LINES);
        std::process::exit(1);
    });
    Ok(())
}
