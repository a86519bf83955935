//! The one thread that writes the log. If the log is not read, it alone blocks.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::events::UNLIMITED;
use super::queue::{CountsByLevel, LogQueue};
use super::repeat_filter::RepeatFilter;

/// How often suppressed events are reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// The pause if standard output is non-blocking (another process may have made it so) and full.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

pub(super) fn start(queue: Arc<LogQueue>, filter: Arc<RepeatFilter>) -> io::Result<()> {
    // A handle of its own: that of the standard library has a lock, and a buffer that ends with each line.
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut writer = Writer { out, is_mid_line: false };
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        loop {
            writer.write_next(&queue);
            filter.report(Instant::now());
        }
    })?;
    Ok(())
}

struct Writer<W> {
    out: W,
    /// A block was written only in part: the next one must not continue its last line.
    is_mid_line: bool,
}

impl<W: Write> Writer<W> {
    /// Writes the next block, if there is one in time.
    fn write_next(&mut self, queue: &LogQueue) {
        let Some(block) = queue.next(REPORT_INTERVAL) else { return };
        let is_written = self.write(&block.bytes);
        queue.complete(block, is_written);
        if is_written && let Some(dropped) = queue.take_dropped(Instant::now()) {
            log_dropped(dropped);
        }
    }

    /// False if it failed. There is no other place to report that; the metrics count it.
    fn write(&mut self, bytes: &[u8]) -> bool {
        if self.is_mid_line && self.write_out(b"\n") < 1 {
            return false;
        }
        self.is_mid_line = false;
        let written = self.write_out(bytes);
        if written == bytes.len() {
            return true;
        }
        self.is_mid_line = bytes.get(..written).and_then(<[u8]>::last).is_some_and(|last| *last != b'\n');
        false
    }

    /// Returns how many bytes could be written.
    fn write_out(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}

/// As an error if errors are among them: errors are written at any level, and may use the reserve of the queue.
fn log_dropped(dropped: CountsByLevel) {
    let total: u64 = dropped.iter().sum();
    let [errors, warnings, infos, debugs] = dropped;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: UNLIMITED,
                dropped = total,
                dropped_error = errors,
                dropped_warn = warnings,
                dropped_info = infos,
                dropped_debug = debugs,
                "log lines were dropped: they were not read fast enough, or could not be written"
            )
        };
    }
    if errors > 0 { line!(error) } else { line!(warn) }
}

#[cfg(test)]
mod tests;
