//! The requests that are sent to Rails both directly and through the gateway.

mod credentials;
mod http;
mod kas;
mod parameters;
mod shell;

use std::rc::Rc;

use super::client::Request;

/// A named request, and the credential that is added when it is sent.
pub struct TestRequest {
    pub name: String,
    base: Request,
    add_credential: AddCredential,
}

/// Adds a credential to a request. Tokens live for a minute, so they are made when they are needed.
type AddCredential = Rc<dyn Fn(Request) -> Request>;

impl TestRequest {
    fn new(name: impl Into<String>, base: Request) -> Self {
        Self { name: name.into(), base, add_credential: Rc::new(|request| request) }
    }

    fn with_credential(self, add_credential: impl Fn(Request) -> Request + 'static) -> Self {
        Self { add_credential: Rc::new(add_credential), ..self }
    }

    /// The request as it is to be sent now.
    pub fn build(&self) -> Request {
        (self.add_credential)(self.base.clone())
    }
}

/// A request with a known outcome.
pub struct Case {
    pub request: TestRequest,
    /// The status that Rails returns.
    pub status: u16,
    pub answered_by: AnsweredBy,
}

/// Which side responds to a request through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// Rails gets each request exactly once.
    Rails,
    /// The gateway refuses the caller.
    Gateway,
    /// Rails or the cache.
    Either,
}

impl Case {
    fn new(name: impl Into<String>, base: Request, status: u16, answered_by: AnsweredBy) -> Self {
        Self { request: TestRequest::new(name, base), status, answered_by }
    }

    fn with_credential(self, add_credential: impl Fn(Request) -> Request + 'static) -> Self {
        Self { request: self.request.with_credential(add_credential), ..self }
    }
}

/// Requests to which the gateway must respond exactly as Rails does.
pub fn equal() -> Vec<Case> {
    let parts = [credentials::all(), shell::all(), kas::all(), parameters::all(), http::all()];
    parts.into_iter().flatten().collect()
}

/// Requests that Rails reads leniently. The gateway may refuse them, but it must accept no caller that Rails
/// would refuse, and must not store the response.
pub fn unusual() -> Vec<TestRequest> {
    let parts = [credentials::unusual(), parameters::unusual(), http::unusual()];
    parts.into_iter().flatten().collect()
}
