//! The one thread that writes the log, and that alone waits if it is not read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::UNLIMITED;
use super::lines::{ByLevel, Lines};
use super::suppress::Suppress;

/// How often it looks what was suppressed.
const TICK: Duration = Duration::from_millis(500);
/// How long it waits if standard output is non-blocking (another process may have made it so) and full.
const AGAIN: Duration = Duration::from_millis(10);

/// Starts the thread.
pub(super) fn start(lines: Arc<Lines>, suppress: Arc<Suppress>) -> io::Result<()> {
    // A handle of its own: that of the standard library has a lock, and a buffer that ends with each line.
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut writer = Writer { out, is_mid_line: false };
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        loop {
            writer.step(&lines);
            suppress.tell(Instant::now());
        }
    })?;
    Ok(())
}

struct Writer<W> {
    out: W,
    /// A block could be written in part only, and the next one must not go on in its last line.
    is_mid_line: bool,
}

impl<W: Write> Writer<W> {
    /// Writes what is to be written next, if that comes before long.
    fn step(&mut self, lines: &Lines) {
        let Some(block) = lines.next(TICK) else { return };
        let is_written = self.write(&block.bytes);
        lines.written(block, is_written);
        if is_written && let Some(dropped) = lines.dropped(Instant::now()) {
            tell(dropped);
        }
    }

    /// False if it failed. There is no other place to say why; the metrics count it.
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

    /// How many bytes could be written.
    fn write_out(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(AGAIN),
                Err(_) => break,
            }
        }
        written
    }
}

/// As an error if errors are among them: those are written at any level, and take the reserve.
fn tell(dropped: ByLevel) {
    let all: u64 = dropped.iter().sum();
    let [errors, warnings, infos, debugs] = dropped;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: UNLIMITED,
                dropped = all,
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
