//! The questions of gateways that have just begun, until one gateway has answered them. Pure: time comes in as an argument.
//!
//! Each gateway of a fleet could answer. So each waits for a time of its own, which is the longer the more there are, and one
//! that hears an answer meanwhile has none to give. Questions that come meanwhile are answered together.

use std::time::{Duration, Instant};

use super::message::PurgeCounts;
use super::report::Question;

/// How long to wait at most, for each other gateway, and in all.
const WAIT_PER_MEMBER: Duration = Duration::from_millis(4);
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How many are answered together. Those beyond go without.
const MAX_OPEN: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Questions {
    open: Vec<Question>,
    answer_at: Option<Instant>,
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
        self.answer_at.get_or_insert(now + longest.min(MAX_WAIT).mul_f64(random));
    }

    /// Another gateway has answered these.
    pub fn answered(&mut self, questions: &[Question]) {
        self.open.retain(|question| !questions.contains(question));
        if self.open.is_empty() {
            self.answer_at = None;
        }
    }

    /// When there is something to answer.
    pub fn answer_at(&self) -> Option<Instant> {
        self.answer_at
    }

    /// What is to be answered now, which it is taken for, and how many purges had been heard of by then.
    pub fn take_due(&mut self, now: Instant) -> Option<(Vec<Question>, PurgeCounts)> {
        self.answer_at.take_if(|at| now >= *at)?;
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
            questions.asked(question(number), at(100), Vec::new(), (1, 0.0));
        }
        assert_eq!(due(&mut questions, 100).len(), MAX_OPEN);
    }

    #[test]
    fn what_another_gateway_has_answered_is_not_answered_again() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        questions.asked(question(1), now, Vec::new(), (10, 0.0));
        questions.asked(question(2), now, Vec::new(), (10, 0.0));
        questions.answered(&[question(2), question(3)]);
        assert_eq!(questions.take_due(now).unwrap().0, [question(1)]);
        questions.asked(question(2), now, Vec::new(), (10, 0.0));
        questions.answered(&[question(2)]);
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
