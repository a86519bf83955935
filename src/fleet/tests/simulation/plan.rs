//! What a seed stands for.

use std::sync::Arc;
use std::time::Duration;

use super::promise::FRESH;
use crate::fleet::members::MAX_SILENCE;
use crate::fleet::settings::{FleetSettings, SharedSettings};
use crate::upstream::UpstreamAddress;

/// How many questions there are. Only those that are asked take memory.
pub(super) const QUESTIONS: u64 = 10_000_000;

/// One seed in so many has the largest fleet.
const LARGEST_EVERY: u64 = 200;

/// One seed in so many runs for so long that a gateway which is heard no more is doubted.
const SILENCE_EVERY: u64 = 50;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) gateways: usize,
    /// In milliseconds.
    pub(super) duration: u64,
    /// Within how many milliseconds all gateways begin.
    pub(super) start: u64,
    pub(super) requests: u64,
    pub(super) changes: u64,
    pub(super) faults: u64,
    /// The questions that are asked often.
    pub(super) often_asked: Vec<u64>,
    pub(super) settings: Arc<FleetSettings>,
    /// Whether Sentinels say where the master is; else it has an address of its own, which moves.
    pub(super) has_sentinels: bool,
    /// For how long, in milliseconds, Rails may tell what was true before.
    pub(super) settle: u64,
    /// How long Rails takes in most cases.
    pub(super) rails_latency: u64,
    /// Whether clocks differ by as much as they may.
    pub(super) has_clock_errors: bool,
    /// Whether they are set, by more than that.
    pub(super) has_clock_steps: bool,
    /// How old an answer may be, in milliseconds, and still be fresh, if no purge comes.
    pub(super) fresh: u64,
    /// Whether one gateway is not heard any more.
    pub(super) has_silence: bool,
}

impl Plan {
    pub(super) fn new(seed: u64, rng: &mut fastrand::Rng) -> Self {
        let is_largest = (seed + 1).is_multiple_of(LARGEST_EVERY);
        let mut settings = FleetSettings::new(UpstreamAddress::Tcp("valkey".to_owned(), 6379));
        settings.shared = (!rng.u8(..).is_multiple_of(4)).then(SharedSettings::default);
        if rng.u8(..).is_multiple_of(4) {
            settings.poll = Duration::from_millis(rng.u64(100..=2_000));
            settings.alone_after = settings.poll + Duration::from_millis(rng.u64(500..=3_000));
            settings.alone_ttl = Duration::from_millis(rng.u64(0..=15_000));
        }
        let most = if rng.u8(..).is_multiple_of(4) { 20 } else { 7 };
        // With clocks that are wrong, what Rails tells wrongly is not noticed in what others share.
        let has_clock_steps = rng.u8(..).is_multiple_of(6);
        // To look through the entries for a user is dear, so most are SSH keys.
        let questions = (0..rng.u64(5..=40)).map(|_| rng.u64(..QUESTIONS));
        let often_asked =
            questions.map(|number| if number.is_multiple_of(3) { number } else { number & !3 }).collect();
        let plan = Self {
            gateways: if is_largest { 500 } else { rng.usize(3..=most) },
            duration: if is_largest { 12_000 } else { rng.u64(20_000..=50_000) },
            start: if is_largest { 40 } else { 2_000 },
            requests: if is_largest { 1_000 } else { rng.u64(150..=300) },
            changes: if is_largest { 8 } else { rng.u64(4..=12) },
            faults: if rng.u8(..).is_multiple_of(8) { 0 } else { rng.u64(1..=6) },
            often_asked,
            settings: Arc::new(settings),
            has_sentinels: rng.bool(),
            settle: if has_clock_steps || rng.bool() { 0 } else { rng.u64(500..=5_000) },
            rails_latency: rng.u64(2..=60),
            has_clock_errors: rng.bool(),
            has_clock_steps,
            fresh: FRESH,
            has_silence: false,
        };
        if seed % SILENCE_EVERY == SILENCE_EVERY / 2 { plan.with_silence() } else { plan }
    }

    /// The same for a fleet that is small and calm but for that, and keeps answers for so long that only a doubt ends them.
    fn with_silence(self) -> Self {
        Self {
            gateways: self.gateways.min(5),
            duration: 250_000,
            requests: 100,
            changes: 4,
            faults: 0,
            settle: 0,
            has_clock_steps: false,
            fresh: 600_000,
            has_silence: true,
            ..self
        }
    }

    /// How long after a purge was told a gateway that reaches Valkey may give the old answer: what README.md promises,
    /// with what a new connection and a look through the entries take here.
    pub(super) fn heard_within(&self) -> u64 {
        (ms(self.settings.poll) + 500).max(1_000) + 120
    }

    /// How long a purge is hidden from one that reaches Valkey and knows the gateway which tells it. It is looked for silent ones
    /// once a second.
    pub(super) fn hidden_within(&self) -> u64 {
        let clocks = if self.has_clock_errors { 1_000 } else { 0 };
        ms(MAX_SILENCE) + 1_000 + clocks + self.heard_within()
    }

    /// The same for one that does not reach it.
    pub(super) fn alone_within(&self) -> u64 {
        ms(self.settings.alone_after + self.settings.alone_ttl) + 120
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}
