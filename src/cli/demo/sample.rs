//! A small GitLab: just enough of the internal API to try the gateway on.
//!
//! It turns a request into a response and does nothing else: no sockets, no files, and no clock but
//! the one by which a JWT expires. It behaves like GitLab 15.4, the last release that accepts the
//! plain shell secret as well as the shell's JWT, so that both can be tried. It never changes its
//! data: what a real GitLab would create (tokens, recovery codes) is different on each call, which
//! also shows that such responses are not cached.

mod access;
mod auth;
mod call;
pub(crate) mod data;
mod digest;
mod kas;
mod params;
mod response;
mod shell;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use railgate::route::PREFIX;

use self::auth::{CallerFamily, Credentials};
use self::call::ApiCall;
use self::data::SampleKey;
use self::params::SampleParams;
use self::response::SampleResponse;

/// Method, path below [`PREFIX`], callers, and handler.
type Row = (Method, &'static str, CallerFamily, fn(&ApiCall<'_>) -> SampleResponse);

/// The endpoints of this GitLab.
#[rustfmt::skip]
static TABLE: [Row; 12] = [
    (Method::POST, "/allowed",                   CallerFamily::Shell, shell::allowed),
    (Method::POST, "/lfs_authenticate",          CallerFamily::Shell, shell::lfs_authenticate),
    (Method::GET,  "/authorized_keys",           CallerFamily::Shell, shell::authorized_keys),
    (Method::GET,  "/discover",                  CallerFamily::Shell, shell::discover),
    (Method::GET,  "/check",                     CallerFamily::Shell, shell::check),
    (Method::POST, "/two_factor_recovery_codes", CallerFamily::Shell, shell::two_factor_recovery_codes),
    (Method::POST, "/personal_access_token",     CallerFamily::Shell, shell::personal_access_token),
    (Method::POST, "/pre_receive",               CallerFamily::Shell, shell::pre_receive),
    (Method::POST, "/post_receive",              CallerFamily::Shell, shell::post_receive),
    (Method::GET,  "/kubernetes/agent_info",     CallerFamily::Kas,   kas::agent_info),
    (Method::GET,  "/kubernetes/project_info",   CallerFamily::Kas,   kas::project_info),
    (Method::POST, "/kubernetes/usage_metrics",  CallerFamily::Kas,   kas::usage_metrics),
];

pub(crate) struct SampleGitlab {
    credentials: Credentials,
    served: AtomicU64,
}

impl SampleGitlab {
    /// With the text of the shell's secret file, without its line end, and the 32 bytes that the agent server's
    /// secret file encodes.
    pub(crate) fn new(shell_secret: &[u8], kas_secret: [u8; 32]) -> Self {
        Self { credentials: Credentials::new(shell_secret, kas_secret), served: AtomicU64::new(0) }
    }

    /// Its keys, for the curl lines that the demo prints.
    #[expect(clippy::unused_self, reason = "callers need not know that the data is static")]
    pub(crate) fn keys(&self) -> &[SampleKey] {
        &data::KEYS
    }

    /// Handles one request whose body has been collected.
    pub(crate) fn respond(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let serial = self.served.fetch_add(1, Ordering::Relaxed);
        let response = self.dispatch(request, serial).unwrap_or_else(|refusal| refusal);
        let mut response = response.into_response(&request_id(request.headers(), serial));
        if request.method() == Method::HEAD {
            *response.body_mut() = Bytes::new();
        }
        response
    }

    /// Finds the row, reads the parameters, checks the credential, calls the handler.
    ///
    /// The order is GitLab's: an unknown path is a 404 and an unreadable body a 400 for every client, while
    /// only callers with a valid credential are told of a missing parameter.
    fn dispatch(&self, request: &Request<Bytes>, serial: u64) -> Result<SampleResponse, SampleResponse> {
        let method = match *request.method() {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        let (_, _, family, handler) = request
            .uri()
            .path()
            .strip_prefix(PREFIX)
            .and_then(|path| TABLE.iter().find(|row| row.0 == *method && row.1 == path))
            .ok_or_else(|| SampleResponse::error(StatusCode::NOT_FOUND, "404 Not Found"))?;
        let call = ApiCall { headers: request.headers(), params: SampleParams::read(request)?, serial };
        self.credentials.authenticate(*family, &call)?;
        Ok(handler(&call))
    }
}

/// The caller's request id without the characters Rails drops from it, or a new one.
fn request_id(headers: &HeaderMap, serial: u64) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let is_kept = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@');
    let kept: String = given.chars().filter(is_kept).take(255).collect();
    if kept.is_empty() { format!("sample-{serial}") } else { kept }
}
