//! The sets and the pairs of bytes that are allowed in a head. Every byte of every head passes these checks, so those
//! of long parts (targets and values) have no branches, and the compiler vectorizes them.

#![expect(clippy::indexing_slicing, reason = "at compile time, where an index out of bounds does not build")]
#![expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch")]

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    token_length(bytes) == bytes.len()
}

/// How many bytes are a token, up to the first one that may not be in it.
pub(crate) fn token_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| TOKEN.get(usize::from(**byte)) == Some(&true)).count()
}

/// RFC 3986: unreserved, reserved and `%`, without `#`, since a fragment is never sent.
pub(crate) fn is_path(bytes: &[u8]) -> bool {
    none(bytes, |byte| {
        is_never_in_target(byte) | (byte >= b'{') & (byte != b'~') | (byte == b'^') | (byte == b'`')
    })
}

/// The same with `{`, `|`, `}`, `^`, a backtick, a backslash and UTF-8, which clients forget to encode, and which
/// Puma, Workhorse and every Rack read as such in a query. In a path they are rare, and a path must have one
/// spelling.
pub(crate) fn is_query(bytes: &[u8]) -> bool {
    none(bytes, is_never_in_target) || is_query_with_utf8(bytes)
}

/// Apart, since no client of GitLab's sends one.
#[cold]
fn is_query_with_utf8(bytes: &[u8]) -> bool {
    none(bytes, |byte| is_never_in_target(byte) & (byte < 0x80) & (byte != b'\\'))
        && std::str::from_utf8(bytes).is_ok()
}

fn is_never_in_target(byte: u8) -> bool {
    (byte <= b' ')
        | (byte >= 0x7f)
        | (byte == b'"')
        | (byte == b'#')
        | (byte == b'<')
        | (byte == b'>')
        | (byte == b'\\')
}

/// RFC 9110 §5.5: visible characters, space, tab, and bytes beyond ASCII.
pub(crate) fn is_value(bytes: &[u8]) -> bool {
    none(bytes, |byte| (byte < b' ') & (byte != b'\t') | (byte == 0x7f))
}

/// Whether a line ends with LF alone.
pub(crate) fn has_bare_line_feed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'\n') || has_pair(bytes, |before, byte| (byte == b'\n') & (before != b'\r'))
}

/// Whether a line continues the one before (RFC 9112 §5.2).
pub(crate) fn has_folded_line(bytes: &[u8]) -> bool {
    has_pair(bytes, |before, byte| (before == b'\n') & ((byte == b' ') | (byte == b'\t')))
}

/// Whether a path may have an empty segment, one that begins with a dot, a parameter or an escape.
pub(crate) fn may_be_spelled_otherwise(path: &[u8]) -> bool {
    let is_suspect =
        |byte, next| (byte == b'/') & ((next == b'/') | (next == b'.')) | (byte == b';') | (byte == b'%');
    matches!(path.last(), Some(b';' | b'%')) || has_pair(path, is_suspect)
}

/// Whether two neighbours are `wanted`.
fn has_pair(bytes: &[u8], wanted: impl Fn(u8, u8) -> bool) -> bool {
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    pairs.fold(0, |found, (before, byte)| found | u8::from(wanted(*before, *byte))) != 0
}

/// Whether no byte is `bad`; the letter `a` never is. Checks all of them, sixteen at once: an early return would prevent
/// vectorization, and so would an end that is shorter.
fn none(bytes: &[u8], bad: impl Fn(u8) -> bool) -> bool {
    let has_bad = |chunk: &[u8; 16]| chunk.iter().fold(0, |found, byte| found | u8::from(bad(*byte)));
    let (chunks, end) = bytes.as_chunks();
    let found = chunks.iter().fold(0, |found, chunk| found | has_bad(chunk));
    let mut last = [b'a'; 16];
    if let Some(room) = last.get_mut(..end.len()) {
        room.copy_from_slice(end);
    }
    found | has_bad(&last) == 0
}

static TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");

const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte, 0x30..=0x39 | 0x41..=0x5a | 0x61..=0x7a);
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(is_member: fn(&[u8]) -> bool) -> Vec<u8> {
        (0..=255).filter(|byte| is_member(&[*byte])).collect()
    }

    #[test]
    fn the_sets_are_those_of_the_rfcs() {
        let letters_and = |others: &[u8]| -> Vec<u8> {
            (0..=255).filter(|byte: &u8| byte.is_ascii_alphanumeric() || others.contains(byte)).collect()
        };
        assert_eq!(members(is_token), letters_and(b"!#$%&'*+-.^_`|~"));
        assert_eq!(members(is_path), letters_and(b"-._~:/?[]@!$&'()*+,;=%"));
        assert_eq!(members(is_query), letters_and(b"-._~:/?[]@!$&'()*+,;=%{|}^`\\"));
        let outside: Vec<u8> = (0..=255).filter(|byte| !is_value(&[*byte])).collect();
        let expected: Vec<u8> = (0..32).filter(|byte| *byte != b'\t').chain([0x7f]).collect();
        assert_eq!(outside, expected);
        assert!(is_query("é=ключ\\".as_bytes()) && !is_path("é".as_bytes()));
        for text in
            [&b"a=\xff"[..], b"\xc3", b"\xc3\xa9\x7f", b"\xed\xa0\x80", b"\xc3\xa9 ", b"\xc3\xa9#", b"\\<"]
        {
            assert!(!is_query(text), "{text:?}");
        }
        assert!(is_token(b"") && is_path(b"") && is_query(b"") && is_value(b""));
    }

    #[test]
    fn a_bare_line_feed_is_found_at_any_position() {
        for length in 1..80 {
            let lines: Vec<u8> = b"a\r\n\r\n".iter().copied().cycle().take(length).collect();
            assert!(!has_bare_line_feed(&lines), "{length}");
            for at in 0..length {
                let mut bytes = vec![b'a'; length];
                assert!(!has_bare_line_feed(&bytes));
                bytes[at] = b'\n';
                assert!(has_bare_line_feed(&bytes), "{at} of {length}");
            }
        }
    }

    #[test]
    fn a_folded_line_is_found_and_no_other() {
        for (bytes, is_folded) in [
            (&b"A: 1\r\nB: 2\r\n\r\n"[..], false),
            (b"A: 1\r\n 2\r\n\r\n", true),
            (b"A: 1\r\n\t2\r\n\r\n", true),
            (b"A: 1 \t\r\n\r\n", false),
            (b"\n", false),
            (b"", false),
        ] {
            assert_eq!(has_folded_line(bytes), is_folded, "{bytes:?}");
        }
    }

    #[test]
    fn a_path_that_may_be_spelled_otherwise_is_found() {
        for (path, is_suspect) in [
            ("/api/v4/internal/check", false),
            ("/a.b/c..d", false),
            ("/", false),
            ("", false),
            ("//a", true),
            ("/a//b", true),
            ("/./a", true),
            ("/a/../b", true),
            ("/a/.", true),
            ("/.git", true),
            ("/a;b", true),
            ("/a;", true),
            ("/a%2f", true),
            ("/a%", true),
            ("%", true),
        ] {
            assert_eq!(may_be_spelled_otherwise(path.as_bytes()), is_suspect, "{path}");
        }
    }

    #[test]
    fn one_bad_byte_is_found_at_any_position() {
        for length in 1..80 {
            for at in 0..length {
                let mut bytes = vec![b'a'; length];
                assert!(is_path(&bytes) && is_query(&bytes) && is_value(&bytes));
                bytes[at] = 0;
                assert!(!is_path(&bytes) && !is_query(&bytes), "{at} of {length}");
                assert!(!is_value(&bytes) && !is_token(&bytes), "{at} of {length}");
            }
        }
    }
}
