use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use tracing::field::Field;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::*;
use crate::upstream::connection::target::UpstreamTarget;
use crate::upstream::settings::UpstreamSettings;

/// The failed addresses if the first one is silent, or refuses.
async fn failed(silent: bool) -> happy_eyeballs::FailedAddresses {
    let open = async |address: SocketAddr| {
        if address.is_ipv4() {
            return Ok(());
        }
        if silent {
            std::future::pending().await
        } else {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into())
        }
    };
    let addresses: [SocketAddr; 2] = [(Ipv6Addr::LOCALHOST, 1).into(), (Ipv4Addr::LOCALHOST, 1).into()];
    happy_eyeballs::connect_first(&addresses, (Clock::System.now(), Duration::from_secs(1)), open).await.1
}

fn connector() -> Connector {
    let target = UpstreamTarget::parse("http://rails").unwrap();
    let settings = UpstreamSettings::new(target);
    Connector::new(&settings.servers[0], Duration::from_secs(1), Arc::default())
}

/// The events of this thread, each with its level and fields.
struct EventLog {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: DefaultGuard,
}

impl EventLog {
    fn start() -> Self {
        let lines = Arc::default();
        let recorder = Recorder(Arc::clone(&lines));
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder));
        Self { lines, _guard: guard }
    }

    /// What `act` logs.
    fn of(&self, act: impl FnOnce()) -> Vec<String> {
        // A thread without a log may have been the first to reach a place in the code, which turns it off.
        tracing::callsite::rebuild_interest_cache();
        act();
        std::mem::take(&mut self.lines.lock())
    }
}

struct Recorder(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = event.metadata().level().to_string();
        let mut push = |field: &Field, value: &dyn std::fmt::Debug| {
            write!(line, " {}={value:?}", field.name()).unwrap();
        };
        event.record(&mut push);
        self.0.lock().push(line);
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_accepted_is_preferred_for_a_while_to_a_silent_one() {
    let (connector, _log) = (connector(), EventLog::start());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    connector.record_failed(address, &failed(false).await);
    assert_eq!(connector.preferred(), None, "a refusal takes no time");
    connector.record_failed(address, &failed(true).await);
    assert_eq!(connector.preferred(), Some(address));
    tokio::time::advance(PREFERRED_TTL).await;
    assert_eq!(connector.preferred(), None);
}

/// Each connection would repeat it, as long as nothing changes.
#[tokio::test(start_paused = true)]
async fn a_silent_address_is_warned_about_once_until_another_one_is_silent() {
    let (connector, log) = (connector(), EventLog::start());
    let [one, other] = [1, 2].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let (silent, refusing) = (failed(true).await, failed(false).await);
    let record = |address, failed| log.of(|| connector.record_failed(address, failed));
    let assert_one = |lines: Vec<String>, parts: &[&str]| {
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(parts.iter().all(|part| lines[0].contains(part)), "{lines:?}");
    };
    let (refused, warning) = ("connected to another address", "an address of Rails is silent");
    assert_one(record(one, &refusing), &["DEBUG", refused, "[::1]:1: ", "address=127.0.0.1:1"]);
    assert_one(record(one, &silent), &["WARN", warning, "[::1]:1: no connection", "address=127.0.0.1:1"]);
    for _ in 0..2 {
        tokio::time::advance(PREFERRED_TTL / 2).await;
        assert_one(record(one, &silent), &["DEBUG"]);
    }
    // The preferred address has become silent.
    assert_one(record(other, &silent), &["WARN", warning, "address=127.0.0.1:2"]);
    assert_one(record(other, &silent), &["DEBUG"]);
    // After a pause without any connection, it may be another outage.
    tokio::time::advance(PREFERRED_TTL).await;
    assert_one(record(other, &silent), &["WARN", warning]);
}

/// So that those made together do not expire together.
#[tokio::test(start_paused = true)]
async fn connections_expire_at_different_ages_of_up_to_a_fifth_less() {
    let (age, now) = (Duration::from_secs(300), Clock::System.now());
    assert_eq!(connector().expires_at(), None);
    let connector = connector().with_max_age(age);
    let ages: Vec<_> = (0..1_000).map(|_| connector.expires_at().unwrap().duration_since(now)).collect();
    let range = age.mul_f32(0.799)..=age;
    assert!(ages.iter().all(|age| range.contains(age)), "{ages:?}");
    let (min, max) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    assert!(max.saturating_sub(*min) > age / 10, "{min:?} {max:?}");
}

#[tokio::test]
async fn a_tcp_connection_sends_small_packets_at_once_and_notices_a_dead_peer() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let UpstreamSocket::Tcp(io) = open_tcp(listener.local_addr().unwrap(), None).await.unwrap() else {
        unreachable!("it is in clear");
    };
    assert!(io.nodelay().unwrap());
    let socket = SockRef::from(&io);
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
}
