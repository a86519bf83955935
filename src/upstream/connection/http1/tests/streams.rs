//! Streams of bytes that a server may send: responses in all framings, with odd spellings, mistakes and surplus bytes.

use fastrand::Rng;

const STATUS_LINES: [&str; 18] = [
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 413 Content Too Large",
    "HTTP/1.1 500",
    "HTTP/1.1 200 ",
    "HTTP/1.1 200 F\u{e9}in",
    "HTTP/1.1 200\tOK",
    "HTTP/1.2 200 OK",
    "HTTP/1.1  200 OK",
    "HTTP/2 200",
    "http/1.1 200 OK",
    "HTTP/1.1 099 X",
    "HTTP/1.1 2000 OK",
    "HTTP/1.1 999 X",
    "PRI * HTTP/2.0",
    "",
];

const FIELDS: [&str; 22] = [
    "X-A: 1",
    "x-a:2",
    "X-Empty:",
    "X-Utf8: \u{e9}",
    "Connection: close",
    "connection: Keep-Alive",
    "Connection: x, close",
    "Connection: keep-alive, CLOSE",
    "Connection: upgrade",
    "Trailer: X-T",
    "X-Blank : 1",
    "X-Tab\t: 1",
    "X-Folded: 1\r\n 2\r\n\t3",
    "X-Folded:\r\n 1",
    "X-Folded: 1\r\n ",
    " X-Begin: 1",
    "X Y: 1",
    ": 1",
    "NoColon",
    "X-Nul: a\0b",
    "X-Cr: a\rb",
    "X-Del: \x7f",
];

const FRAMINGS: [&str; 24] = [
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: 05",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: five",
    "Content-Length:",
    "Content-Length : 5",
    "Content-Length: 5\r\n 5",
    "Content-Length:\r\n 5",
    "Content-Length: 000000000000000000005",
    "Content-Length: 99999999999999999999",
    "Content-Length: 18446744073709551615",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:",
    "Transfer-Encoding: \r\n chunked",
];

const CHUNK_LINES: [&str; 16] = [
    "3\r\nabc\r\n",
    "003\r\nabc\r\n",
    "3;a\r\nabc\r\n",
    "3 ; a=b;c=\"d;\\\"\"\r\nabc\r\n",
    "3;\r\nabc\r\n",
    "3;=\r\nabc\r\n",
    "3 \r\nabc\r\n",
    "3\t\r\nabc\r\n",
    "0000000000000003\r\nabc\r\n",
    "3\nabc\r\n",
    "3\r\nabc\n",
    "3\r\nabcd\r\n",
    "fffffffffffffff\r\nabc\r\n",
    "fffffffffffffffff\r\nabc\r\n",
    "x\r\nabc\r\n",
    "-3\r\nabc\r\n",
];

const ENDS: [&str; 12] = [
    "0\r\n\r\n",
    "00;a=b\r\n\r\n",
    "0\r\nX-T: 1\r\n\r\n",
    "0\r\nX-T: 1\r\nX-U:\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "0\r\n X-T: 1\r\n\r\n",
    "0\r\nX-T : 1\r\n\r\n",
    "0\r\nX-T: 1\n\r\n",
    "0\r\nbad\r\n\r\n",
    "0\r\n\n",
    "0\r\n",
];

/// One stream, made of the next numbers of `random`.
pub(super) fn generate(random: &mut Rng) -> Vec<u8> {
    let mut stream = String::new();
    for _ in 0..random.u8(..3) {
        if random.u8(..8) == 0 {
            stream += random
                .choice(["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Hints\r\nContent-Length: 9\r\n\r\n"])
                .unwrap();
        }
    }
    stream += if random.u8(..4) == 0 { random.choice(STATUS_LINES).unwrap() } else { "HTTP/1.1 200 OK" };
    stream += "\r\n";
    for _ in 0..random.u8(..4) {
        // The first are in order.
        let known = if random.u8(..3) == 0 { FIELDS.len() } else { 10 };
        stream += FIELDS[random.usize(..known)];
        stream += "\r\n";
    }
    match random.u8(..8) {
        0..=2 => stream += "Content-Length: 5\r\n\r\nhello",
        3..=5 => {
            stream += "Transfer-Encoding: chunked\r\n\r\n";
            chunks(random, &mut stream);
        }
        6 => stream += "\r\nhello",
        _ => {
            stream += random.choice(FRAMINGS).unwrap();
            stream += "\r\n\r\n";
            if random.bool() { chunks(random, &mut stream) } else { stream += "hello" }
        }
    }
    if random.u8(..8) == 0 {
        stream += random.choice(["\r\n", "x", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"]).unwrap();
    }
    let mut stream = stream.into_bytes();
    mutate(random, &mut stream);
    stream
}

fn chunks(random: &mut Rng, stream: &mut String) {
    for _ in 0..random.u8(..4) {
        let known = if random.u8(..4) == 0 { CHUNK_LINES.len() } else { 4 };
        *stream += CHUNK_LINES[random.usize(..known)];
    }
    let known = if random.u8(..3) == 0 { ENDS.len() } else { 4 };
    *stream += ENDS[random.usize(..known)];
}

/// Some lose their end, or have a byte changed, added or removed.
fn mutate(random: &mut Rng, stream: &mut Vec<u8>) {
    let at = random.usize(..stream.len());
    let byte = *random.choice(b"\r\n \t:;,0159aAx\0\x7f\xff").unwrap();
    match random.u8(..24) {
        0 => stream.truncate(at),
        1 => stream[at] = byte,
        2 => stream.insert(at, byte),
        3 => drop(stream.remove(at)),
        _ => {}
    }
}
