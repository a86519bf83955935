//! Which bytes may stand where, as tables: every byte of every head is looked up here.

#![expect(clippy::indexing_slicing, reason = "at compile time, where an index out of bounds does not build")]

/// RFC 3986: unreserved, reserved and `%`, without `#`, since a fragment is never sent.
pub(super) static IN_TARGET: [bool; 256] = alphanumeric_and(b"-._~:/?[]@!$&'()*+,;=%");
/// RFC 9110 §5.6.2.
pub(super) static TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");
/// RFC 9110 §5.5: visible characters, space, tab, and bytes beyond ASCII.
pub(super) static IN_VALUE: [bool; 256] = field_value();

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

const fn field_value() -> [bool; 256] {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 32 {
        table[byte] = byte == b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = false;
    table
}

pub(super) fn all_in(bytes: &[u8], table: &[bool; 256]) -> bool {
    bytes.iter().all(|byte| table.get(usize::from(*byte)) == Some(&true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(table: &[bool; 256]) -> Vec<u8> {
        (0..=255).filter(|byte| all_in(&[*byte], table)).collect()
    }

    #[test]
    fn the_tables_hold_what_the_rfcs_say() {
        assert_eq!(members(&TOKEN).len(), 62 + 15);
        assert_eq!(members(&IN_TARGET).len(), 62 + 22);
        assert!(!all_in(b"#", &IN_TARGET) && !all_in(b" ", &IN_TARGET) && !all_in(b"\\", &IN_TARGET));
        assert!(!all_in(b":", &TOKEN) && !all_in(b" ", &TOKEN) && !all_in(b"\x80", &TOKEN));
        let outside: Vec<u8> = (0..=255).filter(|byte| !all_in(&[*byte], &IN_VALUE)).collect();
        let expected: Vec<u8> = (0..32).filter(|byte| *byte != b'\t').chain([0x7f]).collect();
        assert_eq!(outside, expected);
        assert!(all_in(b"", &TOKEN));
    }
}
