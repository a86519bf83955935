//! Whether a connection awaits the head of a response, and how much may be read until then.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Where a connection is between a request and its response.
///
/// It also bounds the number of reads. hyper takes interim responses (1xx) by itself, one after another, and a
/// server that sends nothing else would keep a thread busy until the request times out.
#[derive(Debug)]
pub(super) struct HeadState {
    /// How many more reads the head may take; `u32::MAX` if none is awaited.
    reads_left: AtomicU32,
    /// Whether anything of the current request has been written.
    has_written: AtomicBool,
}

/// A head comes in one read, or a few.
const MAX_READS_OF_HEAD: u32 = 256;

impl Default for HeadState {
    fn default() -> Self {
        Self { reads_left: AtomicU32::new(u32::MAX), has_written: AtomicBool::new(false) }
    }
}

impl HeadState {
    /// A request is about to be written, and the head of its response is awaited.
    pub(super) fn begin_head(&self) {
        self.reads_left.store(MAX_READS_OF_HEAD, Ordering::Relaxed);
        self.has_written.store(false, Ordering::Relaxed);
    }

    /// The head is there; the body is bounded elsewhere.
    pub(super) fn end_head(&self) {
        self.reads_left.store(u32::MAX, Ordering::Relaxed);
    }

    pub(super) fn is_awaiting_head(&self) -> bool {
        self.reads_left.load(Ordering::Relaxed) != u32::MAX
    }

    /// Something was written.
    pub(super) fn mark_written(&self) {
        if self.is_awaiting_head() {
            self.has_written.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the response to a request may be there to be read. Never over HTTP/2, where one connection has
    /// many requests.
    pub(super) fn may_hold_response(&self) -> bool {
        self.has_written.load(Ordering::Relaxed)
    }

    pub(super) fn count_read(&self) -> io::Result<()> {
        // Only one thread reads at a time.
        match self.reads_left.load(Ordering::Relaxed) {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "it sends interim answers without end")),
            u32::MAX => Ok(()),
            left => {
                self.reads_left.store(left - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}
