//! Through the gateway, every endpoint answers as Rails does: the same status, type and bytes.

use super::cases::{self, By, Case};
use super::stage::{Gateway, Stage, Way};
use super::wire::{Answer, Ask, Peer};

/// Over all pairs of sockets: client to gateway, and gateway to Rails.
#[test]
fn every_question_gets_the_answer_of_rails() {
    let stage = Stage::new();
    let gateways = [stage.gateway(Way::Tcp), stage.gateway(Way::Unix)];
    for Case { question, status, answered_by } in cases::equal() {
        let (name, ask) = (&question.name, question.ask());
        let direct = directly(&stage, &ask);
        assert_eq!(direct.status, status, "{name} ({ask}): Rails says {direct}");
        for peer in gateways.iter().flat_map(Gateway::peers) {
            let (arrived, answer) = stage.arrivals(|| peer.send(&ask));
            let told = told(name, &ask, &direct, &answer);
            assert_eq!(essence(&answer), essence(&direct), "{told}");
            match answered_by {
                By::Rails => assert_eq!(arrived, 1, "how often it reached Rails: {told}"),
                By::Gateway => assert_eq!(arrived, 0, "how often it reached Rails: {told}"),
                By::Either => assert!(arrived <= 1, "how often it reached Rails: {told}"),
            }
        }
    }
}

/// What Rails reads in its own lenient way, the gateway may refuse, or make plain before Rails sees
/// it. But it lets nobody in whom Rails would not, and keeps nothing.
#[test]
fn odd_questions_are_refused_or_left_to_rails() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    for question in cases::odd() {
        let ask = question.ask();
        let direct = directly(&stage, &ask);
        for _ in 0..2 {
            let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
            let is_left_to_rails = arrived == 1 && essence(&answer) == essence(&direct);
            let is_refused = (400..500).contains(&answer.status)
                && ["message", "error"].iter().any(|name| answer.json()[name].is_string());
            let told = told(&question.name, &ask, &direct, &answer);
            assert!(is_left_to_rails || is_refused, "{arrived} reached Rails: {told}");
        }
    }
}

/// On a new connection, Puma answers these with a 400. On one that it has used before, as those of the
/// gateway are, it says nothing and closes it 20 s later (seen with 5.6.5). So they must not get there.
#[test]
fn what_puma_cannot_parse_does_not_get_there() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let get = |target: &str| Ask::get(target).with_secret();
    for ask in [
        get(&format!("authorized_keys?key={}", "A".repeat(10_300))),
        get(&"a".repeat(8_300)),
        get("check").header(&"x".repeat(257), "1"),
        Ask::new("get", "/api/v4/internal/check").with_secret(),
        Ask::new("GET!", "/api/v4/internal/check").with_secret(),
        Ask::new(&"M".repeat(21), "/api/v4/internal/check").with_secret(),
    ] {
        assert_eq!(gateway.tcp.send(&get("check/")).status, 200, "there is a connection to Rails");
        let answer = gateway.tcp.send(&ask);
        assert!((400..500).contains(&answer.status), "{ask}: {answer}");
        assert!(answer.json()["message"].is_string(), "{ask}: {answer}");
    }
}

/// kas keeps its connections. What one request was may not colour the next.
#[test]
fn many_questions_over_one_connection_are_answered_one_by_one() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Unix);
    let asks = [
        Ask::get("kubernetes/agent_info").with_kas_token(),
        Ask::get("check"),
        Ask::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#).with_kas_token(),
        Ask::get("discover?key_id=1").with_secret(),
        Ask::get("discover?key_id=1"),
        Ask::get("discover?key_id=1").with_shell_token(),
        Ask::get("nothing"),
    ];
    let expected: Vec<_> = asks.iter().map(|ask| essence(&directly(&stage, ask))).collect();
    for peer in gateway.peers() {
        let answers = peer.send_all(&asks);
        assert_eq!(answers.iter().map(essence).collect::<Vec<_>>(), expected);
    }
}

/// The two logs meet in the request id: the caller's reaches Rails, and comes back.
#[test]
fn the_request_id_is_the_callers_everywhere() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    for id in ["first-caller", "second-caller"] {
        for ask in [Ask::get("check").with_secret(), Ask::post("pre_receive").with_secret()] {
            let answer = gateway.tcp.send(&ask.header("X-Request-Id", id));
            assert_eq!(answer.header("X-Request-Id"), Some(id), "{answer}");
        }
    }
    let answer = gateway.tcp.send(&Ask::get("check"));
    assert!(answer.header("X-Request-Id").is_some_and(|id| !id.is_empty()), "{answer}");
}

#[test]
fn rails_may_live_below_a_path() {
    let stage = Stage::below("/gitlab");
    for way in [Way::Tcp, Way::Unix] {
        let gateway = stage.gateway(way);
        for path in ["check", "kubernetes/agent_info", "nothing"] {
            let target = format!("/gitlab/api/v4/internal/{path}");
            let below = Ask::new("GET", &target).with_secret().with_kas_token();
            let direct = essence(&directly(&stage, &below));
            assert_eq!(essence(&gateway.tcp.send(&below)), direct, "{below}");
            // Clients that were set up for the gateway alone need not know the path.
            let bare = Ask { target: target.replacen("/gitlab", "", 1), ..below };
            assert_eq!(essence(&gateway.tcp.send(&bare)), direct, "{bare}");
        }
    }
}

/// Rails answers alike on both of its sockets; were it not so, the comparison would be no use.
fn directly(stage: &Stage, ask: &Ask) -> Answer {
    let answers = [&stage.tcp, &stage.unix].map(|peer: &Peer| peer.send(ask));
    assert_eq!(essence(&answers[0]), essence(&answers[1]), "{ask}");
    let [answer, _] = answers;
    answer
}

fn told(name: &str, ask: &Ask, direct: &Answer, answer: &Answer) -> String {
    format!("{name} ({ask})\nRails:   {direct}\ngateway: {answer}\n")
}

/// What clients look at.
fn essence(answer: &Answer) -> (u16, [Option<String>; 4], String) {
    let headers = ["Content-Type", "Retry-After", "Allow", "Location"];
    let headers = headers.map(|name| answer.header(name).map(str::to_owned));
    (answer.status, headers, String::from_utf8_lossy(&answer.body).into_owned())
}
