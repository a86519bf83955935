//! Bodies of unauthenticated clients that are searched for a credential: their memory is bounded, and they
//! do not delay others.

use super::client::{Address, Connection, Request};
use super::fake_rails::{Behavior, FakeRails, Reply};
use super::harness::{Harness, Setup};
use super::large_bodies::GatewayProcess;

const KIBIBYTE: usize = 1024;
const MEBIBYTE: usize = 1024 * KIBIBYTE;
const WINDOW: usize = 16 * KIBIBYTE;

const BYTES: &str = "railgate_unverified_body_bytes";
const EVICTED: &str = "railgate_unverified_bodies_evicted_total";

/// A form of exactly this length, with the secret behind many parameters.
fn form(length: usize) -> String {
    let end = "&secret_token=s3cret";
    let mut form = "a%41=%42&".repeat(length / 9);
    form.truncate(length - end.len());
    let whole = form.rfind('&').unwrap_or(0);
    form.replace_range(whole.., &"x".repeat(form.len() - whole));
    form + end
}

/// JSON of exactly this length, with the secret at its end.
fn json(length: usize) -> String {
    let (begin, end) = (r#"{"changes":["#, r#"""],"secret_token":"s3cret"}"#);
    let room = length - begin.len() - end.len();
    let item = r#"{"a":[1,null],"b\u0041":"\"x"},"#;
    let items = item.repeat(room / item.len());
    let json = format!("{begin}{}{items}{end}", " ".repeat(room - items.len()));
    assert_eq!(json.len(), length);
    json
}

/// Sends a request except for its last bytes.
async fn stall(address: &Address, request: &Request, missing: usize) -> Connection {
    let mut connection = address.connect().await;
    let bytes = request.to_bytes("keep-alive");
    connection.write(&bytes[..bytes.len() - missing]).await;
    connection
}

/// Requests of all sizes with the secret in their bodies.
fn requests_with_secret_in_body() -> Vec<Request> {
    let mut requests = vec![Request::get("check").form("secret_token=s3cret")];
    for length in [50, 8 * KIBIBYTE, WINDOW, 100 * KIBIBYTE, MEBIBYTE] {
        requests.push(Request::post("allowed").form(&form(length)));
        requests.push(Request::post("allowed").form(&form(length)).chunked(5_000));
        requests.push(Request::post("allowed").json(&json(length.max(80))));
    }
    requests
}

async fn assert_requests_with_secret_are_answered(address: &Address) {
    for request in requests_with_secret_in_body() {
        assert_eq!(address.send(&request).await.status, 200, "{} bytes", request.body_bytes().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_with_the_secret_are_accepted_beside_stalled_ones() {
    for count in [66, 200] {
        let harness = Harness::new().await;
        let request = Request::post("allowed").form(&form(MEBIBYTE));
        let mut stalled = Vec::new();
        for _ in 0..count {
            stalled.push(stall(&harness.gateway.tcp, &request, 1).await);
        }
        assert_requests_with_secret_are_answered(&harness.gateway.tcp).await;
        assert!(harness.metric(EVICTED).await > Some(0));
        assert!(harness.metric(BYTES).await <= Some(16 * MEBIBYTE));
        assert_eq!(
            harness.rails.request_count(),
            requests_with_secret_in_body().len(),
            "Rails has none of those that stalled"
        );
        // The memory of disconnected clients is released.
        drop(stalled);
        harness.wait_for_metric(BYTES, 0).await;
    }
}

/// Also those without a length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_stalled_bodies_are_evicted() {
    let setup = Setup::new().text("auth.shell.max_body", "1MiB").text("auth.shell.max_unverified", "1MiB");
    let harness = setup.start().await;
    let mut stalled = Vec::new();
    for request in [
        Request::post("allowed").form(&form(WINDOW)),
        Request::post("allowed").form(&form(WINDOW)).chunked(1_000),
        Request::post("allowed").json(&json(200)),
    ] {
        for _ in 0..80 {
            stalled.push(stall(&harness.gateway.tcp, &request, 20).await);
        }
    }
    assert_requests_with_secret_are_answered(&harness.gateway.tcp).await;
    assert!(harness.metric(EVICTED).await > Some(0));
    assert!(harness.metric(BYTES).await <= Some(MEBIBYTE));
}

#[tokio::test]
async fn an_evicted_body_is_a_503() {
    let setup = Setup::new().text("auth.shell.max_body", "32KiB");
    let harness = setup.text("auth.shell.max_unverified", "32KiB").start().await;
    let form = form(32 * KIBIBYTE);
    let mut count = 0;
    for request in [
        Request::post("allowed").form(&form),
        Request::post("allowed").form(&form).chunked(3_000),
        Request::post("allowed").body(&form),
        Request::get("check").form(&form),
        Request::post("allowed").json(&json(32 * KIBIBYTE)),
    ] {
        let mut first = stall(&harness.gateway.tcp, &request, 10).await;
        harness.wait_for_metric(BYTES, 32 * KIBIBYTE).await;
        let small = Request::post("allowed").form("secret_token=s3cret");
        let mut second = stall(&harness.gateway.tcp, &small, 1).await;
        let response = first.read_response().await;
        response.assert_failure(503);
        assert_eq!(
            (response.header("retry-after"), response.header("connection")),
            (Some("1"), Some("close"))
        );
        assert_eq!(harness.metric(BYTES).await, Some(WINDOW));
        second.write(b"t").await;
        assert_eq!(second.read_response().await.status, 200);
        count += 1;
        harness.wait_for_metric(r#"railgate_failures_total{reason="unverified_bodies_full"}"#, count).await;
        assert_eq!((harness.metric(EVICTED).await, harness.metric(BYTES).await), (Some(count), Some(0)));
    }
    assert_eq!(harness.rails.request_count(), count);
}

/// Its bytes are not counted, it may be slow, and it may have any size.
#[tokio::test]
async fn a_body_after_a_credential_is_not_limited() {
    let setup = Setup::new().text("auth.shell.max_body", "32KiB");
    let harness = setup.text("auth.shell.max_unverified", "32KiB").start().await;
    harness.rails.set_behavior(Behavior::RespondAfterHead, |_| Reply::json(200, "{}"));
    let large = form(MEBIBYTE);
    for (nth, request) in [
        Request::post("allowed").with_secret().form(&large),
        Request::post("allowed").with_shell_token().form(&large),
        Request::post("allowed").with_shell_token().json(&json(MEBIBYTE)).chunked(50_000),
        Request::post("kubernetes/agent_configuration").with_kas_token().json(&json(MEBIBYTE)),
        Request::post("anything").form(&large),
    ]
    .iter()
    .enumerate()
    {
        let bytes = request.to_bytes("keep-alive");
        let mut connection = harness.gateway.tcp.connect().await;
        connection.write(&bytes[..bytes.len() / 2]).await;
        harness.rails.wait_for_requests(nth + 1).await;
        assert_eq!(
            (harness.metric(BYTES).await, harness.metric(EVICTED).await),
            (Some(0), Some(0)),
            "{request}"
        );
        connection.write(&bytes[bytes.len() / 2..]).await;
        assert_eq!(connection.read_response().await.status, 200);
    }
}

/// It is found wherever the body is split, and the last one counts.
#[tokio::test]
async fn a_credential_may_cross_a_window_boundary() {
    let harness = Harness::new().await;
    let (good, bad) = ("secret_token=s3cret", "secret_token=bad");
    for window in [1, 2, 4] {
        for before in 0..=good.len() + 1 {
            let padding = "x".repeat(window * WINDOW - before - bad.len() - 4);
            for (first, last, is_let_in) in [(bad, good, true), (good, bad, false)] {
                let form = format!("{first}&a={padding}&{last}&b=1");
                let request = Request::post("allowed").form(&form).chunked(WINDOW);
                let (response, arrived) = harness.send_counting(&request).await;
                assert_eq!(response.status == 200, is_let_in, "{before} bytes before the border: {response}");
                assert_eq!(arrived, usize::from(is_let_in));
                assert!(!is_let_in || harness.rails.last_request().body == form.as_bytes());
            }
            let json =
                format!(r#"{{"secret_token":"bad","a":"{padding}","secret\u005ftoken":"s3\u0063ret"}}"#);
            assert_eq!(harness.send(&Request::post("allowed").json(&json).chunked(WINDOW)).await.status, 200);
        }
    }
    harness.wait_for_metric(BYTES, 0).await;
}

/// The most by which the process may grow: the configured 16 MiB, the bodies with the secret, and buffers of
/// connections and of the allocator.
const MAX_GROWTH: u64 = 80 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unverified_bodies_take_bounded_memory() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new().set("workers", 2);
    let gateway = GatewayProcess::start(&setup, &rails.address).await;
    let address = Address::Unix(setup.socket());
    let before = gateway.resident();
    let request = Request::post("allowed").form(&form(MEBIBYTE));
    let mut stalled = Vec::new();
    for _ in 0..200 {
        stalled.push(stall(&address, &request, 1).await);
    }
    assert_requests_with_secret_are_answered(&address).await;
    let grown = gateway.peak() - before;
    println!("200 stalled forms of 1 MiB: {} KiB", grown / 1024);
    assert!(grown < MAX_GROWTH, "grown by {grown} bytes");
}

/// What the Ruby GitLab Shell sends for a push of so many refs with names of 100 characters.
fn push_form(refs: usize) -> String {
    let change =
        |nth: usize| format!("{nth:040x}+{:040x}+refs%2Fheads%2Ffeature%2F{nth:072}%2Fmirrored%0A", nth + 1);
    let changes: String = (0..refs).map(change).collect();
    format!("action=git-receive-pack&changes={changes}&gl_repository=project-7&secret_token=s3cret")
}

#[tokio::test]
async fn a_push_of_many_refs_is_searched_up_to_eight_mebibytes() {
    let harness = Harness::new().await;
    let ten_thousand = push_form(10_000);
    assert!(ten_thousand.len() > MEBIBYTE, "{}", ten_thousand.len());
    // As `config/README.md` says.
    let forty_thousand = push_form(40_000);
    println!("40,000 refs: {} bytes", forty_thousand.len());
    for (request, is_small_enough) in [
        (Request::post("allowed").form(&forty_thousand), true),
        (Request::post("allowed").form(&push_form(50_000)), false),
        (Request::post("allowed").form(&ten_thousand), true),
        (Request::post("allowed").form(&ten_thousand).chunked(16_000), true),
        (Request::post("allowed").body(&ten_thousand), true),
        (Request::post("pre_receive").json(&json(3 * MEBIBYTE)), true),
        (Request::post("allowed").form(&form(8 * MEBIBYTE)), true),
        (Request::post("allowed").form(&form(8 * MEBIBYTE + 1)), false),
        (Request::post("allowed").form(&form(8 * MEBIBYTE + 1)).chunked(16_000), false),
        (Request::post("allowed").json(&json(8 * MEBIBYTE)), true),
        (Request::post("allowed").json(&json(8 * MEBIBYTE + 1)), false),
    ] {
        let (response, arrived) = harness.send_counting(&request).await;
        let expected = if is_small_enough { (200, 1) } else { (413, 0) };
        assert_eq!((response.status, arrived), expected, "{} bytes", request.body_bytes().len());
        assert!(!is_small_enough || harness.rails.last_request().body == request.body_bytes());
    }
    harness.wait_for_metric(BYTES, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_bodies_take_no_more_memory_than_others() {
    let rails = FakeRails::listen_tcp().await;
    let setup = Setup::new().set("workers", 2);
    let gateway = GatewayProcess::start(&setup, &rails.address).await;
    let address = Address::Unix(setup.socket());
    let before = gateway.resident();
    let request = Request::post("allowed").form(&form(8 * MEBIBYTE));
    let mut stalled = Vec::new();
    for _ in 0..12 {
        stalled.push(stall(&address, &request, 1).await);
    }
    for request in [
        Request::post("allowed").form(&push_form(10_000)),
        Request::post("allowed").json(&json(7 * MEBIBYTE)),
        request,
    ] {
        assert_eq!(address.send(&request).await.status, 200, "{} bytes", request.body_bytes().len());
    }
    assert_requests_with_secret_are_answered(&address).await;
    let grown = gateway.peak() - before;
    println!("12 stalled forms of 8 MiB: {} KiB", grown / 1024);
    assert!(grown < MAX_GROWTH, "grown by {grown} bytes");
}

/// A parsed tree of these took 26 to 106 times their size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_document_costs_no_more_memory_than_its_bytes() {
    let rails = FakeRails::listen_tcp().await;
    for (what, unit) in [
        ("members", r#""a":0,"#),
        ("arrays", r#""a":[[[[[[]]]]]],"#),
        ("texts", r#""\u0061":"\u0061","#),
        ("numbers", r#""a":[1,2.5e-7,-3,1e300,18446744073709551615],"#),
        ("objects", r#""":{"":{}},"#),
    ] {
        let setup = Setup::new().set("workers", 2);
        let gateway = GatewayProcess::start(&setup, &rails.address).await;
        let address = Address::Unix(setup.socket());
        assert_eq!(
            address.send(&Request::post("allowed").json(r#"{"secret_token":"s3cret"}"#)).await.status,
            200
        );
        let before = gateway.peak();
        let count = (MEBIBYTE - 40) / unit.len();
        let json = format!(r#"{{{}"secret_token":"s3cret"}}"#, unit.repeat(count));
        for _ in 0..4 {
            assert_eq!(address.send(&Request::post("allowed").json(&json)).await.status, 200, "{what}");
        }
        let grown = gateway.peak() - before;
        println!("1 MiB of {what}: {} KiB", grown / 1024);
        assert!(grown < 12 << 20, "{what}: grown by {grown} bytes");
    }
}
