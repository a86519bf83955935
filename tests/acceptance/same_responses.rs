//! Through the gateway, every endpoint responds exactly as Rails does: the same status, type and bytes.

use super::cases::{self, AnsweredBy, Case};
use super::client::{Address, Request, Response};
use super::harness::{Gateway, Harness, Transport};

/// Over all pairs of TCP and unix sockets on both sides.
#[test]
fn every_request_gets_the_response_of_rails() {
    let harness = Harness::new();
    let gateways = [harness.gateway(Transport::Tcp), harness.gateway(Transport::Unix)];
    for Case { request: test_request, status, answered_by } in cases::equal() {
        let (name, request) = (&test_request.name, test_request.build());
        let direct = send_to_rails(&harness, &request);
        assert_eq!(direct.status, status, "{name} ({request}): Rails says {direct}");
        for address in gateways.iter().flat_map(Gateway::addresses) {
            let (arrived, response) = harness.arrivals(|| address.send(&request));
            let comparison = comparison(name, &request, &direct, &response);
            assert_eq!(comparable(&response), comparable(&direct), "{comparison}");
            match answered_by {
                AnsweredBy::Rails => assert_eq!(arrived, 1, "how often it reached Rails: {comparison}"),
                AnsweredBy::Gateway => assert_eq!(arrived, 0, "how often it reached Rails: {comparison}"),
                AnsweredBy::Either => assert!(arrived <= 1, "how often it reached Rails: {comparison}"),
            }
        }
    }
}

/// The gateway may refuse what Rails reads leniently, or normalize it. But it accepts no caller that Rails
/// would refuse, and stores nothing.
#[test]
fn unusual_requests_are_refused_or_left_to_rails() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    for test_request in cases::unusual() {
        let request = test_request.build();
        let direct = send_to_rails(&harness, &request);
        for _ in 0..2 {
            let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
            let is_left_to_rails = arrived == 1 && comparable(&response) == comparable(&direct);
            let is_refused = (400..500).contains(&response.status)
                && ["message", "error"].iter().any(|name| response.json()[name].is_string());
            let comparison = comparison(&test_request.name, &request, &direct, &response);
            assert!(is_left_to_rails || is_refused, "{arrived} reached Rails: {comparison}");
        }
    }
}

/// On a new connection, Puma answers these with a 400. On a reused one, it sends nothing and closes it 20 s
/// later (seen with 5.6.5). So they must not reach it.
#[test]
fn requests_that_puma_cannot_parse_are_refused() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let get = |target: &str| Request::get(target).with_secret();
    for request in [
        get(&format!("authorized_keys?key={}", "A".repeat(10_300))),
        get(&"a".repeat(8_300)),
        get("check").header(&"x".repeat(257), "1"),
        Request::new("get", "/api/v4/internal/check").with_secret(),
        Request::new("GET!", "/api/v4/internal/check").with_secret(),
        Request::new(&"M".repeat(21), "/api/v4/internal/check").with_secret(),
    ] {
        assert_eq!(gateway.tcp.send(&get("check/")).status, 200, "there is a connection to Rails");
        let response = gateway.tcp.send(&request);
        assert!((400..500).contains(&response.status), "{request}: {response}");
        assert!(response.json()["message"].is_string(), "{request}: {response}");
    }
}

/// kas keeps its connections. A request must not affect the next one.
#[test]
fn requests_over_one_connection_are_answered_independently() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Unix);
    let requests = [
        Request::get("kubernetes/agent_info").with_kas_token(),
        Request::get("check"),
        Request::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#).with_kas_token(),
        Request::get("discover?key_id=1").with_secret(),
        Request::get("discover?key_id=1"),
        Request::get("discover?key_id=1").with_shell_token(),
        Request::get("nothing"),
    ];
    let expected: Vec<_> =
        requests.iter().map(|request| comparable(&send_to_rails(&harness, request))).collect();
    for address in gateway.addresses() {
        let responses = address.send_all(&requests);
        assert_eq!(responses.iter().map(comparable).collect::<Vec<_>>(), expected);
    }
}

/// The logs of the gateway and of Rails are matched by the request id.
#[test]
fn the_request_id_of_the_caller_is_used_everywhere() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    for id in ["first-caller", "second-caller"] {
        for request in [Request::get("check").with_secret(), Request::post("pre_receive").with_secret()] {
            let response = gateway.tcp.send(&request.header("X-Request-Id", id));
            assert_eq!(response.header("X-Request-Id"), Some(id), "{response}");
        }
    }
    let response = gateway.tcp.send(&Request::get("check"));
    assert!(response.header("X-Request-Id").is_some_and(|id| !id.is_empty()), "{response}");
}

#[test]
fn the_relative_root_of_rails_is_supported() {
    let harness = Harness::with_root("/gitlab");
    for transport in [Transport::Tcp, Transport::Unix] {
        let gateway = harness.gateway(transport);
        for path in ["check", "kubernetes/agent_info", "nothing"] {
            let target = format!("/gitlab/api/v4/internal/{path}");
            let below = Request::new("GET", &target).with_secret().with_kas_token();
            let direct = comparable(&send_to_rails(&harness, &below));
            assert_eq!(comparable(&gateway.tcp.send(&below)), direct, "{below}");
            // Clients may omit the relative root.
            let bare = Request { target: target.replacen("/gitlab", "", 1), ..below };
            assert_eq!(comparable(&gateway.tcp.send(&bare)), direct, "{bare}");
        }
    }
}

/// Rails must respond alike on both of its sockets, or the comparison would be useless.
fn send_to_rails(harness: &Harness, request: &Request) -> Response {
    let responses = [&harness.tcp, &harness.unix].map(|address: &Address| address.send(request));
    assert_eq!(comparable(&responses[0]), comparable(&responses[1]), "{request}");
    let [response, _] = responses;
    response
}

fn comparison(name: &str, request: &Request, direct: &Response, response: &Response) -> String {
    format!("{name} ({request})\nRails:   {direct}\ngateway: {response}\n")
}

/// The parts of a response that clients look at.
fn comparable(response: &Response) -> (u16, [Option<String>; 4], String) {
    let headers = ["Content-Type", "Retry-After", "Allow", "Location"];
    let headers = headers.map(|name| response.header(name).map(str::to_owned));
    (response.status, headers, String::from_utf8_lossy(&response.body).into_owned())
}
