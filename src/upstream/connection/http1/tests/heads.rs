//! What follows from the head of a response.

use bytes::BytesMut;
use http::Method;

use super::super::head::{KnownNames, take_head};
use super::clients::{End, Ours, Verdict, judge};

fn judged(bytes: &[u8]) -> Verdict {
    judge(Ours::new(&Method::GET), &[bytes], false)
}

#[test]
fn a_response_that_announces_a_body_that_it_may_not_have_ends_its_connection() {
    for (head, keeps_alive) in [
        ("HTTP/1.1 204 No Content", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5", false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked", false),
        // That of the response to a request without a condition.
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", true),
    ] {
        let Verdict::Response(received) = judged(format!("{head}\r\n\r\n").as_bytes()) else {
            panic!("{head} is a response")
        };
        assert_eq!(received.end, End::Complete(keeps_alive), "{head}");
    }
}

/// A server of HTTP/2 sends its settings before it has read anything, and after that GOAWAY.
#[test]
fn a_server_of_http2_is_known_by_its_settings() {
    for (bytes, kind) in [
        (&b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x80"[..], "WrongVersion"),
        (b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0", "WrongVersion"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "WrongVersion"),
        // GOAWAY, and what is no frame of the connection.
        (b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0", "Malformed"),
        (b"\0\0\x06\x04\0\0\0\0\x01\0\x03\0\0\0\x80", "Malformed"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "Malformed"),
    ] {
        let Verdict::Refused(is, text) = judged(bytes) else { panic!("{bytes:?} is no response") };
        assert_eq!(is, kind, "{bytes:?}: {text}");
    }
}

/// Whatever the fields of the responses before were called, and in which order they came.
#[test]
fn the_names_of_a_head_are_its_own() {
    let mut known = KnownNames::default();
    let long = "X-".to_owned() + &"y".repeat(100);
    let many: Vec<String> = (0..50).map(|number| format!("X-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for names in [
        &["Content-Type", "X-Request-Id", "ETag"][..],
        &["Content-Type", "X-Request-Id", "ETag"],
        &["content-type", "x-request-id", "etag"],
        &["Content-Type", "ETag", "X-Request-Id", "Vary"],
        &["Vary"],
        &[],
        &["X-Request-I", "X-Request-Id", "X-Request-Idd"],
        &["X-Same", "X-Same", "X-Same"],
        &["Vary", &long, "ETag"],
        &["Vary", "ETag", &long],
        &many,
        &many[1..],
    ] {
        let fields = names.iter().enumerate().map(|(place, name)| format!("{name}: {place}\r\n"));
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", fields.collect::<String>());
        let head = take_head(&mut BytesMut::from(head.as_bytes()), false, &mut known).unwrap().unwrap();
        let read: Vec<(&str, &str)> = head
            .response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        let mut sent: Vec<(String, String)> = names
            .iter()
            .enumerate()
            .map(|(place, name)| (name.to_ascii_lowercase(), place.to_string()))
            .collect();
        // Values of one name come together.
        sent.sort_by_key(|(name, _)| names.iter().position(|other| other.eq_ignore_ascii_case(name)));
        let sent: Vec<(&str, &str)> = sent.iter().map(|(name, place)| (&name[..], &place[..])).collect();
        assert_eq!(read, sent, "{names:?}");
    }
}
