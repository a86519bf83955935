//! More requests than a real Rails can answer.

use std::time::Duration;

use tokio::time::sleep;

use super::background_load::{BackgroundLoad, callers, spread, statuses};
use super::client::{Outcome, Request, send};
use super::gateway::{Gateway, Setup};
use super::puma::Puma;
use super::{AttackEnvironment, Figures, figure};
use crate::Fallible;

/// The time limit of a caller.
const LIMIT: Duration = Duration::from_secs(15);

/// An endpoint unknown to GitLab, so that it takes the least time in Rails.
const UNKNOWN: &str = "nobody";

/// Enough for a 99th percentile that is not the maximum.
const REQUESTS: usize = 1_000;

/// Responses and times of callers, with and without background load.
pub(crate) async fn beside_callers(environment: &AttackEnvironment) -> Fallible<Figures> {
    let (first, second) = (
        Puma::start(&environment.scratch, "first", environment.puma).await?,
        Puma::start(&environment.scratch, "second", environment.puma).await?,
    );
    let servers = [first.port, second.port]
        .map(|port| format!("[[upstream.server]]\nurl = \"http://127.0.0.1:{port}\"\n"))
        .concat();
    let gateway =
        Gateway::start(environment, &Setup::default().upstream(&environment.summary()).sections(&servers))
            .await?;
    // First requests take longer.
    send_beside(&gateway, 1_000, 10).await;

    let mut figures = Figures::new();
    let mut add = |when: &str, (users, access): &(Vec<Outcome>, Vec<Outcome>)| {
        for (what, outcomes) in [("uncached `discover`", users), ("`/allowed`", access)] {
            figures.push(figure(format!("{what} {when}: p50 / p90 / p99 / longest"), spread(outcomes)));
            figures.push(figure(format!("{what} {when}: answers"), statuses(outcomes)));
        }
    };
    add("alone", &send_beside(&gateway, 2_000, REQUESTS).await);
    let background_load = BackgroundLoad::start(1_000, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(2)).await;
    add("under load", &send_beside(&gateway, 4_000, REQUESTS).await);
    figures.push(figure("what they got: answers of Rails, refusals", background_load.end()?));
    // Enough to overflow the backlogs of both servers.
    let more = BackgroundLoad::start(3_000, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(5)).await;
    drop(more);
    let ejections = gateway.metric("railgate_upstream_ejections_total{").await?;
    figures.push(figure("healthy servers ejected (times), after 3,000 connections", ejections.to_string()));
    Ok(figures)
}

/// Twenty requests a second of each kind.
async fn send_beside(gateway: &Gateway, first_user: usize, count: usize) -> (Vec<Outcome>, Vec<Outcome>) {
    let addresses = [&gateway.tcp, &gateway.unix];
    let pace = (Duration::from_millis(50), count);
    let user =
        |number| Request::get(&format!("discover?user_id={}", 100_000 + first_user + number)).with_secret();
    let access = |_| Request::allowed();
    tokio::join!(callers(&addresses, user, pace, LIMIT), callers(&addresses, access, pace, LIMIT))
}

/// Responses for a key that was deleted in Rails.
pub(crate) async fn beside_a_revoked_key(environment: &AttackEnvironment) -> Fallible<Figures> {
    // The first key of `tests/rails/app/database.rb`.
    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    let rails = Puma::start(&environment.scratch, "first", environment.puma).await?;
    let life =
        "[cache.authorized_keys]\nttl = \"2s\"\nnegative_ttl = \"1ms\"\nstale_while_revalidate = \"0s\"";
    let gateway =
        Gateway::start(environment, &Setup::new(rails.port).upstream(&environment.summary()).sections(life))
            .await?;
    let key = Request::get(&format!("authorized_keys?key={KEY}")).with_secret();
    if !send(&gateway.tcp, &key, LIMIT).await.is(200) {
        return Err("the key is unknown from the start".into());
    }
    send(&rails.address(), &Request::new("DELETE", "/-/keys/1"), LIMIT).await;
    let background_load = BackgroundLoad::start(900, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(3)).await;
    let pace = (Duration::from_millis(200), 40);
    let outcomes = callers(&[&gateway.tcp, &gateway.unix], |_| key.clone(), pace, LIMIT).await;
    drop(background_load);
    let revived = outcomes.iter().filter(|outcome| outcome.is(200)).count();
    Ok(vec![
        figure("answers about the key after its `ttl`", statuses(&outcomes)),
        figure("of these, hits for the deleted key", format!("{revived} of {}", outcomes.len())),
        figure("p50 / p90 / p99 / longest", spread(&outcomes)),
    ])
}
