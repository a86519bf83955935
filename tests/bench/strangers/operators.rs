//! Whether those who look after the gateway are answered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use super::client::{Request, ask, ask_on, connect, idle};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, HOOK_TOKEN, Setup, end};
use super::{Figures, Ground, figure, time};
use crate::Fallible;

/// GitLab waits for so long, and sends an event once.
const LIMIT: Duration = Duration::from_secs(10);

fn event() -> Request {
    Request::new("POST", "/hooks/gitlab").header("X-Gitlab-Event", "System Hook")
}

/// Each word of the header may be the signature of the body.
pub(crate) async fn signatures(ground: &Ground) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let mut gateway = Gateway::start(ground, &Setup::new(rails.port)).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let forged = event()
        .header("webhook-id", "1")
        .header("webhook-timestamp", &now)
        .header("webhook-signature", "v1, ".repeat(7_500).trim_end())
        .with_body("application/json", vec![b' '; 1 << 20]);
    let (hooks, second) = (gateway.hooks.clone(), forged.clone());

    let before = gateway.cpu();
    let asking = tokio::spawn(async move { ask(&hooks, &forged, 2 * LIMIT).await });
    let mut slowest = Duration::ZERO;
    loop {
        slowest = slowest.max(gateway.live(2 * LIMIT).await.took);
        if asking.is_finished() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let answered = asking.await?;
    let cpu = gateway.cpu_since(before);

    let hooks = gateway.hooks.clone();
    let asking = tokio::spawn(async move { ask(&hooks, &second, 2 * LIMIT).await });
    sleep(Duration::from_millis(200)).await;
    gateway.terminate();
    let ended = gateway.ends_within(2 * LIMIT).await?;
    asking.abort();
    Ok(vec![
        figure("CPU time of the gateway", time(cpu)),
        figure("the hook was answered", answered.told()),
        figure("slowest `/live` meanwhile", time(slowest)),
        figure("from SIGTERM to the end of the process", end(ended, 2 * LIMIT)),
    ])
}

pub(crate) async fn idle_connections(ground: &Ground) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(ground, &Setup::new(rails.port)).await?;
    let _idle = (idle(&gateway.admin, 64).await, idle(&gateway.hooks, 64).await);
    sleep(Duration::from_millis(300)).await;
    let event = event().header("X-Gitlab-Token", HOOK_TOKEN);
    let event = event.with_body("application/json", r#"{"event_name":"project_create"}"#);
    let (live, event) = tokio::join!(gateway.live(LIMIT), ask(&gateway.hooks, &event, LIMIT));
    Ok(vec![figure("`/live`", live.told()), figure("an event of GitLab", event.told())])
}

/// More connections than the kernel allows files.
pub(crate) async fn files(ground: &Ground) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    // Each request to Rails needs a file, too.
    let setup = Setup { files: Some(1024), ..Setup::new(rails.port).upstream("max_idle = 0") };
    let gateway = Gateway::start(ground, &setup).await?;
    let mut kept = connect(&gateway.tcp).await?;
    let before = ask_on(&mut kept, &Request::allowed(), LIMIT).await;
    if !before.is(200) {
        return Err(format!("not answered before: {}", before.told()).into());
    }
    let _idle = idle(&gateway.tcp, 1_100).await;
    sleep(Duration::from_secs(2)).await;
    let live = gateway.live(LIMIT).await;
    let kept = ask_on(&mut kept, &Request::allowed(), LIMIT).await;
    let fresh = ask(&gateway.unix, &Request::allowed(), LIMIT).await;
    let lines = gateway.log().lines().filter(|line| line.contains(r#""level":"ERROR""#)).count();
    Ok(vec![
        figure("`/live`", live.told()),
        figure("`/allowed` on a connection that was open before", kept.told()),
        figure("`/allowed` on a new one, unix socket", fresh.told()),
        figure("lines of ERROR meanwhile", lines.to_string()),
    ])
}
