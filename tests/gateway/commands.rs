//! `railgate purge`, `inspect`, `servers`, `health` and `token` in front of a running gateway, and a configuration file in which only
//! `[admin]` can be used.

use std::fs;
use std::process::Command;

use super::client::{Address, Request, eventually};
use super::credentials::{KAS_HEADER, SHELL_HEADER};
use super::fake_rails::ROOT_KEY;
use super::harness::{Harness, Scratch, Setup};
use super::log::LogBlocker;

/// Runs the command. Returns whether it succeeded, and its output.
async fn run(harness: &Harness, arguments: &[&str], config: &str) -> (bool, String) {
    let file = harness.dir.file("railgate.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    // As good as `--config`.
    command.args(arguments).env("RAILGATE_CONFIG", file);
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

#[tokio::test]
async fn health_says_whether_threads_respond_and_requests_are_accepted() {
    let harness = Setup::new().set("workers", 2).text("limits.drain_timeout", "100ms").start().await;
    let Address::Tcp(address) = &harness.gateway.admin else { unreachable!() };
    let config = format!("admin.address = '{address}'\nthis = 'is no concern of health'\n");
    assert_eq!(run(&harness, &["health"], &config).await, (true, "live\n".to_owned()));
    assert_eq!(run(&harness, &["health", "--ready"], &config).await, (true, "ready\n".to_owned()));

    let hang = LogBlocker::on(r#""correlation_id":"health-of-one-that-hangs""#);
    let mut stuck = harness.gateway.tcp.connect().await;
    let request = Request::get("check").with_secret().header("X-Request-Id", "health-of-one-that-hangs");
    stuck.write(&request.to_bytes("close")).await;
    let live = Request::new("GET", "/live");
    eventually("the worker to hang", async || {
        Some(harness.gateway.admin.send(&live).await).filter(|response| response.status == 503)
    })
    .await;
    let (is_live, output) = run(&harness, &["health"], &config).await;
    let is_expected = output.starts_with("not live: 503 Service Unavailable {") && output.contains("worker");
    assert!(!is_live && is_expected && output.lines().count() == 1, "{output}");
    drop(hang);
}

#[tokio::test]
async fn health_without_a_gateway_names_the_address() {
    let harness = Harness::new().await;
    let socket = harness.dir.file("none.sock");
    let config = format!("admin.address = 'unix:{}'\n", socket.display());
    let (is_live, output) = run(&harness, &["health"], &config).await;
    let begin = format!("not live: admin.address unix:{}: ", socket.display());
    assert!(!is_live && output.starts_with(&begin) && output.lines().count() == 1, "{output}");
}

#[tokio::test]
async fn signed_tokens_are_accepted() {
    let setup = Setup::new();
    let config = setup.config(&Address::Tcp(([127, 0, 0, 1], 1).into()));
    let harness = setup.start().await;
    for (caller, header, path) in
        [("shell", SHELL_HEADER, "discover?key_id=7"), ("kas", KAS_HEADER, "kubernetes/agent_info")]
    {
        let (is_signed, output) = run(&harness, &["token", caller, "--ttl", "3600"], &config).await;
        let token = output.strip_suffix('\n').unwrap();
        assert!(is_signed && token.split('.').count() == 3, "{output}");
        let request = Request::get(path).header(header, token).header("Authorization", "Bearer agent-token");
        harness.send_forwarded(&request).await;
    }
}

/// What a shell would complete, by the scripts of the program.
#[test]
fn completions_and_pages_have_every_command_and_option() {
    let output = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_railgate")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let words = ["doctor", "purge", "--ssh-key", "health", "--ready", "completions"];
    for shell in ["bash", "zsh", "fish"] {
        let script = output(&["completions", shell]);
        for word in words {
            assert!(script.contains(word.trim_start_matches('-')), "{shell}: {word}");
        }
    }
    let dir = Scratch::new();
    let script = dir.file("complete.bash");
    fs::write(&script, output(&["completions", "bash"])).unwrap();
    let complete = format!(
        "source {}; COMP_WORDS=(railgate health --re); COMP_CWORD=2; _railgate railgate --re health; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let completed = Command::new("bash").args(["-c", &complete]).output().unwrap();
    assert_eq!(String::from_utf8(completed.stdout).unwrap(), "--ready\n");

    assert!(output(&["man"]).contains(".SH SYNOPSIS"));
    output(&["man", "--directory", dir.path().to_str().unwrap()]);
    for page in ["railgate.1", "railgate-purge.1", "railgate-hook-install.1"] {
        assert!(fs::read_to_string(dir.file(page)).unwrap().contains(".SH OPTIONS"), "{page}");
    }
    assert!(fs::read_to_string(dir.file("railgate-purge.1")).unwrap().contains("ssh\\-key"));
}

/// The environment of the process, through the program.
#[test]
fn the_environment_overrides_the_file() {
    let dir = Scratch::new();
    let (file, secret) = (dir.file("railgate.toml"), dir.file("secret"));
    fs::write(&secret, "s3cret").unwrap();
    let text = "[upstream]\nurl = 'http://rails'\n[auth.shell]\nsecret_file = 'SECRET'\n[upsteam]\n";
    fs::write(&file, text.replace("SECRET", secret.to_str().unwrap()).replace("[upsteam]\n", "")).unwrap();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
        command.args(arguments).env("RAILGATE_CONFIG", &file).envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (is_shown, shown) = run(&["config", "show"], &[("RAILGATE_UPSTREAM__URL", "http://other")]);
    assert!(is_shown && shown.contains("\nurl = \"http://other\"  # RAILGATE_UPSTREAM__URL\n"), "{shown}");
    assert!(shown.contains(&format!("# {}:4\n", file.display())) && !shown.contains("s3cret"), "{shown}");
    let refused = "RAILGATE_UPSTREAM__ULR: sets no key; did you mean RAILGATE_UPSTREAM__URL";
    for command in ["check", "run", "doctor"] {
        let (is_valid, output) = run(&[command], &[("RAILGATE_UPSTREAM__ULR", "http://other")]);
        assert!(!is_valid && output.starts_with(refused), "{command}: {output}");
    }
    fs::write(&file, text.replace("SECRET", secret.to_str().unwrap())).unwrap();
    let (is_valid, output) = run(&["check"], &[]);
    let mark = "did you mean \"upstream\"?\n    5 | [upsteam]\n      |  ^^^^^^^\n";
    assert!(!is_valid && output.ends_with(mark), "{output}");
}

#[tokio::test]
async fn top_shows_what_the_gateway_counts() {
    let harness = Setup::new().start().await;
    let Address::Tcp(address) = &harness.gateway.admin else { unreachable!() };
    let config = format!("admin.address = '{address}'\n");
    let request = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for _ in 0..4 {
        harness.gateway.tcp.send(&request).await;
    }
    harness.wait_for_metric("railgate_requests_in_flight", 0).await;
    let (is_shown, output) = run(&harness, &["top", "--once"], &config).await;
    assert!(is_shown && output.contains("Hits: 75.0 %") && output.contains("Rails answers"), "{output}");
    let route: Vec<_> = output
        .lines()
        .find(|line| line.starts_with("authorized_keys "))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(route, ["authorized_keys", "4", "0"], "{output}");
    assert!(output.lines().all(|line| line.chars().count() <= 80), "{output}");
}

/// The image has no shell: what its health check runs has to be a command of the program.
#[test]
fn the_health_check_of_the_image_is_a_command() {
    let file = include_str!("../../deploy/Containerfile");
    let (_, rest) = file.split_once("HEALTHCHECK ").unwrap();
    let (_, rest) = rest.split_once("CMD ").unwrap();
    let arguments: Vec<String> = serde_json::from_str(rest.lines().next().unwrap()).unwrap();
    let (program, arguments) = arguments.split_first().unwrap();
    assert_eq!(program, "railgate");
    let output = Command::new(env!("CARGO_BIN_EXE_railgate")).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The configuration that the image itself reads.
    let (_, command) = file.split_once("\nCMD ").unwrap();
    assert!(command.contains(&format!("\"{}\"", arguments.last().unwrap())), "{command}");
}
