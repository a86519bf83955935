//! The event loop: sends requests that are due, reads responses, and counts.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::requests::Requests;
use super::slot::{Progress, Slot, Target};
use super::{Figures, Kind, Options};
use crate::keys::RandomNumbers;
use crate::{Fallible, process};

/// How long to wait for responses after the end.
const DEADLINE: Duration = Duration::from_secs(20);
const MAX_TRIES: u8 = 3;
const MAX_WARM_UP: Duration = Duration::from_mins(10);

pub(super) fn run(options: &Options) -> Fallible<Figures> {
    let mut load = Load::new(options)?;
    if options.warm > 0 {
        load.phase(Phase::new(options.warm, MAX_WARM_UP, 0.0))?;
    }
    load.measurements = Measurements::default();
    let measured = process::process_tree(options.cpu_of);
    let begun = Instant::now();
    let (cpu_before, sleeps_before) = (process::cpu_time(&measured), process::sleeps(&measured));
    load.phase(Phase::new(options.requests, Duration::from_secs_f64(options.seconds), options.rate))?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process::cpu_time(&measured).saturating_sub(cpu_before);
    let sleeps = process::sleeps(&measured).saturating_sub(sleeps_before);
    Ok(load.measurements.figures(seconds, cpu, sleeps))
}

/// The counts of a phase.
#[derive(Default)]
struct Measurements {
    responses: u64,
    errors: u64,
    latencies: Vec<u64>,
}

impl Measurements {
    fn figures(mut self, seconds: f64, cpu: Duration, sleeps: u64) -> Figures {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1) as f64;
        let at = |share: f64| {
            let nanos = self.latencies.get((last * share) as usize).copied().unwrap_or(0);
            nanos as f64 / 1e3
        };
        Figures {
            responses: self.responses,
            errors: self.errors,
            seconds,
            cpu_us: cpu.as_secs_f64() * 1e6 / self.responses.max(1) as f64,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            sleeps: sleeps as f64 / self.responses.max(1) as f64,
            ..Figures::default()
        }
    }
}

/// The warm-up or the measured part.
struct Phase {
    /// The limit of requests, or 0.
    limit: u64,
    end: Instant,
    rate: f64,
    issued: u64,
    in_flight: usize,
    /// When the next request of an open loop comes.
    next: Instant,
    /// Requests of an open loop that should be out but have no connection yet.
    queue: VecDeque<Instant>,
    rng: RandomNumbers,
}

impl Phase {
    fn new(limit: u64, time: Duration, rate: f64) -> Self {
        let now = Instant::now();
        // With a limit of requests, the time is only an upper bound.
        let time = if limit > 0 { time.max(MAX_WARM_UP) } else { time };
        let (queue, rng) = (VecDeque::new(), RandomNumbers(42));
        Self { limit, end: now + time, rate, issued: 0, in_flight: 0, next: now, queue, rng }
    }

    fn is_running(&self, now: Instant) -> bool {
        let issued = self.issued + self.queue.len() as u64;
        now < self.end && (self.limit == 0 || issued < self.limit)
    }

    fn is_open_loop(&self) -> bool {
        self.rate > 0.0
    }

    /// When the next request is or was due, if one is.
    fn due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if !self.is_open_loop() {
            return self.is_running(now).then_some(now);
        }
        while self.next <= now && self.is_running(now) {
            self.queue.push_back(self.next);
            self.next += Duration::from_secs_f64(-self.rng.unit().ln() / self.rate);
        }
        self.queue.pop_front()
    }
}

struct Load {
    requests: Requests,
    target: Target,
    poll: Poll,
    slots: Vec<Slot>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    expected_status: u16,
    short: bool,
    spins: bool,
    /// Number of the next request.
    number: u64,
    measurements: Measurements,
}

impl Load {
    fn new(options: &Options) -> Fallible<Self> {
        let mut target = Target::new(&options.to, options.short, options.kind == Kind::Upload)?;
        let poll = Poll::new()?;
        let mut slots: Vec<Slot> = (0..options.connections).map(|_| Slot::new()).collect();
        if !options.short {
            for (index, slot) in slots.iter_mut().enumerate() {
                slot.connect(&mut target, poll.registry(), Token(index))?;
            }
        }
        let large = options.kind == Kind::Blob;
        Ok(Self {
            requests: Requests::new(options),
            target,
            poll,
            free: (0..slots.len()).rev().collect(),
            slots,
            buffer: vec![0; if large { 1 << 18 } else { 1 << 15 }],
            expected_status: options.kind.status(),
            short: options.short,
            spins: options.rate > 0.0 || !options.sleeps,
            number: 0,
            measurements: Measurements::default(),
        })
    }

    fn phase(&mut self, mut phase: Phase) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            self.send_what_is_due(&mut phase);
            let now = Instant::now();
            if phase.in_flight == 0 && phase.queue.is_empty() && !phase.is_running(now) {
                return Ok(());
            }
            if now > phase.end + DEADLINE {
                self.measurements.errors += phase.in_flight as u64;
                return Ok(());
            }
            let spins = self.spins && phase.is_running(now);
            let timeout = if spins { Duration::ZERO } else { Duration::from_millis(50) };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            if spins && events.is_empty() {
                // Rails shares this core.
                thread::yield_now();
            }
            for event in &events {
                let readable = event.is_readable() || event.is_read_closed() || event.is_error();
                self.handle_event(event.token().0, event.is_writable(), readable, &mut phase);
            }
        }
    }

    fn send_what_is_due(&mut self, phase: &mut Phase) {
        while let Some(index) = self.free.pop() {
            let Some(due) = phase.due() else {
                self.free.push(index);
                return;
            };
            self.begin(index, due, phase);
        }
    }

    fn begin(&mut self, index: usize, due: Instant, phase: &mut Phase) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.body = self.requests.write(self.number, &mut slot.out);
        slot.begun = due;
        slot.tries = 0;
        self.number += 1;
        phase.issued += 1;
        phase.in_flight += 1;
        self.send(index, phase);
    }

    /// Sends a slot's request, over a new connection if there is none.
    fn send(&mut self, index: usize, phase: &mut Phase) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if !slot.is_connected() && slot.connect(&mut self.target, self.poll.registry(), Token(index)).is_err()
        {
            slot.is_busy = false;
            self.measurements.errors += 1;
            phase.in_flight -= 1;
            self.free.push(index);
            // A server that refuses connections would be tried a million times a second.
            thread::sleep(Duration::from_millis(1));
            return;
        }
        let progress = slot.send();
        self.record(index, progress, phase);
    }

    fn handle_event(&mut self, index: usize, writable: bool, readable: bool, phase: &mut Phase) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let mut progress = Progress::Waiting;
        if writable && slot.is_busy {
            progress = slot.write();
        }
        if readable && progress == Progress::Waiting {
            progress = slot.read(&mut self.buffer);
        }
        self.record(index, progress, phase);
    }

    fn record(&mut self, index: usize, progress: Progress, phase: &mut Phase) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let was_busy = slot.is_busy || matches!(progress, Progress::Answered(_));
        match progress {
            Progress::Waiting => return,
            // A kept connection that the server closed in the meantime; a client tries again.
            Progress::Unanswered if !self.short && slot.tries < MAX_TRIES => {
                slot.tries += 1;
                return self.send(index, phase);
            }
            Progress::Answered(status) => {
                self.measurements.responses += 1;
                self.measurements.errors += u64::from(status != self.expected_status);
                self.measurements.latencies.push(slot.begun.elapsed().as_nanos() as u64);
                if self.short {
                    slot.disconnect();
                }
            }
            Progress::Unanswered | Progress::Broken => self.measurements.errors += 1,
        }
        if !was_busy {
            return;
        }
        slot.is_busy = false;
        phase.in_flight -= 1;
        match phase.due() {
            Some(due) => self.begin(index, due, phase),
            None => self.free.push(index),
        }
    }
}
