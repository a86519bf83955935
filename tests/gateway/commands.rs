//! `railgate purge`, `inspect` and `servers` in front of a running gateway, and a configuration file in which only
//! `[admin]` can be used.

use std::fs;
use std::process::Command;

use super::client::{Address, Request};
use super::fake_rails::ROOT_KEY;
use super::harness::{Harness, Setup};

/// Runs the command. Returns whether it succeeded, and its output.
async fn run(harness: &Harness, arguments: &[&str], config: &str) -> (bool, String) {
    let file = harness.dir.file("railgate.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.args(arguments).arg("--config").arg(file);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn commands_need_no_section_but_admin() {
    let setup = Setup::new();
    let token = setup.dir.file("admin_token");
    fs::write(&token, "t0ken\n").unwrap();
    let harness = setup.text("admin.token_file", &token.display().to_string()).start().await;
    let Address::Tcp(address) = &harness.gateway.admin else { unreachable!() };
    let admin = format!("admin.address = '{address}'\nadmin.token_file = '{}'\n", token.display());
    let request = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for other in [
        "",
        "auth.shell.secret_file = '/nowhere/secret'\nupstream.url = 'http://rails'\n",
        "auth.shell.secret_file = '/'\nupstream.ulr = 'rails'\nlog.level = 'loud'\ncolour = 'red'\n",
    ] {
        let config = format!("{admin}{other}");
        harness.send_forwarded(&request).await;
        let (is_done, output) = run(&harness, &["inspect", "--ssh-key", ROOT_KEY], &config).await;
        assert!(is_done && output.ends_with("1 of 1 entries\n"), "{other}: {output}");
        let (is_done, output) = run(&harness, &["purge", "--all"], &config).await;
        assert!(is_done && output == "1 answers purged\n", "{other}: {output}");
        let (is_done, output) = run(&harness, &["servers"], &config).await;
        assert!(is_done && output.starts_with(r#"{"server":"#), "{other}: {output}");
    }
}

#[tokio::test]
async fn mistakes_in_admin_are_those_that_check_reports() {
    let harness = Harness::new().await;
    let secret = harness.dir.file("secret");
    fs::write(&secret, "s3cret").unwrap();
    let valid =
        format!("upstream.url = 'http://rails'\nauth.shell.secret_file = '{}'\n[admin]\n", secret.display());
    for mistake in ["address = 'localhost:9181'", "token_file = '/nowhere/token'\nconections = 1"] {
        let config = format!("{valid}{mistake}\n");
        let expected = run(&harness, &["check"], &config).await;
        assert!(!expected.0 && expected.1.contains(": admin."), "{expected:?}");
        for command in [&["purge", "--all"][..], &["inspect"], &["servers"]] {
            assert_eq!(run(&harness, command, &config).await, expected, "{command:?}");
        }
    }
}
