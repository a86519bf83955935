//! The questions that are put to Rails directly and through the gateway.

mod credentials;
mod http;
mod kas;
mod parameters;
mod shell;

use std::rc::Rc;

use super::wire::Ask;

/// A question, and the credential that is put on it when it is asked.
pub struct Question {
    pub name: String,
    ask: Ask,
    show: Show,
}

/// Puts a credential on a request. Tokens live for a minute, so they are made when they are needed.
type Show = Rc<dyn Fn(Ask) -> Ask>;

impl Question {
    fn new(name: impl Into<String>, ask: Ask) -> Self {
        Self { name: name.into(), ask, show: Rc::new(|ask| ask) }
    }

    fn showing(self, show: impl Fn(Ask) -> Ask + 'static) -> Self {
        Self { show: Rc::new(show), ..self }
    }

    /// The request as it is to be sent now.
    pub fn ask(&self) -> Ask {
        (self.show)(self.ask.clone())
    }
}

/// A question with a known answer.
pub struct Case {
    pub question: Question,
    /// What Rails answers.
    pub status: u16,
    pub answered_by: By,
}

/// Who answers, when the question comes through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Rails: one request reaches it for each that is sent.
    Rails,
    /// The gateway, because the caller is not let in.
    Gateway,
    /// Rails or the cache.
    Either,
}

impl Case {
    fn new(name: impl Into<String>, ask: Ask, status: u16, answered_by: By) -> Self {
        Self { question: Question::new(name, ask), status, answered_by }
    }

    fn showing(self, show: impl Fn(Ask) -> Ask + 'static) -> Self {
        Self { question: self.question.showing(show), ..self }
    }
}

/// Questions to which the gateway's answer must be that of Rails.
pub fn equal() -> Vec<Case> {
    let parts = [credentials::all(), shell::all(), kas::all(), parameters::all(), http::all()];
    parts.into_iter().flatten().collect()
}

/// Questions that Rails reads in its own lenient way. The gateway may refuse them, but it must not
/// let in whom Rails would not, and must not keep the answer.
pub fn odd() -> Vec<Question> {
    let parts = [credentials::odd(), parameters::odd(), http::odd()];
    parts.into_iter().flatten().collect()
}
