//! A small GitLab: just enough of the internal API to try the gateway on.
//!
//! It turns a request into an answer and does nothing else: no sockets, no files, and no clock but
//! the one by which a JWT expires. It behaves like GitLab 15.4, the last release that takes the
//! plain shell secret as well as the shell's JWT, so both ways of calling can be tried. It only
//! reads its data and never changes it: what a real GitLab would create (tokens, recovery codes)
//! is made up anew on each call, which also shows that such answers are not cached.

mod access;
mod answer;
mod auth;
pub(crate) mod data;
mod kas;
mod params;
mod shell;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};

use self::answer::Answer;
use self::auth::{Credentials, Door};
use self::data::SampleKey;
use self::params::Params;

/// Where all of the internal API lives.
const PREFIX: &str = "/api/v4/internal";

/// Method, path under [`PREFIX`], who may call, and who answers.
type Row = (Method, &'static str, Door, fn(&Call<'_>) -> Answer);

/// Everything this GitLab can do.
#[rustfmt::skip]
static TABLE: [Row; 12] = [
    (Method::POST, "/allowed",                   Door::Shell, shell::allowed),
    (Method::POST, "/lfs_authenticate",          Door::Shell, shell::lfs_authenticate),
    (Method::GET,  "/authorized_keys",           Door::Shell, shell::authorized_keys),
    (Method::GET,  "/discover",                  Door::Shell, shell::discover),
    (Method::GET,  "/check",                     Door::Shell, shell::check),
    (Method::POST, "/two_factor_recovery_codes", Door::Shell, shell::two_factor_recovery_codes),
    (Method::POST, "/personal_access_token",     Door::Shell, shell::personal_access_token),
    (Method::POST, "/pre_receive",               Door::Shell, shell::pre_receive),
    (Method::POST, "/post_receive",              Door::Shell, shell::post_receive),
    (Method::GET,  "/kubernetes/agent_info",     Door::Kas,   kas::agent_info),
    (Method::GET,  "/kubernetes/project_info",   Door::Kas,   kas::project_info),
    (Method::POST, "/kubernetes/usage_metrics",  Door::Kas,   kas::usage_metrics),
];

/// A request, read: all that a handler gets to see.
struct Call<'a> {
    headers: &'a HeaderMap,
    params: Params,
    /// The number of this request, the seed of whatever must differ from call to call.
    serial: u64,
}

/// A small GitLab: just enough of the internal API to try the gateway on.
pub(crate) struct SampleGitlab {
    credentials: Credentials,
    served: AtomicU64,
}

impl SampleGitlab {
    /// A GitLab that shares these secrets with its callers: the text of the shell's secret file
    /// without its line end, and the 32 bytes that the agent server's secret file encodes.
    pub(crate) fn new(shell_secret: &[u8], kas_secret: [u8; 32]) -> Self {
        Self { credentials: Credentials::new(shell_secret, kas_secret), served: AtomicU64::new(0) }
    }

    /// The keys it knows, for the curl lines that the demo prints.
    #[expect(clippy::unused_self, reason = "callers need not know that the data is static")]
    pub(crate) fn keys(&self) -> &[SampleKey] {
        &data::KEYS
    }

    /// Answers one request whose body has been collected.
    pub(crate) fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let serial = self.served.fetch_add(1, Ordering::Relaxed);
        let answer = self.dispatch(request, serial).unwrap_or_else(|refusal| refusal);
        let mut response = answer.into_response(&request_id(request.headers(), serial));
        if request.method() == Method::HEAD {
            *response.body_mut() = Bytes::new();
        }
        response
    }

    /// Finds the row, reads the parameters, checks the credential, calls the handler.
    ///
    /// The order is GitLab's: an unknown path is 404 and an unreadable body 400 to anybody, while
    /// a missing parameter is told only to callers with a credential.
    fn dispatch(&self, request: &Request<Bytes>, serial: u64) -> Result<Answer, Answer> {
        let method = match *request.method() {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        let (_, _, door, handler) = request
            .uri()
            .path()
            .strip_prefix(PREFIX)
            .and_then(|path| TABLE.iter().find(|row| row.0 == *method && row.1 == path))
            .ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, "404 Not Found"))?;
        let call = Call { headers: request.headers(), params: Params::read(request)?, serial };
        self.credentials.admit(*door, &call)?;
        Ok(handler(&call))
    }
}

impl Call<'_> {
    /// Hexadecimal text of 64 characters that no other call is given. It is easy to guess, which
    /// does no harm, as nothing takes it as a credential.
    fn fresh(&self, purpose: &str) -> String {
        sha256_hex(format!("{purpose} {}", self.serial).as_bytes())
    }
}

/// The caller's request id without the characters Rails drops from it, or a new one.
fn request_id(headers: &HeaderMap, serial: u64) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let is_kept = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@');
    let kept: String = given.chars().filter(is_kept).take(255).collect();
    if kept.is_empty() { format!("sample-{serial}") } else { kept }
}

/// The SHA-256 digest of `bytes` in lower-case hexadecimal.
fn sha256_hex(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
