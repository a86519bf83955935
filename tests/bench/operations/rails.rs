//! Rails, played as cheaply as can be: what is counted is to be the gateway's work.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::ED25519;
use crate::{Fallible, answers, keys};

/// What it says, and how often it was asked.
pub(super) struct Rails {
    /// The end of the one form that it is sent.
    form_end: &'static [u8],
    row: Vec<u8>,
    allowed: Vec<u8>,
    asked: AtomicU64,
}

impl Rails {
    /// Answers on a socket at `path`, for as long as the runtime runs.
    pub(super) fn start(path: &Path, form_end: &'static [u8]) -> Fallible<Arc<Self>> {
        let rails = Arc::new(Self {
            form_end,
            row: answer(&answers::authorized_keys(&keys::key(ED25519), answers::ROW))?,
            allowed: answer(answers::ALLOWED)?,
            asked: AtomicU64::new(0),
        });
        let listener = UnixListener::bind(path)?;
        let accepting = Arc::clone(&rails);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let rails = Arc::clone(&accepting);
                tokio::spawn(async move { rails.talk(stream).await });
            }
        });
        Ok(rails)
    }

    /// How many requests came so far.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// One request after the other, until the gateway hangs up.
    async fn talk(&self, mut stream: UnixStream) {
        let mut request = Vec::with_capacity(16 * 1024);
        while stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
            let (end, answer) = match request.first() {
                Some(b'G') => (&b"\r\n\r\n"[..], &self.row),
                _ => (self.form_end, &self.allowed),
            };
            if !request.ends_with(end) {
                continue;
            }
            request.clear();
            self.asked.fetch_add(1, Relaxed);
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

fn answer(body: &str) -> Fallible<Vec<u8>> {
    let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (name, value) in &answers::headers(1)? {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    Ok(answer)
}
