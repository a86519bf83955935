//! The binary while the reader of its log has stopped, is gone, or never existed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::ready;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::client::{Address, Request, eventually, within_deadline};
use super::fake_rails::{FakeRails, Reply};
use super::harness::Setup;

/// A gateway in its own process.
struct Process {
    child: Child,
    gateway: Address,
    admin: Address,
    rails: FakeRails,
    /// Keeps the directory of the sockets.
    _setup: Setup,
}

/// Standard output and standard error of a process.
#[derive(Clone, Copy, Debug)]
enum Output {
    Closed,
    /// Writes fail: the disk is full.
    Full,
    /// The reader is gone.
    Broken,
    /// The reader has stopped.
    Stalled,
}

fn setup(format: &str) -> Setup {
    let setup = Setup::new().text("log.format", format).set("workers", 2);
    let admin = format!("unix:{}", setup.dir.file("admin.sock").display());
    setup.text("admin.address", &admin)
}

fn railgate(config: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_railgate"));
    command.arg("run").arg("--config").arg(config).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

impl Process {
    async fn start(setup: Setup, output: impl FnOnce(Command) -> Command) -> Self {
        let rails = FakeRails::listen_tcp().await;
        let config = setup.dir.file("railgate.toml").display().to_string();
        fs::write(&config, setup.config(&rails.address)).unwrap();
        let child = output(railgate(&config)).spawn().unwrap();
        let (gateway, admin) = (Address::Unix(setup.socket()), Address::Unix(setup.dir.file("admin.sock")));
        let process = Self { child, gateway, admin, rails, _setup: setup };
        eventually("the gateway to be ready", async || process.ready().await.filter(|ready| *ready)).await;
        process
    }

    /// Whether `/ready` returns 200, if there is a response.
    async fn ready(&self) -> Option<bool> {
        let mut connection = self.admin.try_connect().await.ok()?;
        let request = Request::new("GET", "/ready");
        connection.write(&request.to_bytes("close")).await;
        Some(connection.try_read_response().await.ok()?.status == 200)
    }

    /// The sum of all series with this prefix and label.
    async fn sum(&self, series: &str, label: &str) -> u64 {
        let response = self.admin.send(&Request::new("GET", "/metrics")).await;
        let lines = response.text().lines().filter(|line| line.starts_with(series) && line.contains(label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(name).arg(pid).status().unwrap().success());
    }

    async fn wait_for_end(&mut self) -> ExitStatus {
        eventually("the process to end", || ready(self.child.try_wait().unwrap())).await
    }

    /// Sends a request repeatedly over four connections at the same time, and asserts the status of each
    /// response.
    async fn send_repeatedly(&self, request: &Request, times: usize, status: u16) {
        let connections = (0..4).map(|_| {
            let (address, request) = (self.gateway.clone(), request.clone());
            tokio::spawn(async move {
                let mut connection = address.connect().await;
                for _ in 0..times / 4 {
                    let response = connection.exchange(&request).await;
                    assert_eq!(response.status, status, "{response}");
                }
            })
        });
        for connection in connections.collect::<Vec<_>>() {
            within_deadline("all answers", connection).await.unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Attaches pipes to both outputs, and returns their readers.
fn with_pipes(mut command: Command) -> (Command, [PipeReader; 2]) {
    let (out, error) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    command.stdout(out.1).stderr(error.1);
    (command, [out.0, error.0])
}

/// The same as an argument for `Process::start`.
fn into_pipes(ends: &mut Option<[PipeReader; 2]>) -> impl FnOnce(Command) -> Command {
    |command| {
        let (command, readers) = with_pipes(command);
        *ends = Some(readers);
        command
    }
}

/// A log that is read.
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    reading: JoinHandle<()>,
}

impl Log {
    fn read(out: PipeReader) -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let read = Arc::clone(&lines);
        let reading = tokio::task::spawn_blocking(move || {
            BufReader::new(out).lines().for_each(|line| read.lock().unwrap().push(line.unwrap()));
        });
        Self { lines, reading }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// All lines, after the writer has closed the log.
    async fn end(self) -> Vec<String> {
        within_deadline("the end of the log", self.reading).await.unwrap();
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

fn accepted_request() -> Request {
    // Its log line has almost 1 KiB.
    Request::get("check")
        .with_secret()
        .header("X-Request-Id", &"r".repeat(255))
        .header("User-Agent", &"u".repeat(250))
}

fn refused_request() -> Request {
    let request = Request::get("check").header("Gitlab-Shared-Secret", "d3Jvbmc=");
    request.header("X-Request-Id", &"w".repeat(255)).header("User-Agent", &"u".repeat(250))
}

const DROPPED: &str = "railgate_log_dropped_total";

/// More lines of this length than fit into the queue.
const TOO_MANY: usize = 12_000;

/// Sends far more requests than lines fit into the queue.
async fn overflow_the_log_queue(process: &Process, log_requests: bool) {
    if log_requests {
        process.send_repeatedly(&accepted_request(), TOO_MANY / 2, 200).await;
    } else {
        process.send_repeatedly(&refused_request(), TOO_MANY / 2, 401).await;
    }
    assert_eq!(process.admin.send(&Request::new("GET", "/live")).await.status, 200);
    assert_eq!(process.ready().await, Some(true));
    process.send_repeatedly(&refused_request(), TOO_MANY / 2, 401).await;
    let purge = Request::new("POST", "/purge").json(r#"{"all":true}"#);
    assert_eq!(process.admin.send(&purge).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_while_the_log_is_not_read() {
    for (format, log_requests) in [("json", true), ("pretty", false)] {
        let mut ends = None;
        let setup = setup(format).set("log.requests", log_requests);
        let mut process = Process::start(setup, into_pipes(&mut ends)).await;
        overflow_the_log_queue(&process, log_requests).await;
        // The last ones are counted a moment after their responses.
        let in_flight = "railgate_requests_in_flight";
        eventually("the end of all requests", async || (process.sum(in_flight, "").await == 0).then_some(()))
            .await;
        let dropped = process.sum(DROPPED, "queue_full").await;
        assert!(dropped > 1_000, "{format}: {dropped} lines were dropped");
        assert_eq!(process.sum(DROPPED, r#"level="error""#).await, 0);

        // Now the log is read.
        let [out, mut error] = ends.take().unwrap();
        let log = Log::read(out);
        let about = |line: &String| line.contains("log lines were dropped");
        eventually("the line about it", async || log.lines().into_iter().find(about)).await;
        process.send_repeatedly(&refused_request(), 4, 401).await;
        let requests = process.sum("railgate_requests_total", "").await;
        process.signal("-TERM");
        assert!(process.wait_for_end().await.success(), "{format}");
        let lines = log.end().await;
        let about: Vec<_> = lines.iter().filter(|line| about(line)).collect();
        assert_eq!(about.len(), 1, "{format}: {about:?}");
        let expected =
            if format == "json" { format!(r#""dropped":{dropped},"#) } else { format!("dropped={dropped} ") };
        assert!(about[0].contains(&expected), "{format}: {about:?}, not {expected}");
        let has = |text: &str| lines.iter().filter(|line| line.contains(text)).count() as u64;
        // The two lines of the purge are short, and may have fitted into the queue.
        let missing =
            requests - has("wwwww") - has("rrrrr") + 2 - has("purged") - has("a change by an operator");
        assert_eq!(missing, dropped, "{format}: of {requests} requests");
        assert!(lines.last().unwrap().contains("stopped"), "{format}: {:?}", lines.last());
        let mut text = String::new();
        error.read_to_string(&mut text).unwrap();
        assert_eq!(text, "", "{format}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_signals_work_with_unusable_outputs() {
    for format in ["json", "pretty"] {
        for output in [Output::Closed, Output::Full, Output::Broken, Output::Stalled] {
            let mut ends = None;
            let mut process = Process::start(setup(format), |mut command| match output {
                Output::Closed => {
                    let mut shell = Command::new("sh");
                    shell.args(["-c", r#"exec "$0" "$@" >&- 2>&-"#]).arg(command.get_program());
                    shell.args(command.get_args());
                    shell
                }
                Output::Full => {
                    let full = || File::options().write(true).open("/dev/full").unwrap();
                    command.stdout(full()).stderr(full());
                    command
                }
                Output::Broken => with_pipes(command).0,
                Output::Stalled => into_pipes(&mut ends)(command),
            })
            .await;
            // More lines than a pipe holds.
            process.send_repeatedly(&refused_request(), 200, 401).await;
            process.send_repeatedly(&accepted_request(), 200, 200).await;
            if matches!(output, Output::Full | Output::Broken) {
                let lost = async || (process.sum(DROPPED, "unwritable").await > 400).then_some(());
                eventually("the lines to be counted", lost).await;
            }
            // The drain timeout is ten minutes, far more than `wait_for_end` waits.
            process.signal("-TERM");
            assert!(process.wait_for_end().await.success(), "{format} {output:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_completes_while_the_log_is_not_read() {
    for (drain_timeout, second) in [("10m", Some("-INT")), ("100ms", None)] {
        let mut ends = None;
        let setup = setup("json").text("limits.drain_timeout", drain_timeout);
        let mut process = Process::start(setup, into_pipes(&mut ends)).await;
        process.send_repeatedly(&refused_request(), 400, 401).await;
        process.rails.respond_always(Reply::silence());
        let mut connection = process.gateway.connect().await;
        connection.write(&Request::post("allowed").with_secret().to_bytes("close")).await;
        eventually("the request to be at Rails", async || process.rails.requests().last().cloned()).await;
        process.signal("-TERM");
        if let Some(second) = second {
            eventually("the gateway to drain", async || process.ready().await.filter(|ready| !ready)).await;
            process.signal(second);
        }
        assert_eq!(process.wait_for_end().await.code(), Some(1), "{drain_timeout}");
    }
}

/// The process waits at its end for a slow reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_log_reader_gets_the_last_lines() {
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        // Fewer than fit into the queue, about 4 MiB.
        process.send_repeatedly(&refused_request(), 5_000, 401).await;
        let [mut out, _error] = ends.unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let (mut read, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
            while let count @ 1.. = out.read(&mut piece).unwrap() {
                read.extend_from_slice(&piece[..count]);
                std::thread::sleep(Duration::from_millis(5));
            }
            String::from_utf8(read).unwrap()
        });
        process.signal("-TERM");
        assert!(process.wait_for_end().await.success());
        let text = within_deadline("the end of the log", reading).await.unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("wwwww")).count(), 5_000, "{format}");
        assert!(text.lines().last().unwrap().contains("stopped"), "{format}");
    }
}

#[tokio::test]
async fn a_failed_start_does_not_wait_for_its_output_to_be_read() {
    let setup = setup("json");
    let config = setup.dir.file("railgate.toml").display().to_string();
    let mistakes: Vec<String> = (0..3_000).map(|number| format!("mistake{number} = 1")).collect();
    fs::write(&config, mistakes.join("\n")).unwrap();
    let (mut command, [_out, mut error]) = with_pipes(railgate(&config));
    let mut child = command.spawn().unwrap();
    drop(command);
    let status = eventually("the process to end", || ready(child.try_wait().unwrap())).await;
    assert_eq!(status.code(), Some(1));
    let mut text = String::new();
    error.read_to_string(&mut text).unwrap();
    assert!(text.len() >= 64 * 1024 && text.contains("mistake7"), "{} bytes", text.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_warnings_are_counted() {
    const TIMES: u64 = 500;
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        let [out, _error] = ends.unwrap();
        let log = Log::read(out);
        let mut connection = process.admin.connect().await;
        for _ in 0..TIMES {
            assert_eq!(connection.exchange(&Request::new("POST", "/purge").body("{}")).await.status, 415);
        }
        let suppressed = process.sum("railgate_log_suppressed_total", "").await;
        assert!(suppressed > 0);
        process.signal("-TERM");
        assert!(process.wait_for_end().await.success());
        let lines = log.end().await;
        let sums: Vec<u64> = lines.iter().filter_map(|line| suppressed_count(line)).collect();
        assert_eq!(sums.iter().sum::<u64>(), suppressed, "{sums:?}");
        let written = lines
            .iter()
            .filter(|line| line.contains("an operator was refused") && suppressed_count(line).is_none());
        assert_eq!(written.count() as u64 + suppressed, TIMES);
    }
}

/// The number of suppressed lines that a log line reports.
fn suppressed_count(line: &str) -> Option<u64> {
    if let Ok(line) = serde_json::from_str::<Value>(line) {
        return line.get("suppressed").and_then(Value::as_u64);
    }
    let (_, count) = line.split_once("suppressed=")?;
    count.split(' ').next().unwrap().parse().ok()
}

/// Whatever the request contains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_are_bounded() {
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        let [out, _error] = ends.unwrap();
        let log = Log::read(out);
        let requests = [
            Request::get(&format!("check?{}", "&".repeat(10_200))),
            Request::get(&format!("check?{}", "key=1&".repeat(1_500))),
            Request::new("GET", &format!("/api/v4/internal{}", "/s3cret".repeat(250))),
            Request::new("GET", &format!("/api/v4/internal{}", "/check".repeat(300))),
            Request::new("GET", &"/".repeat(2_000)),
            Request::new(&"M".repeat(10_000), "/api/v4/internal/check"),
            Request::get("check").header("User-Agent", &"u".repeat(20_000)),
            Request::get("check").header("User-Agent", &"\"".repeat(20_000)),
            Request::get("check").header("X-Request-Id", &"r".repeat(20_000)),
            Request::get("check").header("Host", &"h".repeat(20_000)),
        ];
        for request in &requests {
            process.gateway.send(request).await;
        }
        process.signal("-TERM");
        assert!(process.wait_for_end().await.success());
        let lines = log.end().await;
        let of_requests: Vec<_> = lines.iter().filter(|line| line.contains("request")).collect();
        assert!(of_requests.len() >= requests.len(), "{lines:?}");
        for line in of_requests {
            assert!(line.len() < 2_048, "{} bytes: {line}", line.len());
        }
        let text = lines.join("\n");
        assert!(text.contains("[FILTERED]×10201") && text.contains("/[FILTERED]×250"), "{text}");
        assert!(text.contains("…[19744 bytes cut]"), "{text}");
    }
}

/// Longer than any client waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_during_thirty_seconds_of_unread_log() {
    send_requests_while_the_log_is_unread(Duration::from_secs(30), Duration::from_millis(500)).await;
}

/// Ignored by default, since it takes ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo test --test gateway -- --ignored ten_minutes"]
async fn requests_are_answered_during_ten_minutes_of_unread_log() {
    send_requests_while_the_log_is_unread(Duration::from_mins(10), Duration::ZERO).await;
}

/// Sends requests for so long while the output of the process is not read, with a pause between rounds.
async fn send_requests_while_the_log_is_unread(long: Duration, pause: Duration) {
    let end = Instant::now() + long;
    let mut ends = None;
    let mut process = Process::start(setup("json"), into_pipes(&mut ends)).await;
    let mut answered = BTreeMap::<u16, u64>::new();
    let mut slowest = Duration::ZERO;
    let mut dropped = 0;
    while Instant::now() < end || dropped == 0 {
        for (request, status) in [(accepted_request(), 200), (refused_request(), 401)] {
            process.send_repeatedly(&request, 1_000, status).await;
            *answered.entry(status).or_default() += 1_000;
        }
        let begun = Instant::now();
        assert_eq!(process.admin.send(&Request::new("GET", "/live")).await.status, 200);
        slowest = slowest.max(begun.elapsed());
        dropped = process.sum(DROPPED, "").await;
        tokio::time::sleep(pause).await;
    }
    process.signal("-TERM");
    assert!(process.wait_for_end().await.success());
    println!("answered {answered:?}, none failed; {dropped} lines dropped; slowest /live {slowest:?}");
}
