//! How far a body has come on its way from who sends it to who reads it.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use parking_lot::Mutex;

use crate::clock::Clock;

/// Which side a body waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferStage {
    /// Neither: its reader has all that there will be.
    Ended,
    /// The reader has asked for more, and nothing has come.
    AwaitsSender,
    /// The reader has not asked for more since it got the last part, or, if it has none, since the transfer began.
    AwaitsReader {
        /// When that was.
        since: Instant,
    },
}

/// Of a body that is still being sent; `None` if it was in memory.
#[derive(Debug)]
pub struct BodyTransfer(Option<Arc<Mutex<TransferState>>>);

#[derive(Debug)]
struct TransferState {
    stage: TransferStage,
    is_aborted: bool,
}

/// Held by the body; marks the end of the transfer when it is dropped.
#[derive(Debug)]
pub(super) struct TransferGuard(Arc<Mutex<TransferState>>);

impl BodyTransfer {
    /// Of a body that is in memory.
    pub(super) const NONE: Self = Self(None);

    /// Begins with a body of which nothing was read.
    pub(super) fn begin() -> (Self, TransferGuard) {
        let stage = TransferStage::AwaitsReader { since: Clock::System.now() };
        let shared = Arc::new(Mutex::new(TransferState { stage, is_aborted: false }));
        (Self(Some(Arc::clone(&shared))), TransferGuard(shared))
    }

    /// Which side it waits for.
    pub fn stage(&self) -> TransferStage {
        self.0.as_ref().map_or(TransferStage::Ended, |state| state.lock().stage)
    }

    /// Whether the stream failed before its end.
    pub fn is_aborted(&self) -> bool {
        self.0.as_ref().is_some_and(|state| state.lock().is_aborted)
    }
}

impl TransferGuard {
    /// The reader has asked for more, and got this.
    pub(super) fn note<T, E>(&self, part: &Poll<Option<Result<T, E>>>) {
        let mut state = self.0.lock();
        match part {
            Poll::Pending => state.stage = TransferStage::AwaitsSender,
            Poll::Ready(Some(Ok(_))) => {
                state.stage = TransferStage::AwaitsReader { since: Clock::System.now() };
            }
            Poll::Ready(Some(Err(_))) => state.is_aborted = true,
            Poll::Ready(None) => {}
        }
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        self.0.lock().stage = TransferStage::Ended;
    }
}
