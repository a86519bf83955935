//! What follows from the head of a response.

use http::Method;

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
