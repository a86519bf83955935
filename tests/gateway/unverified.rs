//! Bodies that are searched for a credential, by clients that have shown none: what they can take from others.

use super::client::{Ask, Peer, Wire};
use super::fake::{Manners, Rails, Reply};
use super::large::Gateway;
use super::stage::{Setup, Stage};

const KIBIBYTE: usize = 1024;
const MEBIBYTE: usize = 1024 * KIBIBYTE;
const WINDOW: usize = 16 * KIBIBYTE;

const BYTES: &str = "railgate_unverified_body_bytes";
const EVICTED: &str = "railgate_unverified_bodies_evicted_total";

/// A form of exactly this length that shows the secret, behind many parameters.
fn form(length: usize) -> String {
    let end = "&secret_token=s3cret";
    let mut form = "a%41=%42&".repeat(length / 9);
    form.truncate(length - end.len());
    let whole = form.rfind('&').unwrap_or(0);
    form.replace_range(whole.., &"x".repeat(form.len() - whole));
    form + end
}

/// JSON of exactly this length that does.
fn json(length: usize) -> String {
    let (begin, end) = (r#"{"changes":["#, r#"""],"secret_token":"s3cret"}"#);
    let room = length - begin.len() - end.len();
    let item = r#"{"a":[1,null],"b\u0041":"\"x"},"#;
    let items = item.repeat(room / item.len());
    let json = format!("{begin}{}{items}{end}", " ".repeat(room - items.len()));
    assert_eq!(json.len(), length);
    json
}

/// All of a request but its last bytes.
async fn stall(peer: &Peer, ask: &Ask, missing: usize) -> Wire {
    let mut wire = peer.connect().await;
    let bytes = ask.to_bytes("keep-alive");
    wire.write(&bytes[..bytes.len() - missing]).await;
    wire
}

/// Honest callers of all sizes, who show the secret in their bodies.
fn honest() -> Vec<Ask> {
    let mut asks = vec![Ask::get("check").form("secret_token=s3cret")];
    for length in [50, 8 * KIBIBYTE, WINDOW, 100 * KIBIBYTE, MEBIBYTE] {
        asks.push(Ask::post("allowed").form(&form(length)));
        asks.push(Ask::post("allowed").form(&form(length)).chunked(5_000));
        asks.push(Ask::post("allowed").json(&json(length.max(80))));
    }
    asks
}

async fn assert_honest_are_answered(peer: &Peer) {
    for ask in honest() {
        assert_eq!(peer.send(&ask).await.status, 200, "{} bytes", ask.plain_body().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_bodies_are_judged_at_once_beside_any_number_that_have_stalled() {
    for count in [66, 200] {
        let stage = Stage::new().await;
        let ask = Ask::post("allowed").form(&form(MEBIBYTE));
        let mut stalled = Vec::new();
        for _ in 0..count {
            stalled.push(stall(&stage.gateway.tcp, &ask, 1).await);
        }
        assert_honest_are_answered(&stage.gateway.tcp).await;
        assert!(stage.metric(EVICTED).await > Some(0));
        assert!(stage.metric(BYTES).await <= Some(16 * MEBIBYTE));
        assert_eq!(stage.rails.count(), honest().len(), "Rails has none of those that stalled");
        // The memory of those that leave comes back.
        drop(stalled);
        stage.reaches(BYTES, 0).await;
    }
}

/// Many small ones are no better than a few large ones, nor are those that say nothing of their length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_bodies_that_have_stalled_are_no_better() {
    let setup = Setup::new().text("auth.shell.max_body", "1MiB").text("auth.shell.max_unverified", "1MiB");
    let stage = setup.start().await;
    let mut stalled = Vec::new();
    for ask in [
        Ask::post("allowed").form(&form(WINDOW)),
        Ask::post("allowed").form(&form(WINDOW)).chunked(1_000),
        Ask::post("allowed").json(&json(200)),
    ] {
        for _ in 0..80 {
            stalled.push(stall(&stage.gateway.tcp, &ask, 20).await);
        }
    }
    assert_honest_are_answered(&stage.gateway.tcp).await;
    assert!(stage.metric(EVICTED).await > Some(0));
    assert!(stage.metric(BYTES).await <= Some(MEBIBYTE));
}

#[tokio::test]
async fn a_body_that_gave_way_is_told_so() {
    let setup = Setup::new().text("auth.shell.max_body", "32KiB");
    let stage = setup.text("auth.shell.max_unverified", "32KiB").start().await;
    let form = form(32 * KIBIBYTE);
    let mut count = 0;
    for ask in [
        Ask::post("allowed").form(&form),
        Ask::post("allowed").form(&form).chunked(3_000),
        Ask::post("allowed").body(&form),
        Ask::get("check").form(&form),
        Ask::post("allowed").json(&json(32 * KIBIBYTE)),
    ] {
        let mut first = stall(&stage.gateway.tcp, &ask, 10).await;
        stage.reaches(BYTES, 32 * KIBIBYTE).await;
        let small = Ask::post("allowed").form("secret_token=s3cret");
        let mut second = stall(&stage.gateway.tcp, &small, 1).await;
        let answer = first.answer().await;
        answer.assert_failure(503);
        assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("1"), Some("close")));
        assert_eq!(stage.metric(BYTES).await, Some(WINDOW));
        second.write(b"t").await;
        assert_eq!(second.answer().await.status, 200);
        count += 1;
        stage.reaches(r#"railgate_failures_total{reason="unverified_bodies_full"}"#, count).await;
        assert_eq!((stage.metric(EVICTED).await, stage.metric(BYTES).await), (Some(count), Some(0)));
    }
    assert_eq!(stage.rails.count(), count);
}

/// Neither is it charged, nor does it have to come soon, nor has it a limit.
#[tokio::test]
async fn a_body_behind_a_credential_is_not_concerned() {
    let setup = Setup::new().text("auth.shell.max_body", "32KiB");
    let stage = setup.text("auth.shell.max_unverified", "32KiB").start().await;
    stage.rails.behave(Manners::Hasty, |_| Reply::json(200, "{}"));
    let large = form(MEBIBYTE);
    for (nth, ask) in [
        Ask::post("allowed").with_secret().form(&large),
        Ask::post("allowed").with_shell_token().form(&large),
        Ask::post("allowed").with_shell_token().json(&json(MEBIBYTE)).chunked(50_000),
        Ask::post("kubernetes/agent_configuration").with_kas_token().json(&json(MEBIBYTE)),
        Ask::post("anything").form(&large),
    ]
    .iter()
    .enumerate()
    {
        let bytes = ask.to_bytes("keep-alive");
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&bytes[..bytes.len() / 2]).await;
        stage.rails.has_got(nth + 1).await;
        assert_eq!((stage.metric(BYTES).await, stage.metric(EVICTED).await), (Some(0), Some(0)), "{ask}");
        wire.write(&bytes[bytes.len() / 2..]).await;
        assert_eq!(wire.answer().await.status, 200);
    }
}

/// The credential is found wherever a body is cut, and the last one counts.
#[tokio::test]
async fn a_credential_may_lie_across_the_border_of_a_window() {
    let stage = Stage::new().await;
    let (good, bad) = ("secret_token=s3cret", "secret_token=bad");
    for window in [1, 2, 4] {
        for before in 0..=good.len() + 1 {
            let padding = "x".repeat(window * WINDOW - before - bad.len() - 4);
            for (first, last, is_let_in) in [(bad, good, true), (good, bad, false)] {
                let form = format!("{first}&a={padding}&{last}&b=1");
                let ask = Ask::post("allowed").form(&form).chunked(WINDOW);
                let (answer, arrived) = stage.send_counting(&ask).await;
                assert_eq!(answer.status == 200, is_let_in, "{before} bytes before the border: {answer}");
                assert_eq!(arrived, usize::from(is_let_in));
                assert!(!is_let_in || stage.rails.last().body == form.as_bytes());
            }
            let json =
                format!(r#"{{"secret_token":"bad","a":"{padding}","secret\u005ftoken":"s3\u0063ret"}}"#);
            assert_eq!(stage.send(&Ask::post("allowed").json(&json).chunked(WINDOW)).await.status, 200);
        }
    }
    stage.reaches(BYTES, 0).await;
}

/// How much the process may grow by: the 16 MiB that are configured, what the honest take, and buffers of
/// connections and of the allocator.
const MOST: u64 = 80 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_clients_without_a_credential_take_bounded_memory() {
    let rails = Rails::on_tcp().await;
    let setup = Setup::new().set("workers", 2);
    let gateway = Gateway::start(&setup, &rails.peer).await;
    let peer = Peer::Unix(setup.socket());
    let before = gateway.resident();
    let ask = Ask::post("allowed").form(&form(MEBIBYTE));
    let mut stalled = Vec::new();
    for _ in 0..200 {
        stalled.push(stall(&peer, &ask, 1).await);
    }
    assert_honest_are_answered(&peer).await;
    let grown = gateway.peak() - before;
    println!("200 stalled forms of 1 MiB: {} KiB", grown / 1024);
    assert!(grown < MOST, "grown by {grown} bytes");
}

/// What a GitLab Shell in Ruby sends for a push of so many refs.
fn push(refs: usize) -> String {
    let change =
        |nth: usize| format!("{nth:040x}+{:040x}+refs%2Fheads%2Ffeature%2F{nth}%2Fmirrored%0A", nth + 1);
    let changes: String = (0..refs).map(change).collect();
    format!("action=git-receive-pack&changes={changes}&gl_repository=project-7&secret_token=s3cret")
}

#[tokio::test]
async fn a_push_of_many_refs_is_searched_up_to_eight_mebibytes() {
    let stage = Stage::new().await;
    let ten_thousand = push(10_000);
    assert!(ten_thousand.len() > MEBIBYTE, "{}", ten_thousand.len());
    for (ask, is_small_enough) in [
        (Ask::post("allowed").form(&ten_thousand), true),
        (Ask::post("allowed").form(&ten_thousand).chunked(16_000), true),
        (Ask::post("allowed").body(&ten_thousand), true),
        (Ask::post("pre_receive").json(&json(3 * MEBIBYTE)), true),
        (Ask::post("allowed").form(&form(8 * MEBIBYTE)), true),
        (Ask::post("allowed").form(&form(8 * MEBIBYTE + 1)), false),
        (Ask::post("allowed").form(&form(8 * MEBIBYTE + 1)).chunked(16_000), false),
        (Ask::post("allowed").json(&json(8 * MEBIBYTE)), true),
        (Ask::post("allowed").json(&json(8 * MEBIBYTE + 1)), false),
    ] {
        let (answer, arrived) = stage.send_counting(&ask).await;
        let expected = if is_small_enough { (200, 1) } else { (413, 0) };
        assert_eq!((answer.status, arrived), expected, "{} bytes", ask.plain_body().len());
        assert!(!is_small_enough || stage.rails.last().body == ask.plain_body());
    }
    stage.reaches(BYTES, 0).await;
}

/// As many bytes as of small ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_bodies_take_no_more_memory_than_others() {
    let rails = Rails::on_tcp().await;
    let setup = Setup::new().set("workers", 2);
    let gateway = Gateway::start(&setup, &rails.peer).await;
    let peer = Peer::Unix(setup.socket());
    let before = gateway.resident();
    let ask = Ask::post("allowed").form(&form(8 * MEBIBYTE));
    let mut stalled = Vec::new();
    for _ in 0..12 {
        stalled.push(stall(&peer, &ask, 1).await);
    }
    for ask in [Ask::post("allowed").form(&push(10_000)), Ask::post("allowed").json(&json(7 * MEBIBYTE)), ask]
    {
        assert_eq!(peer.send(&ask).await.status, 200, "{} bytes", ask.plain_body().len());
    }
    assert_honest_are_answered(&peer).await;
    let grown = gateway.peak() - before;
    println!("12 stalled forms of 8 MiB: {} KiB", grown / 1024);
    assert!(grown < MOST, "grown by {grown} bytes");
}

/// A tree of these took 26 to 106 times their size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_costs_no_more_memory_than_its_bytes() {
    let rails = Rails::on_tcp().await;
    for (what, unit) in [
        ("members", r#""a":0,"#),
        ("arrays", r#""a":[[[[[[]]]]]],"#),
        ("texts", r#""\u0061":"\u0061","#),
        ("numbers", r#""a":[1,2.5e-7,-3,1e300,18446744073709551615],"#),
        ("objects", r#""":{"":{}},"#),
    ] {
        let setup = Setup::new().set("workers", 2);
        let gateway = Gateway::start(&setup, &rails.peer).await;
        let peer = Peer::Unix(setup.socket());
        assert_eq!(peer.send(&Ask::post("allowed").json(r#"{"secret_token":"s3cret"}"#)).await.status, 200);
        let before = gateway.peak();
        let count = (MEBIBYTE - 40) / unit.len();
        let json = format!(r#"{{{}"secret_token":"s3cret"}}"#, unit.repeat(count));
        for _ in 0..4 {
            assert_eq!(peer.send(&Ask::post("allowed").json(&json)).await.status, 200, "{what}");
        }
        let grown = gateway.peak() - before;
        println!("1 MiB of {what}: {} KiB", grown / 1024);
        assert!(grown < 12 << 20, "{what}: grown by {grown} bytes");
    }
}
