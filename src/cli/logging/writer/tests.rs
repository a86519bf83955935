use std::collections::VecDeque;
use std::io::ErrorKind;

use super::*;
use crate::cli::logging::queue::QUEUE_LIMITS;
use tracing::Level;

/// Accepts so many bytes, or fails, as each step says. After these it accepts everything.
#[derive(Default)]
struct Reader {
    steps: VecDeque<Result<usize, ErrorKind>>,
    read: String,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.steps.pop_front().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
        self.read.push_str(&String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_stay_whole_whatever_writes_return() {
    use ErrorKind::{BrokenPipe, Interrupted, StorageFull, WouldBlock};
    for (steps, read, lost) in [
        (vec![], "one\ntwo\nthree\n", 0),
        (vec![Ok(2), Err(Interrupted), Ok(1), Err(WouldBlock)], "one\ntwo\nthree\n", 0),
        (vec![Err(BrokenPipe)], "two\nthree\n", 1),
        (vec![Ok(0), Err(BrokenPipe)], "three\n", 2),
        // In the middle of a line.
        (vec![Ok(2), Err(StorageFull)], "on\ntwo\nthree\n", 1),
        (vec![Ok(2), Err(StorageFull), Err(StorageFull)], "on\nthree\n", 2),
        (vec![Ok(4), Ok(3), Err(StorageFull)], "one\ntwo\nthree\n", 1),
    ] {
        let counts = Arc::default();
        let queue = LogQueue::new(QUEUE_LIMITS, Arc::clone(&counts));
        let mut writer =
            Writer { out: Reader { steps: steps.into(), ..Reader::default() }, is_mid_line: false };
        for line in ["one\n", "two\n", "three\n"] {
            queue.push(line.as_bytes(), Level::WARN, false);
            writer.write_next(&queue);
        }
        assert_eq!(writer.out.read, read);
        assert_eq!(counts.dropped().map(|(_, _, lines)| lines).sum::<u64>(), lost, "{read}");
    }
}
