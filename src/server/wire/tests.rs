use super::*;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 400, headers: 8, target: DEFAULT_TARGET };

fn read_head(bytes: &[u8]) -> Result<Option<(usize, Framing)>, Refusal> {
    let result = HeadReader::default().read(bytes, LIMITS);
    result.map(|whole| whole.map(|head| (head.end, head.framing)))
}

/// A head as hyper gets it.
fn rewritten(head: &str) -> Result<String, Refusal> {
    let whole = HeadReader::default().read(head.as_bytes(), LIMITS)?.unwrap();
    assert_eq!(whole.end, head.len());
    if !whole.needs_rewrite {
        return Ok(head.to_owned());
    }
    to_origin_form(head.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn targets_are_rewritten_to_paths_with_one_leading_slash() {
    for (method, target, expected) in [
        ("GET", "/", "/"),
        ("GET", "/a//b?c=//d", "/a//b?c=//d"),
        ("GET", "//", "/"),
        ("GET", "//api/v4", "/api/v4"),
        ("GET", "/////api//v4?a=//b", "/api//v4?a=//b"),
        ("GET", "//?a=/b", "/?a=/b"),
        // Not a host, although it looks like one.
        ("GET", "//evil.example/api", "/evil.example/api"),
        ("GET", "//evil.example:80/api", "/evil.example:80/api"),
        ("GET", "//u@evil.example/api", "/u@evil.example/api"),
        ("GET", "http://gw:81/api/v4?a=b", "/api/v4?a=b"),
        ("GET", "HTTP://GW:81/api", "/api"),
        ("GET", "http://gw:81", "/"),
        ("GET", "http://gw:81?a=b", "/?a=b"),
        ("GET", "http://gw:81//api", "/api"),
        ("OPTIONS", "http://gw:81/", "/"),
        ("POST", "http://gw:81/http://x", "/http://x"),
    ] {
        let head =
            |target: &str| format!("{method} {target} HTTP/1.1\r\nA: http://b\r\nhost: \tgw:81 \r\n\r\n");
        assert_eq!(rewritten(&head(target)), Ok(head(expected)), "{target}");
    }
}

#[test]
fn an_absolute_target_must_name_the_host() {
    for (target, host, is_accepted) in [
        ("http://gw/", "Host: gw", true),
        ("http://gw/", "Host: GW:80", true),
        ("http://gw:/", "Host: gw", true),
        ("http://gw:80/", "Host: gw:", true),
        ("http://[::1]:81/", "Host: [::1]:81", true),
        ("http://127.0.0.1/", "Host: 127.0.0.1", true),
        ("http://gw/", "Host: gw:81", false),
        ("http://gw:443/", "Host: gw", false),
        ("http://gw/", "Host: evil", false),
        ("http://gw/", "Host:", false),
        ("http://gw/", "Hosts: gw", false),
        ("http://gw/", "A: b", false),
        ("http://gw/", "Host: gw\r\nHost: gw", false),
        ("http://gw/", "Host: evil\r\nHost: gw", false),
        ("http://u@gw/", "Host: gw", false),
        ("http://u@gw/", "Host: u@gw", false),
        ("http://gw@evil/", "Host: gw", false),
        ("http://gw.evil/", "Host: gw", false),
        ("http:///", "Host: gw", false),
        ("http://", "Host: gw", false),
        ("http:/gw/", "Host: gw", false),
        ("http:gw", "Host: gw", false),
        ("https://gw/", "Host: gw", false),
        ("ftp://gw/", "Host: gw", false),
        ("gw/", "Host: gw", false),
        ("gw:80", "Host: gw", false),
        ("*", "Host: gw", false),
    ] {
        let result = rewritten(&format!("GET {target} HTTP/1.1\r\n{host}\r\n\r\n"));
        let expected = if is_accepted {
            Ok(format!("GET / HTTP/1.1\r\n{host}\r\n\r\n"))
        } else {
            Err(Refusal::NotOriginForm)
        };
        assert_eq!(result, expected, "{target} {host}");
    }
    // A request about the whole server.
    let whole = "OPTIONS http://gw HTTP/1.1\r\nHost: gw\r\n\r\n";
    assert_eq!(rewritten(whole), Err(Refusal::NotOriginForm));
}

#[test]
fn heads_that_pass() {
    for (head, framing) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
        ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
        ("GET /a?b=[c] HTTP/1.1\r\nHost:a\r\nX-Empty:\r\nX: \u{e9}\t\r\n\r\n", Framing::Length(0)),
        ("GET /a?b={c|d}^`\\ HTTP/1.1\r\n\r\n", Framing::Length(0)),
        ("GET /a?\u{e9}=\u{1f511} HTTP/1.1\r\n\r\n", Framing::Length(0)),
        ("GET /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: TLS/1.2\r\n\r\n", Framing::Length(0)),
        ("POST /a HTTP/1.1\r\nContent-Length: 12\r\n\r\n", Framing::Length(12)),
        ("POST /a HTTP/1.1\r\ncontent-length:\t12 \r\n\r\n", Framing::Length(12)),
        ("POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
    ] {
        assert_eq!(read_head(head.as_bytes()), Ok(Some((head.len(), framing))), "{head:?}");
    }
}

#[test]
fn heads_that_are_refused() {
    for (head, refusal) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refusal::BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", Refusal::BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", Refusal::BareLineFeed),
        ("\r\nGET / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        ("GET /\r\n\r\n", Refusal::RequestLine),
        ("GET  / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/1.1 \r\n\r\n", Refusal::RequestLine),
        ("GET /a b HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        (" GET / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        ("G\tT / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/1.2\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/2.0\r\n\r\n", Refusal::RequestLine),
        ("GET / http/1.1\r\n\r\n", Refusal::RequestLine),
        ("PRI * HTTP/2.0\r\n\r\n", Refusal::Method),
        ("CONNECT a:1 HTTP/1.1\r\n\r\n", Refusal::Method),
        ("TRACE / HTTP/1.1\r\n\r\n", Refusal::Method),
        ("RAILGATE-REFUSED /host HTTP/1.1\r\n\r\n", Refusal::Method),
        ("get / HTTP/1.1\r\n\r\n", Refusal::Method),
        ("G!T / HTTP/1.1\r\n\r\n", Refusal::Method),
        ("ABCDEFGHIJKLMNOPQRSTU / HTTP/1.1\r\n\r\n", Refusal::Method),
        ("GET https://a/ HTTP/1.1\r\n\r\n", Refusal::NotOriginForm),
        ("GET a/ HTTP/1.1\r\n\r\n", Refusal::NotOriginForm),
        ("OPTIONS * HTTP/1.1\r\n\r\n", Refusal::NotOriginForm),
        ("GET /a#b HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /a\\b HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /a?b=\\\" HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /\\ HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /\u{e9}?b HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /{a} HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /a|b HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /a^?b HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /\u{e9} HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET /a\0 HTTP/1.1\r\n\r\n", Refusal::Target),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Refusal::FoldedHeader),
        ("GET / HTTP/1.1\r\n\tA: b\r\n\r\n", Refusal::FoldedHeader),
        ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Refusal::HeaderLine),
        ("GET / HTTP/1.1\r\nA\r\n\r\n", Refusal::HeaderLine),
        ("GET / HTTP/1.1\r\n: b\r\n\r\n", Refusal::HeaderLine),
        ("GET / HTTP/1.1\r\nA: b\0\r\n\r\n", Refusal::HeaderLine),
        ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Refusal::HeaderLine),
        ("GET / HTTP/1.1\r\nA: b\r\r\n\r\n", Refusal::HeaderLine),
        ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Refusal::ContentLength),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", Refusal::TransferEncoding),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Refusal::TransferEncoding,
        ),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Refusal::HeaderLine),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::TransferEncoding),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::TwoFramings),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", Refusal::TwoFramings),
    ] {
        assert_eq!(read_head(head.as_bytes()), Err(refusal), "{head:?}");
    }
}

#[test]
fn heads_that_puma_would_not_answer_are_refused() {
    let limits = HeadLimits { bytes: 32 * 1024, headers: 8, target: DEFAULT_TARGET };
    let read_head = |head: String| {
        let result = HeadReader::default().read(head.as_bytes(), limits);
        result.map(|whole| whole.map(|head| head.framing))
    };
    let passes = Ok(Some(Framing::Length(0)));
    let line = |path: usize, query: usize| {
        read_head(format!("GET /{}?{} HTTP/1.1\r\n\r\n", "a".repeat(path - 1), "b".repeat(query - 1)))
    };
    assert_eq!(line(MAX_PATH, 4 * 1024), passes);
    assert_eq!(line(1024, 10 * 1024), passes);
    assert_eq!(line(MAX_PATH, 4 * 1024 + 1), Err(Refusal::TargetTooLong));
    assert_eq!(line(MAX_PATH + 1, 1), Err(Refusal::TargetTooLong));
    assert_eq!(line(1, 10 * 1024 + 1), Err(Refusal::TargetTooLong));
    let named = |length: usize| read_head(format!("GET / HTTP/1.1\r\n{}: b\r\n\r\n", "a".repeat(length)));
    assert_eq!(named(MAX_HEADER_NAME), passes);
    assert_eq!(named(MAX_HEADER_NAME + 1), Err(Refusal::HeaderLine));
}

#[test]
fn heads_beyond_the_limits_are_refused() {
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(9));
    assert_eq!(read_head(many.as_bytes()), Err(Refusal::TooManyHeaders));
    let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(400));
    assert_eq!(read_head(large.as_bytes()), Err(Refusal::HeadTooLarge));
    assert_eq!(read_head("G".repeat(401).as_bytes()), Err(Refusal::HeadTooLarge));
}

/// Whatever its reason, it is read from the head that hyper has parsed, and from no other.
#[test]
fn a_refusal_is_read_from_its_head() {
    for refusal in Refusal::ALL {
        let head = String::from_utf8(refused_head(*refusal)).unwrap();
        let mut words = head.split(' ');
        let (method, uri) = (words.next().unwrap(), words.next().unwrap());
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        assert_eq!(refusal_in(&request), Some(*refusal));
        let request = Request::builder().method("GET").uri(uri).body(()).unwrap();
        assert_eq!(refusal_in(&request), None);
    }
}

proptest! {
    /// The result does not depend on the pieces in which the bytes arrive, and nothing panics.
    #[test]
    fn pieces_do_not_change_the_result(
        bytes in "(GET|POST) /[a#]{0,2} HTTP/1[.]1\r?\n((A|Content-Length|Transfer-Encoding):[ 1bchunked\0]{0,9}\r?\n){0,4}\r?\n",
        cut in 0usize..200,
    ) {
        let bytes = bytes.as_bytes();
        let mut reader = HeadReader::default();
        let first = &bytes[..cut.min(bytes.len())];
        let in_two = match reader.read(first, LIMITS) {
            Ok(None) => reader.read(bytes, LIMITS),
            result => result,
        };
        prop_assert_eq!(in_two, HeadReader::default().read(bytes, LIMITS));
    }

    /// A rewritten head needs no second rewrite, keeps its framing, and hyper's parser reads it alike.
    #[test]
    fn rewritten_heads_are_valid(
        target in "(//?/?|http://|HTTP://)?(gw|[a:@/?.%]|%2f|\\[::1\\]){0,6}(:80|:)?(/|//|[?])?[a/?:@]{0,4}",
        host in "(gw|GW|a|\\[::1\\])(:80|:81|:)?",
    ) {
        let head = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\n");
        if let Ok(Some(whole)) = HeadReader::default().read(head.as_bytes(), LIMITS)
            && whole.needs_rewrite
            && let Ok(rewritten) = to_origin_form(head.as_bytes())
        {
            let again = HeadReader::default().read(&rewritten, LIMITS);
            let expected = Head { end: rewritten.len(), framing: Framing::Length(3), needs_rewrite: false };
            prop_assert_eq!(again, Ok(Some(expected)));
            prop_assert!(rewritten.len() < head.len());
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut request = httparse::Request::new(&mut headers);
            prop_assert_eq!(request.parse(&rewritten), Ok(httparse::Status::Complete(rewritten.len())));
            let path = request.path.unwrap_or_default();
            prop_assert!(path.starts_with('/') && !path.starts_with("//"), "{}", path);
            prop_assert!(target.ends_with(path.trim_start_matches('/')), "{}", path);
            prop_assert!(path.parse::<http::Uri>().is_ok_and(|uri| uri.authority().is_none()), "{}", path);
        }
    }

    /// With any header value: hyper's parser reads a head that passes here alike.
    #[test]
    fn hypers_parser_reads_what_passes_alike(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let head = [b"GET / HTTP/1.1\r\nA:", bytes.as_slice(), b"\r\n\r\n"].concat();
        if let Ok(Some((end, _))) = read_head(&head) {
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut request = httparse::Request::new(&mut headers);
            prop_assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(end)));
            prop_assert_eq!(request.headers.len(), 1);
        }
    }
}
