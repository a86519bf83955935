//! A whole gateway, with a client and Rails around it, on one thread.
//!
//! It is assembled like a worker of the real gateway, and reached over a unix socket: what one side has
//! written the other can read immediately, so that every run takes the same path. Its clock is stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use railgate::auth::DEFAULT_MAX_UNVERIFIED;
use railgate::body::unverified::UnverifiedBodies;
use railgate::cache::{self, Cache, Key, Lifetime, Lifetimes};
use railgate::clock::{Clock, ManualClock};
use railgate::fleet::Fleet;
use railgate::metrics::WorkerMetrics;
use railgate::params::Params;
use railgate::route::Caching;
use railgate::secret::refresh::SecretRefresher;
use railgate::server::{BoundSocket, HttpServer, ListenAddress, Listener, ServerLimits, SocketOwner};
use railgate::stack::{self, StackParts};
use railgate::upstream::{self, Upstream, UpstreamTarget};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

use super::rails::Rails;
use super::valkey::Valkey;
use super::{ED25519, Repeat};
use crate::credentials::{self, SHELL_HEADER};
use crate::response::ResponseParser;
use crate::{Fallible, keys, operations};

/// The kind of request, and its expected path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchange {
    /// A cache hit.
    Hit,
    /// A cache hit over a new connection.
    ShortHit,
    /// A cache hit while the gateway follows a fleet and shares answers.
    FleetHit,
    /// A cache miss that is stored.
    Miss,
    /// A forwarded request.
    Pass,
}

/// The time limit of all repetitions.
const DEADLINE: Duration = Duration::from_mins(5);

/// An access check is a form of 200 bytes.
const FORM: &str = "action=git-upload-pack&changes=_any&check_ip=10.0.0.7&env=%7B%7D&gl_repository=project-3\
                    &key_id=1002&project=gnuwget%2Fwget2.git&protocol=ssh&padding=\
                    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

pub(super) fn repeat(exchange: Exchange) -> Fallible<Repeat> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut client = runtime.block_on(Client::start(exchange))?;
    Ok(Box::new(move |times| {
        runtime.block_on(async { tokio::time::timeout(DEADLINE, client.repeat(times)).await? })
    }))
}

/// A client that repeats one request.
struct Client {
    exchange: Exchange,
    gateway: Gateway,
    stream: UnixStream,
    request: Vec<u8>,
    /// The first response. The others differ only in their ids, which have a fixed length.
    response: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    async fn start(exchange: Exchange) -> Fallible<Self> {
        let gateway = Gateway::start(exchange == Exchange::FleetHit).await?;
        let request = match exchange {
            Exchange::Pass => request(
                "POST /api/v4/internal/allowed",
                &format!(
                    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{FORM}",
                    FORM.len()
                ),
            ),
            _ => request(&format!("GET /api/v4/internal/authorized_keys?{}", gateway.query), "\r\n"),
        };
        let stream = UnixStream::connect(&gateway.socket).await?;
        let mut client =
            Self { exchange, gateway, stream, request, response: Vec::new(), buffer: vec![0; 16 * 1024] };
        if matches!(exchange, Exchange::Hit | Exchange::ShortHit | Exchange::FleetHit) {
            // This request fills the cache.
            client.read_first().await?;
        }
        client.response = client.read_first().await?;
        Ok(client)
    }

    /// Sends the request, and parses the response.
    async fn read_first(&mut self) -> Fallible<Vec<u8>> {
        self.stream.write_all(&self.request).await?;
        let (mut response, mut bytes) = (ResponseParser::new(), Vec::new());
        loop {
            let count = self.stream.read(&mut self.buffer).await?;
            let came = self.buffer.get(..count).filter(|came| !came.is_empty());
            let came = came.ok_or("the connection was closed")?;
            bytes.extend_from_slice(came);
            if response.push(came) {
                break;
            }
        }
        if response.status == 200 { Ok(bytes) } else { Err(format!("answered {}", response.status).into()) }
    }

    async fn repeat(&mut self, times: u64) -> Fallible<()> {
        let before = self.gateway.rails.asked();
        for _ in 0..times {
            match self.exchange {
                Exchange::ShortHit => self.stream = UnixStream::connect(&self.gateway.socket).await?,
                Exchange::Miss => self.gateway.cache.invalidate(&self.gateway.key),
                Exchange::Hit | Exchange::FleetHit | Exchange::Pass => {}
            }
            self.exchange().await?;
        }
        let asked = self.gateway.rails.asked() - before;
        let expected = if matches!(self.exchange, Exchange::Miss | Exchange::Pass) { times } else { 0 };
        if asked == expected { Ok(()) } else { Err(format!("{asked} of {times} reached Rails").into()) }
    }

    /// Sends the request, and checks only that the response is the expected one.
    async fn exchange(&mut self) -> Fallible<()> {
        self.stream.write_all(&self.request).await?;
        let length = self.response.len();
        let mut came = 0;
        while came < length {
            let room = self.buffer.get_mut(came..length).unwrap_or_default();
            match self.stream.read(room).await? {
                0 => return Err("the connection was closed".into()),
                count => came += count,
            }
        }
        let body = length - 32..length;
        let is_good = self.buffer.starts_with(b"HTTP/1.1 200 ")
            && self.buffer.get(body.clone()) == self.response.get(body);
        if is_good { Ok(()) } else { Err("an answer differs from the first".into()) }
    }
}

/// A running gateway in front of its Rails.
struct Gateway {
    cache: Arc<Cache>,
    rails: Arc<Rails>,
    /// The path of its listener.
    socket: PathBuf,
    /// The query of the only cacheable request, and its cache key.
    query: String,
    key: Key,
    _fleet: (Fleet, Option<Valkey>),
    _folder: TempDir,
}

impl Gateway {
    async fn start(is_in_fleet: bool) -> Fallible<Self> {
        let folder = TempDir::new()?;
        let (socket, rails) = (folder.path.join("gateway"), folder.path.join("rails"));
        let query = format!("key={}", keys::escaped(&keys::key(ED25519)));
        let key = Key::new(Caching::AuthorizedKeys, &Params::parse(query.as_bytes())).ok_or("no key")?;

        let hour = Duration::from_hours(1);
        let lifetimes = Lifetimes {
            authorized_keys: Lifetime { ttl: hour, ..Lifetime::default() },
            ..Lifetimes::default()
        };
        // A random number is drawn for each hit, but a comparison practically never happens.
        let shadow =
            cache::shadow::ShadowSettings { one_in: u64::MAX, ..cache::shadow::ShadowSettings::default() };
        let cache_settings = cache::CacheSettings { lifetimes, shadow, ..cache::CacheSettings::default() };
        let cache = Cache::new(&cache_settings);
        let valkey = if is_in_fleet { Some(Valkey::start(&folder.path)?) } else { None };
        let fleet = match &valkey {
            Some(valkey) => valkey.follow(&cache).await?,
            None => Fleet::default(),
        };
        let server = HttpServer::new(ServerLimits::default());
        let stack = stack::build(StackParts {
            secrets: SecretRefresher::default(),
            auth: Arc::new(ArcSwap::from_pointee(operations::auth()?)),
            bodies: Arc::new(UnverifiedBodies::new(DEFAULT_MAX_UNVERIFIED)),
            cache: Arc::clone(&cache),
            shared_answers: fleet.shared().cloned(),
            cache_settings,
            upstream: Arc::new(Upstream::standalone(settings(&rails)?)),
            upstream_credential: None,
            forward_prefixes: Vec::new(),
            worker_metrics: Arc::new(WorkerMetrics::default()),
            log_requests: false,
            tracer: None,
            pseudonym: railgate::header::via::Pseudonym::random(),
            clock: Clock::Manual(ManualClock::at(Clock::System.unix_seconds())),
            fills: TaskTracker::new(),
        });
        let listener = BoundSocket::bind(
            &ListenAddress::Unix { path: socket.clone(), mode: 0o600, owner: SocketOwner::default() },
            ServerLimits::default().connections,
        )?;
        server.serve(Listener::new(listener)?, stack);
        let rails = Rails::start(&rails, FORM.as_bytes())?;
        Ok(Self { cache, rails, socket, query, key, _fleet: (fleet, valkey), _folder: folder })
    }
}

fn settings(rails: &Path) -> Fallible<upstream::UpstreamSettings> {
    let path = rails.to_str().ok_or("the path of the temporary folder is no text")?.replace('/', "%2F");
    Ok(upstream::UpstreamSettings::new(UpstreamTarget::parse(&format!("http+unix://{path}"))?))
}

fn request(line: &str, rest: &str) -> Vec<u8> {
    format!(
        "{line} HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: GitLab-Shell\r\n{SHELL_HEADER}: {}\r\n\
         Accept-Encoding: gzip\r\n{rest}",
        credentials::shared_secret()
    )
    .into_bytes()
}

/// The directory of the sockets. Removed when it is dropped.
struct TempDir {
    path: PathBuf,
}

impl TempDir {
    fn new() -> Fallible<Self> {
        // With a fixed number of digits: the length of the name affects the counts.
        let name = format!("railgate-instructions-{:010}", std::process::id());
        let folder = Self { path: std::env::temp_dir().join(name) };
        // Left over from an earlier process with the same id.
        let _ = fs::remove_dir_all(&folder.path);
        fs::create_dir(&folder.path)?;
        Ok(folder)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
