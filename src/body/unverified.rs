//! Memory for bodies that are searched for a credential, from clients that are not authenticated yet.
//!
//! All of these bodies share a small total. Memory is reserved in windows as bytes arrive, never for a length that
//! a client only announces. When the total is used up, no body waits: the body whose last window is the oldest is
//! evicted. So stalled bodies go first, slow ones that still make progress go after them, and a body that arrives
//! in one piece is authenticated at once, whatever the other clients do.
//!
//! Once its client is authenticated, a body no longer counts: it is dropped, or it is forwarded for a caller that
//! has shown the secret, whose bodies are bounded by its connections and by `limit`.

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

/// Bytes that are reserved at a time.
const WINDOW: usize = 16 * 1024;

/// How long a body may pause. Clients send such bodies in one go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a whole body may take.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The bodies that are being read, by all workers together.
#[derive(Debug)]
pub struct UnverifiedBodies {
    max_bytes: usize,
    table: Mutex<Reservations>,
}

#[derive(Debug, Default)]
struct Reservations {
    bytes: usize,
    evicted: u64,
    next: u64,
    /// By id; ids ascend, and a body gets a new one with each window, so the first is the one to evict.
    by_id: BTreeMap<u64, Reservation>,
}

/// The bytes received of a body; `None` once it was evicted.
type Windows = Arc<Mutex<Option<Vec<Vec<u8>>>>>;

#[derive(Debug)]
struct Reservation {
    bytes: usize,
    /// Freed by the reader that needs the memory, since this body's own reader may not run for a while.
    windows: Windows,
    #[expect(dead_code, reason = "the reader is woken when it is dropped")]
    alive: oneshot::Sender<()>,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadBodyError {
    /// It is larger than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// Other bodies needed the memory.
    #[error("the body was evicted for another one")]
    Evicted,
    /// It stalled, or took too long in total.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// The client has disconnected, or the bytes received are not HTTP.
    #[error(transparent)]
    Body(#[from] Error),
}

impl UnverifiedBodies {
    /// Bounds all bodies together to `max_bytes`, rounded up to whole windows.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes: max_bytes.next_multiple_of(WINDOW), table: Mutex::default() }
    }

    /// Bytes that are reserved now.
    pub fn bytes(&self) -> usize {
        self.table.lock().bytes
    }

    /// How many bodies were evicted so far.
    pub fn evicted(&self) -> u64 {
        self.table.lock().evicted
    }

    /// Reads the whole of `body`, which may have up to `limit` bytes.
    pub async fn read<B>(&self, body: B, limit: usize) -> Result<Bytes, ReadBodyError>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin,
    {
        // So that each body fits alone, once all others were evicted.
        let limit = limit.min(self.max_bytes);
        if body.size_hint().lower() > limit as u64 {
            return Err(ReadBodyError::TooLarge);
        }
        timeout(TOTAL_TIMEOUT, self.read_windows(body, limit)).await.unwrap_or(Err(ReadBodyError::TooSlow))
    }

    async fn read_windows<B>(&self, mut body: B, limit: usize) -> Result<Bytes, ReadBodyError>
    where
        B: HttpBody<Data = Bytes, Error = Error> + Unpin,
    {
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() {
            // Nearly always: it arrived in one piece, which needs neither a copy nor a reservation.
            return if first.len() > limit { Err(ReadBodyError::TooLarge) } else { Ok(first) };
        }
        let (mut reader, mut evicted) = BodyReader::new(self);
        reader.push(&first, limit)?;
        drop(first);
        loop {
            let data = tokio::select! {
                biased;
                _ = &mut evicted => return Err(ReadBodyError::Evicted),
                data = next(&mut body) => data?,
            };
            let Some(data) = data else { return reader.finish() };
            reader.push(&data, limit)?;
        }
    }

    /// Changes the reservation of a body to `bytes`, and evicts others for it. Returns its new id, or `None` if
    /// it was evicted itself.
    fn reserve(&self, id: u64, bytes: usize) -> Option<u64> {
        let mut evicted = Vec::new();
        let id = {
            let table = &mut *self.table.lock();
            let mut reservation = table.by_id.remove(&id)?;
            table.bytes = table.bytes - reservation.bytes + bytes;
            reservation.bytes = bytes;
            while table.bytes > self.max_bytes
                && let Some((_, oldest)) = table.by_id.pop_first()
            {
                table.bytes -= oldest.bytes;
                table.evicted += 1;
                evicted.push(oldest);
            }
            table.insert(reservation)
        };
        for reservation in evicted {
            *reservation.windows.lock() = None;
        }
        Some(id)
    }
}

impl Reservations {
    fn insert(&mut self, reservation: Reservation) -> u64 {
        let id = self.next;
        self.next += 1;
        self.by_id.insert(id, reservation);
        id
    }
}

/// Reads a body that arrives in more than one piece.
struct BodyReader<'a> {
    bodies: &'a UnverifiedBodies,
    id: u64,
    /// All of one size, so that the allocator can reuse them for the next body.
    windows: Windows,
    reserved: usize,
    length: usize,
}

impl<'a> BodyReader<'a> {
    /// The receiver ends when the body is evicted.
    fn new(bodies: &'a UnverifiedBodies) -> (Self, oneshot::Receiver<()>) {
        let (alive, evicted) = oneshot::channel();
        let windows = Arc::new(Mutex::new(Some(Vec::new())));
        let reservation = Reservation { bytes: 0, windows: Arc::clone(&windows), alive };
        let id = bodies.table.lock().insert(reservation);
        (Self { bodies, id, windows, reserved: 0, length: 0 }, evicted)
    }

    fn push(&mut self, mut data: &[u8], limit: usize) -> Result<(), ReadBodyError> {
        self.length += data.len();
        if self.length > limit {
            return Err(ReadBodyError::TooLarge);
        }
        if self.length > self.reserved {
            self.reserved = self.length.next_multiple_of(WINDOW);
            self.id = self.bodies.reserve(self.id, self.reserved).ok_or(ReadBodyError::Evicted)?;
        }
        let mut windows = self.windows.lock();
        let windows = windows.as_mut().ok_or(ReadBodyError::Evicted)?;
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

    fn finish(&mut self) -> Result<Bytes, ReadBodyError> {
        let windows = self.windows.lock().take().ok_or(ReadBodyError::Evicted)?;
        let mut whole = Vec::with_capacity(self.length);
        for window in windows {
            whole.extend_from_slice(&window);
        }
        Ok(whole.into())
    }
}

impl Drop for BodyReader<'_> {
    fn drop(&mut self) {
        let table = &mut *self.bodies.table.lock();
        if let Some(reservation) = table.by_id.remove(&self.id) {
            table.bytes -= reservation.bytes;
        }
    }
}

/// The next piece of a body that is not empty; `None` at its end.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, ReadBodyError>
where
    B: HttpBody<Data = Bytes, Error = Error> + Unpin,
{
    loop {
        let frame = timeout(IDLE_TIMEOUT, body.frame()).await.map_err(|_| ReadBodyError::TooSlow)?;
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
