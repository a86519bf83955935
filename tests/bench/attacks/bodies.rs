//! The cost of bodies of unauthenticated clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::{Request, connect, send, send_in_two_pieces};
use super::fake_rails::{FakeRails, Script};
use super::gateway::{Gateway, Setup, secret_in_a_form};
use super::{AttackEnvironment, Figures, figure, mebibytes, time};
use crate::Fallible;
use crate::http_client::Address;

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(30);
const FORM: &str = "application/x-www-form-urlencoded";

pub(crate) async fn json(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    // Small objects: parsed as a tree, they take many times their text.
    let member = r#"{"":0},"#;
    let body = format!("[{}0]", member.repeat((MIB - 3) / member.len()));
    let request = Request::post("allowed", "application/json", body);
    let idle = gateway.memory();

    gateway.forget_peak();
    let (begun, mut outcomes) = (gateway.cpu(), Vec::new());
    for _ in 0..10 {
        outcomes.push(send(&gateway.tcp, &request, LIMIT).await);
    }
    let cpu = gateway.cpu_since(begun) / 10;
    let one = gateway.peak().saturating_sub(idle);
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let (address, request) = (gateway.tcp.clone(), request.clone());
        tasks.spawn(async move { send(&address, &request, LIMIT).await });
    }
    tasks.join_all().await;
    let many = gateway.peak().saturating_sub(idle);
    let status = outcomes.first().and_then(|outcome| outcome.status).unwrap_or(0);
    Ok(vec![
        figure("it got", status.to_string()),
        figure("CPU time each", format!("{:.1} ms", cpu.as_secs_f64() * 1e3)),
        figure("peak memory above idle, one at a time", mebibytes(one)),
        figure("peak memory above idle, 16 at one time", mebibytes(many)),
    ])
}

pub(crate) async fn stalled_forms(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let idle = gateway.memory();
    let form = Request::post("allowed", FORM, vec![b'a'; MIB]).bytes();
    let all_but_the_last: Arc<[u8]> = form.get(..form.len() - 1).unwrap_or_default().into();
    let _stalled = hold_open(&gateway.tcp, 66, all_but_the_last);
    sleep(Duration::from_secs(2)).await;
    let memory = gateway.memory().saturating_sub(idle);
    let honest = Request::post("allowed", FORM, secret_in_a_form());
    let honest = send_in_two_pieces(&gateway.tcp, &honest, LIMIT).await;
    Ok(vec![
        figure("a form with the secret in it, in two pieces", honest.summary()),
        figure("memory above idle", mebibytes(memory)),
    ])
}

pub(crate) async fn unread(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::ReadsTheHead)?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let idle = gateway.memory();
    let body = Request::post("nobody", "application/octet-stream", vec![0; 16 * MIB]);
    let _sending = hold_open(&gateway.tcp, 500, body.bytes().into());
    // The memory grows in steps, like the windows of the connections.
    sleep(Duration::from_secs(15)).await;
    let memory = gateway.memory().saturating_sub(idle);
    Ok(vec![figure("memory above idle", mebibytes(memory))])
}

/// Opens connections, sends these bytes as far as the gateway reads them, and keeps the connections open.
fn hold_open(address: &Address, count: usize, bytes: Arc<[u8]>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (address, bytes) = (address.clone(), Arc::clone(&bytes));
        tasks.spawn(async move {
            let Ok(mut stream) = connect(&address).await else { return };
            let _ = stream.write_all(&bytes).await;
            sleep(2 * LIMIT).await;
        });
    }
    tasks
}

pub(crate) async fn interim(environment: &AttackEnvironment) -> Fallible<Figures> {
    let seconds = Duration::from_secs(3);
    let rails = FakeRails::start(Script::Hints)?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let before = gateway.cpu();
    let outcome = send(&gateway.tcp, &Request::get("nobody"), seconds).await;
    let cpu = gateway.cpu_since(before);
    Ok(vec![
        figure("CPU time of the gateway until then", time(cpu)),
        figure("the client got, of at most 3 s", outcome.summary()),
    ])
}

pub(crate) async fn chunks(environment: &AttackEnvironment) -> Fallible<Figures> {
    let rails = FakeRails::start(Script::Answers(100))?;
    let gateway = Gateway::start(environment, &Setup::new(rails.port)).await?;
    let head = Request::new("POST", "/api/v4/internal/nobody")
        .header("Content-Type", "application/octet-stream")
        .header("Connection", "close")
        .header("Transfer-Encoding", "chunked");
    let mut figures = Figures::new();
    let one = [format!("{:x}\r\n", 6_000_000).as_bytes(), &vec![b'x'; 6_000_000], b"\r\n"].concat();
    let many = b"1\r\nx\r\n".repeat(1_000_000);
    for (what, body) in [("CPU time", many), ("CPU time for one chunk of 6,000,000 bytes", one)] {
        let before = gateway.cpu();
        let bytes = [head.bytes(), body, b"0\r\n\r\n".to_vec()].concat();
        let begun = Instant::now();
        let response = timeout(LIMIT, send_bytes(&gateway.tcp, &bytes)).await;
        let cpu = gateway.cpu_since(before);
        match response {
            Ok(Ok(response)) if response.starts_with(b"HTTP/1.1 404") => {
                figures.push(figure(what, format!("{:.0} ms", cpu.as_secs_f64() * 1e3)));
            }
            _ => figures.push(figure(what, format!("no answer, {}", time(begun.elapsed())))),
        }
    }
    Ok(figures)
}

/// Sends and reads at the same time, so that neither side blocks the other.
async fn send_bytes(address: &Address, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let (mut read, mut write) = tokio::io::split(connect(address).await?);
    let mut response = Vec::new();
    let (_, read) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut response));
    read.map(|_| response)
}
