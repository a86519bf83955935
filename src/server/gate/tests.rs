use super::super::capacity::Capacity;
use super::super::registry::{ConnectionRegistry, Registration, ServerPhase};
use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const LIMITS: GateLimits = GateLimits {
    head: HeadLimits { bytes: 1_000, headers: 10, target: wire::DEFAULT_TARGET },
    first_byte_timeout: FIRST_BYTE_TIMEOUT,
    head_timeout: HEAD_TIMEOUT,
    idle_timeout: STALL_TIMEOUT,
};
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(75);

/// A peer, the gate on its connection, and the connection's registration.
fn gate() -> (DuplexStream, Gate<DuplexStream>, (Arc<ConnectionRegistry>, Registration)) {
    let (peer, io) = duplex(64 * 1024);
    let registry = Arc::new(ConnectionRegistry::default());
    let permit = Capacity::new("test", 1, false).try_take(1).unwrap();
    let registration = registry.register(permit, false);
    (peer, Gate::new(io, LIMITS, Arc::clone(registration.state())), (registry, registration))
}

/// The bytes of `sent` that pass to hyper, if it arrives in pieces of `step` bytes.
async fn seen(sent: &[u8], step: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
    let (mut peer, mut gate, _server) = gate();
    let mut seen = Vec::new();
    let mut buffer = [0; 7];
    for piece in sent.chunks(step) {
        peer.write_all(piece).await.unwrap();
        loop {
            match tokio::time::timeout(Duration::from_millis(1), gate.read(&mut buffer)).await {
                Ok(Ok(0)) | Err(_) => break,
                Ok(Ok(count)) => seen.extend_from_slice(&buffer[..count]),
                Ok(Err(error)) => return (seen, Some(error.kind())),
            }
        }
    }
    (seen, None)
}

#[tokio::test(start_paused = true)]
async fn well_framed_requests_pass_unchanged_in_pieces_of_any_size() {
    let sent = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /b HTTP/1.1\r\nContent-Length: 11\r\n\r\nhello\nworld\
        POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe\nlo\r\n00A\r\n0123456789\r\n0\r\nA: b\r\n\r\n\
        GET /d HTTP/1.1\r\n\r\n";
    for step in [1, 2, 3, 7, 50, 1_000] {
        let (seen, error) = seen(sent, step).await;
        // Two chunks that arrive together may pass as one.
        let merged = |bytes: &[u8]| {
            let two = "5\r\nhe\nlo\r\n00A\r\n0123456789\r\n";
            String::from_utf8_lossy(bytes).replace(two, "f\r\nhe\nlo0123456789\r\n")
        };
        assert_eq!(merged(&seen), merged(sent), "step {step}");
        assert_eq!(error, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_is_replaced_and_nothing_follows_it() {
    let good = b"POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi";
    let bad = b"GET /x HTTP/1.1\nHost: a\r\n\r\nGET /y HTTP/1.1\r\n\r\n";
    for step in [1, 5, 1_000] {
        let (seen, error) = seen(&[&good[..], bad].concat(), step).await;
        let expected = [&good[..], &wire::refused_head(Refusal::BareLineFeed)].concat();
        assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(&expected), "step {step}");
        assert_eq!(error, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_cannot_be_hidden_in_a_body() {
    // By Content-Length the second request is a body; by Transfer-Encoding it is a request.
    let sent = b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n";
    let (seen, _) = seen(sent, 1_000).await;
    assert_eq!(seen, wire::refused_head(Refusal::TwoFramings));
}

#[tokio::test(start_paused = true)]
async fn malformed_chunks_fail_the_reading() {
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;ext=\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\r\n\"\r\nhello\r\n0\r\n\r\n",
        "5;a=b\nc\r\nhello\r\n0\r\n\r\n",
        "5;a=b\n\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "1234567890abcdef;a\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "\r\n",
        "0\r\nA: b\nC: d\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\n: b\r\n\r\n",
    ] {
        let sent =
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /x HTTP/1.1\r\n\r\n");
        for step in [1, 1_000] {
            let (seen, error) = seen(sent.as_bytes(), step).await;
            assert_eq!(error, Some(io::ErrorKind::InvalidData), "{body:?}");
            assert!(!seen.ends_with(b"GET /x HTTP/1.1\r\n\r\n"), "{body:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn chunk_extensions_are_removed() {
    let head = "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let next = "GET /d HTTP/1.1\r\n\r\n";
    for (sent, expected) in [
        ("5;a=b\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5;a\r\nhello\r\n0;b;c=\"d;e\"\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5 ;\ta = \"\\\"\\\\\"\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("005;a=\u{e9}\r\nhello\r\n", ""),
        ("005;a=\"\u{e9}\"\r\nhello\r\n0\r\n\r\n", "005\r\nhello\r\n0\r\n\r\n"),
        ("123456789012345;a=b\r\n", "123456789012345\r\n"),
    ] {
        for step in [1, 2, 3, 7, 1_000] {
            let next = if sent.ends_with("0\r\n\r\n") || sent.contains("0;b") { next } else { "" };
            let (seen, error) = seen(format!("{head}{sent}{next}").as_bytes(), step).await;
            assert_eq!(String::from_utf8_lossy(&seen), format!("{head}{expected}{next}"), "{sent:?}, {step}");
            assert_eq!(error.is_some(), expected.is_empty(), "{sent:?}, {step}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn chunk_extensions_are_bounded() {
    let head = "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |length: usize| format!("1;{}\r\na\r\n", "b".repeat(length));
    for (body, is_accepted) in [
        (chunk(252), true),
        (chunk(253), false),
        // Without an end.
        (format!("1;{}", "b".repeat(300)), false),
        (chunk(127).repeat(128), true),
        (chunk(127).repeat(129), false),
        (format!("{}0\r\n\r\n{head}{}", chunk(127).repeat(128), chunk(127).repeat(128)), true),
    ] {
        let (_, error) = seen(format!("{head}{body}").as_bytes(), 1_000).await;
        assert_eq!(error, (!is_accepted).then_some(io::ErrorKind::InvalidData), "{} bytes", body.len());
    }
}

/// In pieces of any size, with all that follows.
#[tokio::test(start_paused = true)]
async fn targets_are_rewritten_to_origin_form() {
    let sent = "GET //a?b=//c HTTP/1.1\r\nHost: a\r\n\r\n\
        POST http://a:80/b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST ///c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
        GET http://A HTTP/1.0\r\nHost: a\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
    let expected = "GET /a?b=//c HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
        GET / HTTP/1.0\r\nHost: a\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
    for step in [1, 2, 3, 7, 50, 1_000] {
        let (seen, error) = seen(sent.as_bytes(), step).await;
        assert_eq!((String::from_utf8_lossy(&seen).as_ref(), error), (expected, None), "step {step}");
    }
    let refused = "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\n\r\n";
    for step in [1, 50, 1_000] {
        let (seen, _) = seen(refused.as_bytes(), step).await;
        assert_eq!(seen, wire::refused_head(Refusal::NotOriginForm), "step {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_empty_line_before_a_head_is_dropped() {
    let (get, post) = ("GET /a HTTP/1.1\r\n\r\n", "POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi");
    for (sent, expected) in [
        (format!("\r\n{get}"), get.to_owned()),
        (format!("{post}\r\n{get}\r\n"), format!("{post}{get}")),
        (format!("{post}\r\n{post}\r\n{post}"), post.repeat(3)),
    ] {
        for step in [1, 2, 3, 1_000] {
            let (seen, error) = seen(sent.as_bytes(), step).await;
            assert_eq!(
                (String::from_utf8_lossy(&seen).as_ref(), error),
                (&*expected, None),
                "{sent:?}, {step}"
            );
        }
    }
    let refused = |refusal| String::from_utf8(wire::refused_head(refusal)).unwrap();
    for (sent, refusal) in [
        (format!("\r\n\r\n{get}"), Refusal::RequestLine),
        (format!("{post}\r\n\r\n{get}"), Refusal::RequestLine),
        (format!("\n{get}"), Refusal::BareLineFeed),
        (format!("\r{get}"), Refusal::RequestLine),
        (format!("\r\n\n{get}"), Refusal::BareLineFeed),
        (format!("\r\n {get}"), Refusal::RequestLine),
    ] {
        for step in [1, 2, 3, 1_000] {
            let (seen, _) = seen(sent.as_bytes(), step).await;
            let seen = String::from_utf8_lossy(&seen).into_owned();
            let expected = if sent.starts_with("POST") { post } else { "" };
            assert_eq!(seen, format!("{expected}{}", refused(refusal)), "{sent:?}, {step}");
        }
    }
}

/// hyper takes the end of the input for a client that has disconnected, so it is passed on only if a response is
/// pending.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_input_is_held_back_while_a_response_is_being_sent() {
    let short = Duration::from_millis(1);
    let mut buffer = [0; 200];
    for is_waiting in [false, true] {
        let (mut peer, mut gate, _server) = gate();
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        peer.shutdown().await.unwrap();
        assert_eq!(gate.read(&mut buffer).await.unwrap(), 18);
        assert!(tokio::time::timeout(short, gate.read(&mut buffer)).await.is_err());
        gate.connection.set_response_pending(is_waiting);
        let flushed = gate.flush().await.map_err(|error| error.kind());
        if is_waiting {
            assert_eq!(flushed, Err(io::ErrorKind::ConnectionReset));
            assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);
            continue;
        }
        assert_eq!(flushed, Ok(()));
        assert!(tokio::time::timeout(short, gate.read(&mut buffer)).await.is_err());
        gate.connection.request_finished();
        // The reader is woken.
        gate.flush().await.unwrap();
        assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);
    }
    // Also while bytes are not written yet.
    let (mut peer, mut gate, _server) = gate();
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    peer.shutdown().await.unwrap();
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 18);
    let large = vec![0; 100 * 1024];
    assert!(tokio::time::timeout(short, gate.write_all(&large)).await.is_err());
    gate.connection.request_finished();
    assert!(tokio::time::timeout(short, gate.read(&mut buffer)).await.is_err());
    peer.read_exact(&mut vec![0; 64 * 1024]).await.unwrap();
    gate.write_all(b"the end").await.unwrap();
    gate.flush().await.unwrap();
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_must_be_complete_in_time() {
    let (mut peer, mut gate, _server) = gate();
    let mut buffer = [0; 200];
    peer.write_all(b"GET / HT").await.unwrap();
    let begun = tokio::time::Instant::now();
    let count = gate.read(&mut buffer).await.unwrap();
    assert_eq!(buffer[..count], wire::refused_head(Refusal::HeadTimeout));
    assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_head_may_not_arrive_byte_by_byte_for_ever() {
    let (mut peer, mut gate, _server) = gate();
    let begun = tokio::time::Instant::now();
    let reader = tokio::spawn(async move {
        let mut buffer = [0; 200];
        let count = gate.read(&mut buffer).await.unwrap();
        (buffer[..count].to_vec(), begun.elapsed())
    });
    for byte in b"GET /aaaaaaaaaaaaaaaaa" {
        // Once the gate has given up, the rest is not read.
        let _ = peer.write_all(&[*byte]).await;
        tokio::time::sleep(HEAD_TIMEOUT / 10).await;
    }
    assert_eq!(reader.await.unwrap(), (wire::refused_head(Refusal::HeadTimeout), HEAD_TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_closed_in_time() {
    let (_peer, mut gate, _server) = gate();
    let begun = tokio::time::Instant::now();
    let mut buffer = [0; 200];
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);
    assert_eq!(begun.elapsed(), FIRST_BYTE_TIMEOUT);

    // A request that is being answered keeps it open, for however long that takes.
    let (mut peer, mut gate, _server) = self::gate();
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 18);
    let answered = tokio::time::timeout(STALL_TIMEOUT * 10, gate.read(&mut buffer)).await;
    assert!(answered.is_err(), "the connection ended while its request was being answered");
    // Once it is answered, the time starts again.
    gate.connection.request_finished();
    let begun = tokio::time::Instant::now();
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);
    assert_eq!(begun.elapsed(), STALL_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_pauses_for_too_long_closes_the_connection() {
    for sent in [
        "POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\nab",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let (mut peer, mut gate, _server) = gate();
        peer.write_all(sent.as_bytes()).await.unwrap();
        let begun = tokio::time::Instant::now();
        let error = gate.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, STALL_TIMEOUT), "{sent:?}");
    }
    // Each byte restarts the time-out.
    let (mut peer, mut gate, _server) = gate();
    let head = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
    peer.write_all(head).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut seen = vec![0; head.len() + 5];
        gate.read_exact(&mut seen).await.map(|_| seen)
    });
    for byte in b"hello" {
        tokio::time::sleep(STALL_TIMEOUT * 9 / 10).await;
        peer.write_all(&[*byte]).await.unwrap();
    }
    assert!(reader.await.unwrap().unwrap().ends_with(b"hello"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_disconnected() {
    let (_peer, mut gate, _server) = gate();
    let begun = tokio::time::Instant::now();
    let error = gate.write_all(&vec![0; 100 * 1024]).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, STALL_TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn draining_closes_a_connection_without_a_head_and_no_other() {
    let (_peer, mut gate, server) = gate();
    let mut buffer = [0; 200];
    server.0.enter(ServerPhase::Draining);
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 0);

    let (mut peer, mut gate, server) = self::gate();
    peer.write_all(b"GE").await.unwrap();
    assert!(tokio::time::timeout(HEAD_TIMEOUT / 2, gate.read(&mut buffer)).await.is_err());
    server.0.enter(ServerPhase::Draining);
    peer.write_all(b"T / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(gate.read(&mut buffer).await.unwrap(), 18);
    // hyper would take the end of the input for a client that has disconnected, and the response would be lost.
    assert!(tokio::time::timeout(HEAD_TIMEOUT, gate.read(&mut buffer)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_head_starts_with_its_first_byte() {
    let (mut peer, mut gate, _server) = gate();
    let reader = tokio::spawn(async move { gate.read(&mut [0; 200]).await.unwrap() });
    tokio::time::sleep(FIRST_BYTE_TIMEOUT * 9 / 10).await;
    peer.write_all(b"GET / HT").await.unwrap();
    tokio::time::sleep(HEAD_TIMEOUT * 9 / 10).await;
    peer.write_all(b"TP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(reader.await.unwrap(), 18);
}
