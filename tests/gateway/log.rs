//! The captured log of this process, at every level.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};

use serde_json::Value;

use super::client::eventually;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

static LOG: Mutex<String> = Mutex::new(String::new());

/// The current end of the captured log.
pub fn position() -> usize {
    log().len()
}

/// The log since this position, a line for each event.
pub fn since(place: usize) -> String {
    log()[place..].to_owned()
}

/// Waits until so many lines contain this text, and returns them.
#[track_caller]
pub fn wait_for_lines(text: &str, count: usize) -> impl Future<Output = Vec<String>> {
    let text = text.to_owned();
    eventually("lines of the log", move || {
        let found: Vec<_> = log().lines().filter(|line| line.contains(&text)).map(str::to_owned).collect();
        std::future::ready((found.len() >= count).then_some(found))
    })
}

/// Waits for the line of the request with this id, which no other test uses.
pub async fn wait_for_request_line(id: &str) -> Value {
    let id = format!("\"{id}\"");
    let is_meant = |line: &&str| line.contains("\"target\":\"access\"") && line.contains(&id);
    let line =
        eventually("the line of the request", async || log().lines().rev().find(is_meant).map(str::to_owned));
    serde_json::from_str(&line.await).unwrap()
}

fn log() -> MutexGuard<'static, String> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts capturing.
pub fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(LevelFilter::TRACE)
            .with_writer(Sink)
            .init();
    });
}

/// Blocks the thread that logs a line with this text, until this is dropped.
pub struct LogBlocker {
    text: String,
}

static BLOCKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static RELEASED: Condvar = Condvar::new();

impl LogBlocker {
    pub fn on(text: impl Into<String>) -> Self {
        let hang = Self { text: text.into() };
        blocked().push(hang.text.clone());
        hang
    }
}

impl Drop for LogBlocker {
    fn drop(&mut self) {
        blocked().retain(|text| *text != self.text);
        RELEASED.notify_all();
    }
}

fn blocked() -> MutexGuard<'static, Vec<String>> {
    BLOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        log().push_str(&line);
        let is_meant = |blocked: &mut Vec<String>| blocked.iter().any(|text| line.contains(text));
        drop(RELEASED.wait_while(blocked(), is_meant));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
