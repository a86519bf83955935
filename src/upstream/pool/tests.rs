use http::header::HOST;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::super::{Address, Settings, Target};
use super::*;

/// A pool, and the Rails that it connects to.
struct Stage {
    pool: Pool,
    rails: UnixListener,
    state: Arc<ServerState>,
    path: std::path::PathBuf,
}

impl Stage {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("railgate-pool-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let rails = UnixListener::bind(&path).unwrap();
        let target = Target { address: Address::Unix(path.clone()), is_tls: false, root: String::new() };
        let settings = Settings::new(target.clone());
        let state = Arc::new(ServerState::new(&settings.servers[0], &settings));
        let connector = Connector::new(&target, None, Duration::from_secs(60), Arc::clone(&state));
        let pool = Pool::new(connector, 10, Duration::from_secs(60), Arc::clone(&state));
        Self { pool, rails, state, path }
    }

    /// A request is asked and answered over a new connection, which is then kept.
    async fn one_is_kept(&self) -> UnixStream {
        let (answer, rails) = tokio::join!(ask(&self.pool), async {
            let (mut rails, _) = self.rails.accept().await.unwrap();
            answer(&mut rails).await;
            rails
        });
        answer_of(answer).await;
        assert_eq!(self.state.kept.load(Ordering::Relaxed), 1);
        rails
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn request() -> Box<Request<Body>> {
    let mut request = Box::new(Request::new(Body::empty()));
    request.headers_mut().insert(HOST, "rails".parse().unwrap());
    request
}

async fn ask(pool: &Pool) -> Result<Response<Body>, Trouble> {
    let sending = Body::empty().watch();
    pool.send(request(), &sending).await
}

/// Answers the next request, whose head is returned.
async fn answer(rails: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(rails.read_u8().await.unwrap());
    }
    rails.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    String::from_utf8(head).unwrap()
}

async fn answer_of(answer: Result<Response<Body>, Trouble>) {
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn a_kept_connection_carries_the_next_request() {
    let stage = Stage::new("next");
    let mut rails = stage.one_is_kept().await;
    let (next, _) = tokio::join!(ask(&stage.pool), answer(&mut rails));
    answer_of(next).await;
    assert_eq!(
        (stage.state.opened.load(Ordering::Relaxed), stage.state.kept.load(Ordering::Relaxed)),
        (1, 1)
    );
}

/// Between the look at a connection and the writing, nobody can see Rails close it.
#[tokio::test]
async fn a_connection_that_closes_before_anything_is_written_gives_the_request_back() {
    let stage = Stage::new("back");
    let rails = stage.one_is_kept().await;
    let mut line = stage.pool.kept.take().unwrap();
    drop(rails);
    // So that the runtime sees it, and the next read does.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let sent = tokio::time::timeout(Duration::from_secs(10), line.send(*request())).await;
    let mut failed = sent.expect("an outcome").unwrap_err();
    assert!(failed.take_message().is_some());
}

/// It would be the answer to the next question, and every later one that of the question before.
#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_given_to_nobody() {
    let stage = Stage::new("unasked");
    let mut rails = stage.one_is_kept().await;
    let mut line = stage.pool.kept.take().unwrap();
    rails.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale").await.unwrap();
    // So that the runtime sees it, and the next read does.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let sent = tokio::time::timeout(Duration::from_secs(10), line.send(*request())).await;
    let mut failed = sent.expect("an outcome").unwrap_err();
    assert!(failed.take_message().is_some(), "nothing was written, so it can be sent over another one");
    assert!(!line.seems_free());
}

#[tokio::test]
async fn a_pool_that_ends_takes_its_connections_along() {
    let stage = Stage::new("ends");
    let mut rails = stage.one_is_kept().await;
    let counts = Arc::clone(&stage.state);
    drop(stage);
    assert_eq!(rails.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!((counts.kept.load(Ordering::Relaxed), counts.open.load(Ordering::Relaxed)), (0, 0));
}

/// Rails has closed a kept connection, and the runtime has not heard of it: what is written then is
/// reset, and nobody has read it, though the connection seems to have ended in order.
#[tokio::test]
async fn what_is_written_to_a_connection_that_is_closed_is_known_to_be_unread() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
    let target = Target { address, is_tls: false, root: String::new() };
    let settings = Settings::new(target.clone());
    let state = Arc::new(ServerState::new(&settings.servers[0], &settings));
    let connector = Connector::new(&target, None, Duration::from_secs(60), Arc::clone(&state));
    let pool = Pool::new(connector, 10, Duration::from_secs(60), Arc::clone(&state));
    pool.open().await.unwrap();
    assert_eq!(state.kept.load(Ordering::Relaxed), 1);
    // Without a chance for the runtime to look.
    drop(listener.accept().unwrap());
    let mut request = request();
    let sending = request.body_mut().watch();
    let Err(Trouble::Sent(_, was_reset)) = pool.send(request, &sending).await else {
        unreachable!("nobody answers");
    };
    assert!(was_reset);
}

#[tokio::test]
async fn a_request_that_is_sent_apart_takes_no_kept_connection_and_leaves_none() {
    let stage = Stage::new("apart");
    let mut kept = stage.one_is_kept().await;
    let sending = Body::empty().watch();
    let (apart, mut alone) = tokio::join!(stage.pool.send_apart(request(), &sending), async {
        let (mut rails, _) = stage.rails.accept().await.unwrap();
        let head = answer(&mut rails).await;
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        rails
    });
    answer_of(apart).await;
    assert_eq!(alone.read(&mut [0]).await.unwrap(), 0, "it is closed");
    assert_eq!(stage.state.kept.load(Ordering::Relaxed), 1);
    let (next, _) = tokio::join!(ask(&stage.pool), answer(&mut kept));
    answer_of(next).await;
    assert_eq!(stage.state.opened.load(Ordering::Relaxed), 2);
}
