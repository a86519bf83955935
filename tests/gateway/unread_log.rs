//! The binary, while whatever reads its log has stopped, has gone, or never was there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::ready;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::client::{Ask, Peer, eventually, soon};
use super::fake::{Rails, Reply};
use super::stage::Setup;

/// A gateway that runs as a process of its own.
struct Process {
    child: Child,
    gateway: Peer,
    admin: Peer,
    rails: Rails,
    /// With the sockets.
    _setup: Setup,
}

/// Standard output and standard error of a process.
#[derive(Clone, Copy, Debug)]
enum Output {
    Closed,
    /// Neither takes a byte: the disk is full.
    Full,
    /// What read them is gone.
    Broken,
    /// What reads them has stopped.
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
        let rails = Rails::on_tcp().await;
        let config = setup.dir.file("railgate.toml").display().to_string();
        fs::write(&config, setup.config(&rails.peer)).unwrap();
        let child = output(railgate(&config)).spawn().unwrap();
        let (gateway, admin) = (Peer::Unix(setup.socket()), Peer::Unix(setup.dir.file("admin.sock")));
        let process = Self { child, gateway, admin, rails, _setup: setup };
        eventually("the gateway to be ready", async || process.ready().await.filter(|ready| *ready)).await;
        process
    }

    /// What `/ready` says, if it can be asked.
    async fn ready(&self) -> Option<bool> {
        let mut wire = self.admin.try_connect().await.ok()?;
        let ask = Ask::new("GET", "/ready");
        wire.write(&ask.to_bytes("close")).await;
        Some(wire.try_answer().await.ok()?.status == 200)
    }

    /// The sum of a series, whatever its other labels, that has these.
    async fn sum(&self, series: &str, label: &str) -> u64 {
        let answer = self.admin.send(&Ask::new("GET", "/metrics")).await;
        let lines = answer.text().lines().filter(|line| line.starts_with(series) && line.contains(label));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(name).arg(pid).status().unwrap().success());
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("the process to end", || ready(self.child.try_wait().unwrap())).await
    }

    /// Sends a request again and again over four connections at one time, and says of how many answers.
    async fn flood(&self, ask: &Ask, times: usize, status: u16) {
        let connections = (0..4).map(|_| {
            let (peer, ask) = (self.gateway.clone(), ask.clone());
            tokio::spawn(async move {
                let mut wire = peer.connect().await;
                for _ in 0..times / 4 {
                    let answer = wire.exchange(&ask).await;
                    assert_eq!(answer.status, status, "{answer}");
                }
            })
        });
        for connection in connections.collect::<Vec<_>>() {
            soon("all answers", connection).await.unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pipes for both outputs, and their other ends.
fn pipes(mut command: Command) -> (Command, [PipeReader; 2]) {
    let (out, error) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    command.stdout(out.1).stderr(error.1);
    (command, [out.0, error.0])
}

/// The same, as what `Process::start` takes.
fn into_pipes(ends: &mut Option<[PipeReader; 2]>) -> impl FnOnce(Command) -> Command {
    |command| {
        let (command, readers) = pipes(command);
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

    /// All lines, once nothing writes any more.
    async fn end(self) -> Vec<String> {
        soon("the end of the log", self.reading).await.unwrap();
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

fn good() -> Ask {
    // Its line has almost a KiB.
    Ask::get("check")
        .with_secret()
        .header("X-Request-Id", &"r".repeat(255))
        .header("User-Agent", &"u".repeat(250))
}

fn wrong() -> Ask {
    let ask = Ask::get("check").header("Gitlab-Shared-Secret", "d3Jvbmc=");
    ask.header("X-Request-Id", &"w".repeat(255)).header("User-Agent", &"u".repeat(250))
}

const DROPPED: &str = "railgate_log_dropped_total";

/// More than may wait, of lines that are as long as these.
const TOO_MANY: usize = 12_000;

/// Requests of all kinds, so many that the queue is full by far.
async fn flood_with_everything(process: &Process, log_requests: bool) {
    if log_requests {
        process.flood(&good(), TOO_MANY / 2, 200).await;
    } else {
        process.flood(&wrong(), TOO_MANY / 2, 401).await;
    }
    assert_eq!(process.admin.send(&Ask::new("GET", "/live")).await.status, 200);
    assert_eq!(process.ready().await, Some(true));
    process.flood(&wrong(), TOO_MANY / 2, 401).await;
    let purge = Ask::new("POST", "/purge").json(r#"{"all":true}"#);
    assert_eq!(process.admin.send(&purge).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_log_that_is_not_read() {
    for (format, log_requests) in [("json", true), ("pretty", false)] {
        let mut ends = None;
        let setup = setup(format).set("log.requests", log_requests);
        let mut process = Process::start(setup, into_pipes(&mut ends)).await;
        flood_with_everything(&process, log_requests).await;
        // The last ones are counted a moment after their answers.
        let in_flight = "railgate_requests_in_flight";
        eventually("the end of all requests", async || (process.sum(in_flight, "").await == 0).then_some(()))
            .await;
        let dropped = process.sum(DROPPED, "queue_full").await;
        assert!(dropped > 1_000, "{format}: {dropped} lines were dropped");
        assert_eq!(process.sum(DROPPED, r#"level="error""#).await, 0);

        // It is read again.
        let [out, mut error] = ends.take().unwrap();
        let log = Log::read(out);
        let about = |line: &String| line.contains("log lines were dropped");
        eventually("a line about it", async || log.lines().into_iter().find(about)).await;
        process.flood(&wrong(), 4, 401).await;
        let requests = process.sum("railgate_requests_total", "").await;
        process.signal("-TERM");
        assert!(process.ended().await.success(), "{format}");
        let lines = log.end().await;
        let about: Vec<_> = lines.iter().filter(|line| about(line)).collect();
        assert_eq!(about.len(), 1, "{format}: {about:?}");
        let told =
            if format == "json" { format!(r#""dropped":{dropped},"#) } else { format!("dropped={dropped} ") };
        assert!(about[0].contains(&told), "{format}: {about:?}, not {told}");
        let has = |text: &str| lines.iter().filter(|line| line.contains(text)).count() as u64;
        // The line of the purge is shorter than the others, so that it may have had room.
        let missing = requests - has("wwwww") - has("rrrrr") + 1 - has("purged");
        assert_eq!(missing, dropped, "{format}: of {requests} requests");
        assert!(lines.last().unwrap().contains("stopped"), "{format}: {:?}", lines.last());
        let mut said = String::new();
        error.read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{format}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_outputs_are_requests_are_answered_and_signals_end_it() {
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
                Output::Broken => pipes(command).0,
                Output::Stalled => into_pipes(&mut ends)(command),
            })
            .await;
            // More than a pipe holds.
            process.flood(&wrong(), 200, 401).await;
            process.flood(&good(), 200, 200).await;
            if matches!(output, Output::Full | Output::Broken) {
                let lost = async || (process.sum(DROPPED, "unwritable").await > 400).then_some(());
                eventually("the lines to be counted", lost).await;
            }
            // Setup gives it ten minutes to drain, far more than `ended` waits.
            process.signal("-TERM");
            assert!(process.ended().await.success(), "{format} {output:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_log_is_not_read_a_second_signal_and_the_drain_timeout_end_it() {
    for (drain_timeout, second) in [("10m", Some("-INT")), ("100ms", None)] {
        let mut ends = None;
        let setup = setup("json").text("limits.drain_timeout", drain_timeout);
        let mut process = Process::start(setup, into_pipes(&mut ends)).await;
        process.flood(&wrong(), 400, 401).await;
        process.rails.always(Reply::silence());
        let mut wire = process.gateway.connect().await;
        wire.write(&Ask::post("allowed").with_secret().to_bytes("close")).await;
        eventually("the request to be at Rails", async || process.rails.requests().last().cloned()).await;
        process.signal("-TERM");
        if let Some(second) = second {
            eventually("the gateway to drain", async || process.ready().await.filter(|ready| !ready)).await;
            process.signal(second);
        }
        assert_eq!(process.ended().await.code(), Some(1), "{drain_timeout}");
    }
}

/// The end of the process waits for a reader that takes its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_the_log_gets_its_last_lines() {
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        // Fewer than may wait, of about 4 MiB.
        process.flood(&wrong(), 5_000, 401).await;
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
        assert!(process.ended().await.success());
        let text = soon("the end of the log", reading).await.unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("wwwww")).count(), 5_000, "{format}");
        assert!(text.lines().last().unwrap().contains("stopped"), "{format}");
    }
}

#[tokio::test]
async fn a_start_that_fails_does_not_wait_for_whoever_reads_why() {
    let setup = setup("json");
    let config = setup.dir.file("railgate.toml").display().to_string();
    let mistakes: Vec<String> = (0..3_000).map(|number| format!("mistake{number} = 1")).collect();
    fs::write(&config, mistakes.join("\n")).unwrap();
    let (mut command, [_out, mut error]) = pipes(railgate(&config));
    let mut child = command.spawn().unwrap();
    drop(command);
    let status = eventually("the process to end", || ready(child.try_wait().unwrap())).await;
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    error.read_to_string(&mut said).unwrap();
    assert!(said.len() >= 64 * 1024 && said.contains("mistake7"), "{} bytes", said.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_warning_again_and_again_is_counted() {
    const TIMES: u64 = 500;
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        let [out, _error] = ends.unwrap();
        let log = Log::read(out);
        let mut wire = process.admin.connect().await;
        for _ in 0..TIMES {
            assert_eq!(wire.exchange(&Ask::new("POST", "/purge").body("{}")).await.status, 415);
        }
        let suppressed = process.sum("railgate_log_suppressed_total", "").await;
        assert!(suppressed > 0);
        process.signal("-TERM");
        assert!(process.ended().await.success());
        let lines = log.end().await;
        let sums: Vec<u64> = lines.iter().filter_map(|line| left_out(line)).collect();
        assert_eq!(sums.iter().sum::<u64>(), suppressed, "{sums:?}");
        let written =
            lines.iter().filter(|line| line.contains("an operator was refused") && left_out(line).is_none());
        assert_eq!(written.count() as u64 + suppressed, TIMES);
    }
}

/// How many lines like it a line says were left out.
fn left_out(line: &str) -> Option<u64> {
    if let Ok(line) = serde_json::from_str::<Value>(line) {
        return line.get("suppressed").and_then(Value::as_u64);
    }
    let (_, count) = line.split_once("suppressed=")?;
    count.split(' ').next().unwrap().parse().ok()
}

/// Lines are short, whatever is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_makes_a_line_longer_than_itself() {
    for format in ["json", "pretty"] {
        let mut ends = None;
        let mut process = Process::start(setup(format), into_pipes(&mut ends)).await;
        let [out, _error] = ends.unwrap();
        let log = Log::read(out);
        let asks = [
            Ask::get(&format!("check?{}", "&".repeat(10_200))),
            Ask::get(&format!("check?{}", "key=1&".repeat(1_500))),
            Ask::new("GET", &format!("/api/v4/internal{}", "/s3cret".repeat(250))),
            Ask::new("GET", &format!("/api/v4/internal{}", "/check".repeat(300))),
            Ask::new("GET", &"/".repeat(2_000)),
            Ask::new(&"M".repeat(10_000), "/api/v4/internal/check"),
            Ask::get("check").header("User-Agent", &"u".repeat(20_000)),
            Ask::get("check").header("User-Agent", &"\"".repeat(20_000)),
            Ask::get("check").header("X-Request-Id", &"r".repeat(20_000)),
            Ask::get("check").header("Host", &"h".repeat(20_000)),
        ];
        for ask in &asks {
            process.gateway.send(ask).await;
        }
        process.signal("-TERM");
        assert!(process.ended().await.success());
        let lines = log.end().await;
        let of_requests: Vec<_> = lines.iter().filter(|line| line.contains("request")).collect();
        assert!(of_requests.len() >= asks.len(), "{lines:?}");
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
async fn thirty_seconds_of_a_log_that_is_not_read() {
    stall(Duration::from_secs(30), Duration::from_millis(500)).await;
}

/// Not one of the usual ones, since it takes ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo test --test gateway -- --ignored ten_minutes"]
async fn ten_minutes_of_a_log_that_is_not_read() {
    stall(Duration::from_mins(10), Duration::ZERO).await;
}

/// Requests for so long while nothing reads what the process writes, with a pause between rounds.
async fn stall(long: Duration, pause: Duration) {
    let end = Instant::now() + long;
    let mut ends = None;
    let mut process = Process::start(setup("json"), into_pipes(&mut ends)).await;
    let mut answered = BTreeMap::<u16, u64>::new();
    let mut slowest = Duration::ZERO;
    let mut dropped = 0;
    while Instant::now() < end || dropped == 0 {
        for (ask, status) in [(good(), 200), (wrong(), 401)] {
            process.flood(&ask, 1_000, status).await;
            *answered.entry(status).or_default() += 1_000;
        }
        let begun = Instant::now();
        assert_eq!(process.admin.send(&Ask::new("GET", "/live")).await.status, 200);
        slowest = slowest.max(begun.elapsed());
        dropped = process.sum(DROPPED, "").await;
        tokio::time::sleep(pause).await;
    }
    process.signal("-TERM");
    assert!(process.ended().await.success());
    println!("answered {answered:?}, none failed; {dropped} lines dropped; slowest /live {slowest:?}");
}
