//! The counted operations: the gateway's work for one request, or a part of it.

mod gateway;
mod parts;
mod rails;
mod valkey;

use railgate::auth::{
    AuthSettings, Authenticator, CallerKind, DEFAULT_MAX_BODY, DEFAULT_MAX_UNVERIFIED, KasSettings, Rejection,
};
use railgate::route::{Access, Caching};
use railgate::secret::{KasSecret, ShellSecret};

use self::gateway::Exchange;
use crate::credentials::{self, KAS_HEADER, SHELL_HEADER, SHELL_TOKEN_HEADER};
use crate::{Fallible, keys};

/// Repeats an operation so many times.
type Repeat = Box<dyn FnMut(u64) -> Fallible<()>>;

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The number of repetitions; it is also run with twice as many. Enough to average out what happens only
    /// now and then.
    pub(crate) times: u64,
    prepare: fn() -> Fallible<Repeat>,
}

pub(crate) static OPERATIONS: [Operation; 13] = [
    whole("hit", "answer from memory, kept connection", || gateway::repeat(Exchange::Hit)),
    whole("hit-fleet", "the same in a fleet that shares answers", || gateway::repeat(Exchange::FleetHit)),
    whole("hit-short", "that of `hit`, a connection each", || gateway::repeat(Exchange::ShortHit)),
    whole("miss", "answer of Rails, kept and then dropped", || gateway::repeat(Exchange::Miss)),
    whole("pass", "`POST /allowed`, forwarded", || gateway::repeat(Exchange::Pass)),
    part("authenticate-secret", "the shared secret in the header", || {
        let secret = credentials::shared_secret();
        parts::judge(Access::Shell, SHELL_HEADER, &secret, Ok(CallerKind::SharedSecret))
    }),
    part("authenticate-wrong", "a wrong secret of the same length", || {
        let wrong = credentials::shared_secret().replace('Z', "A");
        parts::judge(Access::Shell, SHELL_HEADER, &wrong, Err(Rejection::Wrong))
    }),
    part("authenticate-shell", "a token of GitLab Shell", || {
        let token = credentials::shell_token();
        parts::judge(Access::Shell, SHELL_TOKEN_HEADER, &token, Ok(CallerKind::ShellJwt))
    }),
    part("authenticate-kas", "a token of kas with all claims", || {
        parts::judge(Access::Kas, KAS_HEADER, &credentials::kas_token(), Ok(CallerKind::Kas))
    }),
    part("key-ed25519", "the cache key of an Ed25519 key", || {
        parts::key(Caching::AuthorizedKeys, format!("key={}", keys::escaped(&keys::key(ED25519))))
    }),
    part("key-rsa", "that of an RSA key of 2048 bits", || {
        parts::key(Caching::AuthorizedKeys, format!("key={}", keys::escaped(&keys::key(RSA))))
    }),
    part("key-discover", "that of `discover?key_id=7`", || {
        parts::key(Caching::Discover, "key_id=7".to_owned())
    }),
    part("prepare-headers", "headers of a request on their way to Rails", parts::prepare_for_upstream),
];

/// A whole request. Slow as valgrind is, these take a second.
const fn whole(name: &'static str, title: &'static str, prepare: fn() -> Fallible<Repeat>) -> Operation {
    Operation { name, title, times: 2000, prepare }
}

const fn part(name: &'static str, title: &'static str, prepare: fn() -> Fallible<Repeat>) -> Operation {
    Operation { name, title, times: PART_REPETITIONS, prepare }
}

const PART_REPETITIONS: u64 = 4000;

/// Repetitions before the counted ones, after which one-time work such as CPU detection is done.
const WARM_UP: u64 = 200;

/// Numbers of keys: even ones are Ed25519, odd ones RSA.
const ED25519: u64 = 2;
const RSA: u64 = 1;

impl Operation {
    pub(crate) fn named(name: &str) -> Fallible<&'static Self> {
        let found = OPERATIONS.iter().find(|operation| operation.name == name);
        found.ok_or_else(|| format!("there is no operation {name}").into())
    }

    /// The operations with these names; all for no names.
    pub(crate) fn all_or(names: &[String]) -> Fallible<Vec<&'static Self>> {
        if names.is_empty() {
            return Ok(OPERATIONS.iter().collect());
        }
        names.iter().map(|name| Self::named(name)).collect()
    }

    /// Warms up, then repeats the operation so many times.
    pub(crate) fn run(&self, times: u64) -> Fallible<()> {
        let mut repeat = (self.prepare)()?;
        repeat(WARM_UP)?;
        repeat(times)
    }
}

/// The authentication of a gateway that accepts all kinds of credentials.
fn auth() -> Fallible<Authenticator> {
    Ok(Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(credentials::SHELL_SECRET.as_bytes())?,
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: DEFAULT_MAX_BODY,
        max_unverified: DEFAULT_MAX_UNVERIFIED,
        kas: Some(KasSettings {
            secret: KasSecret::from_text(credentials::kas_secret_file().as_bytes())?,
            audience: Some("gitlab".to_owned()),
        }),
    }))
}
