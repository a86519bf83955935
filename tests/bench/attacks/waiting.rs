//! Queue entries and connections that attacks take from authenticated callers.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

use super::background_load::BackgroundLoad;
use super::client::{Outcome, Request, idle, send};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, Setup};
use super::{AttackEnvironment, Figures, figure, time};
use crate::Fallible;

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn open_connections(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::AnswersWhatItKnows)?;
    let setup = Setup::new(rails.port).sections("[limits]\nconnections = 200");
    let access = Request::allowed();
    let unanswered = Request::get("nobody").bytes();
    let mut figures = Figures::new();
    for (what, sent) in [
        ("idle", &b""[..]),
        ("with half a head", b"GET /api/v4/internal/check HTTP/1.1\r\nHost:"),
        ("with a request that Rails does not answer", &unanswered),
    ] {
        let gateway = Gateway::start(environment, &setup).await?;
        let mut open = idle(&gateway.tcp, 250).await;
        for stream in &mut open {
            // The gateway may have closed it already.
            let _ = stream.write_all(sent).await;
        }
        sleep(Duration::from_millis(500)).await;
        let limit = LIMIT / 2;
        let (unix, tcp) =
            tokio::join!(send(&gateway.unix, &access, limit), send(&gateway.tcp, &access, limit));
        figures.push(figure(format!("{what}: `/allowed` over the unix socket"), unix.summary()));
        figures.push(figure(format!("{what}: `/allowed` over a new TCP connection"), tcp.summary()));
    }
    Ok(figures)
}

/// The background load is held while Rails is away, and so is a caller that comes later.
pub(crate) async fn rails_is_away(environment: &AttackEnvironment) -> Fallible<Figures> {
    let mut figures = Figures::new();
    for (size, keys) in [(300, "max_held = 100"), (2_000, "")] {
        let mut rails = FakeRails::away(Script::Answers(4))?;
        rails.each_takes(Duration::from_millis(5));
        let gateway = Gateway::start(environment, &Setup::new(rails.port).upstream(keys)).await?;
        let background_load = BackgroundLoad::start(size, &gateway.tcp, "nobody")?;
        sleep(Duration::from_millis(1_500)).await;
        let asked = [Request::get("discover?key_id=1").with_secret(), Request::allowed()].map(|request| {
            let address = gateway.tcp.clone();
            tokio::spawn(async move { send(&address, &request, LIMIT).await })
        });
        sleep(Duration::from_secs(1)).await;
        rails.come_back()?;
        let back = Instant::now();
        let [user, access] = asked;
        let (user, access) = (user.await?, access.await?);
        drop(background_load);
        let among = if keys.is_empty() { String::new() } else { format!(", with `{keys}`") };
        figures.push(figure(format!("`discover` beside {size}{among}"), lateness(&user, back)));
        figures.push(figure(format!("`/allowed` beside {size}{among}"), lateness(&access, back)));
    }
    Ok(figures)
}

fn lateness(outcome: &Outcome, back: Instant) -> String {
    match (outcome.status, outcome.ended.checked_duration_since(back)) {
        (Some(status), Some(late)) => format!("{status}, {} after Rails was back", time(late)),
        (Some(status), None) => format!("{status} before Rails was back"),
        (None, _) => outcome.summary(),
    }
}

/// Requests that were acknowledged, followed by a reset.
pub(crate) async fn resets(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Resets)?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let access = send(&gateway.tcp, &Request::allowed(), LIMIT).await;
    Ok(vec![
        figure("how often one `POST /allowed` reached it", rails.arrived("POST ").to_string()),
        figure("the caller got", access.summary()),
    ])
}
