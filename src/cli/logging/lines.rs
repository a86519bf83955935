//! Lines on their way to standard output.
//!
//! A write for each would cost as much as answering the request that it tells of. So lines that can
//! wait do so, for [`LONGEST_WAIT`] or until [`MOST`] bytes have come together. One that cannot goes
//! out at once, behind what waits.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

const LONGEST_WAIT: Duration = Duration::from_millis(200);
const MOST: usize = 64 * 1024;

/// Where lines wait.
pub(super) struct Lines<W = io::Stdout> {
    waiting: Mutex<Waiting<W>>,
    some_wait: Condvar,
}

struct Waiting<W> {
    bytes: Vec<u8>,
    out: W,
}

impl Lines {
    /// Lines on their way to standard output, and a thread that sees to it that none waits for ever.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::new(io::stdout()));
        let watched = Arc::clone(&lines);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            loop {
                watched.wait_for_some();
                thread::sleep(LONGEST_WAIT);
                watched.flush();
            }
        })?;
        Ok(lines)
    }
}

impl<W: io::Write> Lines<W> {
    pub(super) fn new(out: W) -> Self {
        Self { waiting: Mutex::new(Waiting { bytes: Vec::new(), out }), some_wait: Condvar::new() }
    }

    fn wait_for_some(&self) {
        let mut waiting = self.waiting.lock();
        while waiting.bytes.is_empty() {
            self.some_wait.wait(&mut waiting);
        }
    }

    /// Takes one line, line break included.
    pub(super) fn push(&self, line: &[u8], can_wait: bool) {
        let mut waiting = self.waiting.lock();
        let is_first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        if !can_wait || waiting.bytes.len() >= MOST {
            waiting.write_out();
        } else if is_first {
            self.some_wait.notify_one();
        }
    }

    /// Writes out what waits.
    pub(super) fn flush(&self) {
        self.waiting.lock().write_out();
    }
}

impl<W: io::Write> Waiting<W> {
    /// Nobody can be told that a log cannot be written, and the gateway is worth more than its log.
    fn write_out(&mut self) {
        let _ = self.out.write_all(&self.bytes).and_then(|()| self.out.flush());
        self.bytes.clear();
    }
}

#[cfg(test)]
impl Lines<Vec<u8>> {
    pub(super) fn written(&self) -> String {
        String::from_utf8_lossy(&self.waiting.lock().out).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_order_and_urgent_ones_take_the_others_along() {
        let lines = Lines::new(Vec::new());
        lines.push(b"a\n", true);
        assert_eq!(lines.written(), "");
        lines.push(b"b\n", false);
        assert_eq!(lines.written(), "a\nb\n");
        lines.push(b"c\n", true);
        lines.flush();
        assert_eq!(lines.written(), "a\nb\nc\n");
    }

    #[test]
    fn many_lines_do_not_wait() {
        let lines = Lines::new(Vec::new());
        for _ in 0..MOST {
            lines.push(b"1234567\n", true);
        }
        assert_eq!(lines.written().len(), 8 * MOST);
    }
}
