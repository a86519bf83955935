//! The commands that people try first: `railgate demo` and `--help`, through a pipe and on a terminal.

use std::collections::BTreeSet;
use std::future::ready;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use super::client::{Address, Request, eventually};
use super::documentation::commands;
use super::harness::Setup;

const BINARY: &str = env!("CARGO_BIN_EXE_railgate");

/// A process whose standard output and error are collected together.
pub struct Process {
    pub child: Child,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    /// Runs it with its output in a pipe.
    pub fn spawn_piped(mut command: Command) -> Self {
        let (mut out, end) = std::io::pipe().unwrap();
        command.stdin(Stdio::piped()).stdout(end.try_clone().unwrap()).stderr(end);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        drop(command);
        let printed = Arc::<Mutex<Vec<u8>>>::default();
        let read = Arc::clone(&printed);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // Reading from a closed terminal is an error, not an end.
            while let Ok(count @ 1..) = out.read(&mut piece) {
                read.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        Self { child, printed }
    }

    /// One whose output is elsewhere.
    pub fn of(child: Child) -> Self {
        Self { child, printed: Arc::default() }
    }

    /// Runs a command line on a terminal of its own (`script` makes one), with these variables.
    fn spawn_on_terminal(line: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
        command.env("TERM", "xterm");
        // `CI` enables colours too.
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        Self::spawn_piped(command)
    }

    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).replace('\r', "")
    }

    /// Waits until this was printed. Returns all output so far.
    pub async fn wait_for_output(&self, text: &str) -> String {
        eventually(text, || ready(Some(self.printed()).filter(|printed| printed.contains(text)))).await
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(name).arg(pid).status().unwrap().success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub async fn wait_for_end(&mut self) -> ExitStatus {
        eventually("the process to end", || ready(self.child.try_wait().unwrap())).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DEMO: [&str; 5] = ["demo", "--port", "0", "--admin-port", "0"];
const LAST: &str = "Requests, as they come:\n";

fn demo() -> Command {
    let mut command = Command::new(BINARY);
    command.args(DEMO).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    command
}

/// The commands that the demo prints for pasting.
fn printed_commands(printed: &str) -> String {
    let (_, rest) = printed.split_once("all at once:\n").unwrap();
    rest.split_once("Ctrl-C ends the demo.").unwrap().0.to_owned()
}

/// The first of these commands.
fn first_command(pasted: &str) -> String {
    let lines = pasted.lines().skip_while(|line| !line.contains("curl"));
    lines.take_while(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Runs lines in a shell, and returns what they print.
async fn run_in_shell(lines: String) -> String {
    let run = move || {
        let mut shell = Command::new("sh");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for proxy in ["http_proxy", "all_proxy", "ALL_PROXY"] {
            shell.env_remove(proxy);
        }
        let mut shell = shell.spawn().unwrap();
        shell.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = shell.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success() && !stderr.contains("not found"), "{status} {stderr} (is curl there?)");
        String::from_utf8(stdout).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The printed lines about requests, without their durations.
fn request_lines(printed: &str) -> Vec<String> {
    let (_, lines) = printed.split_once(LAST).unwrap();
    let untimed = |line: &str| {
        let (expected, took) = line.rsplit_once(", ").unwrap_or_else(|| panic!("{line:?}"));
        assert!(took.strip_suffix(" ms").is_some_and(|ms| ms.parse::<f64>().is_ok()), "{line:?}");
        expected.trim().to_owned()
    };
    lines.lines().filter(|line| line.starts_with("  ")).map(untimed).collect()
}

fn assert_plain_and_narrow(printed: &str) {
    for line in printed.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        assert!(!line.contains('\x1b'), "{line:?}");
    }
}

/// The values of a header field in the responses that curl prints.
fn fields<'a>(shown: &'a str, name: &str) -> Vec<&'a str> {
    shown.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn printed_commands_work_and_each_request_is_printed() {
    let mut demo = Process::spawn_piped(demo());
    let printed = demo.wait_for_output(LAST).await;
    let lines = printed_commands(&printed);
    let shown = run_in_shell(lines.clone()).await;
    let statuses = shown.match_indices("HTTP/1.1 ").map(|(at, begin)| &shown[at + begin.len()..][..3]);
    assert_eq!(statuses.collect::<Vec<_>>(), ["200", "200", "200", "200", "200", "401"], "{shown}");
    let cache = fields(&shown, "cache-status: railgate; ");
    assert_eq!(cache.len(), 5, "{shown}");
    assert!(cache[1].starts_with("hit; ttl="), "{cache:?}");
    let others =
        ["fwd=miss; stored", "fwd=miss; stored", "fwd=bypass; detail=route", "fwd=bypass; detail=route"];
    assert_eq!([cache[0], cache[2], cache[3], cache[4]], others);
    assert!(shown.contains("\nrailgate_requests_total{"), "{shown}");

    let mut expected = vec![
        "GET /authorized_keys?key=… -> 200, miss: asked Rails, stored",
        "GET /authorized_keys?key=… -> 200, hit: answered from memory",
        "GET /discover?key_id=7 -> 200, miss: asked Rails, stored",
        "POST /allowed -> 200, forwarded to Rails",
        "GET /kubernetes/agent_info -> 200, forwarded to Rails",
        "GET /discover?key_id=7 -> 401, refused: unauthorized (missing)",
    ];
    assert_eq!(request_lines(&demo.wait_for_output("(missing)").await), expected);
    // The README shows the same lines; `request_lines` wants them indented.
    let readme = include_str!("../../README.md");
    let (_, shown_first) = readme.split_once("\n```\nGET /").expect("the README has an example");
    let example = format!("GET /{}", shown_first.split("\n```").next().unwrap());
    let example = example.replace('\n', "\n  ");
    assert_eq!(request_lines(&format!("{LAST}  {example}")), expected, "the example in the README");

    let (_, page) = printed.split_once("what happens: ").unwrap();
    let page = run_in_shell(format!("curl -s {}", page.lines().next().unwrap())).await;
    assert!(page.contains("<title>railgate</title>"), "{page}");

    // A stale answer is a hit too.
    let (_, admin) = printed.split_once("admin listener on ").unwrap();
    let admin = Address::parse(admin.split(".\n").next().unwrap());
    let purge =
        Request::new("POST", "/purge").header("Host", "localhost").json(r#"{"key_id": 7, "soft": true}"#);
    assert_eq!(admin.send(&purge).await.status, 200);
    let shown = run_in_shell(first_command(&lines)).await;
    assert!(shown.contains("detail=stale_while_revalidate"), "{shown}");
    expected.push("GET /authorized_keys?key=… -> 200, hit: stale, refreshed from Rails");
    assert_eq!(request_lines(&demo.wait_for_output("refreshed").await), expected);

    demo.signal("-INT");
    assert_eq!(demo.wait_for_end().await.code(), Some(0));
    let printed = demo.wait_for_output("\n\nThe demo has ended.\n").await;
    assert_plain_and_narrow(&printed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_uses_colours_and_ctrl_c_on_a_terminal() {
    for (variables, has_colours) in [
        (&[][..], true),
        (&[("NO_COLOR", "")][..], true),
        (&[("NO_COLOR", "1")][..], false),
        (&[("TERM", "dumb")][..], false),
    ] {
        let mut demo = Process::spawn_on_terminal(
            &format!("stty cols 80 rows 24; exec {BINARY} {}", DEMO.join(" ")),
            variables,
        );
        let printed = demo.wait_for_output(LAST).await;
        run_in_shell(first_command(&printed_commands(&printed)).repeat(2)).await;
        let printed = demo.wait_for_output("answered from memory").await;
        assert_eq!(
            printed.contains("\x1b[32mhit: answered from memory\x1b[0m, "),
            has_colours,
            "{printed:?}"
        );
        demo.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        assert_eq!(demo.wait_for_end().await.code(), Some(0), "{variables:?}");
        let printed = demo.wait_for_output("\nThe demo has ended.\n").await;
        assert_plain_and_narrow(
            &printed.replace("\x1b[32m", "").replace("\x1b[33m", "").replace("\x1b[0m", ""),
        );
        assert_eq!(printed.contains('\x1b'), has_colours, "{variables:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pretty_log_has_colours_only_on_a_terminal() {
    let setup = Setup::new().text("log.format", "pretty");
    let config = setup.dir.file("railgate.toml").display().to_string();
    std::fs::write(&config, setup.config(&Address::Tcp(([127, 0, 0, 1], 1).into()))).unwrap();
    for (variables, has_colours) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let mut gateway =
            Process::spawn_on_terminal(&format!("exec {BINARY} run --config {config}"), variables);
        let printed = gateway.wait_for_output("ready").await;
        assert_eq!(printed.contains('\x1b'), has_colours, "{printed:?}");
        gateway.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        assert_eq!(gateway.wait_for_end().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_failed_demo_start_is_explained_in_eighty_columns() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = Command::new(BINARY);
    command.args(["demo", "--port", &port, "--admin-port", "0"]);
    let mut demo = Process::spawn_piped(command);
    assert_eq!(demo.wait_for_end().await.code(), Some(1));
    let printed = demo.wait_for_output("--admin-port").await;
    assert!(printed.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{printed}");
    assert_plain_and_narrow(&printed);
}

#[tokio::test]
async fn help_is_wrapped_between_words() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut helps = BTreeSet::from(["--help", "-h", "help", "hook --help"].map(str::to_owned));
    helps.extend(commands(&[]).into_iter().map(|command| format!("{command} --help")));
    assert!(helps.contains("doctor --help") && helps.contains("hook install --help"), "{helps:?}");
    for help in helps {
        let mut command = Command::new(BINARY);
        let piped = command.args(help.split(' ')).env_remove("CLICOLOR_FORCE").output().unwrap();
        let piped = String::from_utf8(piped.stdout).unwrap();
        assert!(piped.contains("Usage: railgate"), "{help}: {piped}");
        assert_plain_and_narrow(&piped);
        let line = format!("stty cols 66 rows 24; exec {BINARY} {help}");
        let mut narrow = Process::spawn_on_terminal(&line, &[("NO_COLOR", "1")]);
        assert!(narrow.wait_for_end().await.success(), "{help}");
        let text = eventually("all of it", || {
            ready(Some(narrow.printed()).filter(|printed| words(printed) == words(&piped)))
        });
        let text = text.await;
        for line in text.lines().filter(|line| !line.contains("<--ssh-key") && !line.contains("Usage")) {
            assert!(line.chars().count() <= 66, "{help}: {line}");
        }
    }
}

#[test]
fn help_is_shown_without_a_command() {
    let shown = Command::new(BINARY).env_remove("CLICOLOR_FORCE").output().unwrap();
    assert_eq!(shown.status.code(), Some(2));
    let shown = String::from_utf8(shown.stderr).unwrap();
    assert!(shown.contains("Usage: railgate"), "{shown}");
    assert_plain_and_narrow(&shown);
}
