//! Who is calling: headers, parameters and the time in, a verdict out.
//!
//! Pure: no I/O, no clock, no responses. A [`Caller`] can only be made here, and the cache and
//! the upstream side only take requests that carry one, so a request that was not judged cannot
//! reach them. Rules and their sources: contract §2.

mod json;
mod jwt;
mod kas_jwt;
pub mod mint;
mod shared_secret;
mod shell_jwt;
mod skew;

use http::HeaderMap;

pub use self::kas_jwt::KasJwt;
use self::shared_secret::Presented;
pub use self::shell_jwt::ShellJwt;
pub use self::skew::ClockSkew;
use crate::header;
use crate::params::Params;
use crate::route::Access;
use crate::secret::{KasSecret, ShellSecret};

/// How the gateway judges callers.
#[derive(Debug)]
pub struct Auth {
    shell_secret: Option<ShellSecret>,
    shell_jwt: Option<ShellJwt>,
    kas: Option<KasJwt>,
    /// How many bytes of a body may be read in search of a credential.
    pub max_body: usize,
}

/// What `[auth]` of the configuration says, with its secrets loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The secret that GitLab Shell, Gitaly, Geo and Rails share.
    pub shell_secret: ShellSecret,
    /// Callers may present a `Gitlab-Shell-Api-Request` token.
    pub accept_jwt: bool,
    /// Callers may present the secret itself.
    pub accept_shared_secret: bool,
    /// Bytes of a body that may be read in search of a credential.
    pub max_body: usize,
    /// Bytes that all bodies together may take that are searched for a credential and are not complete yet. No
    /// less than `max_body`.
    pub max_unverified: usize,
    /// The secret that kas and Rails share; without it kas calls are refused.
    pub kas: Option<Kas>,
}

/// What `[auth.kas]` says.
#[derive(Clone, Debug)]
pub struct Kas {
    /// The secret that kas and Rails share.
    pub secret: KasSecret,
    /// The audience that a token must name, if any is demanded.
    pub audience: Option<String>,
}

/// Bytes of a body that are read in search of a credential, unless configured otherwise: a push of 50,000 refs by
/// a GitLab Shell that shows the secret among the parameters.
pub const DEFAULT_MAX_BODY: usize = 8 * 1024 * 1024;

/// Bytes of all such bodies together that are not complete yet, unless configured otherwise.
pub const DEFAULT_MAX_UNVERIFIED: usize = 16 * 1024 * 1024;

/// Somebody who may call the endpoint that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    kind: CallerKind,
    /// Unix seconds.
    expires: Option<i64>,
}

impl Caller {
    /// What the caller showed.
    pub fn kind(self) -> CallerKind {
        self.kind
    }

    /// When what the caller showed is good no longer, in Unix seconds, if it ever is.
    pub fn expires(self) -> Option<i64> {
        self.expires
    }
}

/// What a caller showed; a label in metrics and logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// Nobody that was let in.
    #[default]
    None,
    /// The shared secret.
    SharedSecret,
    /// A `Gitlab-Shell-Api-Request` token.
    ShellJwt,
    /// A `Gitlab-Kas-Api-Request` token.
    Kas,
    /// A credential that Rails judges, not the gateway.
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
}

/// Why a caller was not let in. Told to the log and the metrics, never to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// No credential at all.
    Missing,
    /// Not the secret, or a signature by another key.
    Wrong,
    /// A token past its `exp`.
    Expired,
    /// A token that is to be good in the future (`nbf`): the clocks differ.
    Skewed,
    /// A token of another issuer.
    WrongIssuer,
    /// A token for another audience.
    WrongAudience,
    /// Not a credential of the expected form: odd Base64, no JWT, another algorithm.
    Malformed,
    /// Parameters that Rack versions read differently.
    Ambiguous,
    /// A kas call, but no kas secret is configured.
    NotConfigured,
}

impl Rejection {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Expired => "expired",
            Self::Skewed => "skewed",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::Malformed => "malformed",
            Self::Ambiguous => "ambiguous",
            Self::NotConfigured => "not_configured",
        }
    }
}

/// What the body may add to the verdict.
#[derive(Clone, Copy, Debug)]
pub enum BodyOf<'a> {
    /// It cannot hold a credential, whatever it says.
    Irrelevant,
    /// Rails would look for `secret_token` in it, and it has not been read.
    Unread,
    /// A form, read.
    Form(&'a [u8]),
    /// JSON, read.
    Json(&'a [u8]),
}

/// The verdict on a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let in.
    Granted(Caller),
    /// Kept out.
    Refused(Rejection),
    /// The credential can only be in the body: read it and ask again.
    ReadBody,
}

impl Auth {
    /// Prepares the keys.
    pub fn new(settings: Settings) -> Self {
        let shell_jwt = settings.accept_jwt.then(|| ShellJwt::new(&settings.shell_secret));
        Self {
            shell_jwt,
            kas: settings.kas.map(|kas| KasJwt::new(&kas.secret, kas.audience)),
            shell_secret: settings.accept_shared_secret.then_some(settings.shell_secret),
            max_body: settings.max_body,
        }
    }

    /// Judges a request to an endpoint that `access` guards. `now` says the time in Unix seconds; it
    /// is asked only if there is a token to judge.
    pub fn judge(
        &self,
        access: Access,
        headers: &HeaderMap,
        query: &Params<'_>,
        body: BodyOf<'_>,
        now: impl FnOnce() -> i64,
    ) -> Verdict {
        match access {
            Access::Rails => self.judge_for_rails(headers, now),
            Access::Kas => self.judge_kas(headers, now),
            Access::Shell => self.judge_shell(headers, query, body, now),
        }
    }

    /// What the tokens of each kind say of the clocks of their issuers.
    pub fn clock_skews(&self) -> impl Iterator<Item = (CallerKind, &ClockSkew)> {
        let shell = self.shell_jwt.iter().map(|jwt| (CallerKind::ShellJwt, &jwt.skew));
        shell.chain(self.kas.iter().map(|jwt| (CallerKind::Kas, &jwt.skew)))
    }

    /// Rails has the verdict, whatever is shown. A shell may show its credential there too (`shellhorse`,
    /// Geo's paths); one that is right says who is calling, and can be translated.
    fn judge_for_rails(&self, headers: &HeaderMap, now: impl FnOnce() -> i64) -> Verdict {
        let is_shown =
            headers.contains_key(&header::SHELL_JWT) || headers.contains_key(&header::SHARED_SECRET);
        if is_shown
            && let Verdict::Granted(caller) =
                self.judge_shell(headers, &Params::parse(b""), BodyOf::Irrelevant, now)
        {
            return Verdict::Granted(caller);
        }
        granted(CallerKind::LeftToRails, None)
    }

    fn judge_kas(&self, headers: &HeaderMap, now: impl FnOnce() -> i64) -> Verdict {
        let Some(kas) = &self.kas else { return Verdict::Refused(Rejection::NotConfigured) };
        let Some(token) = headers.get(&header::KAS_JWT) else {
            return Verdict::Refused(Rejection::Missing);
        };
        match kas.verify(token.as_bytes(), now()) {
            Ok(exp) => granted(CallerKind::Kas, Some(exp)),
            Err(rejection) => Verdict::Refused(rejection),
        }
    }

    /// A token that is there decides alone, as in Rails since 15.0: a caller that sends both and
    /// whose token is bad would be refused there too.
    #[inline]
    fn judge_shell(
        &self,
        headers: &HeaderMap,
        query: &Params<'_>,
        body: BodyOf<'_>,
        now: impl FnOnce() -> i64,
    ) -> Verdict {
        if let (Some(jwt), Some(token)) = (&self.shell_jwt, headers.get(&header::SHELL_JWT)) {
            return match jwt.verify(token.as_bytes(), now()) {
                Ok(exp) => granted(CallerKind::ShellJwt, Some(exp)),
                Err(rejection) => Verdict::Refused(rejection),
            };
        }
        let Some(secret) = &self.shell_secret else { return Verdict::Refused(Rejection::Missing) };
        match shared_secret::find(headers, query, body) {
            Presented::Text(text) if secret.matches(&text) => granted(CallerKind::SharedSecret, None),
            Presented::Text(_) if matches!(body, BodyOf::Unread) => Verdict::ReadBody,
            Presented::Text(_) => Verdict::Refused(Rejection::Wrong),
            Presented::Refused(rejection) => Verdict::Refused(rejection),
            Presented::PerhapsInBody => Verdict::ReadBody,
        }
    }
}

const fn granted(kind: CallerKind, expires: Option<i64>) -> Verdict {
    Verdict::Granted(Caller { kind, expires })
}

#[cfg(test)]
mod tests;
