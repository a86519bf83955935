//! A stand-in for Rails that is as cheap as possible: the counts should be the gateway's work.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::ED25519;
use crate::{Fallible, keys, responses};

/// Its responses, and the number of requests.
pub(super) struct Rails {
    /// The end of the only form that it gets.
    form_end: &'static [u8],
    row: Vec<u8>,
    allowed: Vec<u8>,
    asked: AtomicU64,
}

impl Rails {
    /// Listens on a socket at `path` while the runtime runs.
    pub(super) fn start(path: &Path, form_end: &'static [u8]) -> Fallible<Arc<Self>> {
        let rails = Arc::new(Self {
            form_end,
            row: response(&responses::authorized_keys(&keys::key(ED25519), responses::ROW))?,
            allowed: response(responses::ALLOWED)?,
            asked: AtomicU64::new(0),
        });
        let listener = UnixListener::bind(path)?;
        let accepting = Arc::clone(&rails);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let rails = Arc::clone(&accepting);
                tokio::spawn(async move { rails.serve_connection(stream).await });
            }
        });
        Ok(rails)
    }

    /// The number of requests so far.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// Answers requests until the gateway closes the connection.
    async fn serve_connection(&self, mut stream: UnixStream) {
        let mut request = Vec::with_capacity(16 * 1024);
        while stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
            let (end, response) = match request.first() {
                Some(b'G') => (&b"\r\n\r\n"[..], &self.row),
                _ => (self.form_end, &self.allowed),
            };
            if !request.ends_with(end) {
                continue;
            }
            request.clear();
            self.asked.fetch_add(1, Relaxed);
            if stream.write_all(response).await.is_err() {
                return;
            }
        }
    }
}

fn response(body: &str) -> Fallible<Vec<u8>> {
    let mut response = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (name, value) in &responses::headers(1)? {
        response.extend_from_slice(name.as_str().as_bytes());
        response.extend_from_slice(b": ");
        response.extend_from_slice(value.as_bytes());
        response.extend_from_slice(b"\r\n");
    }
    response.extend_from_slice(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    Ok(response)
}
