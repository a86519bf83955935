//! Places and connections that are taken from those who show a credential.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::client::{Outcome, Request, ask, idle};
use super::crowd::Crowd;
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, Setup};
use super::{Figures, Ground, figure, time};
use crate::Fallible;

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn idle_connections(ground: &Ground) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let setup = Setup::new(rails.port).sections("[limits]\nconnections = 200");
    let gateway = Gateway::start(ground, &setup).await?;
    let _idle = idle(&gateway.tcp, 250).await;
    sleep(Duration::from_millis(500)).await;
    let access = Request::allowed();
    let (unix, tcp) = tokio::join!(ask(&gateway.unix, &access, LIMIT), ask(&gateway.tcp, &access, LIMIT));
    Ok(vec![
        figure("`/allowed` over the unix socket", unix.told()),
        figure("`/allowed` over a new TCP connection", tcp.told()),
    ])
}

/// The crowd waits for Rails; so does a caller that comes later.
pub(crate) async fn rails_is_away(ground: &Ground) -> Fallible<Figures> {
    let mut figures = Figures::new();
    for (size, keys) in [(300, "max_held = 100"), (2_000, "")] {
        let mut rails = FakeRails::away(Script::Answers(4))?;
        rails.each_takes(Duration::from_millis(5));
        let gateway = Gateway::start(ground, &Setup::new(rails.port).upstream(keys)).await?;
        let crowd = Crowd::start(size, &gateway.tcp, &Request::get("nobody"));
        sleep(Duration::from_millis(1_500)).await;
        let asked = [Request::get("discover?key_id=1").with_secret(), Request::allowed()].map(|request| {
            let place = gateway.tcp.clone();
            tokio::spawn(async move { ask(&place, &request, LIMIT).await })
        });
        sleep(Duration::from_secs(1)).await;
        rails.come_back()?;
        let back = Instant::now();
        let [user, access] = asked;
        let (user, access) = (user.await?, access.await?);
        drop(crowd);
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
        (None, _) => outcome.told(),
    }
}

/// Bytes that were acknowledged, and a reset behind them.
pub(crate) async fn resets(ground: &Ground) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Resets)?;
    let gateway = Gateway::start(ground, &Setup::new(rails.port)).await?;
    let access = ask(&gateway.tcp, &Request::allowed(), LIMIT).await;
    Ok(vec![
        figure("how often one `POST /allowed` reached it", rails.arrived("POST ").to_string()),
        figure("the caller got", access.told()),
    ])
}
