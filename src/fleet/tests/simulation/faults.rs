//! What goes wrong, and what is asked and changed meanwhile.

use super::gateway::Gateway;
use super::promise::FRESH;
use super::rails::{Question, Subject};
use super::world::World;

/// How long after an outage a gateway may take until it tells again, and shares: its longest pause, and an attempt that
/// had begun.
pub(super) const RECOVERY: u64 = 3_500;

/// How often Sentinels are asked, and how long that takes.
pub(super) const SENTINELS: u64 = 1_100;

/// How far an entry of another program is ahead of the clock.
pub(super) const AHEAD: u64 = 30_000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Some gateways do not reach Valkey.
    Cut,
    /// What is sent over the connections of a gateway is lost without a sign.
    DeadConnections,
    /// All connections are closed.
    Kill,
    /// The server does nothing for some time.
    Freeze,
    /// A replica takes over, and lacks what was written last.
    FailOver,
    /// The server is restarted, with all, some or nothing of what it had.
    Restart,
    Flush,
    RemoveStream,
    Trim,
    /// Something is told and removed before some gateways have read it.
    LoseUnread,
    /// A program has the stream take entries below the last one that all have read.
    LowerLastId,
    /// The server refuses to write.
    Full,
    /// The same, and the stream is removed meanwhile.
    FullWithoutStream,
    SetServerClock,
    SetGatewayClock,
    /// A gateway ends, with or without taking leave, and begins again.
    RestartGateway,
}

impl Fault {
    /// What loses most, twice.
    const ALL: [Self; 17] = [
        Self::Cut,
        Self::DeadConnections,
        Self::Kill,
        Self::Freeze,
        Self::FailOver,
        Self::Restart,
        Self::Flush,
        Self::RemoveStream,
        Self::Trim,
        Self::LoseUnread,
        Self::LoseUnread,
        Self::LowerLastId,
        Self::Full,
        Self::FullWithoutStream,
        Self::RestartGateway,
        Self::SetServerClock,
        Self::SetGatewayClock,
    ];

    /// Whether it may lose what was told, or keep the gateway that would tell it again from doing so.
    fn may_hide(self) -> bool {
        matches!(
            self,
            Self::Cut
                | Self::DeadConnections
                | Self::FailOver
                | Self::Restart
                | Self::Flush
                | Self::RemoveStream
                | Self::Trim
                | Self::LoseUnread
                | Self::FullWithoutStream
                | Self::RestartGateway
        )
    }
}

impl World {
    pub(super) fn plan_requests(&mut self) {
        for _ in 0..self.plan.requests {
            let at = self.rng.u64(0..self.plan.duration);
            self.after(at, |world| {
                let (gateway, question) = (world.any_gateway(), world.any_question());
                world.request(gateway, question);
            });
        }
        for _ in 0..self.plan.changes {
            let at = self.rng.u64(0..self.plan.duration);
            self.after(at, World::change);
        }
    }

    pub(super) fn plan_faults(&mut self) {
        if self.plan.has_clock_errors {
            self.nodes.iter_mut().for_each(|node| node.clock_error = 900);
        }
        for _ in 0..self.plan.faults {
            // Most things go wrong while others do.
            let around = self.rng.u64(1_000..self.plan.duration);
            for _ in 0..self.rng.usize(1..=3) {
                let at = around + self.rng.u64(0..=4_000);
                self.after(at, World::break_something);
                // What is told meanwhile is what may get lost.
                let at = around + self.rng.u64(0..=4_000);
                self.after(at, World::change);
            }
        }
    }

    pub(super) fn any_gateway(&mut self) -> usize {
        self.rng.usize(..self.gateways.len())
    }

    fn any_question(&mut self) -> Question {
        let is_rare = self.one_in(8);
        let often = self.rng.usize(..self.plan.often_asked.len());
        let number =
            if is_rare { self.rng.u64(..super::plan::QUESTIONS) } else { self.plan.often_asked[often] };
        Question::new(number)
    }

    /// Something changes in GitLab, which tells one gateway so. It was asked about just before, and is after.
    fn change(&mut self) {
        self.change_told_to(None);
    }

    /// The same; which gateway is told may be given.
    pub(super) fn change_told_to(&mut self, gateway: Option<usize>) {
        let question = self.any_question();
        let (row, user) = question.subjects();
        let subject = if self.rng.bool() { row.or(user) } else { user.or(row) };
        let Some(subject) = subject else { return };
        self.ask_around(subject, 60);
        let delay = self.rng.u64(60..=120);
        self.after(delay, move |world| {
            let version = world.rails.change(subject, world.now);
            let delay = world.rng.u64(0..=50);
            world.after(delay, move |world| match gateway {
                Some(gateway) => world.hook_at(gateway, (subject, version)),
                None => world.hook((subject, version)),
            });
            world.ask_around(subject, FRESH / 10);
        });
    }

    fn hook(&mut self, (subject, version): (Subject, usize)) {
        let first = self.any_gateway();
        let all = 0..self.gateways.len();
        let gateway = all.map(|offset| (first + offset) % self.gateways.len()).find(|gateway| {
            let gateway = &self.gateways[*gateway];
            gateway.is_up() && !gateway.process.bus.ending.is_cancelled()
        });
        if let Some(gateway) = gateway {
            self.hook_at(gateway, (subject, version));
        }
    }

    fn hook_at(&mut self, gateway: usize, (subject, version): (Subject, usize)) {
        let ticket = self.accept(gateway, subject.selectors());
        self.accepted(gateway, (subject, version), ticket);
    }

    /// A few gateways are asked what a change is about.
    fn ask_around(&mut self, subject: Subject, longest: u64) {
        for question in Question::about(subject) {
            for _ in 0..self.gateways.len().min(4) {
                let (gateway, delay) = (self.any_gateway(), self.rng.u64(0..=longest));
                self.after(delay, move |world| world.request(gateway, question));
            }
        }
    }

    fn break_something(&mut self) {
        let clocks = if self.plan.has_clock_steps { 0 } else { 2 };
        let fault = Fault::ALL[self.rng.usize(..Fault::ALL.len() - clocks)];
        let (gateway, duration) = (self.any_gateway(), self.any_duration());
        let master = self.master;
        if (fault.may_hide() && self.is_telling_again()) || self.is_unread_for_ever(fault) {
            return;
        }
        match fault {
            Fault::Cut => {
                for _ in 0..self.rng.usize(1..=self.gateways.len().div_ceil(3)) {
                    let gateway = self.any_gateway();
                    self.cut(gateway, duration);
                    self.fail(gateway, duration);
                }
            }
            Fault::DeadConnections => {
                self.end_connections(gateway, false);
                self.fail(gateway, 0);
            }
            Fault::Kill => {
                self.close_connections(master);
                self.fail_all(0);
            }
            Fault::Freeze => {
                self.freeze(master);
                self.after(duration, move |world| world.wake(master));
                self.fail_all(duration);
            }
            Fault::FailOver => {
                let kept_until = self.now.saturating_sub(self.rng.u64(0..=800));
                self.fail_over(duration, kept_until);
            }
            Fault::Restart => {
                let lost = [self.now, self.rng.u64(1..=1_000), 0][self.rng.usize(..3)];
                self.restart_server(duration / 2, self.now.saturating_sub(lost));
            }
            Fault::Flush => self.nodes[master].flush(),
            Fault::RemoveStream => self.nodes[master].remove_stream(),
            Fault::Trim => {
                let left = self.rng.usize(0..=2);
                self.nodes[master].trim(left);
                self.gone_at = Some(self.now);
            }
            Fault::LoseUnread => self.lose_unread(),
            Fault::LowerLastId => self.lower_last_id(master),
            Fault::Full => self.fill_server(master, duration),
            Fault::FullWithoutStream => {
                self.fill_server(master, duration + 3_000);
                // What is told from now on is not taken.
                self.gone_at = Some(self.now);
                let delay = self.rng.u64(0..=3_000);
                self.after(delay, move |world| world.nodes[master].remove_stream());
            }
            Fault::SetServerClock => {
                let steps = [-600_000, -10_000, -1_500, 1_500, 10_000, 600_000];
                self.nodes[master].clock_error += steps[self.rng.usize(..steps.len())];
            }
            Fault::SetGatewayClock => {
                let seconds = [-600, -10, -3, 3, 10, 600][self.rng.usize(..6)];
                self.gateways[gateway].step_clock(seconds);
            }
            Fault::RestartGateway => self.restart_gateway(gateway, duration),
        }
        self.disturb(self.now + duration + 2 * RECOVERY, format!("{fault:?} of {gateway} for {duration} ms"));
    }

    /// Something is told, and lost before gateways that are cut off have read it. The one that has told it may be gone by then.
    fn lose_unread(&mut self) {
        self.has_lost_unread = true;
        let (teller, question) = (self.any_gateway(), self.any_question());
        let (row, user) = question.subjects();
        let Some(subject) = (if self.rng.bool() { row.or(user) } else { user.or(row) }) else { return };
        if !self.gateways[teller].is_up() {
            return;
        }
        let unaware: Vec<usize> = (0..self.gateways.len().div_ceil(3)).map(|_| self.any_gateway()).collect();
        for gateway in unaware.into_iter().filter(|gateway| *gateway != teller) {
            let cut = self.rng.u64(600..=1_800);
            self.fail(gateway, 150 + cut);
            self.after(150, move |world| world.cut(gateway, cut));
            for question in Question::about(subject) {
                for delay in [0, 150 + cut + 100, 150 + cut + 1_000] {
                    let delay = delay + self.rng.u64(0..=100);
                    self.after(delay, move |world| world.request(gateway, question));
                }
            }
        }
        self.after(160, move |world| {
            let version = world.rails.change(subject, world.now);
            world.hook_at(teller, (subject, version));
            let kept_until = world.now;
            world.after(140, move |world| world.lose_since(kept_until));
            // Nothing else is known then of what Rails may still tell wrongly.
            if world.plan.settle == 0 && world.rng.bool() {
                world.after(140, move |world| {
                    world.stop(teller);
                    world.after(2_000, move |world| world.start_again(teller, false));
                });
            }
        });
    }

    /// Whether something was lost that a Rails which lags may still tell wrongly, and there may be gateways that do not know
    /// of it yet. If it is lost once more before they have read it, and its gateway is gone or does not notice, they keep
    /// what Rails tells them until that gateway says how much it has told: what is told wrongly is not promised to be dropped
    /// before.
    fn is_telling_again(&self) -> bool {
        let told_again = |reaches_from: u64| reaches_from + 3 * RECOVERY;
        self.has_lost_unread
            && self.plan.settle > 0
            && self.gateways.iter().any(|gateway| self.now < told_again(gateway.reaches_from))
    }

    /// Whether something that a Rails which lags may still tell wrongly would be gone before a gateway has read it, or one
    /// would begin that does not find it. It is not told again: those that have read the last entry need not notice that it was
    /// trimmed, and a server that is full does not take it.
    fn is_unread_for_ever(&self, fault: Fault) -> bool {
        let heard_within = self.plan.heard_within();
        let reads = |gateway: &Gateway| gateway.is_up() && gateway.reaches_from + heard_within <= self.now;
        let is_settling = self.gone_at.is_some_and(|at| self.now < at + self.plan.settle);
        self.plan.settle > 0
            && match fault {
                Fault::RestartGateway => is_settling,
                Fault::Trim | Fault::FullWithoutStream => !self.gateways.iter().all(reads),
                _ => false,
            }
    }

    pub(super) fn any_duration(&mut self) -> u64 {
        match self.rng.u8(..) % 4 {
            0 => self.rng.u64(10..=450),
            1 => self.rng.u64(450..=2_500),
            2 => self.rng.u64(2_500..=8_000),
            _ => self.rng.u64(8_000..=20_000),
        }
    }

    /// The gateway does not reach Valkey for so long.
    pub(super) fn fail(&mut self, gateway: usize, duration: u64) {
        let until = self.now + duration;
        let gateway = &mut self.gateways[gateway];
        gateway.reaches_from = gateway.reaches_from.max(until);
    }

    pub(super) fn fail_all(&mut self, duration: u64) {
        (0..self.gateways.len()).for_each(|gateway| self.fail(gateway, duration));
    }

    fn restart_gateway(&mut self, gateway: usize, duration: u64) {
        if !self.gateways[gateway].is_up() {
            return;
        }
        let (takes_leave, keeps_answers) = (self.rng.bool(), self.rng.bool());
        if takes_leave {
            self.take_leave(gateway);
        } else {
            self.stop(gateway);
        }
        let pause = duration / 4 + if takes_leave { 3_001 } else { 1 };
        self.after(pause, move |world| world.start_again(gateway, keeps_answers));
    }

    fn start_again(&mut self, gateway: usize, keeps_answers: bool) {
        if !self.gateways[gateway].is_up() {
            self.start(gateway, keeps_answers);
        }
    }
}
