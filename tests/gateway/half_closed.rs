//! Clients that close their sending side behind their request, and still read. What is there at once is for them;
//! what has to be waited for is given up.

use super::client::{Ask, Wire};
use super::fake::{ROOT_KEY, Reply, Valve};
use super::stage::{Setup, Stage};

const GONE: &str = "railgate_clients_gone_total";
const IN_FLIGHT: &str = "railgate_requests_in_flight";

/// What comes of these bytes and the end behind them.
async fn ended(stage: &Stage, is_unix: bool, bytes: &[u8]) -> Wire {
    let peer = if is_unix { &stage.gateway.unix } else { &stage.gateway.tcp };
    let mut wire = peer.connect().await;
    wire.write(bytes).await;
    wire.finish().await;
    wire
}

#[tokio::test]
async fn what_is_in_memory_is_answered() {
    let stage = Stage::new().await;
    let key = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let asks = [key.clone(), Ask::get("discover?key_id=1").with_secret(), Ask::get("check").with_secret()];
    for ask in &asks {
        stage.send(ask).await;
    }
    let arrived = stage.rails.count();
    for is_unix in [false, true] {
        for connection in ["keep-alive", "close"] {
            for ask in &asks {
                let mut wire = ended(&stage, is_unix, &ask.to_bytes(connection)).await;
                let answer = wire.answer_to(ask).await;
                assert!(answer.status == 200 && answer.is_hit(), "{answer}");
                assert_eq!(wire.rest().await, b"");
            }
            // All that were sent before the end.
            let row: Vec<u8> = asks.iter().flat_map(|ask| ask.to_bytes("keep-alive")).collect();
            let mut wire = ended(&stage, is_unix, &row.repeat(20)).await;
            for ask in asks.iter().cycle().take(60) {
                assert!(wire.answer_to(ask).await.is_hit());
            }
            assert_eq!(wire.rest().await, b"");
            // The end comes later than the request, and the answer before or behind it.
            let peer = if is_unix { &stage.gateway.unix } else { &stage.gateway.tcp };
            let mut wire = peer.connect().await;
            wire.write(&key.to_bytes(connection)).await;
            tokio::task::yield_now().await;
            wire.finish().await;
            assert!(wire.answer_to(&key).await.is_hit());
            assert_eq!(wire.rest().await, b"");
        }
    }
    stage.reaches(IN_FLIGHT, 0).await;
    assert_eq!((stage.rails.count(), stage.metric(GONE).await), (arrived, Some(0)));
}

/// An answer that its client does not take at once is sent to its end, too.
#[tokio::test]
async fn a_large_answer_from_memory_is_sent_to_its_end() {
    let stage = Setup::new().text("cache.max_body", "1MiB").start().await;
    let padding = "x".repeat(900 * 1024);
    let body = format!(r#"{{"id":1,"username":"root","name":"{padding}"}}"#);
    stage.rails.always(Reply::json(200, &body));
    let ask = Ask::get("discover?key_id=1").with_secret();
    stage.send(&ask).await;
    for is_unix in [false, true] {
        let row: Vec<u8> = ask.to_bytes("keep-alive").repeat(4);
        let mut wire = ended(&stage, is_unix, &row).await;
        for _ in 0..4 {
            let answer = wire.answer_to(&ask).await;
            assert!(answer.is_hit() && answer.body.len() == body.len());
        }
        assert_eq!(wire.rest().await, b"");
    }
    assert_eq!((stage.rails.count(), stage.metric(GONE).await), (1, Some(0)));
}

#[tokio::test]
async fn a_refusal_is_answered() {
    let stage = Stage::new().await;
    for (bytes, status) in [
        (Ask::get("check").to_bytes("keep-alive"), 401),
        (Ask::get("kubernetes/agent_info").to_bytes("close"), 401),
        (Ask::new("GET", "/elsewhere").to_bytes("keep-alive"), 404),
        (Ask::get("check;a").to_bytes("keep-alive"), 400),
        (b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "b".repeat(70_000)).into_bytes(), 431),
    ] {
        for is_unix in [false, true] {
            let mut wire = ended(&stage, is_unix, &bytes).await;
            assert_eq!(wire.answer().await.status, status);
            assert_eq!(wire.rest().await, b"");
        }
    }
    for path in ["/live", "/ready"] {
        let mut wire = stage.gateway.admin.connect().await;
        wire.write(&Ask::new("GET", path).to_bytes("close")).await;
        wire.finish().await;
        assert_eq!(wire.answer().await.status, 200);
    }
    assert_eq!(stage.rails.count(), 0);
}

/// Neither is a refusal waited for whose reason is in a body that is there.
#[tokio::test]
async fn a_refusal_that_a_body_leads_to_is_answered() {
    let stage = Stage::new().await;
    let body = format!("project={}&secret_token=bad", "x".repeat(100_000));
    for ask in [
        Ask::post("allowed").json("{}"),
        Ask::post("allowed").form("secret_token=bad"),
        Ask::post("allowed").form(&body),
        Ask::post("allowed").json(&format!(r#"{{"project":"{}"}}"#, "x".repeat(100_000))),
        Ask::get("check").form("secret_token=bad"),
    ] {
        for ask in [ask.clone(), ask.clone().chunked(7_000), ask.chunked(3)] {
            for is_unix in [false, true] {
                for connection in ["close", "keep-alive"] {
                    let mut wire = ended(&stage, is_unix, &ask.to_bytes(connection)).await;
                    wire.answer().await.assert_unauthorized();
                    assert_eq!(wire.rest().await, b"");
                }
            }
        }
    }
    // If it leads on, what is behind it holds: it is there at once, or given up.
    stage.send(&Ask::get("check").with_secret()).await;
    let form = "secret_token=s3cret";
    let mut wire = ended(&stage, false, &Ask::get("check").form(form).to_bytes("close")).await;
    assert!(wire.answer().await.is_hit());
    let valve = Valve::shut();
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    for is_unix in [false, true] {
        let mut wire = ended(&stage, is_unix, &Ask::post("allowed").form(form).to_bytes("keep-alive")).await;
        assert_eq!(wire.rest().await, b"");
    }
    stage.reaches(GONE, 2).await;
    stage.reaches(IN_FLIGHT, 0).await;
    // Nor does a body that is not whole lead anywhere.
    let bytes = Ask::post("allowed").form("secret_token=bad").to_bytes("close");
    let mut wire = ended(&stage, false, &bytes[..bytes.len() - 1]).await;
    let rest = wire.rest().await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&rest));
    stage.reaches(IN_FLIGHT, 0).await;
    valve.open();
}

/// What is with Rails, a miss or a forwarded request, behind an answer from memory or not.
#[tokio::test]
async fn what_is_with_rails_is_given_up() {
    let stage = Stage::new().await;
    let valve = Valve::shut();
    let known = Ask::get("check").with_secret();
    stage.send(&known).await;
    stage.rails.always(Reply::json(200, "{}").after(&valve));
    let mut gone = 0;
    for is_unix in [false, true] {
        for ask in [Ask::post("allowed").with_secret().json("{}"), Ask::get("lfs").with_secret()] {
            let bytes = [known.to_bytes("keep-alive"), ask.to_bytes("keep-alive")].concat();
            let mut wire = ended(&stage, is_unix, &bytes).await;
            assert!(wire.answer().await.is_hit());
            gone += 1;
            stage.reaches(GONE, gone).await;
            assert_eq!(wire.rest().await, b"");
            let mut wire = ended(&stage, is_unix, &ask.to_bytes("close")).await;
            assert_eq!(wire.rest().await, b"");
            gone += 1;
            stage.reaches(GONE, gone).await;
        }
    }
    stage.reaches(IN_FLIGHT, 0).await;
    valve.open();
    stage.assert_alive().await;
}

/// The head of Rails' answer is there, and its body is waited for.
#[tokio::test]
async fn an_answer_of_which_rails_owes_the_rest_is_given_up() {
    let stage = Stage::new().await;
    let valve = Valve::shut();
    let begun = Reply::bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    stage.rails.always(begun.then_wait(&valve).then("0\r\n\r\n"));
    for is_unix in [false, true] {
        let ask = Ask::post("allowed").with_secret().json("{}");
        let peer = if is_unix { &stage.gateway.unix } else { &stage.gateway.tcp };
        let mut wire = peer.connect().await;
        wire.write(&ask.to_bytes("keep-alive")).await;
        assert!(wire.has_something_within(std::time::Duration::from_mins(1)).await);
        wire.finish().await;
        stage.reaches(GONE, 1 + usize::from(is_unix)).await;
        let rest = wire.rest().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    }
    valve.open();
}
