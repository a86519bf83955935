use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::super::capacity::Capacity;
use super::super::registry::ConnectionRegistry;
use super::*;
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

/// A connection to a server that answers each request after this time.
fn connect(takes: Duration) -> DuplexStream {
    connect_for(takes, Bytes::from_static(b"ok"))
}

/// The same with this answer.
fn connect_for(takes: Duration, answer: Bytes) -> DuplexStream {
    let (peer, socket) = duplex(1 << 20);
    let limits = GateLimits {
        head: HeadLimits { bytes: 32 * 1024, headers: 100, target: wire::DEFAULT_TARGET },
        first_byte_timeout: Duration::from_secs(5),
        head_timeout: HEAD,
        idle_timeout: IDLE,
    };
    let service = tower::service_fn(move |_: Inbound| {
        let answer = answer.clone();
        async move {
            sleep(takes).await;
            Ok::<_, Infallible>(Response::new(Full::new(answer)))
        }
    });
    let limiter = ConnectionLimiter::new(Capacity::new("test", 1_000, false));
    let permit = limiter.try_acquire().unwrap();
    let registration = Arc::<ConnectionRegistry>::default().register(permit, true);
    let client = ClientSide { peer: None, scheme: ClientScheme::Http, accept: None, proxies: None };
    let places = StreamPlaces { limiter, waiting_slots: Arc::new(Semaphore::new(0)) };
    tokio::spawn(connection(socket, registration, limits, client, (Arc::new(Mutex::new(service)), places)));
    peer
}

/// How long it takes until the server closes the connection, and what it sends meanwhile.
async fn closed_after(peer: &mut DuplexStream, limit: Duration) -> Option<(Duration, Vec<u8>)> {
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    tokio::time::timeout(limit, peer.read_to_end(&mut bytes)).await.ok()?.unwrap();
    Some((begun.elapsed(), bytes))
}

fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        kinds.push(*kind);
        bytes = &rest[usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)..];
    }
    kinds
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
