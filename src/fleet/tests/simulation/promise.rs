//! What the fleet promises, and whether each answer keeps it.

use std::collections::HashMap;

use http::HeaderMap;

use super::faults::RECOVERY;
use super::plan::ms;
use super::rails::{Question, Rails, Subject, Versions};
use super::world::World;
use crate::fleet::counters::Told;
use crate::fleet::message::HELLO_INTERVAL;
use crate::fleet::ticket::Ticket;

/// How old an answer may be in most fleets, in milliseconds, if no purge comes: fresh, and while Rails is asked again.
pub(super) const FRESH: u64 = 20_000;
pub(super) const REVALIDATE: u64 = 10_000;

/// How long who was alone waits until it takes another one for silent.
const RETURN: u64 = 10_000;

/// How long a question of a calm fleet is Rails' own: what was asked before a purge, or so long after it, is not shared,
/// since clocks differ.
const CALM: u64 = 12_000;

/// How much earlier than who has the lock another one may have begun to wait, since replies take their time.
const SLACK: u64 = 20;

/// See the module.
#[derive(Default)]
pub(super) struct Promise {
    /// What is not kept.
    pub(super) broken: Option<String>,
    /// What went wrong before, for a reader of that.
    pub(super) faults: Vec<String>,
    purges: HashMap<Subject, Vec<Purged>>,
    asked: HashMap<Question, Asked>,
    calm_from: u64,
    /// By faults.
    disturbed_until: u64,
    /// Of answers, and of what Rails was asked.
    pub(super) checked: u64,
    pub(super) rails_asked: u64,
    pub(super) hits_of_others: u64,
    pub(super) told: u64,
    pub(super) hidden: u64,
}

struct Purged {
    version: usize,
    accepted_at: u64,
    gateway: usize,
    ticket: Option<Ticket>,
    told_at: Option<u64>,
    /// It was told, and removed before any other gateway has read it.
    is_hidden: bool,
}

/// The last time that Rails was asked.
#[derive(Clone, Copy)]
struct Asked {
    at: u64,
    gateway: usize,
    answered_at: Option<u64>,
    /// Not if it says that there is no such key, nor if a purge came meanwhile that may mean it.
    is_shared: bool,
    /// Until when others may ask, too, because they have waited in vain for an answer before this one.
    excused_until: u64,
}

impl World {
    /// A purge was accepted. It is about a change after which its subject has this version.
    pub(super) fn accepted(&mut self, gateway: usize, (subject, version): (Subject, usize), ticket: Ticket) {
        let (accepted_at, ticket) = (self.now, Some(ticket));
        let purged = Purged { version, accepted_at, gateway, ticket, told_at: None, is_hidden: false };
        self.promise.purges.entry(subject).or_default().push(purged);
    }

    /// The callers of a gateway learn what has become of their purges.
    pub(super) fn learn_outcomes(&mut self, gateway: usize, is_at_master: bool) {
        let (mut told, now) = (Vec::new(), self.now);
        let is_hidden = self.hidden == Some(self.gateways[gateway].process.bus.seal.publisher());
        for (subject, purges) in &mut self.promise.purges {
            for purged in purges.iter_mut().filter(|purged| purged.gateway == gateway) {
                let outcome = purged.ticket.as_mut().and_then(Ticket::outcome_now);
                if outcome.is_some() {
                    purged.ticket = None;
                }
                if matches!(outcome, Some(Told::Told)) && is_at_master {
                    (purged.told_at, purged.is_hidden) = (Some(now), is_hidden);
                    told.push(*subject);
                }
            }
        }
        let heard_within = self.plan.heard_within() + self.lag();
        for subject in told {
            self.promise.told += 1;
            self.promise.hidden += u64::from(is_hidden);
            let alone_within = self.plan.alone_within() + self.lag();
            let heard = [heard_within, heard_within + RECOVERY, heard_within + 2 * RECOVERY, alone_within];
            let hidden = [0, 2_000, 4_000, RETURN].map(|delay| self.plan.hidden_within() + delay);
            for delay in if is_hidden { hidden } else { heard } {
                self.after(delay + 1, move |world| world.look_everywhere(subject));
            }
        }
    }

    /// What Rails may tell wrongly for some time is dropped once more after it.
    fn lag(&self) -> u64 {
        if self.plan.settle == 0 { 0 } else { self.plan.settle + 60 }
    }

    /// What gateways would answer now, if they were asked.
    fn look_everywhere(&mut self, subject: Subject) {
        let first = self.rng.usize(..self.gateways.len());
        for offset in 0..self.gateways.len().min(20) {
            let gateway = (first + offset) % self.gateways.len();
            for question in Question::about(subject) {
                self.look(gateway, question);
            }
        }
    }

    /// The version that an answer of this gateway has to have by now, and why.
    fn required(&self, gateway: usize, subject: Subject, at: u64) -> Option<(usize, String)> {
        let (lag, plan, reaches_from) = (self.lag(), &self.plan, self.gateways[gateway].reaches_from);
        let purges = self.promise.purges.get(&subject)?.iter();
        let due = purges.filter_map(|purged| {
            let told_at = purged.told_at?;
            let due = if purged.is_hidden {
                (told_at + plan.hidden_within()).max(reaches_from + RETURN + plan.heard_within())
            } else {
                let heard = told_at.max(reaches_from).saturating_add(plan.heard_within());
                heard.min(told_at + plan.alone_within())
            };
            (at > due + lag).then(|| {
                let why = format!(
                    "accepted by {} at {}, told at {told_at}, reached from {reaches_from}",
                    purged.gateway, purged.accepted_at
                );
                (purged.version, why)
            })
        });
        due.max_by_key(|(version, _)| *version)
    }

    /// Is called with each answer that a gateway gives from what is kept, to who asked at that time.
    pub(super) fn check(&mut self, gateway: usize, question: Question, headers: &HeaderMap, at: u64) {
        self.promise.checked += 1;
        let (answered, versions) = Rails::read(headers);
        let truth = self.rails.versions(question, self.now);
        let broken = if answered != question {
            Some(format!("the answer is to {answered:?}"))
        } else if versions > truth {
            Some("the answer is of the future".to_owned())
        } else {
            self.age_of(question, versions, at).or_else(|| {
                let (row, user) = question.subjects();
                let user = user.filter(|_| Rails::exists(versions));
                let of = |subject: Option<Subject>, version: usize| {
                    let (required, why) = self.required(gateway, subject?, at)?;
                    (version < required).then(|| format!("{subject:?} is purged up to {required}: {why}"))
                };
                of(row, versions.row).or_else(|| of(user, versions.user))
            })
        };
        if let Some(broken) = broken {
            let text =
                format!("gateway {gateway} answers {question:?} by {versions:?} (now {truth:?}): {broken}");
            self.promise.broken.get_or_insert(text);
        }
    }

    /// Whether it is older than any answer may be, purged or not.
    fn age_of(&self, question: Question, versions: Versions, at: u64) -> Option<String> {
        let oldest = at.checked_sub(self.plan.fresh + REVALIDATE + self.plan.settle + 3_000)?;
        let required = self.rails.versions(question, oldest);
        let is_old = !self.plan.has_clock_steps && versions < required;
        is_old.then(|| format!("it is older than {} and {REVALIDATE} ms", self.plan.fresh))
    }

    /// Something happens from which the fleet needs some time to recover.
    pub(super) fn disturb(&mut self, until: u64, what: String) {
        self.promise.faults.push(format!("{} ms: {what}", self.now));
        self.promise.disturbed_until = self.promise.disturbed_until.max(until);
        self.promise.calm_from = self.promise.calm_from.max(until + CALM);
    }

    /// A gateway reads the stream anew: it may find out with its next hello only that something went wrong. It neither uses nor
    /// shares what was asked before, or by other clocks soon after, or while Rails may lag.
    pub(super) fn begins_anew(&mut self) {
        if self.now < self.promise.disturbed_until + ms(HELLO_INTERVAL) {
            self.promise.calm_from = self.promise.calm_from.max(self.now + CALM + self.plan.settle);
        }
    }

    /// Rails is asked, and once for a fleet that is well.
    pub(super) fn asks(&mut self, gateway: usize, question: Question) {
        self.promise.rails_asked += 1;
        let asked = Asked { at: self.now, gateway, answered_at: None, is_shared: true, excused_until: 0 };
        let before = self.promise.asked.insert(question, asked);
        let Some((before, shared)) = before.zip(self.plan.settings.shared) else { return };
        if let Some(asked) = self.promise.asked.get_mut(&question) {
            asked.excused_until = before.excused_until.max(before.at + ms(shared.lock));
        }
        let is_within_lock = self.now < before.at + ms(shared.lock) && self.now >= before.excused_until;
        // Those who wait ask for themselves once they have waited.
        let waited = before.at + ms(shared.wait) - SLACK;
        let is_answered_in_time = match before.answered_at {
            Some(at) => at < waited,
            None => self.now < waited,
        };
        let is_calm = before.at >= self.promise.calm_from.max(CALM) && !self.plan.has_clock_steps;
        if is_within_lock
            && is_answered_in_time
            && before.is_shared
            && is_calm
            && !self.is_purged_lately(question)
        {
            self.promise.broken.get_or_insert(format!(
                "Rails is asked {question:?} by gateway {gateway}, and was at {} by {}",
                before.at, before.gateway
            ));
        }
    }

    pub(super) fn answered(&mut self, gateway: usize, question: Question, is_shared: bool) {
        if let Some(asked) = self.promise.asked.get_mut(&question).filter(|asked| asked.gateway == gateway) {
            (asked.answered_at, asked.is_shared) = (Some(self.now), is_shared);
        }
    }

    /// Any purge of a user may be of any key.
    fn is_purged_lately(&self, question: Question) -> bool {
        let (row, user) = question.subjects();
        let is_late = |purged: &Purged| self.now < purged.accepted_at + CALM + self.plan.settle;
        self.promise.purges.iter().any(|(subject, purges)| {
            let is_meant = match subject {
                Subject::User(_) => user.is_none_or(|user| user == *subject),
                Subject::Key(_) | Subject::Row(_) => row == Some(*subject),
            };
            is_meant && purges.iter().any(is_late)
        })
    }
}
