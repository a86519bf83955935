//! A scripted Rails that records the requests it gets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::rails::responses;
use crate::{Fallible, machine};

/// As long as Puma's backlog.
const BACKLOG: u32 = 1024;

/// What Rails does with a request.
#[derive(Clone, Copy)]
pub(crate) enum Script {
    /// Answers, so many at the same time.
    Answers(usize),
    /// Answers, except unknown endpoints, which never get a response.
    AnswersWhatItKnows,
    /// Reads only the head.
    ReadsTheHead,
    /// Reads the request, and resets the connection.
    Resets,
    /// Sends 103 responses without end.
    Hints,
}

/// A running scripted Rails. Stops when it is dropped.
pub(crate) struct FakeRails {
    pub(crate) port: u16,
    state: Arc<State>,
    task: Option<JoinHandle<()>>,
}

struct State {
    script: Script,
    at_one_time: Semaphore,
    takes_ms: AtomicU64,
    arrived: Mutex<Vec<String>>,
}

impl FakeRails {
    /// Reserves a port on which nothing listens yet.
    pub(crate) fn away(script: Script) -> Fallible<Self> {
        let permits = if let Script::Answers(permits) = script { permits } else { Semaphore::MAX_PERMITS };
        let state = State {
            script,
            at_one_time: Semaphore::new(permits),
            takes_ms: AtomicU64::new(0),
            arrived: Mutex::new(Vec::new()),
        };
        Ok(Self { port: machine::free_port()?, state: Arc::new(state), task: None })
    }

    pub(crate) fn start(script: Script) -> Fallible<Self> {
        let mut rails = Self::away(script)?;
        rails.come_back()?;
        Ok(rails)
    }

    pub(crate) fn come_back(&mut self) -> Fallible<()> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))?;
        self.task = Some(tokio::spawn(accept(socket.listen(BACKLOG)?, Arc::clone(&self.state))));
        Ok(())
    }

    /// Sets the time of each response from now on.
    pub(crate) fn each_takes(&self, time: Duration) {
        self.state.takes_ms.store(time.as_millis() as u64, Relaxed);
    }

    /// How many requests with this text in their first line reached it.
    pub(crate) fn arrived(&self, part: &str) -> usize {
        let arrived = self.state.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.iter().filter(|line| line.contains(part)).count()
    }
}

impl Drop for FakeRails {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // The gateway may close its connections.
            let _ = serve(Connection { stream, read: Vec::new() }, &state).await;
        });
    }
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Reads more. False at the end.
    async fn more(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.read).await? > 0)
    }

    /// The next head, if there is one.
    async fn head(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads the body announced by this head. Nothing may follow it.
    async fn skip_body(&mut self, head: &str) -> io::Result<()> {
        let head = head.to_ascii_lowercase();
        let value = |name: &str| Some(head.split_once(name)?.1.lines().next()?.trim().to_owned());
        let length: Option<usize> = value("\r\ncontent-length:").and_then(|length| length.parse().ok());
        let mut left = length.unwrap_or(0);
        if value("\r\ntransfer-encoding:").is_some() {
            const END: &[u8] = b"0\r\n\r\n";
            while !self.read.ends_with(END) {
                let over = self.read.len().saturating_sub(END.len());
                self.read.drain(..over);
                if !self.more().await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            left = self.read.len();
        }
        loop {
            let count = left.min(self.read.len());
            self.read.drain(..count);
            left -= count;
            if left == 0 {
                return Ok(());
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

async fn serve(mut connection: Connection, state: &State) -> io::Result<()> {
    while let Some(head) = connection.head().await? {
        let line = head.lines().next().unwrap_or_default().to_owned();
        state.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
        match state.script {
            Script::Answers(_) | Script::AnswersWhatItKnows => {
                connection.skip_body(&head).await?;
                if matches!(state.script, Script::AnswersWhatItKnows) && line.contains("nobody") {
                    sleep(Duration::from_secs(3600)).await;
                }
                let _permit = state.at_one_time.acquire().await;
                sleep(Duration::from_millis(state.takes_ms.load(Relaxed))).await;
                connection.stream.write_all(response(&line).as_bytes()).await?;
            }
            Script::ReadsTheHead => {
                sleep(Duration::from_secs(3600)).await;
            }
            Script::Resets => {
                connection.skip_body(&head).await?;
                SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            Script::Hints => {
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n".repeat(1000);
                loop {
                    connection.stream.write_all(hints.as_bytes()).await?;
                }
            }
        }
    }
    Ok(())
}

fn response(line: &str) -> String {
    let is = |endpoint: &str| line.contains(&format!("/api/v4/internal/{endpoint}"));
    let (status, body) = match () {
        () if is("allowed") => ("200 OK", responses::ALLOWED),
        () if is("discover") => ("200 OK", responses::DISCOVER),
        () if is("check") => ("200 OK", responses::CHECK),
        () => ("404 Not Found", r#"{"error":"404 Not Found"}"#),
    };
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
