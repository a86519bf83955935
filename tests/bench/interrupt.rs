//! Ctrl-C ends the program like an error, so that all processes it started end too.

use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::Fallible;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on, an interrupt is an error of all functions that wait.
pub(crate) fn install_handler() -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(entered);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Relaxed);
        });
    });
    Ok(())
}

/// Sleeps, unless interrupted before.
pub(crate) fn pause(time: Duration) -> Fallible<()> {
    thread::sleep(time);
    if INTERRUPTED.load(Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

/// Waits for a process to end.
pub(crate) fn wait(child: &mut Child) -> Fallible<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        pause(Duration::from_millis(10))?;
    }
}
