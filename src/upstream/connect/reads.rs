//! What is to come over a connection, and how much of it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Where a connection is between a request and its answer.
///
/// It also counts how often more may be read. hyper takes interim answers (1xx) by itself, one after
/// another, and a server that sends nothing else would keep a thread busy until its time is up.
#[derive(Debug)]
pub(in crate::upstream) struct Reads {
    left: AtomicU32,
    /// Whether anything of the last request has been written.
    has_written: AtomicBool,
}

/// From the request to the head of its answer. A head comes in one read, or a few.
const READS_OF_A_HEAD: u32 = 256;

impl Default for Reads {
    fn default() -> Self {
        Self { left: AtomicU32::new(u32::MAX), has_written: AtomicBool::new(false) }
    }
}

impl Reads {
    /// A request is to be written, and the head of its answer is to come.
    pub(in crate::upstream) fn expect_head(&self) {
        self.left.store(READS_OF_A_HEAD, Ordering::Relaxed);
        self.has_written.store(false, Ordering::Relaxed);
    }

    /// There it is, and what follows has bounds of its own.
    pub(in crate::upstream) fn expect_any(&self) {
        self.left.store(u32::MAX, Ordering::Relaxed);
    }

    pub(super) fn are_of_head(&self) -> bool {
        self.left.load(Ordering::Relaxed) != u32::MAX
    }

    /// Something was written.
    pub(super) fn is_written(&self) {
        if self.are_of_head() {
            self.has_written.store(true, Ordering::Relaxed);
        }
    }

    /// Whether what there is to read may be the answer to a request. Never over HTTP/2, where a connection
    /// has more than one.
    pub(super) fn may_be_answer(&self) -> bool {
        self.has_written.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> io::Result<()> {
        // One thread reads at a time.
        match self.left.load(Ordering::Relaxed) {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "it sends interim answers without end")),
            u32::MAX => Ok(()),
            left => {
                self.left.store(left - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}
