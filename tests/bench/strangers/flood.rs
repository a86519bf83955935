//! More requests than a real Rails can answer.

use std::time::Duration;

use tokio::time::sleep;

use super::client::{Outcome, Request, ask};
use super::crowd::{Crowd, callers, spread, statuses};
use super::gateway::{Gateway, Setup};
use super::puma::Puma;
use super::{Figures, Ground, figure};
use crate::Fallible;

/// How long a caller waits.
const LIMIT: Duration = Duration::from_secs(15);

/// GitLab does not know it, so what it takes is the least that Rails can take.
const UNKNOWN: &str = "nobody";

/// Enough for one in a hundred to be more than the longest.
const ASKED: usize = 200;

/// What callers get, with and without a crowd beside them.
pub(crate) async fn beside_callers(ground: &Ground) -> Fallible<Figures> {
    let (first, second) = (Puma::start(ground, "first").await?, Puma::start(ground, "second").await?);
    let servers = [first.port, second.port]
        .map(|port| format!("[[upstream.server]]\nurl = \"http://127.0.0.1:{port}\"\n"))
        .concat();
    let gateway =
        Gateway::start(ground, &Setup::default().upstream(&ground.told()).sections(&servers)).await?;
    // What a server does for the first time takes longer.
    ask_beside(&gateway, 1_000, 10).await;

    let mut figures = Figures::new();
    let mut add = |when: &str, (users, access): &(Vec<Outcome>, Vec<Outcome>)| {
        for (what, outcomes) in [("uncached `discover`", users), ("`/allowed`", access)] {
            figures.push(figure(format!("{what} {when}: p50 / p90 / p99 / longest"), spread(outcomes)));
            figures.push(figure(format!("{what} {when}: answers"), statuses(outcomes)));
        }
    };
    add("alone", &ask_beside(&gateway, 2_000, ASKED).await);
    let crowd = Crowd::start(1_000, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(2)).await;
    add("beside them", &ask_beside(&gateway, 3_000, ASKED).await);
    figures.push(figure("what they got: answers of Rails, refusals", crowd.end()?));
    // Enough for the queues of both servers to overflow: the kernel takes no connection there.
    let more = Crowd::start(3_000, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(5)).await;
    drop(more);
    let ejections = gateway.metric("railgate_upstream_ejections_total{").await?;
    figures.push(figure("healthy servers ejected (times), after 3,000 connections", ejections.to_string()));
    Ok(figures)
}

/// Five callers a second of each kind.
async fn ask_beside(gateway: &Gateway, first_user: usize, count: usize) -> (Vec<Outcome>, Vec<Outcome>) {
    let places = [&gateway.tcp, &gateway.unix];
    let pace = (Duration::from_millis(200), count);
    let user =
        |number| Request::get(&format!("discover?user_id={}", 100_000 + first_user + number)).with_secret();
    let access = |_| Request::allowed();
    tokio::join!(callers(&places, user, pace, LIMIT), callers(&places, access, pace, LIMIT))
}

/// What is said of a key that Rails has forgotten.
pub(crate) async fn beside_a_revoked_key(ground: &Ground) -> Fallible<Figures> {
    // The first one of `tests/rails/app/database.rb`.
    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    let rails = Puma::start(ground, "first").await?;
    let life =
        "[cache.authorized_keys]\nttl = \"2s\"\nnegative_ttl = \"1ms\"\nstale_while_revalidate = \"0s\"";
    let gateway =
        Gateway::start(ground, &Setup::new(rails.port).upstream(&ground.told()).sections(life)).await?;
    let key = Request::get(&format!("authorized_keys?key={KEY}")).with_secret();
    if !ask(&gateway.tcp, &key, LIMIT).await.is(200) {
        return Err("the key is unknown from the start".into());
    }
    ask(&rails.place(), &Request::new("DELETE", "/-/keys/1"), LIMIT).await;
    let crowd = Crowd::start(900, &gateway.tcp, UNKNOWN)?;
    sleep(Duration::from_secs(3)).await;
    let pace = (Duration::from_millis(200), 40);
    let outcomes = callers(&[&gateway.tcp, &gateway.unix], |_| key.clone(), pace, LIMIT).await;
    drop(crowd);
    let revived = outcomes.iter().filter(|outcome| outcome.is(200)).count();
    Ok(vec![
        figure("answers about the key after its `ttl`", statuses(&outcomes)),
        figure("of these, with the deleted key", format!("{revived} of {}", outcomes.len())),
        figure("p50 / p90 / p99 / longest", spread(&outcomes)),
    ])
}
