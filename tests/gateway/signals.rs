//! Signals to the running binary.

use super::client::{Address, Request};
use super::demo::Process;
use super::fake_rails::{FakeRails, Reply};
use super::harness::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_signals_are_ignored_and_logged() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let config = setup.dir.file("railgate.toml").display().to_string();
    std::fs::write(&config, setup.config(&rails.address)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.args(["run", "--config", &config]);
    let mut gateway = Process::spawn_piped(command);
    gateway.wait_for_output(r#""message":"ready""#).await;

    let client = Address::Unix(setup.socket());
    for (signal, name) in [("-HUP", "SIGHUP"), ("-USR1", "SIGUSR1"), ("-USR2", "SIGUSR2")] {
        gateway.signal(signal);
        let printed = gateway.wait_for_output(&format!(r#""signal":"{name}""#)).await;
        assert!(
            printed.lines().last().unwrap().contains("a signal was ignored: there is no reload"),
            "{printed}"
        );
        assert_eq!(client.send(&Request::get("check").with_secret()).await.status, 200, "{name}");
    }
    gateway.signal("-PIPE");
    assert_eq!(client.send(&Request::get("check").with_secret()).await.status, 200);

    // During a drain it does not count as a second signal.
    rails.respond_always(Reply::silence());
    let mut connection = client.connect().await;
    connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
    super::client::eventually("the request to be at Rails", || {
        std::future::ready(rails.requests().into_iter().find(|request| request.target.contains("allowed")))
    })
    .await;
    gateway.signal("-TERM");
    gateway.wait_for_output(r#""signal":"SIGTERM""#).await;
    let before = gateway.printed().matches("SIGHUP").count();
    gateway.signal("-HUP");
    super::client::eventually("another line", || {
        std::future::ready((gateway.printed().matches("SIGHUP").count() > before).then_some(()))
    })
    .await;
    assert!(gateway.child.try_wait().unwrap().is_none());
    gateway.signal("-TERM");
    assert_eq!(gateway.wait_for_end().await.code(), Some(1));
}
