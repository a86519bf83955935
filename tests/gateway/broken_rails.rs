//! A Rails that is not there, breaks off, or talks nonsense. The client is told so, the next
//! request works, and nothing of it is kept.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{Answer, Ask, Cut, Peer, eventually, noise};
use super::fake::{Manners, Rails, Reply, Valve};
use super::stage::{Running, Setup, Stage};

/// hyper takes interim answers by itself: without a bound, for as long as they come.
#[tokio::test]
async fn interim_answers_without_end_are_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new();
    let gateway = Running::start(setup.settings(&Peer::parse(&listener.local_addr().unwrap().to_string())));
    let mut wire = gateway.tcp.connect().await;
    wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
    let (mut rails, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        rails.read_buf(&mut request).await.unwrap();
    }
    let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(40);
    let flooding = tokio::spawn(async move { while rails.write_all(&flood).await.is_ok() {} });
    wire.answer().await.assert_failure(502);
    flooding.await.unwrap();
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_behind_an_interim_answer_is_one() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new();
    let gateway = Running::start(setup.settings(&Peer::parse(&listener.local_addr().unwrap().to_string())));
    let mut wire = gateway.tcp.connect().await;
    wire.write(&Ask::post("allowed").with_secret().json("{}").to_bytes("close")).await;
    let (mut rails, _) = listener.accept().await.unwrap();
    rails.set_nodelay(true).unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        rails.read_buf(&mut request).await.unwrap();
    }
    for byte in
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    {
        rails.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.answer().await.status, 200);
}

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The gateway's own answer.
    Failure(u16),
    /// The head, and a body that breaks off, or nothing if it broke off at once. Where the answer
    /// is read into memory first, nothing has been promised yet, and the client gets a 502.
    Cut,
    /// The answer, with this body.
    Answer(&'static str),
}

use Outcome::{Cut as CutOff, Failure};

fn user(id: usize) -> Ask {
    Ask::get(&format!("discover?key_id={id}")).with_secret()
}

/// Sends each kind of request to a Rails that answers like this, then to one that is well again.
async fn assert_outcomes(setup: Setup, cases: Vec<(Reply, Outcome)>) {
    let stage = setup.start().await;
    for (index, (reply, outcome)) in cases.into_iter().enumerate() {
        let asks = [
            Ask::post("allowed").with_secret().json("{}"),
            Ask::get("lfs").with_secret(),
            Ask::post("allowed").with_secret().body(noise(100_000)).chunked(10_000),
            user(1_000 + index),
        ];
        for ask in asks {
            let shown = format!("{ask} answered by {reply:?}");
            stage.rails.always(reply.clone());
            let mut wire = stage.gateway.tcp.connect().await;
            wire.write(&ask.to_bytes("close")).await;
            assert_outcome(wire.try_answer().await, outcome, &ask, &shown);
            assert_eq!(wire.rest().await, b"", "{shown}");

            stage.rails.recover();
            let (answer, arrived) = stage.send_counting(&ask).await;
            assert_eq!((answer.status, arrived), (200, 1), "after {shown}: {answer}");
            assert!(answer.text() == "null" || answer.text().contains("nth"), "after {shown}: {answer}");
        }
    }
    assert_nothing_is_left(&stage).await;
}

/// No permit, no place in a line, no flight, no request and no connection that is in use outlives what has failed.
async fn assert_nothing_is_left(stage: &Stage) {
    for class in ["lookup", "access", "callback", "kas", "other"] {
        stage.reaches(&format!("railgate_upstream_in_flight{{class=\"{class}\"}}"), 0).await;
        stage.reaches(&format!("railgate_upstream_queue{{class=\"{class}\"}}"), 0).await;
    }
    for series in ["railgate_upstream_held", "railgate_cache_flights", "railgate_requests_in_flight"] {
        stage.reaches(series, 0).await;
    }
    eventually("no connection to be in use", async || {
        let shown = stage.gateway.admin.send(&Ask::new("POST", "/servers").json("")).await.json();
        (shown["servers"][0]["requests"] == 0).then_some(())
    })
    .await;
}

fn assert_outcome(answer: Result<Answer, Cut>, outcome: Outcome, ask: &Ask, shown: &str) {
    let is_collected = ask.target.contains("discover");
    match (outcome, answer) {
        (Failure(status), Ok(answer)) => {
            assert_eq!(answer.status, status, "{shown}: {answer}");
            answer.assert_failure(status);
        }
        (CutOff, Ok(answer)) if is_collected => answer.assert_failure(502),
        (CutOff, Err(Cut::Body(answer))) if !is_collected => assert_eq!(answer.status, 200, "{shown}"),
        (CutOff, Err(Cut::Head(nothing))) if !is_collected => assert_eq!(nothing, b"", "{shown}"),
        (Outcome::Answer(body), Ok(answer)) => {
            assert_eq!((answer.status, answer.text()), (200, body), "{shown}");
            assert_eq!(answer.interim, Vec::<u16>::new(), "{shown}");
        }
        (_, answer) => panic!("{answer:?}: {shown}"),
    }
}

/// An answer whose body these header lines frame.
fn framed(headers: &str, body: &str) -> Reply {
    Reply::bytes(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{headers}\r\n{body}"))
}

#[tokio::test]
async fn no_answer_at_all() {
    assert_outcomes(
        Setup::new(),
        vec![
            (Reply::hang_up(), Failure(502)),
            (Reply::bytes("\r\n").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 200 OK\r\nContent-Ty").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n").then_close(), Failure(502)),
            (Reply::bytes("HTTP/1.1 100 Continue\r\n\r\n").then_close(), Failure(502)),
        ],
    )
    .await;
}

#[tokio::test]
async fn no_answer_in_time() {
    let stage = Setup::new().text("upstream.response_timeout", "250ms").start().await;
    for (index, reply) in [
        Reply::silence(),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-Le").then_hang(),
        Reply::bytes("HTTP/1.1 100 Continue\r\n\r\n").then_hang(),
    ]
    .into_iter()
    .enumerate()
    {
        stage.rails.always(reply);
        for ask in [Ask::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            stage.send(&ask).await.assert_failure(504);
        }
        stage.rails.recover();
        // Rails is well again, but on a busy machine it may be late for once.
        let answer = eventually("an answer", async || {
            let answer = stage.send(&user(1_000 + index)).await;
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(answer.await.cache_status(), "railgate; fwd=miss; stored");
    }
}

/// An answer that comes when nobody waits for it any more is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_too_late() {
    let stage = Setup::new().text("upstream.response_timeout", "250ms").start().await;
    for index in 0..5 {
        let valve = Valve::shut();
        let (held, evil) = (valve.clone(), r#"{"id":666,"username":"attacker"}"#);
        stage.rails.answer(move |_| Reply::json(200, evil).after(&held));
        let before = stage.rails.count();
        // One whose time is up, and one that has left.
        stage.send(&Ask::post("allowed").with_secret()).await.assert_failure(504);
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&Ask::post("allowed").with_secret().to_bytes("close")).await;
        stage.rails.has_got(before + 2).await;
        drop(wire);
        stage.reaches("railgate_requests_in_flight", 0).await;
        stage.rails.recover();
        valve.open();
        for id in 0..5 {
            let answer = stage.send(&user(1_000 + 10 * index + id)).await;
            assert!(answer.text() == "null" || answer.status == 504, "{answer}");
        }
    }
}

#[tokio::test]
async fn no_http() {
    let huge = format!("X: {}\r\n", "x".repeat(2 << 20));
    let many = "X: x\r\n".repeat(300);
    let mut cases: Vec<(Reply, Outcome)> = [
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "hello\r\n\r\n",
        "{\"id\":1}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "SSH-2.0-GitLab-SSHD\r\n\r\n",
        "HTTP/1.1 200 OK\r\n A: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA B: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n",
    ]
    .iter()
    .map(|bytes| (Reply::bytes(bytes).then_close(), Failure(502)))
    .collect();
    cases.push((framed(&format!("{huge}Content-Length: 4\r\n"), "null").then_close(), Failure(502)));
    cases.push((framed(&format!("{many}Content-Length: 4\r\n"), "null").then_close(), Failure(502)));
    assert_outcomes(Setup::new(), cases).await;
}

/// Where two readers could disagree on where an answer ends, nobody gets to read it.
#[tokio::test]
async fn answers_that_can_be_framed_in_two_ways() {
    let chunks = "4\r\nnull\r\n0\r\n\r\n";
    let mut cases = Vec::new();
    for (headers, body) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 14\r\n", chunks),
        ("Content-Length: 4\r\nContent-Length: 4\r\n", "null"),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", "null!"),
        ("Content-Length: 4, 4\r\n", "null"),
        ("Content-Length: 4, 5\r\n", "null"),
        ("Content-Length: +4\r\n", "null"),
        ("Content-Length: -4\r\n", "null"),
        ("Content-Length: 0x4\r\n", "null"),
        ("Content-Length: four\r\n", "null"),
        ("Content-Length:\r\n", "null"),
        ("Content-Length: 99999999999999999999\r\n", "null"),
        ("Transfer-Encoding: gzip\r\n", "null"),
        ("Transfer-Encoding: identity\r\n", "null"),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks),
        ("Transfer-Encoding: chunked, gzip\r\n", chunks),
        ("Transfer-Encoding: chunked, chunked\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: xchunked\r\n", chunks),
        ("Transfer-Encoding:\r\n", chunks),
        // With blanks in front of a colon, and lines that are folded.
        ("Content-Length : 4\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Content-Length: 14\r\nTransfer-Encoding\t: chunked\r\n", chunks),
        ("Content-Length: 4\r\n 4\r\n", "null"),
        ("Content-Length: 1\r\n\t4\r\n", "null"),
        ("Transfer-Encoding:\r\n gzip\r\n", "null"),
        ("Transfer-Encoding: gzip,\r\n chunked\r\n", chunks),
        ("Transfer-Encoding : chunked\r\nTransfer-Encoding: chunked\r\n", chunks),
    ] {
        // With and without the end of the connection behind it, which some take for the end.
        cases.push((framed(headers, body), Failure(502)));
        cases.push((framed(headers, body).then_close(), Failure(502)));
    }
    let old = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    cases.push((Reply::bytes(old).then(chunks).then_close(), Failure(502)));
    assert_outcomes(Setup::new(), cases).await;
}

#[tokio::test]
async fn answers_that_break_off() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut cases = vec![
        (framed("Content-Length: 5\r\n", "null"), CutOff),
        (framed("Content-Length: 5\r\n", ""), CutOff),
        (framed("Content-Length: 9999\r\n", "null"), CutOff),
        (framed("Content-Length: 60000\r\n", "null"), CutOff),
    ];
    for body in [
        "",
        "4",
        "4\r\n",
        "4\r\nnul",
        "4\r\nnull",
        "4\r\nnull\r\n",
        "4\r\nnull\r\n0",
        "4\r\nnull\r\n0\r\n",
        "4\r\nnull0\r\n\r\n",
        "4\r\nnullX\r\n0\r\n\r\n",
        "4\r\nnull\r\nx\r\n\r\n",
        "4\r\nnull\r\n-1\r\n\r\n",
        "4\r\nnull\r\nfffffffffffffffff\r\n",
        "4\r\nnull\r\n\r\n",
        "4\r\nnull\r\n0\r\nA: b",
    ] {
        cases.push((framed(chunked, body), CutOff));
    }
    let cases = cases.into_iter().map(|(reply, outcome)| (reply.then_close(), outcome)).collect();
    assert_outcomes(Setup::new(), cases).await;
}

/// Nobody asked for another protocol.
#[tokio::test]
async fn an_upgrade_is_no_answer() {
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_outcomes(
        Setup::new(),
        vec![
            (Reply::bytes(format!("{upgrade}\r\n")).then_close(), Failure(502)),
            (Reply::bytes(format!("{upgrade}\r\n")).then("raw bytes").then_hang(), Failure(502)),
            (Reply::bytes(format!("{upgrade}Content-Length: 4\r\n\r\nnull")).then_close(), Failure(502)),
        ],
    )
    .await;
    // Not even if the client did: the gateway does not pass the wish on.
    let stage = Stage::new().await;
    stage.rails.always(Reply::bytes(format!("{upgrade}\r\n")).then_hang());
    let ask = Ask::get("lfs").with_secret().header("Connection", "Upgrade").header("Upgrade", "h2c");
    let (answer, seen) = {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        (wire.answer().await, stage.rails.last())
    };
    answer.assert_failure(502);
    assert_eq!(seen.header("upgrade"), None);
}

#[tokio::test]
async fn interim_answers_are_skipped() {
    let good = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n";
    let interims = ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", hints];
    let cases = interims.into_iter().flat_map(|interim| {
        let replies = [Reply::bytes(interim).then(good), Reply::bytes(interim.repeat(50)).then(good)];
        replies.map(|reply| (reply, Outcome::Answer("null")))
    });
    let stage = Stage::new().await;
    for (index, (reply, outcome)) in cases.enumerate() {
        stage.rails.always(reply.clone());
        for ask in [Ask::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            let mut wire = stage.gateway.tcp.connect().await;
            wire.write(&ask.to_bytes("close")).await;
            assert_outcome(wire.try_answer().await, outcome, &ask, &format!("{ask}: {reply:?}"));
        }
    }
}

/// What comes behind an answer is not the answer to anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_over_on_a_connection_answers_nobody() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 32\r\n\r\n\
                {\"id\":666,\"username\":\"attacker\"} ";
    let null = framed("Content-Length: 4\r\n", "null");
    let stage = Stage::new().await;
    let mut next = 1_000;
    for poisoned in [
        null.clone().then(evil),
        null.clone().then(evil.repeat(5)),
        null.clone().then("\r\n").then(evil),
        null.clone().then("x"),
        framed("Transfer-Encoding: chunked\r\n", "4\r\nnull\r\n0\r\n\r\n").then(evil),
        framed("Transfer-Encoding: chunked\r\n", "4\r\nnull\r\n0\r\n\r\n0\r\n\r\n").then(evil),
        // To a reader who goes by the wrong one of two lengths.
        framed("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n").then(evil),
        framed("Content-Length: 0\r\nContent-Length: 4\r\n", "null").then(evil),
        // Without a body, whatever the head says.
        Reply::bytes("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello").then(evil),
        Reply::bytes("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n").then(evil),
    ] {
        for ask in [Ask::post("allowed").with_secret(), Ask::get("lfs").with_secret()] {
            stage.rails.always(poisoned.clone());
            let mut wire = stage.gateway.tcp.connect().await;
            wire.write(&ask.to_bytes("close")).await;
            let first = wire.answer().await;
            assert!(!first.text().contains("666"), "{first}: {poisoned:?}");
            assert_eq!(wire.rest().await, b"", "{poisoned:?}");
            stage.rails.recover();
            for _ in 0..5 {
                next += 1;
                let (answer, arrived) = stage.send_counting(&user(next)).await;
                assert_eq!((answer.text(), arrived), ("null", 1), "after {poisoned:?}: {answer}");
            }
        }
    }
    // Nor the body of an answer to HEAD, of which there is none.
    stage.rails.always(framed("Content-Length: 4\r\n", "null").then(evil));
    let head = Ask::new("HEAD", "/api/v4/internal/lfs").with_secret();
    assert_eq!(stage.send(&head).await.status, 200);
    stage.rails.recover();
    assert_eq!(stage.send(&user(999)).await.text(), "null");
}

/// Nor what comes while nobody has asked: the connection is given up.
#[tokio::test]
async fn what_comes_unasked_ends_the_connection() {
    let stage = Stage::new().await;
    let unasked = Valve::shut();
    let evil = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nevil";
    stage.rails.always(framed("Content-Length: 4\r\n", "null").then_wait(&unasked).then(evil));
    assert_eq!(stage.send(&Ask::post("allowed").with_secret()).await.text(), "null");
    unasked.open();
    stage.rails.has_lost(1).await;
    stage.rails.recover();
    let (answer, seen) = stage.pass(&user(1_000)).await;
    assert_eq!((answer.text(), seen.connection), ("null", 1));
}

/// Rails, or what is in front of it, closes the connection before anything was asked on it.
#[tokio::test]
async fn a_door_that_is_slammed() {
    let stage = Stage::new().await;
    for index in 0..5 {
        stage.rails.behave(Manners::Slamming, |_| Reply::hang_up());
        for ask in [Ask::post("allowed").with_secret().json("{}"), user(1_000 + index)] {
            stage.send(&ask).await.assert_failure(502);
        }
        stage.rails.recover();
        assert_eq!(stage.send(&user(1_000 + index)).await.text(), "null");
        stage.assert_alive().await;
    }
}

/// The upload is still under way when Rails has enough: that is not the client's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rails_leaves_in_the_middle_of_an_upload() {
    let stage = Stage::new().await;
    stage.rails.behave(Manners::Hasty, |_| Reply::hang_up());
    let body = noise(5 << 20);
    for ask in [
        Ask::post("allowed").with_secret().body(&body),
        Ask::post("allowed").with_secret().body(&body).chunked(65_536),
    ] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        wire.answer().await.assert_failure(502);
    }
    stage.rails.recover();
    stage.assert_alive().await;
}

/// It says no without listening to the end; the client hears the no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rails_answers_before_it_has_heard_everything() {
    let stage = Stage::new().await;
    stage.rails.behave(Manners::Hasty, |_| Reply::json(413, r#"{"error":"too much"}"#));
    let body = noise(5 << 20);
    for ask in [
        Ask::post("allowed").with_secret().body(&body),
        Ask::post("allowed").with_secret().body(&body).chunked(65_536),
    ] {
        let mut wire = stage.gateway.tcp.connect().await;
        wire.write(&ask.to_bytes("close")).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text()), (413, r#"{"error":"too much"}"#));
    }
    stage.rails.recover();
    stage.assert_alive().await;
}

/// Nobody listens. As soon as somebody does, all is well.
#[tokio::test]
async fn nobody_listens() {
    let setup = Setup::new();
    let socket = setup.dir.file("rails.sock");
    let gateway = Running::start(setup.settings(&Peer::Unix(socket.clone())));
    for _ in 0..2 {
        for ask in [Ask::post("allowed").with_secret(), user(1_000)] {
            gateway.tcp.send(&ask).await.assert_failure(503);
        }
    }
    let rails = Rails::on_unix(&socket);
    assert_eq!(gateway.tcp.send(&user(1_000)).await.text(), "null");
    assert_eq!(rails.count(), 1);

    // A port that is taken but closed.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let stage = Running::start(Setup::new().settings(&Peer::Tcp(address)));
    for ask in [Ask::post("allowed").with_secret(), user(1_000)] {
        stage.tcp.send(&ask).await.assert_failure(503);
    }
    held.listen(128).unwrap();
    held.set_nonblocking(true).unwrap();
    let rails = Rails::on(tokio::net::TcpListener::from_std(held.into()).unwrap());
    assert_eq!(stage.tcp.send(&user(1_000)).await.text(), "null");
    assert_eq!(rails.count(), 1);
}

/// Somebody listens and never accepts.
#[tokio::test]
async fn a_queue_that_does_not_move() {
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    held.listen(0).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let setup = Setup::new().text("upstream.connect_timeout", "100ms");
    let gateway = Running::start(setup.settings(&Peer::Tcp(address)));
    for ask in [Ask::post("allowed").with_secret(), user(1_000)] {
        gateway.tcp.send(&ask).await.assert_failure(503);
    }
}

/// The client is told what happened, in words that do not give the machine away.
#[tokio::test]
async fn failures_give_nothing_away() {
    let setup = Setup::new().text("upstream.response_timeout", "100ms");
    let dir = setup.dir.path().display().to_string();
    let rails = Rails::on_unix(&setup.dir.file("rails.sock"));
    let stage = setup.in_front_of(rails);
    for reply in [Reply::hang_up(), Reply::silence(), Reply::bytes("s3cret nonsense\r\n\r\n").then_close()] {
        stage.rails.always(reply);
        let answer = stage.send(&Ask::post("allowed").with_secret()).await;
        answer.assert_failure(answer.status);
        let text = format!("{answer}");
        for hidden in [dir.as_str(), "rails.sock", "s3cret", "nonsense", "hyper", "os error"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert!(answer.text().contains("GitLab"), "{answer}");
    }
}
