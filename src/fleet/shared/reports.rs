//! What gateways report to each other, so that one that begins can use what was shared before.

use std::sync::atomic::Ordering;

use super::counters::ReportEvent;
use super::{SharedAnswers, unix_ms};
use crate::clock::Clock;
use crate::fleet::keys::random;
use crate::fleet::report::{PurgeCounts, Question, Report};
use crate::fleet::stream::Identity;

impl SharedAnswers {
    /// What to ask the others now, so that answers can be used that are there already. `None` if the system has no random
    /// numbers.
    pub(in crate::fleet) fn ask(&self) -> Option<Question> {
        let question = random()?;
        self.ring.lock().ask(question);
        Some(question)
    }

    /// What to tell those who ask; `None` if nothing of use is known here, or too much.
    pub(in crate::fleet) fn report(
        &self,
        (questions, heard): (Vec<Question>, PurgeCounts),
        clock: &Clock,
    ) -> Option<Report> {
        let server = Identity::clone(self.followed.load_full()?.as_ref());
        let known = self.ring.lock().known(unix_ms(clock))?;
        let report = Report { questions, server, heard, known };
        (!self.is_ended.load(Ordering::Acquire) && report.fits()).then_some(report)
    }

    /// Another gateway tells what it knows, which `is_complete` as far as is known. Returns whether nothing is left to be
    /// told from here.
    pub(in crate::fleet) fn learn(&self, report: &Report, is_complete: bool, clock: &Clock) -> bool {
        let (mut ring, now_ms) = (self.ring.lock(), unix_ms(clock));
        // What is told of another server may be true there only.
        if !self.is_followed(&report.server) {
            return false;
        }
        if ring.learn(report, is_complete, now_ms) {
            self.counters.reports.increment(ReportEvent::Used);
        }
        ring.is_covered_by(&report.known, now_ms)
    }
}
