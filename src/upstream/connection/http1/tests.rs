mod clients;
mod differential;
mod exchange;
mod heads;
mod streams;

use std::sync::atomic::Ordering;

use http::header::HOST;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::upstream::connection::stats::ConnectionStats;
use crate::upstream::{UpstreamAddress, UpstreamSettings, UpstreamTarget};

/// A pool, and the Rails that it connects to.
struct TestPool {
    pool: Http1Pool,
    rails: UnixListener,
    stats: Arc<ConnectionStats>,
    path: std::path::PathBuf,
}

impl TestPool {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("railgate-pool-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let rails = UnixListener::bind(&path).unwrap();
        let target = UpstreamTarget {
            address: UpstreamAddress::Unix(path.clone()),
            is_tls: false,
            root: String::new(),
        };
        let settings = UpstreamSettings::new(target);
        let stats = Arc::<ConnectionStats>::default();
        let connector = Connector::new(&settings.servers[0], Duration::from_secs(60), Arc::clone(&stats));
        let pool = Http1Pool::new(connector, 10, Duration::from_secs(60));
        Self { pool, rails, stats, path }
    }

    /// A request is sent and answered over a new connection, which is then idle.
    async fn with_one_idle(&self) -> UnixStream {
        let (response, rails) = tokio::join!(send(&self.pool), async {
            let (mut rails, _) = self.rails.accept().await.unwrap();
            respond(&mut rails).await;
            rails
        });
        expect_ok(response).await;
        assert_eq!(self.stats.idle.load(Ordering::Relaxed), 1);
        rails
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn request() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    request.headers_mut().insert(HOST, "rails".parse().unwrap());
    request
}

async fn send(pool: &Http1Pool) -> Result<Response<Body>, SendError> {
    pool.send(&mut request(), true).await
}

async fn read_head(rails: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(rails.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Responds to the next request, whose head is returned.
async fn respond(rails: &mut UnixStream) -> String {
    let head = read_head(rails).await;
    rails.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    head
}

async fn expect_ok(response: Result<Response<Body>, SendError>) {
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn an_idle_connection_carries_the_next_request() {
    let test = TestPool::new("next");
    let mut rails = test.with_one_idle().await;
    let (next, _) = tokio::join!(send(&test.pool), respond(&mut rails));
    expect_ok(next).await;
    assert_eq!((test.stats.opened.load(Ordering::Relaxed), test.stats.idle.load(Ordering::Relaxed)), (1, 1));
}

/// It need not wait until the client has read the response.
#[tokio::test]
async fn a_connection_is_idle_once_its_response_is_there() {
    let test = TestPool::new("whole");
    let (response, mut rails) = tokio::join!(send(&test.pool), async {
        let (mut rails, _) = test.rails.accept().await.unwrap();
        respond(&mut rails).await;
        rails
    });
    let kept = response.unwrap();
    assert_eq!(test.stats.idle.load(Ordering::Relaxed), 1);
    assert_eq!(kept.body().in_memory().unwrap(), "ok");
    let (next, ()) = tokio::join!(send(&test.pool), async {
        read_head(&mut rails).await;
        rails.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nn").await.unwrap();
    });
    let next = next.unwrap();
    assert_eq!(test.stats.idle.load(Ordering::Relaxed), 0, "it still carries the response");
    let (body, _) = tokio::join!(next.into_body().collect(), rails.write_all(b"o"));
    assert_eq!((body.unwrap().to_bytes(), test.stats.idle.load(Ordering::Relaxed)), ("no".into(), 1));
    expect_ok(Ok(kept)).await;
}

/// What comes over a connection that carries no request would be taken for the response to the next one, and every
/// later response for that to the request after.
#[tokio::test]
async fn a_request_goes_over_a_new_connection_if_the_idle_one_is_closed_or_has_sent_something() {
    for sent in ["", "x", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"] {
        let test = TestPool::new("unasked");
        let mut rails = test.with_one_idle().await;
        rails.write_all(sent.as_bytes()).await.unwrap();
        // It is closed only if nothing was sent.
        let open = (!sent.is_empty()).then_some(rails);
        // So that the runtime sees it, and the next read does.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (response, _) = tokio::join!(send(&test.pool), async {
            let (mut rails, _) = test.rails.accept().await.unwrap();
            respond(&mut rails).await
        });
        expect_ok(response).await;
        assert_eq!(test.stats.opened.load(Ordering::Relaxed), 2, "{sent:?}");
        drop(open);
    }
}

/// A connection that can be read and not written to is found out by writing.
#[tokio::test]
async fn a_request_of_which_nothing_can_be_written_to_an_idle_connection_goes_over_a_new_one() {
    let test = TestPool::new("unwritable");
    let idle = test.with_one_idle().await.into_std().unwrap();
    idle.shutdown(std::net::Shutdown::Read).unwrap();
    let (response, _) = tokio::join!(send(&test.pool), async {
        let (mut rails, _) = test.rails.accept().await.unwrap();
        respond(&mut rails).await
    });
    expect_ok(response).await;
    assert_eq!(test.stats.opened.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_pool_that_is_dropped_closes_its_connections() {
    let test = TestPool::new("ends");
    let mut rails = test.with_one_idle().await;
    let stats = Arc::clone(&test.stats);
    drop(test);
    assert_eq!(rails.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!((stats.idle.load(Ordering::Relaxed), stats.open.load(Ordering::Relaxed)), (0, 0));
}

/// Rails has closed an idle connection, and the runtime does not know yet: what is written then is reset and was
/// not read, though the connection seems to have ended in order.
#[tokio::test]
async fn a_request_written_to_a_closed_connection_is_known_to_be_unread() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = UpstreamAddress::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
    let target = UpstreamTarget { address, is_tls: false, root: String::new() };
    let settings = UpstreamSettings::new(target);
    let stats = Arc::<ConnectionStats>::default();
    let connector = Connector::new(&settings.servers[0], Duration::from_secs(60), Arc::clone(&stats));
    let pool = Http1Pool::new(connector, 10, Duration::from_secs(60));
    pool.preconnect().await.unwrap();
    assert_eq!(stats.idle.load(Ordering::Relaxed), 1);
    // Without a chance for the runtime to notice.
    drop(listener.accept().unwrap());
    let Err(SendError::Exchange(error)) = pool.send(&mut request(), true).await else {
        unreachable!("there is no server");
    };
    assert!(error.is_reset());
}

/// A server that has begun to answer has read the request, and may have acted on it.
#[tokio::test]
async fn a_reset_is_no_proof_once_anything_was_answered() {
    for (answer, is_proof) in [("", true), ("HTTP/1.1 102 Processing\r\n\r\n", false), ("HTTP/1.1 2", false)]
    {
        let test = TestPool::new("begun");
        let (outcome, ()) = tokio::join!(send(&test.pool), async {
            let (mut rails, _) = test.rails.accept().await.unwrap();
            // The rest of the request stays unread, so that the connection is reset.
            rails.read_u8().await.unwrap();
            rails.write_all(answer.as_bytes()).await.unwrap();
        });
        let Err(SendError::Exchange(error)) = outcome else { unreachable!("{answer:?} is no response") };
        assert_eq!(error.is_reset(), is_proof, "{answer:?}");
    }
}

#[tokio::test]
async fn an_unpooled_request_takes_no_idle_connection_and_leaves_none() {
    let test = TestPool::new("unpooled");
    let mut idle = test.with_one_idle().await;
    let mut sent = request();
    let (outcome, mut rails) = tokio::join!(test.pool.send_unpooled(&mut sent), async {
        let (mut rails, _) = test.rails.accept().await.unwrap();
        let head = respond(&mut rails).await;
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        rails
    });
    expect_ok(outcome).await;
    assert_eq!(rails.read(&mut [0]).await.unwrap(), 0, "it is closed");
    assert_eq!(test.stats.idle.load(Ordering::Relaxed), 1);
    let (next, _) = tokio::join!(send(&test.pool), respond(&mut idle));
    expect_ok(next).await;
    assert_eq!(test.stats.opened.load(Ordering::Relaxed), 2);
}
