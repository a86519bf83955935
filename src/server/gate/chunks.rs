//! Chunks as hyper gets them: without extensions, and small chunks that arrive together merged into one,
//! since a small chunk costs hyper as much as a large one.

use std::io::Write as _;
use std::ops::Range;

use bytes::{Buf as _, BytesMut};
use memchr::memchr;

use crate::framing::chunk::{
    MAX_CHUNK_LINE, MAX_EXTENDED_LINE, MAX_EXTENSION_BYTES, are_extensions, chunk_size,
};
use crate::refusal::Refusal;

/// If `buffer` begins with two or more whole chunks, they become one with the same data. The last chunk, an
/// incomplete one and a malformed one stay as they are, with all that follows. The error, that the merged
/// chunk is longer than the original ones, cannot occur.
pub(super) fn merge(buffer: &mut BytesMut) -> Result<(), Refusal> {
    let Some(first) = whole_chunk(buffer) else { return Ok(()) };
    if buffer.get(first.end + 2..).and_then(whole_chunk).is_none() {
        return Ok(());
    }
    // The data moves to the front, then as far back as there is room before the end of the last chunk.
    let (mut read, mut length) = (0, 0);
    while let Some(data) = buffer.get(read..).and_then(whole_chunk) {
        let next = read + data.end + 2;
        buffer.copy_within(read + data.start..read + data.end, length);
        length += data.len();
        read = next;
    }
    let mut line = [0; MAX_CHUNK_LINE];
    let mut unwritten = &mut line[..];
    write!(unwritten, "{length:x}\r\n").map_err(|_| Refusal::Chunk)?;
    let line_length = MAX_CHUNK_LINE - unwritten.len();
    let begin = read.checked_sub(2 + length + line_length).ok_or(Refusal::Chunk)?;
    buffer.copy_within(..length, begin + line_length);
    for (target, byte) in buffer.iter_mut().skip(begin).zip(line).take(line_length) {
        *target = byte;
    }
    // The two bytes behind the data are the CRLF of the last one that was merged.
    buffer.advance(begin);
    Ok(())
}

/// Removes the extensions from the chunk line that `buffer` begins with (RFC 9112 §7.1.1), and adds their
/// bytes to `total`. No reader behind the gate sees them, since readers disagree on their syntax. False if
/// more of the line has to be read first.
pub(super) fn strip_extensions(buffer: &mut BytesMut, total: &mut usize) -> Result<bool, Refusal> {
    let ends_size = |byte: &u8| matches!(byte, b';' | b' ' | b'\t' | b'\n');
    let Some(size) = buffer.iter().take(MAX_CHUNK_LINE).position(ends_size) else { return Ok(true) };
    if buffer.get(size) == Some(&b'\n') {
        return Ok(true);
    }
    let begin = buffer.get(..MAX_EXTENDED_LINE).unwrap_or(buffer);
    let Some(end) = memchr(b'\n', begin) else {
        return if buffer.len() < MAX_EXTENDED_LINE { Ok(false) } else { Err(Refusal::Chunk) };
    };
    let line = begin.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Refusal::Chunk)?;
    let extensions = line.get(size..).filter(|bytes| are_extensions(bytes)).ok_or(Refusal::Chunk)?;
    let length = extensions.len();
    *total += length;
    if *total > MAX_EXTENSION_BYTES {
        return Err(Refusal::Chunk);
    }
    buffer.copy_within(..size, length);
    buffer.advance(length);
    Ok(true)
}

/// The range of the data of the chunk that `bytes` begin with, if the chunk is complete, well formed, and
/// not the last one.
fn whole_chunk(bytes: &[u8]) -> Option<Range<usize>> {
    let at = bytes.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n')?;
    let line = bytes.get(..at)?.strip_suffix(b"\r")?;
    let size = usize::try_from(chunk_size(line)?).ok().filter(|size| *size > 0)?;
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
            // Incomplete ones, the last, or a single one.
            ("", ""),
            ("1\r\na\r\n", "1\r\na\r\n"),
            ("1\r\na\r\n1\r\nb\r", "1\r\na\r\n1\r\nb\r"),
            ("1\r\na\r\n0\r\n\r\n1\r\nb\r\n", "1\r\na\r\n0\r\n\r\n1\r\nb\r\n"),
            ("0\r\n\r\n1\r\na\r\n1\r\nb\r\n", "0\r\n\r\n1\r\na\r\n1\r\nb\r\n"),
            // A malformed chunk, with all that follows, is left for the gate to refuse.
            ("1\r\na\r\n1\nb\r\n1\r\nc\r\n", "1\r\na\r\n1\nb\r\n1\r\nc\r\n"),
            ("1\r\na\r\n1\r\nb\r\n1;x\r\nc\r\n1\r\nd\r\n", "2\r\nab\r\n1;x\r\nc\r\n1\r\nd\r\n"),
            ("1\r\na\r\n1\r\nbc\r\n1\r\nd\r\n", "1\r\na\r\n1\r\nbc\r\n1\r\nd\r\n"),
            ("1\r\na\r\n+1\r\nb\r\n", "1\r\na\r\n+1\r\nb\r\n"),
            ("1\r\na\r\nfffffffffffffff\r\nb\r\n", "1\r\na\r\nfffffffffffffff\r\nb\r\n"),
            ("1\r\na\r\n0000000000000001\r\nb\r\n", "1\r\na\r\n0000000000000001\r\nb\r\n"),
        ] {
            let mut buffer = BytesMut::from(sent);
            merge(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer), merged, "{sent:?}");
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
            let mut buffer = BytesMut::from(&sent[..]);
            merge(&mut buffer).unwrap();
            let expected = [format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat();
            assert!(buffer == expected, "{} chunks", sizes.len());
        }
    }
}
