//! Serves a stack over TCP, and records what is logged meanwhile.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::common::ListenerService;
use crate::server::{BoundSocket, HttpServer, ListenAddress, Listener, ServerLimits};

/// A connection to a listener that serves `stack` on this thread. Each test has a log, needed or not: a place in the
/// code that a thread without one reached first could stay without a log for all threads.
pub(super) async fn connect(stack: ListenerService, _: &EventLog) -> TcpStream {
    let socket = BoundSocket::bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), 10).unwrap();
    let address: SocketAddr = socket.address().unwrap().parse().unwrap();
    HttpServer::new(ServerLimits::default()).serve(Listener::new(socket).unwrap(), stack);
    TcpStream::connect(address).await.unwrap()
}

/// The status, the head and the body of the response to `head`, which ends without its empty line, and `body`.
pub(super) async fn exchange(peer: &mut TcpStream, head: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    let request = format!("{head}\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut received = String::new();
    while !received.ends_with("\r\n\r\n") {
        received.push(char::from(peer.read_u8().await.unwrap()));
    }
    let received = received.to_ascii_lowercase();
    let length = received.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    peer.read_exact(&mut body).await.unwrap();
    let status = received.split(' ').nth(1).unwrap().parse().unwrap();
    (status, received, String::from_utf8(body).unwrap())
}

/// The events of this thread at every level, each with the fields of its spans.
pub(super) struct EventLog {
    lines: Arc<Mutex<String>>,
    _guard: DefaultGuard,
}

impl EventLog {
    pub(super) fn start() -> Self {
        let lines = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Recorder(Arc::clone(&lines)));
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub(super) fn take(&self) -> String {
        std::mem::take(&mut self.lines.lock())
    }
}

struct Recorder(Arc<Mutex<String>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        attributes.record(&mut fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            fields.0.push_str(&span.extensions().get::<Fields>().unwrap().0);
        }
        let own = event.metadata().target().starts_with("railgate");
        if own || event.metadata().target().starts_with("tower_http") {
            writeln!(self.0.lock(), "{}{}", event.metadata().level(), fields.0).unwrap();
        }
    }
}
