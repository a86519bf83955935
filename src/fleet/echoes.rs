//! Whether what this process says comes back to it: if not, others may not hear it either. Pure.
//!
//! A writer of Valkey can make the stream take entries below the last one that all have read, so that no reader ever
//! gets there, and the anchor stays where it is; or remove them before they are read. So there are two rules:
//!
//! - What Valkey takes has to be above the last entry that was read, unless it was read there before the reply came: else it
//!   is put there once more.
//! - Each entry of this process has to be read by its own reader, at its own place, within two polls that began after it was
//!   taken, and before anything behind it.

use std::collections::VecDeque;

use super::stream::StreamId;

/// How many can be under way. Those beyond are not waited for.
const MAX_SENT: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    sent: VecDeque<Sent>,
}

/// Something that was said, and has not come back yet.
#[derive(Debug)]
struct Sent {
    /// No two messages have the same.
    sealed: Vec<u8>,
    /// Where Valkey has put it, and how many polls were complete by then; `None` until its reply.
    taken: Option<(StreamId, u64)>,
    /// Where it was read, if that was before the reply.
    read_at: Option<StreamId>,
}

impl Echoes {
    /// A message is sent. Of the one before, there is no reply if there has been none yet.
    pub(super) fn sending(&mut self, sealed: &[u8]) {
        self.sent.pop_back_if(|last| last.taken.is_none());
        if self.sent.len() < MAX_SENT {
            self.sent.push_back(Sent { sealed: sealed.to_vec(), taken: None, read_at: None });
        }
    }

    /// Valkey has put the last one there, when so many polls were complete, and all up to `position` was read. Returns whether it
    /// was read, or can be.
    pub(super) fn taken(&mut self, (id, polls): (StreamId, u64), position: Option<StreamId>) -> bool {
        let Some(last) = self.sent.back_mut().filter(|last| last.taken.is_none()) else { return true };
        last.taken = Some((id, polls));
        let is_read = self.sent.pop_back_if(|last| last.read_at == Some(id)).is_some();
        is_read || position.is_none_or(|position| id > position)
    }

    /// An entry of this process was read there.
    pub(super) fn read(&mut self, id: StreamId, sealed: &[u8]) {
        let Some(at) = self.sent.iter().position(|sent| sent.sealed == sealed) else { return };
        match self.sent.get_mut(at) {
            Some(sent) if sent.taken.is_none() => sent.read_at = Some(id),
            Some(Sent { taken: Some((taken, _)), .. }) if *taken == id => drop(self.sent.remove(at)),
            // A copy in another place.
            _ => {}
        }
    }

    /// Whether one has not come back, though it should have: two polls began since, or all up to `position` was read.
    pub(super) fn is_one_missing(&self, polls: u64, position: Option<StreamId>) -> bool {
        let mut taken = self.sent.iter().filter_map(|sent| sent.taken);
        taken.any(|(id, before)| polls >= before + 2 || position.is_some_and(|position| id <= position))
    }

    /// The stream is begun anew: what was said before may not come back.
    pub(super) fn clear(&mut self) {
        self.sent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> StreamId {
        StreamId::from_milliseconds(milliseconds)
    }

    /// One that has said `sealed`, which Valkey has put at 20 after 5 polls.
    fn said(sealed: &[u8]) -> Echoes {
        let mut echoes = Echoes::default();
        echoes.sending(sealed);
        assert!(!echoes.is_one_missing(99, Some(at(99))), "Valkey may not have it");
        assert!(echoes.taken((at(20), 5), None));
        echoes
    }

    #[test]
    fn what_does_not_come_back_within_two_polls_or_was_passed_is_missing() {
        let echoes = said(b"one");
        for (polls, position, is_missing) in
            [(5, None, false), (6, Some(at(19)), false), (7, None, true), (5, Some(at(20)), true)]
        {
            assert_eq!(echoes.is_one_missing(polls, position), is_missing, "{polls} {position:?}");
        }
    }

    #[test]
    fn what_comes_back_to_its_place_is_not_missing_and_a_copy_elsewhere_is_no_proof() {
        for (sealed, id, is_missing) in
            [(&b"one"[..], at(20), false), (b"one", at(21), true), (b"two", at(20), true)]
        {
            let mut echoes = said(b"one");
            echoes.read(id, sealed);
            assert_eq!(echoes.is_one_missing(7, Some(at(30))), is_missing, "{sealed:?} {id}");
        }
    }

    /// The reader may be faster than the reply.
    #[test]
    fn an_echo_before_the_reply_counts_if_it_is_in_the_same_place() {
        for (id, is_missing) in [(at(20), false), (at(19), true)] {
            let mut echoes = Echoes::default();
            echoes.sending(b"one");
            echoes.read(id, b"one");
            assert_eq!(echoes.taken((at(20), 5), Some(at(30))), !is_missing, "{id}");
            assert_eq!(echoes.is_one_missing(5, Some(at(30))), is_missing, "{id}");
        }
    }

    #[test]
    fn what_has_no_reply_or_is_of_before_the_anchor_is_not_waited_for() {
        let mut echoes = Echoes::default();
        echoes.sending(b"no reply");
        echoes.sending(b"one");
        assert!(echoes.taken((at(20), 0), Some(at(19))));
        echoes.read(at(20), b"one");
        assert!(!echoes.is_one_missing(99, Some(at(99))));
        for is_taken in [false, true] {
            let mut echoes = said(b"one");
            echoes.sending(b"two");
            if is_taken {
                echoes.taken((at(21), 5), None);
            }
            echoes.clear();
            assert!(echoes.taken((at(21), 5), Some(at(30))), "it is not waited for");
            assert!(!echoes.is_one_missing(99, Some(at(99))));
        }
    }
}
