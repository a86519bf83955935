//! Whether operators and hooks are served during an attack.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use super::client::{Request, connect, idle, send, send_on};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, HOOK_TOKEN, Setup, end};
use super::{AttackEnvironment, Figures, figure, time};
use crate::Fallible;

/// GitLab's time-out for a hook; it sends each event once.
const LIMIT: Duration = Duration::from_secs(10);

fn event() -> Request {
    Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook")
}

/// Each word of the header has to be compared with the signature of the body.
pub(crate) async fn signatures(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let mut gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let forged = event()
        .header("webhook-id", "1")
        .header("webhook-timestamp", &now)
        .header("webhook-signature", "v1, ".repeat(7_500).trim_end())
        .with_body("application/json", vec![b' '; 1 << 20]);
    let (hooks, second) = (gateway.hooks.clone(), forged.clone());

    let before = gateway.cpu();
    let sending = tokio::spawn(async move { send(&hooks, &forged, 2 * LIMIT).await });
    let mut slowest = Duration::ZERO;
    loop {
        slowest = slowest.max(gateway.live(2 * LIMIT).await.took);
        if sending.is_finished() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let answered = sending.await?;
    let cpu = gateway.cpu_since(before);

    let hooks = gateway.hooks.clone();
    let sending = tokio::spawn(async move { send(&hooks, &second, 2 * LIMIT).await });
    sleep(Duration::from_millis(200)).await;
    gateway.terminate();
    let ended = gateway.ends_within(2 * LIMIT).await?;
    sending.abort();
    Ok(vec![
        figure("CPU time of the gateway", time(cpu)),
        figure("the hook was answered", answered.summary()),
        figure("slowest `/live` meanwhile", time(slowest)),
        figure("from SIGTERM to the end of the process", end(ended, 2 * LIMIT)),
    ])
}

pub(crate) async fn idle_connections(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let _idle = (idle(&gateway.admin, 64).await, idle(&gateway.hooks, 64).await);
    sleep(Duration::from_millis(300)).await;
    let event = event().header("X-Gitlab-Token", HOOK_TOKEN);
    let event = event.with_body("application/json", r#"{"event_name":"project_create"}"#);
    let (live, event) = tokio::join!(gateway.live(LIMIT), send(&gateway.hooks, &event, LIMIT));
    Ok(vec![figure("`/live`", live.summary()), figure("an event of GitLab", event.summary())])
}

/// More connections than open files are allowed.
pub(crate) async fn files(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    // Each request to Rails needs an open file too.
    let setup = Setup { files: Some(1024), ..Setup::new(rails.port).upstream("max_idle = 0") };
    let gateway = Gateway::start(environment, &setup).await?;
    let mut kept = connect(&gateway.tcp).await?;
    let before = send_on(&mut kept, &Request::allowed(), LIMIT).await;
    if !before.is(200) {
        return Err(format!("not answered before: {}", before.summary()).into());
    }
    let _idle = idle(&gateway.tcp, 1_100).await;
    sleep(Duration::from_secs(2)).await;
    let live = gateway.live(LIMIT).await;
    let kept = send_on(&mut kept, &Request::allowed(), LIMIT).await;
    let fresh = send(&gateway.unix, &Request::allowed(), LIMIT).await;
    let lines = gateway.log().lines().filter(|line| line.contains(r#""level":"ERROR""#)).count();
    Ok(vec![
        figure("`/live`", live.summary()),
        figure("`/allowed` on a connection that was open before", kept.summary()),
        figure("`/allowed` on a new one, unix socket", fresh.summary()),
        figure("lines of ERROR meanwhile", lines.to_string()),
    ])
}
