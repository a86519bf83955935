//! A bounded queue of lines, from which one thread writes to standard output.
//!
//! A thread that logs only adds a line, under a short lock: a reader that has stopped (a hung journal, a
//! paused terminal) must not stop the gateway. A line that does not fit is dropped and counted.
//!
//! A write for each line would cost as much as answering the request that it is about. So deferrable lines
//! wait for [`MAX_DELAY`], or until there are [`BLOCK_SIZE`] bytes. Any other line is written at once, after
//! those that wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use railgate::log::{DropReason, LogCounters, LogLevel};
use tracing::Level;

const MAX_DELAY: Duration = Duration::from_millis(200);
/// Bytes that are written together, about.
const BLOCK_SIZE: usize = 64 * 1024;
/// Bytes of a line, line break included. Without texts of others, no line is a tenth as long.
pub(super) const MAX_LINE: usize = 16 * 1024;
/// How often dropped lines are reported while that goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The capacity of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// Some seconds of a gateway with 5,000 requests a second, or an hour of one with little to do.
pub(super) const QUEUE_LIMITS: QueueLimits = QueueLimits { lines: 16_384, bytes: 8 << 20 };

impl QueueLimits {
    /// The last eighth is reserved for errors.
    fn for_level(self, level: Level) -> Self {
        let eighths = if level == Level::ERROR { 8 } else { 7 };
        Self { lines: self.lines / 8 * eighths, bytes: self.bytes / 8 * eighths }
    }
}

/// Numbers of lines, in the order of [`LogLevel::ALL`].
pub(super) type CountsByLevel = [u64; LogLevel::ALL.len()];

pub(in crate::cli) struct LogQueue {
    limits: QueueLimits,
    counts: Arc<LogCounters>,
    queue: Mutex<Queue>,
    /// There are lines to write.
    work: Condvar,
    /// A block was written, or there are no more.
    progress: Condvar,
}

#[derive(Default)]
struct Queue {
    /// New lines are added to the last one.
    blocks: VecDeque<Block>,
    /// Its memory is reused.
    spare: Block,
    /// In all blocks, and in the one that is being written.
    lines: usize,
    bytes: usize,
    /// One of the lines is not deferrable.
    is_urgent: bool,
    /// The process ends: no line is deferrable.
    is_closing: bool,
    /// The writer waits for lines: nothing is being written, and all dropped lines are reported.
    is_idle: bool,
    /// Blocks written so far.
    written: u64,
    /// Not reported yet.
    dropped: CountsByLevel,
    /// Since when the report waits for half of the queue to be free.
    unreported_since: Option<Instant>,
}

/// Lines that are written together.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    lines: CountsByLevel,
}

impl LogQueue {
    pub(super) fn new(limits: QueueLimits, counts: Arc<LogCounters>) -> Self {
        let (queue, work, progress) = Default::default();
        Self { limits, counts, queue, work, progress }
    }

    /// Adds a line, line break included, or drops it if the queue is full.
    pub(in crate::cli) fn push(&self, line: &[u8], level: Level, is_deferrable: bool) {
        let (limits, level) = (self.limits.for_level(level), LogLevel::from(level));
        let mut queue = self.queue.lock();
        if queue.lines >= limits.lines || queue.bytes + line.len() > limits.bytes {
            queue.count_dropped(level, 1);
            drop(queue);
            self.counts.count_dropped(DropReason::QueueFull, level, 1);
            return;
        }
        let mut wakes_writer = queue.add(line, level);
        wakes_writer |= !is_deferrable && !queue.is_urgent;
        queue.is_urgent |= !is_deferrable;
        drop(queue);
        if wakes_writer {
            self.work.notify_one();
        }
    }

    /// Waits up to `timeout` for lines that are due. [`Self::complete`] has to follow.
    pub(super) fn next(&self, timeout: Duration) -> Option<Block> {
        let started = Instant::now();
        let mut waiting_since = None;
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            let until = if queue.blocks.is_empty() {
                queue.is_idle = true;
                self.progress.notify_all();
                started + timeout
            } else {
                *waiting_since.get_or_insert(now) + MAX_DELAY
            };
            if queue.is_due() || (!queue.blocks.is_empty() && now >= until) {
                return queue.take();
            }
            if now >= until {
                // The writer may report suppressed events now, which adds lines.
                queue.is_idle = false;
                return None;
            }
            self.work.wait_until(&mut queue, until);
        }
    }

    /// Frees the room of a block, once it was written or could not be.
    pub(super) fn complete(&self, mut block: Block, is_written: bool) {
        let mut queue = self.queue.lock();
        let lines: u64 = block.lines.iter().sum();
        queue.lines = queue.lines.saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
        queue.bytes = queue.bytes.saturating_sub(block.bytes.len());
        queue.written += 1;
        if !is_written {
            for (level, lines) in LogLevel::ALL.into_iter().zip(block.lines) {
                queue.count_dropped(level, lines);
                self.counts.count_dropped(DropReason::Unwritable, level, lines);
            }
        }
        block.bytes.clear();
        block.lines = CountsByLevel::default();
        queue.spare = block;
        self.progress.notify_all();
    }

    /// The numbers of dropped lines, once they are to be reported: when half of the queue is free again, or every
    /// [`REPORT_INTERVAL`] if that takes long. To be called after a successful write.
    pub(super) fn take_dropped(&self, now: Instant) -> Option<CountsByLevel> {
        let mut queue = self.queue.lock();
        if queue.dropped == CountsByLevel::default() {
            return None;
        }
        let has_room = queue.lines <= self.limits.lines / 2 && queue.bytes <= self.limits.bytes / 2;
        let since = *queue.unreported_since.get_or_insert(now);
        if !has_room && now.saturating_duration_since(since) < REPORT_INTERVAL {
            return None;
        }
        queue.unreported_since = None;
        Some(std::mem::take(&mut queue.dropped))
    }

    /// Waits until all lines are written, for `timeout` in all, and for `stall_timeout` without progress. False if
    /// some are left.
    pub(super) fn flush(&self, stall_timeout: Duration, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        queue.is_closing = true;
        self.work.notify_one();
        while !queue.is_idle || !queue.blocks.is_empty() {
            let (written, until) = (queue.written, end.min(Instant::now() + stall_timeout));
            while queue.written == written && !(queue.is_idle && queue.blocks.is_empty()) {
                if self.progress.wait_until(&mut queue, until).timed_out() {
                    return false;
                }
            }
        }
        true
    }
}

impl Queue {
    /// True if the writer has to wake up.
    fn add(&mut self, line: &[u8], level: LogLevel) -> bool {
        let was_empty = self.blocks.is_empty();
        let is_full = self.blocks.back().is_none_or(|block| block.bytes.len() + line.len() > BLOCK_SIZE);
        if is_full {
            let mut block = std::mem::take(&mut self.spare);
            // All at once: a vector that grows would end at up to twice as much.
            block.bytes.reserve_exact(BLOCK_SIZE);
            self.blocks.push_back(block);
        }
        if let Some(block) = self.blocks.back_mut() {
            block.bytes.extend_from_slice(line);
            if let Some(lines) = block.lines.get_mut(level as usize) {
                *lines += 1;
            }
        }
        self.lines += 1;
        self.bytes += line.len();
        was_empty || (is_full && self.blocks.len() == 2)
    }

    fn is_due(&self) -> bool {
        !self.blocks.is_empty() && (self.is_urgent || self.is_closing || self.blocks.len() > 1)
    }

    fn take(&mut self) -> Option<Block> {
        let block = self.blocks.pop_front();
        self.is_urgent &= !self.blocks.is_empty();
        self.is_idle = false;
        block
    }

    fn count_dropped(&mut self, level: LogLevel, lines: u64) {
        if let Some(dropped) = self.dropped.get_mut(level as usize) {
            *dropped += lines;
        }
    }
}

#[cfg(test)]
impl LogQueue {
    /// The text of the waiting lines.
    pub(super) fn waiting(&self) -> String {
        let queue = self.queue.lock();
        let blocks = queue.blocks.iter().map(|block| String::from_utf8_lossy(&block.bytes));
        blocks.collect()
    }
}

#[cfg(test)]
mod tests;
