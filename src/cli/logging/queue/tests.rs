use super::*;

fn queue(lines: usize, bytes: usize) -> LogQueue {
    LogQueue::new(QueueLimits { lines, bytes }, Arc::default())
}

fn info(queue: &LogQueue, line: &str) {
    queue.push(line.as_bytes(), Level::INFO, true);
}

/// Writes the lines that are due, and returns them.
fn write(queue: &LogQueue) -> Option<String> {
    let block = queue.next(Duration::ZERO)?;
    let text = String::from_utf8_lossy(&block.bytes).into_owned();
    queue.complete(block, true);
    Some(text)
}

fn lost(queue: &LogQueue, why: DropReason) -> Vec<(&'static str, u64)> {
    let dropped = queue.counts.dropped().filter(|(is, _, count)| *is == why && *count > 0);
    dropped.map(|(_, level, count)| (level, count)).collect()
}

#[test]
fn lines_keep_their_order_and_urgent_ones_flush_the_others() {
    let queue = queue(100, 1_000);
    assert_eq!(write(&queue), None);
    info(&queue, "a\n");
    assert!(!queue.queue.lock().is_due(), "it is deferrable");
    queue.push(b"b\n", Level::WARN, false);
    assert_eq!(write(&queue).as_deref(), Some("a\nb\n"));
    info(&queue, "c\n");
    assert!(!queue.queue.lock().is_due(), "nothing urgent is left");
    assert_eq!(write(&queue).as_deref(), Some("c\n"), "its delay is over");
}

#[test]
fn many_lines_are_not_deferred_and_are_written_in_blocks() {
    let queue = LogQueue::new(QUEUE_LIMITS, Arc::default());
    for _ in 0..BLOCK_SIZE / 8 {
        info(&queue, "123456781234567\n");
    }
    assert!(queue.queue.lock().is_due());
    let parts: Vec<usize> = std::iter::from_fn(|| write(&queue)).map(|part| part.len()).collect();
    assert_eq!(parts, [BLOCK_SIZE, BLOCK_SIZE]);
    let state = queue.queue.lock();
    assert_eq!((state.lines, state.bytes), (0, 0));
    assert!(state.spare.bytes.capacity() <= 2 * BLOCK_SIZE);
}

#[test]
fn lines_that_do_not_fit_are_dropped_but_errors_have_a_reserve() {
    for (bounds, fits, errors) in [((80, 10_000), 70, 10), ((1_000, 800), 70, 10)] {
        let queue = queue(bounds.0, bounds.1);
        for _ in 0..fits + 3 {
            info(&queue, "12345678 \n");
        }
        queue.push(b"12345678 \n", Level::WARN, false);
        assert_eq!(lost(&queue, DropReason::QueueFull), [("warn", 1), ("info", 3)]);
        for _ in 0..errors + 2 {
            queue.push(b"12345678 \n", Level::ERROR, false);
        }
        assert_eq!(lost(&queue, DropReason::QueueFull), [("error", 2), ("warn", 1), ("info", 3)]);
        assert_eq!(queue.waiting().lines().count(), fits + errors);
        // A block keeps its room until it is written.
        let block = queue.next(Duration::ZERO).unwrap();
        info(&queue, "one more\n");
        assert_eq!(queue.waiting(), "");
        queue.complete(block, true);
        info(&queue, "and now\n");
        assert_eq!(queue.waiting(), "and now\n");
    }
}

#[test]
fn dropped_lines_are_reported_once_when_there_is_room_again() {
    let queue = queue(8 * 10_000, usize::MAX);
    assert_eq!(queue.take_dropped(Instant::now()), None);
    for _ in 0..70_005 {
        info(&queue, "12345678\n");
    }
    let now = Instant::now();
    let mut reported = Vec::new();
    while write(&queue).is_some() {
        reported.extend(queue.take_dropped(now).map(|dropped| (queue.queue.lock().lines > 0, dropped)));
    }
    assert_eq!(reported, [(true, [0, 0, 5, 0])], "in the middle, once");
}

#[test]
fn dropped_lines_are_reported_at_intervals_while_it_goes_on() {
    let queue = queue(80, usize::MAX);
    let (mut now, mut reported) = (Instant::now(), Vec::new());
    for second in 0..25_u64 {
        // More than can be written.
        for _ in 0..100 {
            queue.push(b"12345678\n", Level::WARN, false);
        }
        let block = queue.next(Duration::ZERO).unwrap();
        for _ in 0..100 {
            queue.push(b"12345678\n", Level::WARN, false);
        }
        queue.queue.lock().lines += 80;
        queue.complete(block, true);
        reported.extend(queue.take_dropped(now).map(|[_, dropped, _, _]| (second, dropped > 500)));
        queue.queue.lock().lines -= 80;
        now += Duration::from_secs(1);
    }
    assert_eq!(reported, [(10, true), (21, true)]);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let queue = queue(80, 1_000);
    info(&queue, "a\n");
    queue.push(b"b\n", Level::ERROR, false);
    let block = queue.next(Duration::ZERO).unwrap();
    queue.complete(block, false);
    assert_eq!(lost(&queue, DropReason::Unwritable), [("error", 1), ("info", 1)]);
    assert_eq!(queue.take_dropped(Instant::now()), Some([1, 0, 1, 0]));
    let state = queue.queue.lock();
    assert_eq!((state.lines, state.bytes), (0, 0));
}

#[test]
fn a_flush_waits_only_as_long_as_lines_are_read() {
    let queue = Arc::new(queue(80, 1_000));
    info(&queue, "a\n");
    // Nothing writes.
    assert!(!queue.flush(Duration::ZERO, Duration::from_secs(60)));
    assert!(!queue.flush(Duration::from_secs(60), Duration::ZERO));
    let writer = Arc::clone(&queue);
    let writing = std::thread::spawn(move || {
        for _ in 0..2 {
            // Only the second call shows that the first block was written.
            let block = writer.next(Duration::from_secs(60)).unwrap();
            writer.complete(block, true);
        }
    });
    assert!(queue.flush(Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!(queue.waiting(), "");
    info(&queue, "released\n");
    writing.join().unwrap();
    info(&queue, "b\n");
    assert!(queue.queue.lock().is_due(), "no line is deferrable any more");
}
