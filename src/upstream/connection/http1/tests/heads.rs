//! What follows from the head of a response.

use http::Method;

use super::clients::{End, Ours, Verdict, judge};

fn judged(head: &str) -> Verdict {
    judge(Ours::new(&Method::GET), &[format!("{head}\r\n\r\n").as_bytes()], false)
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
        let Verdict::Response(received) = judged(head) else { panic!("{head} is a response") };
        assert_eq!(received.end, End::Complete(keeps_alive), "{head}");
    }
}
