//! Many callers at once: one question to Rails, and no answer for anybody who should not have it.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::client::{Answer, Ask, Peer, Wire, eventually, soon};
use super::credentials::{SHELL_HEADER, now, shell_token};
use super::fake::{PADDED_KEY, ROOT_KEY, Reply, Valve, gitlab};
use super::stage::{Setup, Stage};

const IN_FLIGHT: &str = "railgate_requests_in_flight";

fn key() -> Ask {
    Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret()
}

/// Connections on each of which this request has been sent.
async fn all_ask(peer: &Peer, asks: impl IntoIterator<Item = Ask>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for ask in asks {
        let mut wire = peer.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        wires.push(wire);
    }
    wires
}

/// What comes back on each of them.
async fn all_answers(wires: Vec<Wire>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for mut wire in wires {
        answers.push(wire.answer().await);
    }
    answers
}

/// A thousand, or fewer where a process may not have as many files open.
fn crowd() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open_files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let open_files = open_files.and_then(|limit| limit.parse::<usize>().ok()).unwrap_or(1024);
    (open_files.saturating_sub(400) / 2).clamp(150, 1_000)
}

/// A small GitLab that holds its answers back.
async fn held_back(valve: &Valve) -> Stage {
    let valve = valve.clone();
    Stage::with(move |request| gitlab(request).after(&valve)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_are_one_question() {
    let valve = Valve::shut();
    let stage = held_back(&valve).await;
    let crowd = crowd();
    let wires = all_ask(&stage.gateway.tcp, vec![key(); crowd]).await;
    stage.reaches(IN_FLIGHT, crowd).await;
    stage.rails.has_got(1).await;
    assert_eq!(stage.rails.count(), 1);
    valve.open();
    let answers = all_answers(wires).await;
    let mut stored = 0;
    for answer in &answers {
        assert_eq!((answer.status, answer.json()["id"].as_u64()), (200, Some(1)), "{answer}");
        match answer.cache_status() {
            "railgate; fwd=miss; stored" => stored += 1,
            "railgate; fwd=miss; collapsed" => {
                // Not theirs.
                assert_eq!((answer.header("set-cookie"), answer.header("x-runtime")), (None, None));
                assert!(answer.header("age").is_some(), "{answer}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((stored, stage.rails.count()), (1, 1));
    let ids: HashSet<&str> = answers.iter().filter_map(|answer| answer.header("x-request-id")).collect();
    assert_eq!(ids.len(), crowd, "each has its own request id");
    stage.reaches(IN_FLIGHT, 0).await;
    stage.reaches("railgate_cache_flights", 0).await;
}

/// Whoever began to ask does not have to stay for the others to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_may_leave_and_the_others_are_answered() {
    for (crowd, leaving) in [(crowd(), crowd() / 10), (100, 1), (100, 99)] {
        let valve = Valve::shut();
        let stage = held_back(&valve).await;
        let mut wires = all_ask(&stage.gateway.tcp, [key()]).await;
        stage.rails.has_got(1).await;
        wires.extend(all_ask(&stage.gateway.tcp, vec![key(); crowd - 1]).await);
        stage.reaches(IN_FLIGHT, crowd).await;
        let staying = wires.split_off(leaving);
        drop(wires);
        stage.reaches(IN_FLIGHT, staying.len()).await;
        stage.reaches("railgate_clients_gone_total", leaving).await;
        valve.open();
        for answer in all_answers(staying).await {
            assert_eq!((answer.status, answer.json()["id"].as_u64()), (200, Some(1)), "{answer}");
            assert_eq!(answer.cache_status(), "railgate; fwd=miss; collapsed");
        }
        assert_eq!(stage.rails.count(), 1);
        assert!(stage.send(&key()).await.is_hit());
    }
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_kept_all_the_same() {
    let valve = Valve::shut();
    let stage = held_back(&valve).await;
    drop(all_ask(&stage.gateway.tcp, [key()]).await);
    stage.rails.has_got(1).await;
    stage.reaches(IN_FLIGHT, 0).await;
    let wires = all_ask(&stage.gateway.tcp, [key()]).await;
    stage.reaches(IN_FLIGHT, 1).await;
    valve.open();
    for answer in all_answers(wires).await {
        assert_eq!(answer.cache_status(), "railgate; fwd=miss; collapsed");
    }
    assert_eq!(stage.rails.count(), 1);
}

/// Whatever the spelling, it is the same question.
#[tokio::test]
async fn spellings_of_one_question_wait_for_the_same_answer() {
    let valve = Valve::shut();
    let stage = held_back(&valve).await;
    let padded = PADDED_KEY.replace('+', "%2B");
    let target = |key: &str| format!("authorized_keys?key={key}");
    let asks = [
        Ask::get(&target(&padded)).with_secret(),
        Ask::get(&target(padded.trim_end_matches('='))).with_shell_token(),
        Ask::get(&target(&padded.replace('/', "%2F"))).form("secret_token=s3cret"),
        Ask::get(&format!("{}&secret_token=s3cret", target(&padded))),
    ];
    let count = asks.len();
    let mut wires = all_ask(&stage.gateway.tcp, asks.clone()).await;
    stage.reaches(IN_FLIGHT, count).await;
    stage.rails.has_got(1).await;
    assert_eq!(stage.rails.count(), 1);
    valve.open();
    for (wire, ask) in wires.iter_mut().zip(&asks) {
        assert_eq!(wire.answer_to(ask).await.status, 200);
    }
    assert_eq!(stage.rails.count(), 1);
}

/// Different questions do not wait for each other.
#[tokio::test]
async fn one_slow_answer_holds_nobody_else_up() {
    let valve = Valve::shut();
    let slow = valve.clone();
    let stage = Stage::with(move |request| {
        if request.is_for("authorized_keys") { gitlab(request).after(&slow) } else { gitlab(request) }
    })
    .await;
    let wires = all_ask(&stage.gateway.tcp, vec![key(); 20]).await;
    stage.reaches(IN_FLIGHT, 20).await;
    for target in ["check", "discover?key_id=1", "discover?username=root"] {
        assert_eq!(stage.send(&Ask::get(target).with_secret()).await.status, 200);
    }
    assert_eq!(stage.send(&Ask::post("allowed").with_secret()).await.status, 200);
    valve.open();
    assert!(all_answers(wires).await.iter().all(|answer| answer.status == 200));
    assert_eq!(stage.rails.count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_of_many_callers_are_as_many_as_there_are_questions() {
    let valve = Valve::shut();
    let stage = held_back(&valve).await;
    let ask = |id: usize| Ask::get(&format!("discover?key_id={id}")).with_secret();
    let asks = (0..300).map(|index| ask(1_000 + index % 30));
    let wires = all_ask(&stage.gateway.tcp, asks).await;
    stage.reaches(IN_FLIGHT, 300).await;
    stage.reaches("railgate_cache_flights", 30).await;
    valve.open();
    assert!(all_answers(wires).await.iter().all(|answer| answer.text() == "null"));
    assert_eq!(stage.rails.count(), 30);
}

/// An answer that is not for keeping was meant for one caller. Each of the others asks by itself,
/// under its own name and by its own credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_shared_is_for_the_first_alone() {
    let row = |id: usize| format!(r#"{{"id":{id},"key":"ssh-ed25519 {ROOT_KEY} u"}}"#);
    let elses = format!(r#"{{"id":1,"key":"ssh-ed25519 {PADDED_KEY} u"}}"#);
    let unshared = [
        (Reply::json(500, r#"{"message":"500 Internal Server Error"}"#), 500),
        (Reply::json(401, r#"{"message":"401 Unauthorized"}"#), 401),
        (Reply::json(403, "{}"), 403),
        (Reply::json(429, "{}"), 429),
        (Reply::json(503, "{}"), 503),
        (Reply::json(200, "null"), 200),
        (Reply::new(200, "Content-Type: text/html\r\n", row(1)), 200),
        (Reply::json(200, &elses), 502),
        (Reply::hang_up(), 502),
        (
            Reply::bytes("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
                .then_close(),
            502,
        ),
    ];
    for (reply, status) in unshared {
        let valve = Valve::shut();
        let (held, first) = (valve.clone(), reply.clone());
        let stage = Stage::with(move |request| {
            if request.nth == 0 { first.clone().after(&held) } else { Reply::json(200, &row(request.nth)) }
        })
        .await;
        let named = |index: usize| {
            let token = shell_token(&json!({ "gl_id": format!("user-{index}") }));
            Ask::get(&format!("authorized_keys?key={ROOT_KEY}"))
                .header(SHELL_HEADER, &token)
                .header("X-Request-Id", &format!("caller-{index}"))
        };
        let asks: Vec<Ask> = (0..20).map(named).collect();
        let mut wires = all_ask(&stage.gateway.tcp, asks[..1].to_vec()).await;
        stage.rails.has_got(1).await;
        wires.extend(all_ask(&stage.gateway.tcp, asks[1..].to_vec()).await);
        stage.reaches(IN_FLIGHT, 20).await;
        valve.open();
        let answers = all_answers(wires).await;
        assert_eq!(answers[0].status, status, "{reply:?}: {}", answers[0]);
        let mut ids = HashSet::new();
        for answer in &answers[1..] {
            assert_eq!(answer.status, 200, "{reply:?}: {answer}");
            assert!(answer.cache_status().starts_with("railgate; fwd=miss"), "{answer}");
            ids.insert(answer.json()["id"].as_u64());
        }
        assert_eq!((ids.len(), stage.rails.count()), (19, 20), "{reply:?}");
        let mut seen: Vec<(String, String)> = stage
            .rails
            .requests()
            .iter()
            .map(|request| {
                let of = |name| request.header(name).unwrap_or_default().to_owned();
                (of("X-Request-Id"), of(SHELL_HEADER))
            })
            .collect();
        let mut sent: Vec<(String, String)> =
            asks.iter().map(|ask| (ask.headers[1].1.clone(), ask.headers[0].1.clone())).collect();
        seen.sort();
        sent.sort();
        assert_eq!(seen, sent, "each asked under its own name");
    }
}

/// A Rails that hangs up on the one who asks for all, and then again, is not asked by all of them.
#[tokio::test]
async fn a_rails_that_hangs_up_twice_is_not_asked_by_the_crowd() {
    let stage = Setup::new().set("upstream.resend_percent", 100).start().await;
    let valve = Valve::shut();
    stage.rails.always(Reply::hang_up().after(&valve));
    let wires = all_ask(&stage.gateway.tcp, vec![key(); 20]).await;
    stage.reaches(IN_FLIGHT, 20).await;
    valve.open();
    for answer in all_answers(wires).await {
        answer.assert_failure(502);
    }
    assert_eq!(stage.rails.count(), 2);
    stage.reaches(r#"railgate_failures_total{reason="upstream_broke_off"}"#, 20).await;
}

/// Waiting together is no credential, and being refused takes no waiting.
#[tokio::test]
async fn each_who_waits_was_let_in_by_itself() {
    let valve = Valve::shut();
    let stage = held_back(&valve).await;
    let wires = all_ask(&stage.gateway.tcp, vec![key(); 20]).await;
    stage.reaches(IN_FLIGHT, 20).await;
    let target = format!("authorized_keys?key={ROOT_KEY}");
    for stranger in [
        Ask::get(&target),
        Ask::get(&target).header("Gitlab-Shared-Secret", "eHh4"),
        Ask::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "exp": now() - 120 }))),
        Ask::get(&format!("{target}&secret_token=bad")).with_secret(),
        Ask::get(&target).form("secret_token=bad"),
    ] {
        stage.send(&stranger).await.assert_unauthorized();
    }
    valve.open();
    assert!(all_answers(wires).await.iter().all(|answer| answer.status == 200));
    assert_eq!(stage.rails.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_strangers_never_gets_what_is_in_memory() {
    let stage = Arc::new(Stage::new().await);
    assert_eq!(stage.send(&key()).await.status, 200);
    let mut tasks = Vec::new();
    for index in 0..8 {
        let stage = Arc::clone(&stage);
        tasks.push(tokio::spawn(async move {
            let mut wire = stage.gateway.tcp.connect().await;
            let target = format!("authorized_keys?key={ROOT_KEY}");
            for round in 0..50 {
                if (index + round) % 2 == 0 {
                    assert!(wire.exchange(&key()).await.is_hit());
                } else {
                    wire.exchange(&Ask::get(&target)).await.assert_unauthorized();
                }
            }
        }));
    }
    for task in tasks {
        soon("a caller to finish", task).await.unwrap();
    }
    assert_eq!(stage.rails.count(), 1);
    stage.reaches(r#"railgate_auth_refusals_total{reason="missing"}"#, 200).await;
}

/// Strangers who take their time over large bodies do not keep those out who show their secret in
/// a small one.
#[tokio::test]
async fn slow_strangers_hold_up_nobody_with_a_form() {
    let stage = Stage::new().await;
    let head = "POST /api/v4/internal/allowed HTTP/1.1\r\nHost: a\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n";
    let mut wires = Vec::new();
    for index in 0..100 {
        let mut wire = stage.gateway.tcp.connect().await;
        let framing = match index % 2 {
            0 => "Content-Length: 1048575\r\n\r\na",
            _ => "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        };
        wire.write(format!("{head}{framing}").as_bytes()).await;
        wires.push(wire);
    }
    stage.reaches(IN_FLIGHT, 100).await;
    let answer = stage.send(&Ask::get("check").form("secret_token=s3cret")).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(stage.metric(IN_FLIGHT).await, Some(100), "the strangers had to be thrown out first");
}

/// Nobody waits for ever on somebody else's behalf.
#[tokio::test]
async fn who_has_waited_long_enough_asks_by_itself() {
    let valve = Valve::shut();
    let stage = Setup::new().text("cache.wait", "50ms").start().await;
    let held = valve.clone();
    stage.rails.answer(
        move |request| {
            if request.nth == 0 { gitlab(request).after(&held) } else { gitlab(request) }
        },
    );
    let first = all_ask(&stage.gateway.tcp, [key()]).await;
    stage.rails.has_got(1).await;
    let answer = stage.send(&key()).await;
    assert_eq!((answer.status, answer.cache_status()), (200, "railgate; fwd=miss; detail=alone"));
    assert_eq!(stage.rails.count(), 2);
    valve.open();
    assert_eq!(all_answers(first).await[0].cache_status(), "railgate; fwd=miss; stored");
    assert!(stage.send(&key()).await.is_hit());
}

/// While Rails does not answer, everybody gets a failure, and the next one an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_before_a_silent_rails_is_told_so() {
    let stage = Setup::new().text("upstream.response_timeout", "200ms").start().await;
    stage.rails.always(Reply::silence());
    let wires = all_ask(&stage.gateway.tcp, vec![key(); 50]).await;
    for answer in all_answers(wires).await {
        assert!(matches!(answer.status, 502 | 504), "{answer}");
        answer.assert_failure(answer.status);
    }
    stage.rails.recover();
    // Rails is well again, but on a busy machine it may be late for once.
    let answer = eventually("an answer", async || {
        let answer = stage.send(&key()).await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.await.cache_status(), "railgate; fwd=miss; stored");
    stage.reaches("railgate_cache_flights", 0).await;
}
