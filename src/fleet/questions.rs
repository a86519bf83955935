//! The questions of gateways that have just begun, until one gateway has answered them. Pure: time comes in as an argument.
//!
//! Each gateway of a fleet could answer. So each waits for a time of its own, which is the longer the more there are, and one
//! that hears an answer meanwhile has none to give. Questions that come meanwhile are answered together.
//!
//! A writer of Valkey can add a question again that it has recorded, as often as it likes. So no report comes within
//! a second of the one before it, whichever gateway has told that.

use std::time::{Duration, Instant};

use super::report::{PurgeCounts, Question, covers};

/// How long to wait at most, for each other gateway, and in all.
const WAIT_PER_MEMBER: Duration = Duration::from_millis(4);
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How long there is no other report after one. Every gateway hears each, and it is long.
const QUIET: Duration = Duration::from_secs(1);

/// How many are answered together. Those beyond go without.
const MAX_OPEN: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Questions {
    open: Vec<Question>,
    /// Since when the first of them is open, and how long this gateway waits.
    first: Option<(Instant, Duration)>,
    quiet_until: Option<Instant>,
    /// How many purges were heard of when the last one was asked. Who has asked compares that with what was told before its
    /// question, and what is known by then is all told.
    heard: PurgeCounts,
}

impl Questions {
    /// A gateway asks, after these purges were heard of. There are so many others than this one; `random` is in 0..1.
    pub fn asked(
        &mut self,
        question: Question,
        now: Instant,
        heard: PurgeCounts,
        (members, random): (usize, f64),
    ) {
        if self.open.contains(&question) || self.open.len() >= MAX_OPEN {
            return;
        }
        self.open.push(question);
        self.heard = heard;
        let longest = WAIT_PER_MEMBER.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX));
        self.first.get_or_insert((now, longest.min(MAX_WAIT).mul_f64(random)));
    }

    /// Another gateway has told a report, whatever it answers.
    pub fn reported(&mut self, now: Instant) {
        self.quiet_until = Some(now + QUIET);
    }

    /// Another gateway, which has heard so many purges, has answered these. If this one has heard more, who has asked may have
    /// to refuse that answer.
    pub fn answered(&mut self, questions: &[Question], heard: &[([u8; 8], u64)]) {
        if !covers(heard, self.heard.iter().copied()) {
            return;
        }
        self.open.retain(|question| !questions.contains(question));
        if self.open.is_empty() {
            self.first = None;
        }
    }

    /// When there is something to answer.
    pub fn answer_at(&self) -> Option<Instant> {
        let (since, wait) = self.first?;
        Some(self.quiet_until.map_or(since, |until| since.max(until)) + wait)
    }

    /// What is to be answered now, which it is taken for, and how many purges had been heard of by then.
    pub fn take_due(&mut self, now: Instant) -> Option<(Vec<Question>, PurgeCounts)> {
        self.answer_at().filter(|at| now >= *at)?;
        self.first = None;
        self.reported(now);
        Some((std::mem::take(&mut self.open), std::mem::take(&mut self.heard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: usize) -> Question {
        (number as u128).to_be_bytes()
    }

    #[test]
    fn questions_that_come_meanwhile_are_answered_together_and_once() {
        let (mut questions, begin) = (Questions::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let due = |questions: &mut Questions, ms| questions.take_due(at(ms)).unwrap_or_default().0;
        assert_eq!(questions.take_due(at(0)), None);
        questions.asked(question(1), at(0), Vec::new(), (10, 0.5));
        questions.asked(question(2), at(19), vec![([1; 8], 7)], (10, 0.5));
        questions.asked(question(1), at(19), Vec::new(), (10, 0.5));
        assert_eq!(questions.answer_at(), Some(at(20)), "no later question puts it off");
        assert_eq!(questions.take_due(at(19)), None);
        let answered = (vec![question(1), question(2)], vec![([1; 8], 7)]);
        assert_eq!(questions.take_due(at(20)), Some(answered), "with what was heard before the last one");
        assert_eq!((questions.take_due(at(99)), questions.answer_at()), (None, None));
        for number in 0..MAX_OPEN + 100 {
            questions.asked(question(number), at(2_000), Vec::new(), (1, 0.0));
        }
        assert_eq!(due(&mut questions, 2_000).len(), MAX_OPEN);
    }

    #[test]
    fn a_question_that_is_asked_again_and_again_is_answered_once_a_second_at_most() {
        let (mut questions, begin) = (Questions::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let told = (0..10_000).filter(|ms| {
            questions.asked(question(1), at(*ms), Vec::new(), (1, 0.0));
            questions.take_due(at(*ms)).is_some()
        });
        assert_eq!(told.collect::<Vec<_>>(), (0..10).map(|second| second * 1_000).collect::<Vec<_>>());
    }

    #[test]
    fn no_gateway_reports_soon_after_another_one_and_they_do_not_all_report_then() {
        let (mut questions, begin) = (Questions::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        questions.asked(question(1), at(0), Vec::new(), (10, 0.5));
        questions.asked(question(2), at(1), Vec::new(), (10, 0.5));
        questions.reported(at(10));
        questions.answered(&[question(1)], &[]);
        assert_eq!(questions.answer_at(), Some(at(1_030)), "it waits as long as it would have");
        assert_eq!(questions.take_due(at(1_029)), None);
        questions.asked(question(3), at(1_029), Vec::new(), (10, 0.5));
        let due = questions.take_due(at(1_030)).unwrap();
        assert_eq!(due.0, [question(2), question(3)], "what has come meanwhile is answered, too");
        questions.asked(question(4), at(5_000), Vec::new(), (10, 0.5));
        assert_eq!(
            questions.answer_at(),
            Some(at(5_020)),
            "long after, there is nothing to wait for but the others"
        );
    }

    #[test]
    fn what_another_gateway_has_answered_is_not_answered_again() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        questions.asked(question(1), now, Vec::new(), (10, 0.0));
        questions.asked(question(2), now, Vec::new(), (10, 0.0));
        questions.answered(&[question(2), question(3)], &[]);
        assert_eq!(questions.take_due(now).unwrap().0, [question(1)]);
        questions.asked(question(2), now, Vec::new(), (10, 0.0));
        questions.answered(&[question(2)], &[]);
        assert_eq!(questions.answer_at(), None);
    }

    /// Who has asked knows of as many, and refuses less.
    #[test]
    fn an_answer_of_who_has_heard_less_is_none() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        questions.asked(question(1), now, vec![([1; 8], 3), ([2; 8], 1)], (1, 0.0));
        for heard in [vec![], vec![([1; 8], 3)], vec![([1; 8], 2), ([2; 8], 1)]] {
            questions.answered(&[question(1)], &heard);
            assert!(questions.answer_at().is_some(), "{heard:?}");
        }
        questions.answered(&[question(1)], &[([1; 8], 4), ([2; 8], 1), ([3; 8], 9)]);
        assert_eq!(questions.answer_at(), None);
    }

    /// A thousand gateways, each of which hears the answer of another one 5 ms after it was given.
    #[test]
    fn few_of_many_gateways_answer() {
        const DELAY: Duration = Duration::from_millis(5);
        for (members, most) in [(1, 1), (2, 2), (10, 6), (100, 12), (1_000, 40)] {
            let begin = Instant::now();
            let mut random = fastrand::Rng::with_seed(7);
            let mut waits: Vec<Instant> = Vec::new();
            for _ in 0..members {
                let mut questions = Questions::default();
                questions.asked(question(1), begin, Vec::new(), (members, random.f64()));
                waits.extend(questions.answer_at());
            }
            let first = waits.iter().min().unwrap();
            let answers = waits.iter().filter(|at| **at <= *first + DELAY).count();
            assert!(answers <= most, "{answers} of {members}");
            let last = waits.iter().max().unwrap();
            assert!(*last <= begin + MAX_WAIT);
        }
    }
}
