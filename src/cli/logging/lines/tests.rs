use super::*;

fn lines(lines: usize, bytes: usize) -> Lines {
    Lines::new(Bounds { lines, bytes }, Arc::default())
}

fn info(lines: &Lines, line: &str) {
    lines.push(line.as_bytes(), Level::INFO, true);
}

/// Writes what is due, and says what that was.
fn write(lines: &Lines) -> Option<String> {
    let block = lines.next(Duration::ZERO)?;
    let text = String::from_utf8_lossy(&block.bytes).into_owned();
    lines.written(block, true);
    Some(text)
}

fn lost(lines: &Lines, why: Loss) -> Vec<(&'static str, u64)> {
    let dropped = lines.counts.dropped().filter(|(is, _, count)| *is == why && *count > 0);
    dropped.map(|(_, level, count)| (level, count)).collect()
}

#[test]
fn lines_keep_their_order_and_urgent_ones_take_the_others_along() {
    let lines = lines(100, 1_000);
    assert_eq!(write(&lines), None);
    info(&lines, "a\n");
    assert!(!lines.queue.lock().is_due(), "it can wait");
    lines.push(b"b\n", Level::WARN, false);
    assert_eq!(write(&lines).as_deref(), Some("a\nb\n"));
    info(&lines, "c\n");
    assert!(!lines.queue.lock().is_due(), "nothing urgent is left");
    assert_eq!(write(&lines).as_deref(), Some("c\n"), "it has waited for as long as it may");
}

#[test]
fn many_lines_do_not_wait_and_are_written_in_parts() {
    let lines = Lines::new(BOUNDS, Arc::default());
    for _ in 0..BLOCK / 8 {
        info(&lines, "123456781234567\n");
    }
    assert!(lines.queue.lock().is_due());
    let parts: Vec<usize> = std::iter::from_fn(|| write(&lines)).map(|part| part.len()).collect();
    assert_eq!(parts, [BLOCK, BLOCK]);
    let queue = lines.queue.lock();
    assert_eq!((queue.lines, queue.bytes), (0, 0));
    assert!(queue.spare.bytes.capacity() <= 2 * BLOCK);
}

#[test]
fn what_does_not_fit_is_dropped_but_errors_have_a_reserve() {
    for (bounds, fits, errors) in [((80, 10_000), 70, 10), ((1_000, 800), 70, 10)] {
        let lines = lines(bounds.0, bounds.1);
        for _ in 0..fits + 3 {
            info(&lines, "12345678 \n");
        }
        lines.push(b"12345678 \n", Level::WARN, false);
        assert_eq!(lost(&lines, Loss::QueueFull), [("warn", 1), ("info", 3)]);
        for _ in 0..errors + 2 {
            lines.push(b"12345678 \n", Level::ERROR, false);
        }
        assert_eq!(lost(&lines, Loss::QueueFull), [("error", 2), ("warn", 1), ("info", 3)]);
        assert_eq!(lines.waiting().lines().count(), fits + errors);
        // What is being written takes its place until that is done.
        let block = lines.next(Duration::ZERO).unwrap();
        info(&lines, "one more\n");
        assert_eq!(lines.waiting(), "");
        lines.written(block, true);
        info(&lines, "and now\n");
        assert_eq!(lines.waiting(), "and now\n");
    }
}

#[test]
fn that_lines_were_dropped_is_told_once_when_it_flows_again() {
    let lines = lines(8 * 10_000, usize::MAX);
    assert_eq!(lines.dropped(Instant::now()), None);
    for _ in 0..70_005 {
        info(&lines, "12345678\n");
    }
    let now = Instant::now();
    let mut told = Vec::new();
    while write(&lines).is_some() {
        told.extend(lines.dropped(now).map(|dropped| (lines.queue.lock().lines > 0, dropped)));
    }
    assert_eq!(told, [(true, [0, 0, 5, 0])], "in the middle, once");
}

#[test]
fn that_lines_are_dropped_is_told_now_and_then_if_it_goes_on() {
    let lines = lines(80, usize::MAX);
    let (mut now, mut told) = (Instant::now(), Vec::new());
    for second in 0..25_u64 {
        // More than can be written.
        for _ in 0..100 {
            lines.push(b"12345678\n", Level::WARN, false);
        }
        let block = lines.next(Duration::ZERO).unwrap();
        for _ in 0..100 {
            lines.push(b"12345678\n", Level::WARN, false);
        }
        lines.queue.lock().lines += 80;
        lines.written(block, true);
        told.extend(lines.dropped(now).map(|[_, dropped, _, _]| (second, dropped > 500)));
        lines.queue.lock().lines -= 80;
        now += Duration::from_secs(1);
    }
    assert_eq!(told, [(10, true), (21, true)]);
}

#[test]
fn what_cannot_be_written_is_lost_and_counted() {
    let lines = lines(80, 1_000);
    info(&lines, "a\n");
    lines.push(b"b\n", Level::ERROR, false);
    let block = lines.next(Duration::ZERO).unwrap();
    lines.written(block, false);
    assert_eq!(lost(&lines, Loss::Unwritable), [("error", 1), ("info", 1)]);
    assert_eq!(lines.dropped(Instant::now()), Some([1, 0, 1, 0]));
    let queue = lines.queue.lock();
    assert_eq!((queue.lines, queue.bytes), (0, 0));
}

#[test]
fn the_end_waits_for_what_is_read_and_for_nothing_else() {
    let lines = Arc::new(lines(80, 1_000));
    info(&lines, "a\n");
    // Nothing writes.
    assert!(!lines.finish(Duration::ZERO, Duration::from_secs(60)));
    assert!(!lines.finish(Duration::from_secs(60), Duration::ZERO));
    let writer = Arc::clone(&lines);
    let writing = std::thread::spawn(move || {
        for _ in 0..2 {
            // Only the second question tells that the first lines were all.
            let block = writer.next(Duration::from_secs(60)).unwrap();
            writer.written(block, true);
        }
    });
    assert!(lines.finish(Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!(lines.waiting(), "");
    info(&lines, "released\n");
    writing.join().unwrap();
    info(&lines, "b\n");
    assert!(lines.queue.lock().is_due(), "nothing can wait any more");
}
