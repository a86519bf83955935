//! Signals that the binary gets while it serves.

use super::client::{Ask, Peer};
use super::demo::Process;
use super::fake::{Rails, Reply};
use super::stage::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_that_would_reload_others_ends_nothing_and_is_told() {
    let rails = Rails::on_tcp().await;
    let setup = Setup::new();
    let config = setup.dir.file("railgate.toml").display().to_string();
    std::fs::write(&config, setup.config(&rails.peer)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.args(["run", "--config", &config]);
    let mut gateway = Process::piped(command);
    gateway.has_printed(r#""message":"ready""#).await;

    let client = Peer::Unix(setup.socket());
    for (signal, name) in [("-HUP", "SIGHUP"), ("-USR1", "SIGUSR1"), ("-USR2", "SIGUSR2")] {
        gateway.signal(signal);
        let printed = gateway.has_printed(&format!(r#""signal":"{name}""#)).await;
        assert!(
            printed.lines().last().unwrap().contains("a signal was ignored: there is no reload"),
            "{printed}"
        );
        assert_eq!(client.send(&Ask::get("check").with_secret()).await.status, 200, "{name}");
    }
    gateway.signal("-PIPE");
    assert_eq!(client.send(&Ask::get("check").with_secret()).await.status, 200);

    // Nor is it a second signal to one that drains.
    rails.always(Reply::silence());
    let mut wire = client.connect().await;
    wire.write(&Ask::post("allowed").with_secret().to_bytes("close")).await;
    super::client::eventually("the request to be at Rails", || {
        std::future::ready(rails.requests().into_iter().find(|request| request.target.contains("allowed")))
    })
    .await;
    gateway.signal("-TERM");
    gateway.has_printed(r#""signal":"SIGTERM""#).await;
    let before = gateway.printed().matches("SIGHUP").count();
    gateway.signal("-HUP");
    super::client::eventually("another line", || {
        std::future::ready((gateway.printed().matches("SIGHUP").count() > before).then_some(()))
    })
    .await;
    assert!(gateway.child.try_wait().unwrap().is_none());
    gateway.signal("-TERM");
    assert_eq!(gateway.ended().await.code(), Some(1));
}
