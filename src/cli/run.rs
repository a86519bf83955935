//! `railgate run`: the gateway until a signal ends it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use railgate::Gateway;
use railgate::config::{self, Loaded};
use railgate::log::Counts;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{logging, say_error};

pub(super) fn main(file: &Path) -> ExitCode {
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(problems) => return failure(&problems.to_string()),
    };
    let counts = Arc::new(Counts::default());
    if let Err(error) = logging::init(&loaded.settings.log, &counts) {
        return failure(&format!("cannot start the thread that writes the log: {error}"));
    }
    // Requests are answered by the workers; this thread is for signals, operators and upkeep.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(run_to_the_end(loaded, counts));
            // Not waiting for the look-up of a name that has no answer.
            runtime.shutdown_background();
            code
        }
        Err(error) => failure(&format!("cannot start the runtime: {error}")),
    }
}

/// How long the log has for its last lines if they are read, but slowly.
const SHORTEST_END: Duration = Duration::from_millis(500);
const LONGEST_END: Duration = Duration::from_secs(5);

/// Runs the gateway, and writes the last lines of the log. That takes what is left of the time to drain,
/// since whatever stops the gateway hardly waits for longer. On another thread: a second signal ends that
/// too.
async fn run_to_the_end(loaded: Loaded, counts: Arc<Counts>) -> ExitCode {
    let (drain_timeout, shutdown) = (loaded.settings.limits.drain_timeout, CancellationToken::new());
    let stopping = shutdown.clone();
    let stopped = tokio::spawn(async move {
        stopping.cancelled().await;
        Instant::now()
    });
    let code = run(loaded, counts, shutdown.clone()).await;
    shutdown.cancel();
    let took = stopped.await.map(|at| at.elapsed()).unwrap_or_default();
    let most = drain_timeout.saturating_sub(took).clamp(SHORTEST_END, LONGEST_END);
    // It cannot fail but by a panic.
    let _ = tokio::task::spawn_blocking(move || logging::finish(most)).await;
    code
}

/// Says on standard error why the gateway cannot run. Not for ever: if nothing reads that, the exit code
/// is what is left.
fn failure(why: &str) -> ExitCode {
    let (why, (done, is_done)) = (why.to_owned(), std::sync::mpsc::channel());
    let saying = std::thread::Builder::new().spawn(move || {
        say_error(&why);
        // There is no receiver any more if it took too long.
        let _ = done.send(());
    });
    if saying.is_ok() {
        let _ = is_done.recv_timeout(LONGEST_SAYING);
    }
    ExitCode::FAILURE
}

const LONGEST_SAYING: Duration = Duration::from_secs(1);

async fn run(loaded: Loaded, counts: Arc<Counts>, shutdown: CancellationToken) -> ExitCode {
    // First, since they would end the process.
    if let Err(error) = ignore_signals() {
        return failure(&format!("cannot listen for signals: {error}"));
    }
    for warning in &loaded.warnings {
        tracing::warn!(target: logging::UNLIMITED, %warning, "configuration");
    }
    let gateway = match Gateway::bind(loaded.settings, counts) {
        Ok(gateway) => gateway,
        Err(error) => return failure(&error.to_string()),
    };
    if let Err(error) = cancel_on_signal(&shutdown) {
        return failure(&format!("cannot listen for signals: {error}"));
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
        Err(error) => failure(&format!("cannot start the workers: {error}")),
    }
}

/// What is sent to have a configuration read anew, or a log opened anew, would end the process: each gets a
/// line that says what to do instead. SIGPIPE is ignored as in every Rust program, and SIGQUIT is left as it is:
/// it ends a process that hangs, with a core of it.
fn ignore_signals() -> std::io::Result<()> {
    for (kind, name) in [
        (SignalKind::hangup(), "SIGHUP"),
        (SignalKind::user_defined1(), "SIGUSR1"),
        (SignalKind::user_defined2(), "SIGUSR2"),
    ] {
        let mut received = signal(kind)?;
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                tracing::warn!(
                    signal = name,
                    "a signal was ignored: there is no reload, and no log file that could be opened anew; a change of the \
                     configuration, a secret or a certificate takes a restart"
                );
            }
        });
    }
    Ok(())
}

/// How long the log has for its last lines if the process is to end at once.
pub(super) const LAST_LINES: Duration = Duration::from_millis(200);

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
        shutdown.cancel();
        tracing::info!(signal = name, "draining");
        next().await;
        logging::finish(LAST_LINES);
        std::process::exit(1);
    });
    Ok(())
}
