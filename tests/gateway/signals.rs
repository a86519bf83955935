//! Signals to the running binary.

use super::client::{Address, Request, eventually};
use super::demo::Process;
use super::fake_rails::{FakeRails, Reply};
use super::harness::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_configuration_again_and_other_signals_are_ignored() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new();
    let config = setup.dir.file("railgate.toml").display().to_string();
    let text = setup.config(&rails.address);
    std::fs::write(&config, &text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.args(["run", "--config", &config]);
    let mut gateway = Process::spawn_piped(command);
    gateway.wait_for_output(r#""message":"ready""#).await;

    let client = Address::Unix(setup.socket());
    let check = Request::get("check").with_secret();
    for (signal, name) in [("-USR1", "SIGUSR1"), ("-USR2", "SIGUSR2")] {
        gateway.signal(signal);
        let printed = gateway.wait_for_output(&format!(r#""signal":"{name}""#)).await;
        assert!(printed.lines().last().unwrap().contains("a signal was ignored"), "{printed}");
        assert_eq!(client.send(&check).await.status, 200, "{name}");
    }
    std::fs::write(&config, format!("{text}\nworkers = 2")).unwrap();
    gateway.signal("-HUP");
    let printed = gateway.wait_for_output("the configuration was not changed").await;
    assert!(printed.contains("workers"), "a mistake: it is in the last [[listen]]: {printed}");
    // Fewer lines, and another key that takes a restart.
    std::fs::write(&config, format!("workers = 200\nlog.level = \"warn\"\n{text}")).unwrap();
    gateway.signal("-HUP");
    let printed = gateway.wait_for_output(r#""restart_needed":"workers""#).await;
    let lines = printed.lines().count();
    assert_eq!(client.send(&check).await.status, 200);
    std::fs::write(&config, format!("log.level = \"debug\"\n{text}")).unwrap();
    gateway.signal("-HUP");
    let printed = gateway.wait_for_output("and is in effect").await;
    let between = &printed.lines().collect::<Vec<_>>()[lines..];
    assert!(between.iter().all(|line| !line.contains(r#""message":"request""#)), "{between:?}");
    assert_eq!(client.send(&check).await.status, 200);
    eventually("the line of the request", || {
        let after = gateway.printed().lines().skip(lines).any(|line| line.contains(r#""message":"request""#));
        std::future::ready(after.then_some(()))
    })
    .await;
    gateway.signal("-PIPE");
    assert_eq!(client.send(&Request::get("check").with_secret()).await.status, 200);

    // During a drain it does not count as a second signal.
    rails.respond_always(Reply::silence());
    let mut connection = client.connect().await;
    connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
    eventually("the request to be at Rails", || {
        std::future::ready(rails.requests().into_iter().find(|request| request.target.contains("allowed")))
    })
    .await;
    gateway.signal("-TERM");
    gateway.wait_for_output(r#""signal":"SIGTERM""#).await;
    let before = gateway.printed().matches("SIGHUP").count();
    gateway.signal("-HUP");
    eventually("another line", || {
        std::future::ready((gateway.printed().matches("SIGHUP").count() > before).then_some(()))
    })
    .await;
    assert!(gateway.child.try_wait().unwrap().is_none());
    gateway.signal("-TERM");
    assert_eq!(gateway.wait_for_end().await.code(), Some(1));
}
