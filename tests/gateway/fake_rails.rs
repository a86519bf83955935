//! A scripted Rails. It records every byte it gets, and responds by a script that a test can replace at any
//! time.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::client::{Address, Stream, chunked, within_deadline};

/// A request as Rails got it.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    /// Which of all the requests it is, counted from 0.
    pub nth: usize,
    /// Which connection it came over, counted from 0.
    pub connection: usize,
    /// The head, empty line included.
    pub head: String,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// The trailer lines.
    pub trailers: String,
}

impl ReceivedRequest {
    /// The value of a header, if it is there once. Twice fails the test.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_values(name);
        assert!(values.len() <= 1, "{name} is repeated in {:?}", self.head);
        values.first().copied()
    }

    /// The values of a header that may be repeated.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether it is for an endpoint of the internal API, whatever its parameters.
    pub fn is_for(&self, endpoint: &str) -> bool {
        let path = self.target.split('?').next().unwrap_or_default();
        path.ends_with(&format!("/api/v4/internal/{endpoint}"))
    }

    /// The decoded value of a parameter of the query.
    pub fn param(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        let value = query.split('&').find_map(|param| param.strip_prefix(&format!("{name}=")))?;
        let mut pieces = value.split('%');
        let mut decoded = pieces.next()?.replace('+', " ").into_bytes();
        for piece in pieces {
            decoded.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
            decoded.extend(piece[2..].replace('+', " ").into_bytes());
        }
        String::from_utf8(decoded).ok()
    }
}

/// Blocks replies until a test opens it; then it stays open.
#[derive(Clone, Debug)]
pub struct Latch(Arc<Semaphore>);

impl Latch {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Releases all waiting and future replies.
    pub fn open(&self) {
        self.0.close();
    }

    async fn wait(&self) {
        let _ = self.0.acquire().await;
    }
}

/// What Rails does about a request, step by step.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    Write(Vec<u8>),
    Wait(Latch),
    Pause(Duration),
    /// Nothing, until the gateway closes the connection.
    LogBlocker,
    Close,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).fmt(f),
            Self::Wait(_) => f.write_str("wait"),
            Self::Pause(time) => write!(f, "pause {time:?}"),
            Self::LogBlocker => f.write_str("hang"),
            Self::Close => f.write_str("close"),
        }
    }
}

impl Reply {
    /// These bytes, whatever they are.
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self::default().then(bytes)
    }

    /// A well-formed response with this status, these header lines and this body.
    pub fn new(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        Self::bytes(format!("HTTP/1.1 {status} Status\r\n{headers}Content-Length: {}\r\n\r\n", body.len()))
            .then(body)
    }

    /// The same with its body in chunks of at most `size` bytes.
    pub fn in_chunks(status: u16, headers: &str, body: impl AsRef<[u8]>, size: usize) -> Self {
        Self::bytes(format!("HTTP/1.1 {status} Status\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"))
            .then(chunked(body.as_ref(), size))
    }

    pub fn json(status: u16, body: &str) -> Self {
        Self::new(status, "Content-Type: application/json\r\n", body)
    }

    /// Closes the connection without a response.
    pub fn hang_up() -> Self {
        Self { steps: vec![Step::Close] }
    }

    /// Never answers.
    pub fn silence() -> Self {
        Self { steps: vec![Step::LogBlocker] }
    }

    /// Then these bytes. They are written together with those before them.
    pub fn then(mut self, bytes: impl AsRef<[u8]>) -> Self {
        match self.steps.last_mut() {
            Some(Step::Write(before)) => before.extend_from_slice(bytes.as_ref()),
            _ => self.steps.push(Step::Write(bytes.as_ref().to_vec())),
        }
        self
    }

    /// Then waits for the latch.
    pub fn then_wait(mut self, latch: &Latch) -> Self {
        self.steps.push(Step::Wait(latch.clone()));
        self
    }

    /// Then closes the connection.
    pub fn then_close(mut self) -> Self {
        self.steps.push(Step::Close);
        self
    }

    /// Then does nothing more until the gateway closes the connection.
    pub fn then_hang(mut self) -> Self {
        self.steps.push(Step::LogBlocker);
        self
    }

    /// The same reply, after this time. Only for a Rails that takes its time: wait for events with a latch.
    pub fn after_pause(mut self, time: Duration) -> Self {
        self.steps.insert(0, Step::Pause(time));
        self
    }

    /// The same reply, once the latch is open.
    pub fn after(mut self, latch: &Latch) -> Self {
        self.steps.insert(0, Step::Wait(latch.clone()));
        self
    }
}

type Script = Arc<dyn Fn(&ReceivedRequest) -> Reply + Send + Sync>;

/// When Rails responds to a request by its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    /// When the whole request is there.
    RespondAfterBody,
    /// When its head is there; the body is read after the response.
    RespondAfterHead,
    /// Never: connections are closed as soon as they are there.
    CloseOnAccept,
    /// Never: a connection is closed once something has come over it, which is not read.
    CloseUnread,
}

/// A running scripted Rails. Stops when it is dropped.
pub struct FakeRails {
    pub address: Address,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    script: Mutex<(Behavior, Script)>,
    requests: Mutex<Vec<ReceivedRequest>>,
    /// The bytes of requests that were never complete.
    fragments: Mutex<Vec<Vec<u8>>>,
    arrived: watch::Sender<usize>,
    connections: AtomicUsize,
    closed: watch::Sender<usize>,
}

enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            // Failed handshakes are ignored.
            Self::Tls(listener, acceptor) => loop {
                let (stream, _) = listener.accept().await?;
                if let Ok(stream) = acceptor.accept(stream).await {
                    return Ok(Box::new(stream));
                }
            },
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for FakeRails {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FakeRails {
    /// Listens on a TCP port, and answers like a small GitLab.
    pub async fn listen_tcp() -> Self {
        Self::listen_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
    }

    /// Listens on a TCP socket that a test made.
    pub fn listen_on(listener: TcpListener) -> Self {
        Self::start(Address::Tcp(listener.local_addr().unwrap()), Listener::Tcp(listener))
    }

    /// Listens on a TCP port, and speaks TLS there.
    pub async fn listen_tls(acceptor: TlsAcceptor) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::start(Address::Tcp(listener.local_addr().unwrap()), Listener::Tls(listener, acceptor))
    }

    /// Listens on a unix socket.
    pub fn listen_unix(path: &Path) -> Self {
        Self::start(Address::Unix(path.to_owned()), Listener::Unix(UnixListener::bind(path).unwrap()))
    }

    fn start(address: Address, listener: Listener) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new((Behavior::RespondAfterBody, Arc::new(gitlab))),
            requests: Mutex::default(),
            fragments: Mutex::default(),
            arrived: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            closed: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self { address, shared, accepting }
    }

    /// Answers by this script from now on.
    pub fn respond_with(&self, script: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static) {
        self.set_behavior(Behavior::RespondAfterBody, script);
    }

    /// Answers every request in the same way from now on.
    pub fn respond_always(&self, reply: Reply) {
        self.respond_with(move |_| reply.clone());
    }

    /// Answers like a small GitLab from now on.
    pub fn recover(&self) {
        self.respond_with(gitlab);
    }

    /// Answers by this script, in this manner, from now on.
    pub fn set_behavior(
        &self,
        behavior: Behavior,
        script: impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static,
    ) {
        *self.shared.script.lock().unwrap() = (behavior, Arc::new(script));
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many requests came so far.
    pub fn request_count(&self) -> usize {
        *self.shared.arrived.borrow()
    }

    /// The last request; fails the test if there is none.
    pub fn last_request(&self) -> ReceivedRequest {
        self.requests().pop().expect("a request reached Rails")
    }

    /// The bytes of requests that were never complete.
    pub fn incomplete_requests(&self) -> Vec<Vec<u8>> {
        self.shared.fragments.lock().unwrap().clone()
    }

    /// How many connections were made so far.
    pub fn connection_count(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until that many requests have come in all.
    #[track_caller]
    pub fn wait_for_requests(&self, count: usize) -> impl Future<Output = ()> {
        let mut arrived = self.shared.arrived.subscribe();
        let waiting = async move { arrived.wait_for(|is| *is >= count).await.map(drop) };
        let waiting = within_deadline("requests to Rails", waiting);
        async move { waiting.await.unwrap() }
    }

    /// Waits until that many connections have ended in all.
    #[track_caller]
    pub fn wait_for_closed(&self, count: usize) -> impl Future<Output = ()> {
        let mut closed = self.shared.closed.subscribe();
        let waiting = async move { closed.wait_for(|is| *is >= count).await.map(drop) };
        let waiting = within_deadline("connections to Rails to end", waiting);
        async move { waiting.await.unwrap() }
    }
}

async fn serve(mut stream: Box<dyn Stream>, shared: Arc<Shared>) {
    let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
    let mut unread = Vec::new();
    while serve_one(&mut stream, &mut unread, connection, &shared).await {}
    if !unread.is_empty() {
        shared.fragments.lock().unwrap().push(unread);
    }
    drop(stream);
    shared.closed.send_modify(|count| *count += 1);
}

/// Reads one request and answers it. False if the connection is over.
async fn serve_one(
    stream: &mut Box<dyn Stream>,
    unread: &mut Vec<u8>,
    connection: usize,
    shared: &Shared,
) -> bool {
    if shared.script.lock().unwrap().0 == Behavior::CloseOnAccept {
        return false;
    }
    // One byte is enough to know that something has come.
    let mut first = [0];
    if unread.is_empty() {
        match stream.read(&mut first).await {
            Ok(1) => unread.extend_from_slice(&first),
            _ => return false,
        }
    }
    if shared.script.lock().unwrap().0 == Behavior::CloseUnread {
        return false;
    }
    let Some((mut request, framing)) = read_head(stream, unread).await else { return false };
    request.connection = connection;
    let (behavior, script) = shared.script.lock().unwrap().clone();
    if behavior == Behavior::CloseOnAccept {
        return false;
    }
    if behavior == Behavior::RespondAfterHead {
        shared.record(&mut request);
        return perform(stream, script(&request)).await && read_body(stream, unread, framing).await.is_some();
    }
    let head = request.head.clone();
    let Some((body, trailers)) = read_body(stream, unread, framing).await else {
        // The incomplete request includes its head.
        unread.splice(..0, head.into_bytes());
        return false;
    };
    request.body = body;
    request.trailers = trailers;
    shared.record(&mut request);
    perform(stream, script(&request)).await
}

impl Shared {
    fn record(&self, request: &mut ReceivedRequest) {
        let mut requests = self.requests.lock().unwrap();
        request.nth = requests.len();
        requests.push(request.clone());
        // Under the lock, so that the count never goes back.
        self.arrived.send_replace(requests.len());
    }
}

async fn perform(stream: &mut Box<dyn Stream>, reply: Reply) -> bool {
    for step in reply.steps {
        match step {
            Step::Write(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return false;
                }
            }
            Step::Wait(latch) => latch.wait().await,
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::LogBlocker => {
                let mut ignored = Vec::new();
                let _ = stream.read_to_end(&mut ignored).await;
                return false;
            }
            Step::Close => {
                let _ = stream.shutdown().await;
                return false;
            }
        }
    }
    true
}

enum Framing {
    Length(usize),
    Chunks,
}

/// Reads a head, strictly: the gateway writes no other.
async fn read_head(stream: &mut Box<dyn Stream>, unread: &mut Vec<u8>) -> Option<(ReceivedRequest, Framing)> {
    let end = loop {
        if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        read_more(stream, unread).await?;
    };
    let head = String::from_utf8(unread.drain(..end).collect()).expect("the head is text");
    let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
    let mut request_line = lines.next()?.split(' ');
    let (method, target) = (request_line.next()?.to_owned(), request_line.next()?.to_owned());
    assert_eq!((request_line.next(), request_line.next()), (Some("HTTP/1.1"), None), "{head:?}");
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect();
    let request = ReceivedRequest {
        nth: 0,
        connection: 0,
        method,
        target,
        headers,
        body: Vec::new(),
        trailers: String::new(),
        head: head.clone(),
    };
    let framing = match (request.header("transfer-encoding"), request.header("content-length")) {
        (Some("chunked"), None) => Framing::Chunks,
        (None, Some(length)) => Framing::Length(length.parse().unwrap()),
        (None, None) => Framing::Length(0),
        framing => panic!("framed as {framing:?}: {head:?}"),
    };
    Some((request, framing))
}

/// Reads a body. A truncated one stays in `unread`.
async fn read_body(
    stream: &mut Box<dyn Stream>,
    unread: &mut Vec<u8>,
    framing: Framing,
) -> Option<(Vec<u8>, String)> {
    match framing {
        Framing::Length(length) => {
            while unread.len() < length {
                read_more(stream, unread).await?;
            }
            Some((unread.drain(..length).collect(), String::new()))
        }
        Framing::Chunks => {
            let (mut body, mut at) = (Vec::new(), 0);
            loop {
                let line = line_end(stream, unread, at).await?;
                let size = std::str::from_utf8(&unread[at..line - 2]).ok();
                let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("a chunk size");
                if size == 0 {
                    let mut end = line;
                    loop {
                        let next = line_end(stream, unread, end).await?;
                        if next == end + 2 {
                            let trailers = String::from_utf8_lossy(&unread[line..end]).into_owned();
                            unread.drain(..next);
                            return Some((body, trailers));
                        }
                        end = next;
                    }
                }
                while unread.len() < line + size + 2 {
                    read_more(stream, unread).await?;
                }
                body.extend_from_slice(&unread[line..line + size]);
                assert_eq!(&unread[line + size..line + size + 2], b"\r\n");
                at = line + size + 2;
            }
        }
    }
}

async fn line_end(stream: &mut Box<dyn Stream>, unread: &mut Vec<u8>, from: usize) -> Option<usize> {
    loop {
        if let Some(at) = unread[from..].windows(2).position(|window| window == b"\r\n") {
            return Some(from + at + 2);
        }
        read_more(stream, unread).await?;
    }
}

async fn read_more(stream: &mut Box<dyn Stream>, unread: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(unread).await.ok().filter(|count| *count > 0).map(drop)
}

/// What the small GitLab knows: ids by SSH key and by name.
pub const ROOT_KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGvUxsMLvN0yGZGFjpMyEIKPXpf4qFhJvZqgEf3PeFc1";
/// A blob whose Base64 ends in padding and contains both `+` and `/`.
pub const PADDED_KEY: &str = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQ+/v/7/7777/w==";
/// A key that no user has.
pub const UNKNOWN_KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A small GitLab. It requires no credential: that is the gateway's job, and a second refusal would hide a
/// request that should not have come this far.
pub fn gitlab(request: &ReceivedRequest) -> Reply {
    let ids: HashMap<&str, u64> = HashMap::from([
        (ROOT_KEY, 1),
        (PADDED_KEY, 2),
        (PADDED_KEY.trim_end_matches('='), 2),
        ("root", 1),
        ("Root", 1),
        ("rubi", 7),
    ]);
    if request.is_for("check") {
        return of_one_request(request, 200, CHECK);
    }
    if request.is_for("authorized_keys") {
        let Some(key) = request.param("key") else {
            return of_one_request(request, 500, r#"{"message":"500 Internal Server Error"}"#);
        };
        return match ids.get(key.as_str()) {
            Some(id) => {
                let key = format!(r#"{{"id":{id},"title":"k","key":"ssh-ed25519 {key} U (gitlab)"}}"#);
                of_one_request(request, 200, &key)
            }
            None => of_one_request(request, 404, r#"{"message":"404 Key Not Found"}"#),
        };
    }
    if request.is_for("discover") {
        let id = ["key_id", "user_id", "username"].iter().find_map(|name| {
            let value = request.param(name)?;
            value.parse().ok().filter(|id| [1, 7].contains(id)).or_else(|| ids.get(value.as_str()).copied())
        });
        let user = id.map_or("null".to_owned(), |id| {
            let name = if id == 1 { "root" } else { "rubi" };
            format!(r#"{{"id":{id},"username":"{name}","name":"{name}"}}"#)
        });
        return of_one_request(request, 200, &user);
    }
    of_one_request(request, 200, &format!(r#"{{"nth":{}}}"#, request.nth))
}

/// A healthy instance.
pub const CHECK: &str = r#"{"api_version":"v4","gitlab_version":"13.4.0","gitlab_rev":"abc","redis":true}"#;

/// A response with all headers that Rails writes for one request alone.
pub fn of_one_request(request: &ReceivedRequest, status: u16, body: &str) -> Reply {
    let nth = request.nth;
    let headers = format!(
        "Content-Type: application/json\r\n\
         ETag: W/\"{nth}\"\r\n\
         Cache-Control: max-age=0, private, must-revalidate\r\n\
         Vary: Origin\r\n\
         X-Content-Type-Options: nosniff\r\n\
         X-Frame-Options: SAMEORIGIN\r\n\
         X-Request-Id: of-rails-{nth}\r\n\
         X-Runtime: 0.{nth}\r\n\
         X-Gitlab-Meta: {{\"correlation_id\":\"{nth}\"}}\r\n\
         X-Unheard-Of: {nth}\r\n\
         Set-Cookie: session={nth}\r\n\
         Date: Mon, 01 Jan 2001 00:00:00 GMT\r\n"
    );
    Reply::new(status, &headers, body)
}
