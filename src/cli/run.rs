//! `railgate run`: runs the gateway until a signal ends it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use railgate::Gateway;
use railgate::config::{self, LoadedConfig};
use railgate::log::LogCounters;
use railgate::reload::Reload;
use railgate::server::InheritedSockets;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::logging;
use super::output::print_error;
use super::supervision;

pub(super) fn main(file: &Path) -> ExitCode {
    // First of all: it changes the environment, which must not happen beside another thread.
    let inherited = InheritedSockets::receive(&std::env::var("LISTEN_FDNAMES").unwrap_or_default());
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error.to_string()),
    };
    let counts = Arc::new(LogCounters::default());
    if let Err(error) = logging::init(&loaded.config.log, &counts) {
        return fail(&format!("cannot start the thread that writes the log: {error}"));
    }
    // The workers have threads of their own; this one is for signals, the admin listener and maintenance.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(run_and_flush_log((file, loaded, inherited), counts));
            // Without waiting for a DNS look-up under way.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(&format!("cannot start the runtime: {error}")),
    }
}

/// Limits of the time for writing the last lines of the log.
const MIN_FLUSH: Duration = Duration::from_millis(500);
const MAX_FLUSH: Duration = Duration::from_secs(5);

/// Runs the gateway, and writes the last lines of the log. For that it has the rest of the time to drain, since a
/// service manager will hardly wait longer. On another thread, so that a second signal ends this too.
async fn run_and_flush_log(
    (file, loaded, inherited): (&Path, LoadedConfig, InheritedSockets),
    counts: Arc<LogCounters>,
) -> ExitCode {
    let (drain_timeout, shutdown) = (loaded.config.limits.drain_timeout, CancellationToken::new());
    let token = shutdown.clone();
    let drain_began = tokio::spawn(async move {
        token.cancelled().await;
        Instant::now()
    });
    let code = run((file, loaded, inherited), counts, shutdown.clone()).await;
    shutdown.cancel();
    let drained_for = drain_began.await.map(|at| at.elapsed()).unwrap_or_default();
    let timeout = drain_timeout.saturating_sub(drained_for).clamp(MIN_FLUSH, MAX_FLUSH);
    // It fails only by a panic.
    let _ = tokio::task::spawn_blocking(move || logging::flush(timeout)).await;
    code
}

/// Prints to standard error why the gateway cannot run. Gives up after a while: if nothing reads standard error,
/// the exit code has to do.
fn fail(why: &str) -> ExitCode {
    let (why, (done, is_done)) = (why.to_owned(), std::sync::mpsc::channel());
    let thread = std::thread::Builder::new().spawn(move || {
        print_error(&why);
        // If it took too long, there is no receiver any more.
        let _ = done.send(());
    });
    if thread.is_ok() {
        let _ = is_done.recv_timeout(MAX_STDERR_WAIT);
    }
    ExitCode::FAILURE
}

const MAX_STDERR_WAIT: Duration = Duration::from_secs(1);

async fn run(
    (file, loaded, inherited): (&Path, LoadedConfig, InheritedSockets),
    counts: Arc<LogCounters>,
    shutdown: CancellationToken,
) -> ExitCode {
    // First, since these signals would end the process.
    let hangups = match ignore_signals().and_then(|()| signal(SignalKind::hangup())) {
        Ok(hangups) => hangups,
        Err(error) => return fail(&format!("cannot listen for signals: {error}")),
    };
    for warning in &loaded.warnings {
        tracing::warn!(target: logging::UNLIMITED, %warning, "configuration");
    }
    let gateway = match Gateway::bind_with(loaded.config, counts, inherited) {
        Ok(gateway) => gateway.supervised_by(supervision::service_manager()),
        Err(error) => return fail(&error.to_string()),
    };
    gateway.reload_from(file.to_owned());
    tokio::spawn(reload_on(hangups, gateway.reloader()));
    if let Err(error) = cancel_on_signal(&shutdown) {
        return fail(&format!("cannot listen for signals: {error}"));
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
        Err(error) => fail(&error.to_string()),
    }
}

/// SIGHUP reads the configuration again; its log line says what came of it.
async fn reload_on(mut hangups: Signal, reloader: Arc<dyn Reload>) {
    while hangups.recv().await.is_some() {
        tracing::info!(signal = "SIGHUP", "reading the configuration again");
        let reloader = Arc::clone(&reloader);
        // It fails only by a panic, which is logged.
        let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
    }
}

/// The signals that make other servers reopen their log or replace their binary would end the process. Each is
/// ignored with a log line. SIGPIPE is ignored as in every Rust program, and SIGQUIT keeps its default: it ends a
/// process that hangs, with a core dump.
fn ignore_signals() -> std::io::Result<()> {
    for (kind, name) in [(SignalKind::user_defined1(), "SIGUSR1"), (SignalKind::user_defined2(), "SIGUSR2")] {
        let mut received = signal(kind)?;
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                tracing::warn!(
                    signal = name,
                    "a signal was ignored: the log goes to standard output, so there is no file to reopen; SIGHUP reads \
                     the configuration again"
                );
            }
        });
    }
    Ok(())
}

/// The time for writing the last lines of the log if the process has to end at once.
pub(super) const QUICK_FLUSH: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT start the drain; a second one ends the process at once.
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
        logging::flush(QUICK_FLUSH);
        std::process::exit(1);
    });
    Ok(())
}
