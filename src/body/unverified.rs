//! The memory for bodies that are searched for a credential, and whose senders have shown none so far.
//!
//! All of them share a small total. It is charged in windows as bytes arrive, never for what a client only
//! announces. When it is used up nothing waits: the body that has gone the longest without another window gives
//! way. So those that have stalled go first, a slow one that keeps coming goes after them, and one that is there
//! at once is judged at once, whatever the others do.
//!
//! Once a body has been judged it is no longer charged: it is dropped, or it is sent on for a caller that has
//! shown the secret, whose bodies are bounded by its connections and by `limit`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Error;

/// What is charged at once, in bytes.
const WINDOW: usize = 16 * 1024;

/// How long such a body may pause. Clients send them in one go.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long all of it may take.
const LONGEST: Duration = Duration::from_secs(30);

/// The bodies that are being read, of all workers together.
#[derive(Debug)]
pub struct UnverifiedBodies {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    evicted: u64,
    next: u64,
    /// In the order in which they were last given a window.
    shares: BTreeMap<u64, Share>,
}

/// What has come of a body; nothing once it has given way.
type Windows = Arc<Mutex<Option<Vec<Vec<u8>>>>>;

/// What one body is charged.
#[derive(Debug)]
struct Share {
    bytes: usize,
    /// Freed by those that need the memory, since its reader may not run for a while.
    windows: Windows,
    #[expect(dead_code, reason = "its reader sees when it is dropped")]
    keep: oneshot::Sender<()>,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// It is larger than may be searched.
    #[error("the body is too large")]
    TooLong,
    /// Others needed the memory.
    #[error("the body gave way to others")]
    GaveWay,
    /// It stalled, or took too long in all.
    #[error("the body did not come in time")]
    TooSlow,
    /// The client has left, or what came is no HTTP.
    #[error(transparent)]
    BrokeOff(#[from] Error),
}

impl UnverifiedBodies {
    /// Bodies that take up to `most` bytes together, in whole windows.
    pub fn new(most: usize) -> Self {
        Self { most: most.next_multiple_of(WINDOW), state: Mutex::default() }
    }

    /// The bytes that are charged now.
    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// How many bodies gave way.
    pub fn evicted(&self) -> u64 {
        self.state.lock().evicted
    }

    /// All of `body`, if it has no more than `limit` bytes.
    pub async fn read<B>(&self, body: B, limit: usize) -> Result<Bytes, NotRead>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin,
    {
        // So that each fits alone, when all others have given way.
        let limit = limit.min(self.most);
        if body.size_hint().lower() > limit as u64 {
            return Err(NotRead::TooLong);
        }
        timeout(LONGEST, self.read_windows(body, limit)).await.unwrap_or(Err(NotRead::TooSlow))
    }

    async fn read_windows<B>(&self, mut body: B, limit: usize) -> Result<Bytes, NotRead>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin,
    {
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() {
            // Nearly always: it has come in one piece, which needs neither a copy nor a share.
            return if first.len() > limit { Err(NotRead::TooLong) } else { Ok(first) };
        }
        let (mut reading, mut gave_way) = Reading::begin(self);
        reading.push(&first, limit)?;
        drop(first);
        loop {
            let data = tokio::select! {
                biased;
                _ = &mut gave_way => return Err(NotRead::GaveWay),
                data = next(&mut body) => data?,
            };
            let Some(data) = data else { return reading.finish() };
            reading.push(&data, limit)?;
        }
    }

    /// Charges a body for `bytes` in place of what it had, and lets others give way for it. Returns its new
    /// number, or nothing if it had to give way itself.
    fn charge(&self, number: u64, bytes: usize) -> Option<u64> {
        let mut evicted = Vec::new();
        let number = {
            let state = &mut *self.state.lock();
            let mut share = state.shares.remove(&number)?;
            state.bytes = state.bytes - share.bytes + bytes;
            share.bytes = bytes;
            while state.bytes > self.most
                && let Some((_, oldest)) = state.shares.pop_first()
            {
                state.bytes -= oldest.bytes;
                state.evicted += 1;
                evicted.push(oldest);
            }
            state.insert(share)
        };
        for share in evicted {
            *share.windows.lock() = None;
        }
        Some(number)
    }
}

impl State {
    fn insert(&mut self, share: Share) -> u64 {
        let number = self.next;
        self.next += 1;
        self.shares.insert(number, share);
        number
    }
}

/// A body that comes in more than one piece.
struct Reading<'a> {
    all: &'a UnverifiedBodies,
    number: u64,
    /// All of one size, so that the memory of one body does for the next.
    windows: Windows,
    charged: usize,
    length: usize,
}

impl<'a> Reading<'a> {
    /// One that has nothing so far, and what ends when it has to give way.
    fn begin(all: &'a UnverifiedBodies) -> (Self, oneshot::Receiver<()>) {
        let (keep, gave_way) = oneshot::channel();
        let windows = Arc::new(Mutex::new(Some(Vec::new())));
        let share = Share { bytes: 0, windows: Arc::clone(&windows), keep };
        let number = all.state.lock().insert(share);
        (Self { all, number, windows, charged: 0, length: 0 }, gave_way)
    }

    fn push(&mut self, mut data: &[u8], limit: usize) -> Result<(), NotRead> {
        self.length += data.len();
        if self.length > limit {
            return Err(NotRead::TooLong);
        }
        if self.length > self.charged {
            self.charged = self.length.next_multiple_of(WINDOW);
            self.number = self.all.charge(self.number, self.charged).ok_or(NotRead::GaveWay)?;
        }
        let mut windows = self.windows.lock();
        let windows = windows.as_mut().ok_or(NotRead::GaveWay)?;
        while !data.is_empty() {
            match windows.last_mut() {
                Some(window) if window.len() < WINDOW => {
                    let (fits, rest) = data.split_at(data.len().min(WINDOW - window.len()));
                    window.extend_from_slice(fits);
                    data = rest;
                }
                _ => windows.push(Vec::with_capacity(WINDOW)),
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Bytes, NotRead> {
        let windows = self.windows.lock().take().ok_or(NotRead::GaveWay)?;
        let mut whole = Vec::with_capacity(self.length);
        for window in windows {
            whole.extend_from_slice(&window);
        }
        Ok(whole.into())
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let state = &mut *self.all.state.lock();
        if let Some(share) = state.shares.remove(&self.number) {
            state.bytes -= share.bytes;
        }
    }
}

/// The next piece of a body; nothing at its end.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, NotRead>
where
    B: HttpBody<Data = Bytes, Error = Error> + Unpin,
{
    loop {
        let frame = timeout(LONGEST_PAUSE, body.frame()).await.map_err(|_| NotRead::TooSlow)?;
        let Some(frame) = frame else { return Ok(None) };
        match frame?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => return Ok(Some(data)),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
