//! Authentication of callers: headers, parameters and the time in, an [`AuthOutcome`] out.
//!
//! Pure: no I/O, no clock, no responses. A [`Caller`] can only be made here, and the cache and
//! the upstream side only take requests that carry one, so a request that was neither
//! authenticated nor left to Rails by its row cannot reach them. Rules and their sources: contract §2.

mod json;
mod jwt;
mod kas_jwt;
mod rejection;
mod shared_secret;
mod shell_jwt;
mod sign;
mod skew;
pub mod upstream_credential;
mod verified_tokens;

use http::HeaderMap;

pub use self::kas_jwt::KasJwt;
pub use self::rejection::Rejection;
pub use self::shared_secret::AuthBody;
use self::shared_secret::SecretCheck;
pub use self::shell_jwt::ShellJwt;
pub use self::sign::{sign_kas_token, sign_shell_token};
pub use self::skew::ClockSkew;
use crate::header;
use crate::params::Params;
use crate::route::Access;
use crate::secret::{KasSecret, ShellSecret};

/// The keys by which callers are authenticated.
#[derive(Debug)]
pub struct Authenticator {
    shell_secret: Option<ShellSecret>,
    shell_jwt: Option<ShellJwt>,
    kas: Option<KasJwt>,
    /// Bytes of a body that may be searched for a credential. A larger one is refused.
    pub max_body: usize,
    /// By keys that have been replaced, and are still accepted.
    previous: Vec<Self>,
}

/// `[auth]`, with its secrets loaded.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// Shared by GitLab Shell, Gitaly, Geo and Rails.
    pub shell_secret: ShellSecret,
    /// Accept `Gitlab-Shell-Api-Request` tokens.
    pub accept_jwt: bool,
    /// Accept the secret itself.
    pub accept_shared_secret: bool,
    /// Bytes of a body that may be searched for a credential. Default: [`DEFAULT_MAX_BODY`].
    pub max_body: usize,
    /// Bytes of all incomplete bodies together that are searched for a credential. At least `max_body`.
    pub max_unverified: usize,
    /// Without it, kas calls are refused.
    pub kas: Option<KasSettings>,
}

/// `[auth.kas]`.
#[derive(Clone, Debug)]
pub struct KasSettings {
    /// Shared by kas and Rails.
    pub secret: KasSecret,
    /// The audience that a token must name. Without it, a token may leave its audience out.
    pub audience: Option<String>,
}

/// Enough for a push of 40,000 refs, with names of 100 characters, by a GitLab Shell that sends the secret among the
/// parameters.
pub const DEFAULT_MAX_BODY: usize = 8 * 1024 * 1024;

/// Room for two bodies of the largest size.
pub const DEFAULT_MAX_UNVERIFIED: usize = 16 * 1024 * 1024;

/// A caller that may use the requested endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    kind: CallerKind,
    /// Unix seconds.
    expires: Option<i64>,
}

impl Caller {
    /// By which kind of credential it was authenticated.
    pub fn kind(self) -> CallerKind {
        self.kind
    }

    /// When its credential expires, in Unix seconds. `None` if it never does.
    pub fn expires(self) -> Option<i64> {
        self.expires
    }
}

/// The kind of a caller's credential; a label in metrics and logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// The caller was not authenticated.
    #[default]
    None,
    /// The shared secret.
    SharedSecret,
    /// A `Gitlab-Shell-Api-Request` token.
    ShellJwt,
    /// A `Gitlab-Kas-Api-Request` token.
    Kas,
    /// Rails authenticates the caller, not the gateway.
    LeftToRails,
}

impl CallerKind {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SharedSecret => "shared_secret",
            Self::ShellJwt => "shell_jwt",
            Self::Kas => "kas",
            Self::LeftToRails => "left_to_rails",
        }
    }

    /// Whether the gateway has verified a credential.
    pub const fn has_credential(self) -> bool {
        matches!(self, Self::SharedSecret | Self::ShellJwt | Self::Kas)
    }
}

/// The result of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOutcome {
    /// The caller may use the endpoint.
    Accepted(Caller),
    /// It may not.
    Rejected(Rejection),
    /// The credential can only be in the body: read it and authenticate again.
    BodyNeeded,
}

impl Authenticator {
    /// Prepares the keys once for all requests.
    pub fn new(settings: AuthSettings) -> Self {
        let shell_jwt = settings.accept_jwt.then(|| ShellJwt::new(&settings.shell_secret));
        Self {
            shell_jwt,
            kas: settings.kas.map(|kas| KasJwt::new(&kas.secret, kas.audience)),
            shell_secret: settings.accept_shared_secret.then_some(settings.shell_secret),
            max_body: settings.max_body,
            previous: Vec::new(),
        }
    }

    /// Also accepts what this other one does.
    pub fn also_accept(&mut self, previous: Self) {
        self.previous.push(previous);
    }

    /// Authenticates the caller of an endpoint with this `access`. `now` returns Unix seconds, and is
    /// called only if there is a token to verify.
    pub fn authenticate(
        &self,
        access: Access,
        headers: &HeaderMap,
        query: &Params<'_>,
        body: AuthBody<'_>,
        now: impl Fn() -> i64,
    ) -> AuthOutcome {
        let outcome = self.authenticate_by_own_keys(access, headers, query, body, &now);
        if self.previous.is_empty() || is_accepted(&outcome) {
            return outcome;
        }
        let mut others =
            self.previous.iter().map(|one| one.authenticate_by_own_keys(access, headers, query, body, &now));
        others.find(is_accepted).unwrap_or(outcome)
    }

    #[inline]
    fn authenticate_by_own_keys(
        &self,
        access: Access,
        headers: &HeaderMap,
        query: &Params<'_>,
        body: AuthBody<'_>,
        now: impl FnOnce() -> i64,
    ) -> AuthOutcome {
        match access {
            Access::Rails => self.authenticate_for_rails(headers, now),
            Access::Kas => self.authenticate_kas(headers, now),
            Access::Shell => self.authenticate_shell(headers, query, body, now),
        }
    }

    /// The clock skew of each kind of token's issuers.
    pub fn clock_skews(&self) -> impl Iterator<Item = (CallerKind, &ClockSkew)> {
        let shell = self.shell_jwt.iter().map(|jwt| (CallerKind::ShellJwt, jwt.skew()));
        shell.chain(self.kas.iter().map(|jwt| (CallerKind::Kas, jwt.skew())))
    }

    /// Rails decides, whatever the request carries. A shell may send its credential there too (`shellhorse`,
    /// Geo's paths); a valid one identifies the caller, and can be replaced by the upstream credential.
    fn authenticate_for_rails(&self, headers: &HeaderMap, now: impl FnOnce() -> i64) -> AuthOutcome {
        let has_credential =
            headers.contains_key(&header::SHELL_JWT) || headers.contains_key(&header::SHARED_SECRET);
        if has_credential
            && let AuthOutcome::Accepted(caller) =
                self.authenticate_shell(headers, &Params::parse(b""), AuthBody::Irrelevant, now)
        {
            return AuthOutcome::Accepted(caller);
        }
        accepted(CallerKind::LeftToRails, None)
    }

    fn authenticate_kas(&self, headers: &HeaderMap, now: impl FnOnce() -> i64) -> AuthOutcome {
        let Some(kas) = &self.kas else { return AuthOutcome::Rejected(Rejection::NotConfigured) };
        let Some(token) = headers.get(&header::KAS_JWT) else {
            return AuthOutcome::Rejected(Rejection::Missing);
        };
        match kas.verify(token.as_bytes(), now()) {
            Ok(exp) => accepted(CallerKind::Kas, Some(exp)),
            Err(rejection) => AuthOutcome::Rejected(rejection),
        }
    }

    /// If there is a token, it alone decides, as in Rails since 15.0: a caller that sends both, with an
    /// invalid token, would be refused there too.
    #[inline]
    fn authenticate_shell(
        &self,
        headers: &HeaderMap,
        query: &Params<'_>,
        body: AuthBody<'_>,
        now: impl FnOnce() -> i64,
    ) -> AuthOutcome {
        if let (Some(jwt), Some(token)) = (&self.shell_jwt, headers.get(&header::SHELL_JWT)) {
            return match jwt.verify(token.as_bytes(), now()) {
                Ok(exp) => accepted(CallerKind::ShellJwt, Some(exp)),
                Err(rejection) => AuthOutcome::Rejected(rejection),
            };
        }
        let Some(secret) = &self.shell_secret else { return AuthOutcome::Rejected(Rejection::Missing) };
        match shared_secret::check(headers, query, body, secret) {
            SecretCheck::Right => accepted(CallerKind::SharedSecret, None),
            SecretCheck::Rejected(rejection) => AuthOutcome::Rejected(rejection),
            SecretCheck::BodyNeeded => AuthOutcome::BodyNeeded,
        }
    }
}

/// That Rails is left to decide is no acceptance by a key.
fn is_accepted(outcome: &AuthOutcome) -> bool {
    matches!(outcome, AuthOutcome::Accepted(caller) if caller.kind != CallerKind::LeftToRails)
}

const fn accepted(kind: CallerKind, expires: Option<i64>) -> AuthOutcome {
    AuthOutcome::Accepted(Caller { kind, expires })
}

#[cfg(test)]
mod tests;
