//! Lines on their way to standard output: a bounded queue, and what one thread takes from it.
//!
//! A thread that has a line only adds it, under a short lock: a reader that has stopped (a hung journal, a
//! terminal that was paused) must not stop the gateway. What does not fit is dropped and counted.
//!
//! A write for each line would cost as much as answering the request that it tells of. So lines that can
//! wait do so, for [`LONGEST_WAIT`] or until [`BLOCK`] bytes have come together. One that cannot goes
//! out at once, behind what waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use railgate::log::{Counts, LEVELS, Loss, place};
use tracing::Level;

const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// Bytes that are written together, about.
const BLOCK: usize = 64 * 1024;
/// Bytes of the longest line, line break included. No line that the gateway writes of itself is a tenth as
/// long.
pub(super) const LONGEST_LINE: usize = 16 * 1024;
/// How often it is told that lines are dropped while that goes on.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// Some seconds of a gateway that answers 5,000 requests a second, or an hour of one that has little to do.
pub(super) const BOUNDS: Bounds = Bounds { lines: 16_384, bytes: 8 << 20 };

impl Bounds {
    /// The last eighth is for errors alone.
    fn for_level(self, level: Level) -> Self {
        let eighths = if level == Level::ERROR { 8 } else { 7 };
        Self { lines: self.lines / 8 * eighths, bytes: self.bytes / 8 * eighths }
    }
}

/// Lines by level, in the order of [`LEVELS`].
pub(super) type ByLevel = [u64; LEVELS.len()];

/// Where lines wait.
pub(in crate::cli) struct Lines {
    bounds: Bounds,
    counts: Arc<Counts>,
    queue: Mutex<Queue>,
    /// Something is to be written.
    work: Condvar,
    /// Something was written, or nothing is left to be.
    progress: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The last one is added to.
    blocks: VecDeque<Block>,
    /// Its memory is used again.
    spare: Block,
    /// Of all blocks and of the one that is being written.
    lines: usize,
    bytes: usize,
    /// A line is among them that cannot wait.
    is_urgent: bool,
    /// The process ends: nothing can wait.
    is_closing: bool,
    /// The writer waits for lines: nothing is being written, and all is told of lines that are missing.
    is_idle: bool,
    /// Blocks written so far.
    written: u64,
    /// Not told yet.
    dropped: ByLevel,
    /// Since when that waits for half of the queue to be free.
    untold_since: Option<Instant>,
}

/// Lines that are written together.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    lines: ByLevel,
}

impl Lines {
    pub(super) fn new(bounds: Bounds, counts: Arc<Counts>) -> Self {
        let (queue, work, progress) = Default::default();
        Self { bounds, counts, queue, work, progress }
    }

    /// Takes one line, line break included, or drops it.
    pub(in crate::cli) fn push(&self, line: &[u8], level: Level, can_wait: bool) {
        let (bounds, place) = (self.bounds.for_level(level), place(level));
        let mut queue = self.queue.lock();
        if queue.lines >= bounds.lines || queue.bytes + line.len() > bounds.bytes {
            queue.drop_lines(place, 1);
            drop(queue);
            self.counts.drop_lines(Loss::QueueFull, place, 1);
            return;
        }
        let mut is_news = queue.add(line, place);
        is_news |= !can_wait && !queue.is_urgent;
        queue.is_urgent |= !can_wait;
        drop(queue);
        if is_news {
            self.work.notify_one();
        }
    }

    /// Waits for lines that are to be written now, for `most` at most. [`Self::written`] gives them back.
    pub(super) fn next(&self, most: Duration) -> Option<Block> {
        let begun = Instant::now();
        let mut since = None;
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            let until = if queue.blocks.is_empty() {
                queue.is_idle = true;
                self.progress.notify_all();
                begun + most
            } else {
                *since.get_or_insert(now) + LONGEST_WAIT
            };
            if queue.is_due() || (!queue.blocks.is_empty() && now >= until) {
                return queue.take();
            }
            if now >= until {
                // What was suppressed may be told now, which makes lines.
                queue.is_idle = false;
                return None;
            }
            self.work.wait_until(&mut queue, until);
        }
    }

    /// Makes room for others once a block is `done`, or could not be written.
    pub(super) fn written(&self, mut block: Block, done: bool) {
        let mut queue = self.queue.lock();
        let lines: u64 = block.lines.iter().sum();
        queue.lines = queue.lines.saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
        queue.bytes = queue.bytes.saturating_sub(block.bytes.len());
        queue.written += 1;
        if !done {
            for (place, lines) in block.lines.iter().enumerate() {
                queue.drop_lines(place, *lines);
                self.counts.drop_lines(Loss::Unwritable, place, *lines);
            }
        }
        block.bytes.clear();
        block.lines = ByLevel::default();
        queue.spare = block;
        self.progress.notify_all();
    }

    /// How many lines were dropped, once it is time to say so: when half of the queue is free again, or
    /// now and then if that takes long. To be asked once something could be written.
    pub(super) fn dropped(&self, now: Instant) -> Option<ByLevel> {
        let mut queue = self.queue.lock();
        if queue.dropped == ByLevel::default() {
            return None;
        }
        let is_flowing = queue.lines <= self.bounds.lines / 2 && queue.bytes <= self.bounds.bytes / 2;
        let since = *queue.untold_since.get_or_insert(now);
        if !is_flowing && now.saturating_duration_since(since) < TELL_EVERY {
            return None;
        }
        queue.untold_since = None;
        Some(std::mem::take(&mut queue.dropped))
    }

    /// Waits until everything is written; no longer than `most`, and no longer than `pause` for the next
    /// sign that it is being read. False if something is left.
    pub(super) fn finish(&self, pause: Duration, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut queue = self.queue.lock();
        queue.is_closing = true;
        self.work.notify_one();
        while !queue.is_idle || !queue.blocks.is_empty() {
            let (written, until) = (queue.written, end.min(Instant::now() + pause));
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
    /// Adds a line; true if that is worth waking the writer.
    fn add(&mut self, line: &[u8], place: usize) -> bool {
        let was_empty = self.blocks.is_empty();
        let is_full = self.blocks.back().is_none_or(|block| block.bytes.len() + line.len() > BLOCK);
        if is_full {
            let mut block = std::mem::take(&mut self.spare);
            // At once, since growing by and by would end at up to twice as much.
            block.bytes.reserve_exact(BLOCK);
            self.blocks.push_back(block);
        }
        if let Some(block) = self.blocks.back_mut() {
            block.bytes.extend_from_slice(line);
            if let Some(lines) = block.lines.get_mut(place) {
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

    fn drop_lines(&mut self, place: usize, lines: u64) {
        if let Some(dropped) = self.dropped.get_mut(place) {
            *dropped += lines;
        }
    }
}

#[cfg(test)]
impl Lines {
    /// What waits.
    pub(super) fn waiting(&self) -> String {
        let queue = self.queue.lock();
        let blocks = queue.blocks.iter().map(|block| String::from_utf8_lossy(&block.bytes));
        blocks.collect()
    }
}

#[cfg(test)]
mod tests;
