use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::super::capacity::Capacity;
use super::super::registry::ConnectionRegistry;
use super::*;
use crate::body::Body;
use crate::header::ClientScheme;

const IDLE: Duration = Duration::from_secs(75);
const HEAD: Duration = Duration::from_secs(10);
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET` or `POST`, `http`, `/` and an authority, by the static table (RFC 7541, appendix A).
fn head(method: u8) -> Vec<u8> {
    vec![method, 0x86, 0x84, 0x41, 1, b'a']
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(0x82))
}

fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(0x83))
}

fn begin() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// How the server of a test answers, and what it has for connections.
struct Server {
    takes: Duration,
    answer: Bytes,
    /// And answers at their end. Else bodies are left.
    reads_bodies: bool,
    trusts: bool,
    limiter: Arc<ConnectionLimiter>,
    /// Streams that may wait for a place.
    waiting: usize,
    registry: Arc<ConnectionRegistry>,
}

impl Server {
    fn new(takes: Duration, connections: usize) -> Self {
        let limiter = ConnectionLimiter::new(Capacity::new("test", connections, false));
        let registry = Arc::default();
        limiter.add_registry(&registry);
        let answer = Bytes::from_static(b"ok");
        Self { takes, answer, reads_bodies: false, trusts: false, limiter, waiting: 0, registry }
    }

    fn connect(&self) -> DuplexStream {
        let (peer, socket) = duplex(1 << 20);
        let limits = GateLimits {
            head: HeadLimits { bytes: 32 * 1024, headers: 100, target: wire::DEFAULT_TARGET },
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: HEAD,
            idle_timeout: IDLE,
        };
        let &Self { takes, reads_bodies, trusts, .. } = self;
        let answer = self.answer.clone();
        let service = tower::service_fn(move |inbound: Inbound| {
            let answer = answer.clone();
            async move {
                if trusts {
                    inbound.connection.trust();
                }
                if reads_bodies && !hyper::body::Body::is_end_stream(inbound.request.body()) {
                    let _ = Body::received(inbound.request.into_body(), inbound.body_driver).collect().await;
                } else if !takes.is_zero() {
                    sleep(takes).await;
                }
                Ok::<_, Infallible>(Response::new(Full::new(answer)))
            }
        });
        let permit = self.limiter.try_acquire().unwrap();
        let registration = self.registry.register(permit, true);
        let client = ClientSide { peer: None, scheme: ClientScheme::Http, accept: None, proxies: None };
        let waiting_slots = Arc::new(Semaphore::new(self.waiting));
        let places = StreamPlaces { limiter: Arc::clone(&self.limiter), waiting_slots };
        let service = (Arc::new(Mutex::new(service)), places);
        tokio::spawn(connection(socket, registration, limits, client, service));
        peer
    }

    /// Another connection, whose request is being answered. `None` if it gets no place.
    async fn newcomer(&self) -> Option<Registration> {
        let permit = tokio::time::timeout(Duration::from_secs(5), self.limiter.acquire(false)).await.ok()?;
        let registration = self.registry.register(permit, false);
        registration.state().request_started();
        Some(registration)
    }
}

/// A connection to a server that answers each request after this time.
fn connect(takes: Duration) -> DuplexStream {
    connect_for(takes, Bytes::from_static(b"ok"))
}

/// The same with this answer.
fn connect_for(takes: Duration, answer: Bytes) -> DuplexStream {
    Server { answer, ..Server::new(takes, 1_000) }.connect()
}

/// How long it takes until the server closes the connection, and what it sends meanwhile.
async fn closed_after(peer: &mut DuplexStream, limit: Duration) -> Option<(Duration, Vec<u8>)> {
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    tokio::time::timeout(limit, peer.read_to_end(&mut bytes)).await.ok()?.unwrap();
    Some((begun.elapsed(), bytes))
}

fn kinds(bytes: &[u8]) -> Vec<u8> {
    frames(bytes).into_iter().map(|(kind, _)| kind).collect()
}

/// Their kinds and streams.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, d, e, f, g, rest @ ..] = bytes {
        frames.push((*kind, u32::from_be_bytes([*d, *e, *f, *g])));
        bytes = &rest[usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)..];
    }
    frames
}

/// The streams with frames of this kind among those that have come.
async fn streams_with(kind: u8, peer: &mut DuplexStream) -> Vec<u32> {
    let mut bytes = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::ZERO, peer.read_buf(&mut bytes)).await {}
    frames(&bytes).into_iter().filter(|(is, _)| *is == kind).map(|(_, stream)| stream).collect()
}

type Round = fn(u32) -> Vec<u8>;

/// Frames that are allowed, over and over. The time stands still, so none of them is paid for by it.
const FLOODS: [(&str, Round); 13] = [
    ("settings", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
    ("acknowledgements", |_| frame(PING, 1, 0, &[0; 8])),
    ("pings", |_| frame(PING, 0, 0, &[0; 8])),
    ("windows", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ("priorities", |at| frame(PRIORITY, 0, 2 * at + 1, &[0, 0, 0, 0, 9])),
    ("unknown frames", |_| frame(99, 0, 0, b"")),
    ("rapid resets", |at| [get(2 * at + 1), frame(RST_STREAM, 0, 2 * at + 1, &8_u32.to_be_bytes())].concat()),
    ("rapid resets of bodies", |at| {
        [post(2 * at + 1), frame(RST_STREAM, 0, 2 * at + 1, &8_u32.to_be_bytes())].concat()
    }),
    // A field of a connection, `te: gzip`.
    ("malformed requests", |at| {
        frame(HEADERS, 5, 2 * at + 1, &[&head(0x82)[..], b"\0\x02te\x04gzip"].concat())
    }),
    ("streams with windows of nothing", |at| {
        [post(2 * at + 1), frame(WINDOW_UPDATE, 0, 2 * at + 1, &[0; 4])].concat()
    }),
    ("empty data", |at| if at == 0 { post(1) } else { frame(DATA, 0, 1, b"") }),
    ("continuations", |at| frame(if at == 0 { HEADERS } else { CONTINUATION }, 0, 1, b"")),
    ("large continuations", |at| {
        let field = [&b"\0\x01a\x7f\x81\x7d"[..], &[b'a'; 16_128]].concat();
        frame(if at == 0 { HEADERS } else { CONTINUATION }, 0, 1, &field)
    }),
];

#[tokio::test(start_paused = true)]
async fn floods_of_frames_end_the_connection() {
    for (name, round) in FLOODS {
        let mut peer = connect(IDLE * 100);
        peer.write_all(&begin()).await.unwrap();
        let (mut sent, mut piece) = (0, vec![0; 1 << 20]);
        let begun = Instant::now();
        loop {
            assert!(sent < 10_000, "{name}");
            if peer.write_all(&round(sent)).await.is_err() {
                break;
            }
            sent += 1;
            tokio::task::yield_now().await;
            // What the server says is read, or it would stop at that.
            let read = peer.read(&mut piece);
            if let Some(Ok(0) | Err(_)) = futures_util::FutureExt::now_or_never(read) {
                break;
            }
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "{name}");
    }
}

/// Each pays for what belongs to it.
#[tokio::test(start_paused = true)]
async fn requests_with_what_belongs_to_them_are_no_flood() {
    let mut peer = connect(Duration::ZERO);
    peer.write_all(&begin()).await.unwrap();
    let mut piece = vec![0; 1 << 20];
    for stream in (1..20_000).step_by(2) {
        let window = frame(WINDOW_UPDATE, 0, 0, &2_u32.to_be_bytes());
        let body = [frame(DATA, 0, stream, &[0; 200]), frame(DATA, END_STREAM, stream, b"")].concat();
        let ping = frame(PING, 0, 0, &[0; 8]);
        peer.write_all(&[post(stream), body, ping, window.clone(), window].concat()).await.unwrap();
        assert!(peer.read(&mut piece).await.unwrap() > 0);
    }
    // Pings do not keep a connection that has no requests.
    let idle_since = Instant::now();
    while peer.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok() {
        sleep(Duration::from_secs(1)).await;
    }
    let took = idle_since.elapsed();
    assert!(took >= IDLE && took < IDLE + Duration::from_secs(4), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn every_wait_has_its_limit() {
    let first_byte = Duration::from_secs(5);
    let whole = begin();
    let over = |more: &[u8]| [&whole[..], more].concat();
    for (name, bytes, limit) in [
        ("nothing", Vec::new(), first_byte),
        ("a part of the preface", PREFACE[..9].to_vec(), HEAD),
        ("the preface alone", PREFACE.to_vec(), HEAD),
        ("a part of the settings", whole[..30].to_vec(), HEAD),
        ("a part of a frame's head", over(&[0]), HEAD),
        ("a part of a head", over(&get(1)[..11]), HEAD),
        ("a head that goes on", over(&frame(HEADERS, END_STREAM, 1, &head(0x82))), HEAD),
        ("a part of a ping", over(&frame(PING, 0, 0, &[0; 8])[..10]), HEAD),
        // With a second for the client to end it.
        ("no request", over(&[]), IDLE + CLOSE_TIMEOUT),
        ("an answered request", over(&get(1)), IDLE + CLOSE_TIMEOUT),
        (
            "a part of a body's frame",
            over(&[post(1), frame(DATA, 0, 1, &[0; 9])[..12].to_vec()].concat()),
            IDLE,
        ),
    ] {
        let mut peer = connect(Duration::ZERO);
        peer.write_all(&bytes).await.unwrap();
        let (took, answer) = closed_after(&mut peer, IDLE * 9).await.unwrap_or_else(|| panic!("{name}"));
        assert!(took >= limit && took < limit + Duration::from_secs(2), "{name}: {took:?}");
        assert_eq!(kinds(&answer).contains(&GOAWAY), limit == IDLE + CLOSE_TIMEOUT, "{name}");
    }
    // Whatever else comes: it is one wait.
    let mut peer = connect(Duration::ZERO);
    peer.write_all(&begin()).await.unwrap();
    let begun = Instant::now();
    for byte in get(1).iter().cycle().take(15) {
        let _ = peer.write_all(&[*byte]).await;
        sleep(Duration::from_secs(1)).await;
    }
    closed_after(&mut peer, IDLE).await.unwrap();
    assert!(begun.elapsed() <= HEAD + Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_its_time_keeps_its_connection() {
    let mut peer = connect(IDLE * 5);
    peer.write_all(&[begin(), get(1)].concat()).await.unwrap();
    let (took, answer) = closed_after(&mut peer, IDLE * 9).await.unwrap();
    assert!(took >= IDLE * 6, "{took:?}");
    assert!(kinds(&answer).contains(&HEADERS));
}

/// The client gives room for a byte, once in a while for another one, or for all.
#[tokio::test(start_paused = true)]
async fn a_response_that_the_client_gives_no_room_for_is_given_up() {
    const LENGTH: usize = 100_000;
    for (pause, room, is_whole) in
        [(IDLE, 0, false), (IDLE / 2, 30_000, true), (Duration::ZERO, LENGTH, true)]
    {
        let mut peer = connect_for(Duration::ZERO, Bytes::from(vec![b'x'; LENGTH]));
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
        let windows = frame(WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes());
        peer.write_all(&[PREFACE, &settings, &windows, &get(1)].concat()).await.unwrap();
        if room > 0 {
            for _ in 0..LENGTH.div_ceil(room) {
                sleep(pause).await;
                let window = frame(WINDOW_UPDATE, 0, 1, &u32::try_from(room).unwrap().to_be_bytes());
                peer.write_all(&window).await.unwrap();
            }
        }
        let (_, answer) = closed_after(&mut peer, IDLE * 9).await.unwrap();
        assert_eq!(!kinds(&answer).contains(&RST_STREAM), is_whole, "{room}");
        let received = answer.split(|byte| *byte == b'x').count() - 1;
        assert!(if is_whole { received >= LENGTH } else { received < 100 }, "{received} with {room}");
    }
}

/// Of the answer, the last piece is in the buffers of h2 when nothing else of the connection goes on. The client gives
/// room for a thousand bytes at a time, or for most of the answer and then for nothing more. It acknowledges nothing.
#[tokio::test(start_paused = true)]
async fn at_the_end_an_answer_has_as_long_as_its_client_reads() {
    const LENGTH: usize = 20_008;
    let pause = Duration::from_millis(700);
    for (first, room, is_whole) in [(1_000, 1_000, true), (17_000, 0, false)] {
        let server = Server { answer: Bytes::from(vec![b'x'; LENGTH]), ..Server::new(Duration::ZERO, 9) };
        let mut peer = server.connect();
        let settings = frame(SETTINGS, 0, 0, &[&[0, 4][..], &u32::to_be_bytes(first)].concat());
        peer.write_all(&[PREFACE, &settings, &get(1)].concat()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        server.registry.enter(ServerPhase::Draining);
        let begun = Instant::now();
        for _ in 0..if room > 0 { LENGTH / 1_000 } else { 0 } {
            sleep(pause).await;
            peer.write_all(&frame(WINDOW_UPDATE, 0, 1, &u32::to_be_bytes(room))).await.unwrap();
        }
        let (took, answer) = closed_after(&mut peer, IDLE).await.unwrap();
        let all = begun.elapsed();
        assert!(took >= CLOSE_TIMEOUT / 2 && took < CLOSE_TIMEOUT * 2, "{took:?} of {all:?}");
        let received = answer.split(|byte| *byte == b'x').count() - 1;
        assert_eq!(received, if is_whole { LENGTH } else { first as usize });
    }
}

/// The server has said all, and the client does not close: whatever it sends, it has some time, and no more.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_close_at_the_end_is_left() {
    let short = (IDLE * 2, CLOSE_TIMEOUT, CLOSE_TIMEOUT * 2);
    let long = (CLOSE_TIMEOUT / 2, IDLE, IDLE + HEAD);
    for (drains, (pause, least, most)) in [(false, short), (false, long), (true, short), (true, long)] {
        let server = Server::new(Duration::ZERO, 9);
        let mut peer = server.connect();
        peer.write_all(&[begin(), get(1), frame(GOAWAY, 0, 0, &[0; 8])].concat()).await.unwrap();
        let (took, answer) = closed_after(&mut peer, IDLE).await.unwrap();
        assert!(took < CLOSE_TIMEOUT && kinds(&answer).contains(&HEADERS), "{took:?}");
        if drains {
            server.registry.enter(ServerPhase::Draining);
        }
        let begun = Instant::now();
        let talk = async {
            loop {
                sleep(pause).await;
                let _ = peer.write_all(&frame(PING, 0, 0, &[0; 8])).await;
            }
        };
        tokio::select! {
            () = server.registry.wait_until_empty() => {}
            () = talk => unreachable!("it goes on for ever"),
        }
        let took = begun.elapsed();
        assert!(took >= least && took < most, "{took:?}");
    }
}

/// Twelve of the sixteen places are for connections without a credential.
#[tokio::test(start_paused = true)]
async fn streams_that_wait_for_their_client_give_way_and_a_busy_one_does_not() {
    for busy in [0_u32, 5, 11] {
        let mut server = Server::new(IDLE / 2, 16);
        server.reads_bodies = true;
        let mut peer = server.connect();
        peer.write_all(&begin()).await.unwrap();
        for at in 0..12 {
            let stream = 2 * at + 1;
            peer.write_all(&if at == busy { get(stream) } else { post(stream) }).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        let capacity = server.limiter.capacity();
        assert_eq!((capacity.open(), capacity.evicted()), (12, 0));
        let mut ended = Vec::new();
        let mut newcomers = Vec::new();
        for count in 1..=11 {
            newcomers.push(server.newcomer().await.unwrap());
            ended.extend(streams_with(RST_STREAM, &mut peer).await);
            assert_eq!((capacity.open(), capacity.evicted()), (12, count), "{ended:?}");
        }
        // Those that have begun first end first.
        let waiting: Vec<u32> = (0..12).filter(|at| *at != busy).map(|at| 2 * at + 1).collect();
        assert_eq!(ended, waiting);
        assert!(server.newcomer().await.is_none(), "the place of the connection is in use");
        sleep(IDLE / 2).await;
        assert_eq!(streams_with(HEADERS, &mut peer).await, [2 * busy + 1], "it is answered");
        // Now it is idle.
        assert!(server.newcomer().await.is_some());
        assert_eq!(peer.read(&mut [0; 9]).await.unwrap(), 0);
    }
}

/// As a connection of HTTP/1 with a credential and a body that does not go on.
#[tokio::test(start_paused = true)]
async fn streams_of_a_trusted_connection_do_not_give_way() {
    let mut server = Server::new(Duration::ZERO, 16);
    (server.reads_bodies, server.trusts) = (true, true);
    let mut peer = server.connect();
    peer.write_all(&begin()).await.unwrap();
    peer.write_all(&(0..16).flat_map(|at| post(2 * at + 1)).collect::<Vec<_>>()).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(server.limiter.capacity().open(), 16);
    assert!(server.newcomer().await.is_none());
    assert_eq!(streams_with(RST_STREAM, &mut peer).await, [0_u32; 0]);
    assert_eq!(server.limiter.capacity().evicted(), 0);
}

/// A connection whose only place is that of a stream that waits is closed, whatever else waits for a place.
#[tokio::test(start_paused = true)]
async fn streams_that_wait_for_a_place_keep_none() {
    let mut server = Server::new(IDLE, 2);
    (server.reads_bodies, server.waiting) = (true, 64);
    let busy = server.newcomer().await.unwrap();
    busy.state().trust();
    let mut peer = server.connect();
    peer.write_all(&[begin(), post(1), get(3), get(5)].concat()).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    assert!(server.newcomer().await.is_some());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(closed_after(&mut peer, IDLE).await.is_some());
}

/// They get the place of the connection one after the other.
#[tokio::test(start_paused = true)]
async fn the_place_of_a_connection_serves_its_streams_by_turns() {
    let takes = Duration::from_secs(1);
    let mut server = Server::new(takes, 1);
    server.waiting = 2;
    let mut peer = server.connect();
    peer.write_all(&[begin(), get(1), get(3), get(5), get(7)].concat()).await.unwrap();
    sleep(takes / 2).await;
    assert_eq!(streams_with(RST_STREAM, &mut peer).await, [7], "no more may wait");
    for stream in [1, 3, 5] {
        sleep(takes).await;
        assert_eq!(streams_with(HEADERS, &mut peer).await, [stream]);
        assert_eq!((server.limiter.capacity().open(), server.limiter.capacity().evicted()), (1, 0));
    }
}

/// It would else seem to be without requests, and would be closed.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_nothing_gets_the_place_that_has_just_become_free() {
    for connections in [1, 9] {
        let takes = CLOSE_TIMEOUT * 5;
        let mut server = Server::new(takes, connections);
        server.reads_bodies = true;
        let mut peer = server.connect();
        peer.write_all(&[begin(), post(1)].concat()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        // The one begins, and the other one ends.
        peer.write_all(&[get(3), frame(DATA, END_STREAM, 1, b"a")].concat()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(streams_with(HEADERS, &mut peer).await, [1]);
        assert_eq!(server.limiter.capacity().open(), 1);
        server.registry.enter(ServerPhase::Draining);
        sleep(takes).await;
        assert_eq!(streams_with(HEADERS, &mut peer).await, [3]);
    }
}

/// As over HTTP/1, where the answer is written when the connection is found to be idle.
#[tokio::test(start_paused = true)]
async fn a_connection_that_gives_way_writes_what_it_has_answered() {
    let server = Server::new(Duration::ZERO, 9);
    let mut peer = server.connect();
    peer.write_all(&begin()).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    // Both before its task runs.
    peer.write_all(&get(1)).await.unwrap();
    server.limiter.evict_one();
    let (took, answer) = closed_after(&mut peer, IDLE).await.unwrap();
    assert!(took < CLOSE_TIMEOUT, "{took:?}");
    assert!(frames(&answer).contains(&(HEADERS, 1)), "{:?}", frames(&answer));
    assert_eq!(server.limiter.capacity().evicted(), 1);
}
