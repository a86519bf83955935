//! Chunks as those get them who read behind the gate: without extensions, and small ones that are there
//! together made one, since each costs as much there as a large one.

use std::io::Write as _;
use std::ops::Range;

use bytes::{Buf as _, BytesMut};
use memchr::memchr;

use super::super::wire;
use super::LONGEST_CHUNK_LINE;
use crate::refusal::Refusal;

/// If `inbox` begins with two or more whole chunks, they become one with the same data. The last chunk,
/// one that is not whole, and one that is not well formed stay as they are, with all that follows. An
/// error if the one had no room in the place of the many, which cannot be.
pub(super) fn merge(inbox: &mut BytesMut) -> Result<(), Refusal> {
    let Some(first) = whole_chunk(inbox) else { return Ok(()) };
    if inbox.get(first.end + 2..).and_then(whole_chunk).is_none() {
        return Ok(());
    }
    // The data moves to the front, then as far back as there is room before the end of the last chunk.
    let (mut read, mut length) = (0, 0);
    while let Some(data) = inbox.get(read..).and_then(whole_chunk) {
        let next = read + data.end + 2;
        inbox.copy_within(read + data.start..read + data.end, length);
        length += data.len();
        read = next;
    }
    let mut line = [0; LONGEST_CHUNK_LINE];
    let mut unwritten = &mut line[..];
    write!(unwritten, "{length:x}\r\n").map_err(|_| Refusal::Chunk)?;
    let line_length = LONGEST_CHUNK_LINE - unwritten.len();
    let begin = read.checked_sub(2 + length + line_length).ok_or(Refusal::Chunk)?;
    inbox.copy_within(..length, begin + line_length);
    for (place, byte) in inbox.iter_mut().skip(begin).zip(line).take(line_length) {
        *place = byte;
    }
    // The two bytes behind the data are the CRLF of the last one that was merged.
    inbox.advance(begin);
    Ok(())
}

/// With its extensions, the line that a chunk begins with. No more is there of a use for them.
const LONGEST_EXTENDED_LINE: usize = 256;
/// All extensions of a body: who sends one with every byte sends no body.
const MOST_EXTENSIONS: usize = 16 * 1024;

/// Takes the extensions out of the chunk line that `inbox` begins with (RFC 9112 §7.1.1), and adds their
/// bytes to `so_far`. No reader behind the gate ever sees one: they disagree on what they may hold. False if
/// more of the line has to be read first.
pub(super) fn drop_extensions(inbox: &mut BytesMut, so_far: &mut usize) -> Result<bool, Refusal> {
    let ends_size = |byte: &u8| matches!(byte, b';' | b' ' | b'\t' | b'\n');
    let Some(size) = inbox.iter().take(LONGEST_CHUNK_LINE).position(ends_size) else { return Ok(true) };
    if inbox.get(size) == Some(&b'\n') {
        return Ok(true);
    }
    let begin = inbox.get(..LONGEST_EXTENDED_LINE).unwrap_or(inbox);
    let Some(end) = memchr(b'\n', begin) else {
        return if inbox.len() < LONGEST_EXTENDED_LINE { Ok(false) } else { Err(Refusal::Chunk) };
    };
    let line = begin.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Refusal::Chunk)?;
    let extensions = line.get(size..).filter(|bytes| wire::are_extensions(bytes)).ok_or(Refusal::Chunk)?;
    let length = extensions.len();
    *so_far += length;
    if *so_far > MOST_EXTENSIONS {
        return Err(Refusal::Chunk);
    }
    inbox.copy_within(..size, length);
    inbox.advance(length);
    Ok(true)
}

/// Where the data lies of the chunk that `bytes` begin with, if all of it is there and well formed, and
/// it is not the last.
fn whole_chunk(bytes: &[u8]) -> Option<Range<usize>> {
    let at = bytes.iter().take(LONGEST_CHUNK_LINE).position(|byte| *byte == b'\n')?;
    let line = bytes.get(..at)?.strip_suffix(b"\r")?;
    let size = usize::try_from(wire::chunk_size(line).ok()?).ok().filter(|size| *size > 0)?;
    let data = at + 1..(at + 1).checked_add(size)?;
    (bytes.get(data.end..data.end.checked_add(2)?)? == b"\r\n").then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chunks_become_one() {
        for (sent, merged) in [
            ("1\r\na\r\n1\r\nb\r\n", "2\r\nab\r\n"),
            ("1\r\na\r\n1\r\nb\r\n0\r\n\r\n", "2\r\nab\r\n0\r\n\r\n"),
            ("001\r\na\r\n00000A\r\n0123456789\r\n1\r\nc", "b\r\na0123456789\r\n1\r\nc"),
            ("1\r\n\n\r\n2\r\n\r\n\r\n1\r\r\n", "3\r\n\n\r\n\r\n1\r\r\n"),
            // What is not whole, the last, or alone.
            ("", ""),
            ("1\r\na\r\n", "1\r\na\r\n"),
            ("1\r\na\r\n1\r\nb\r", "1\r\na\r\n1\r\nb\r"),
            ("1\r\na\r\n0\r\n\r\n1\r\nb\r\n", "1\r\na\r\n0\r\n\r\n1\r\nb\r\n"),
            ("0\r\n\r\n1\r\na\r\n1\r\nb\r\n", "0\r\n\r\n1\r\na\r\n1\r\nb\r\n"),
            // What is not well formed is left for the gate to refuse, with all behind it.
            ("1\r\na\r\n1\nb\r\n1\r\nc\r\n", "1\r\na\r\n1\nb\r\n1\r\nc\r\n"),
            ("1\r\na\r\n1\r\nb\r\n1;x\r\nc\r\n1\r\nd\r\n", "2\r\nab\r\n1;x\r\nc\r\n1\r\nd\r\n"),
            ("1\r\na\r\n1\r\nbc\r\n1\r\nd\r\n", "1\r\na\r\n1\r\nbc\r\n1\r\nd\r\n"),
            ("1\r\na\r\n+1\r\nb\r\n", "1\r\na\r\n+1\r\nb\r\n"),
            ("1\r\na\r\nfffffffffffffff\r\nb\r\n", "1\r\na\r\nfffffffffffffff\r\nb\r\n"),
            ("1\r\na\r\n0000000000000001\r\nb\r\n", "1\r\na\r\n0000000000000001\r\nb\r\n"),
        ] {
            let mut inbox = BytesMut::from(sent);
            merge(&mut inbox).unwrap();
            assert_eq!(String::from_utf8_lossy(&inbox), merged, "{sent:?}");
        }
    }

    #[test]
    fn there_is_room_for_every_length() {
        for sizes in [
            vec![1; 1],
            vec![1; 2],
            vec![1; 17],
            vec![1; 5_000],
            vec![8, 8],
            vec![15, 1],
            vec![255, 1, 4_000],
        ] {
            let data: Vec<u8> = (0..=255).cycle().take(sizes.iter().sum()).collect();
            let (mut sent, mut rest) = (Vec::new(), &data[..]);
            for size in &sizes {
                let (piece, others) = rest.split_at(*size);
                sent.extend([format!("{size:x}\r\n").as_bytes(), piece, b"\r\n"].concat());
                rest = others;
            }
            let mut inbox = BytesMut::from(&sent[..]);
            merge(&mut inbox).unwrap();
            let expected = [format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat();
            assert!(inbox == expected, "{} chunks", sizes.len());
        }
    }
}
