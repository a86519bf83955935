//! Authentication of the callers of the sample GitLab.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::call::ApiCall;
use super::data::{AGENT, Agent};
use super::response::SampleResponse;

const SHARED_SECRET: &str = "gitlab-shared-secret";
const SHELL_JWT: &str = "gitlab-shell-api-request";
const KAS_JWT: &str = "gitlab-kas-api-request";

/// The callers of an endpoint.
#[derive(Clone, Copy)]
pub(super) enum CallerFamily {
    /// GitLab Shell and Gitaly: a JWT of the shell, or the plain secret.
    Shell,
    /// The Kubernetes agent server: its own JWT.
    Kas,
}

/// The secrets that this GitLab shares with its callers.
pub(super) struct Credentials {
    shell_secret: Vec<u8>,
    shell_jwt: DecodingKey,
    kas_jwt: DecodingKey,
}

impl Credentials {
    pub(super) fn new(shell_secret: &[u8], kas_secret: [u8; 32]) -> Self {
        Self {
            shell_secret: shell_secret.to_vec(),
            shell_jwt: DecodingKey::from_secret(shell_secret),
            kas_jwt: DecodingKey::from_secret(&kas_secret),
        }
    }

    /// The error is the response to the caller.
    pub(super) fn authenticate(
        &self,
        family: CallerFamily,
        call: &ApiCall<'_>,
    ) -> Result<(), SampleResponse> {
        let is_authentic = match family {
            // If there is a JWT, it alone decides, as in GitLab from 15.0 on.
            CallerFamily::Shell => match text(call.headers, SHELL_JWT) {
                Some(token) => is_signed(token, &self.shell_jwt, &shell_rules()),
                None => self.has_secret(call)?,
            },
            CallerFamily::Kas => {
                text(call.headers, KAS_JWT).is_some_and(|token| is_signed(token, &self.kas_jwt, &kas_rules()))
            }
        };
        is_authentic.then_some(()).ok_or_else(|| match family {
            CallerFamily::Shell => SampleResponse::unauthorized(),
            CallerFamily::Kas => {
                SampleResponse::message(StatusCode::UNAUTHORIZED, "KAS JWT authentication invalid")
            }
        })
    }

    /// The parameter is compared as it is, and overrides the header, which is Base64, unless it is nil.
    fn has_secret(&self, call: &ApiCall<'_>) -> Result<bool, SampleResponse> {
        let given = match call.params.value("secret_token") {
            Some(Value::String(secret)) => secret.clone().into_bytes(),
            // Rails calls a string method on it, whatever it is.
            Some(_) => return Err(SampleResponse::broken()),
            None => match text(call.headers, SHARED_SECRET) {
                Some(encoded) => lenient_base64(encoded),
                None => return Ok(false),
            },
        };
        let given = chomp(&given);
        Ok(!given.is_empty() && verify_slices_are_equal(given, &self.shell_secret).is_ok())
    }
}

/// The agent whose token the call carries.
pub(super) fn agent(headers: &HeaderMap) -> Option<&'static Agent> {
    let token = text(headers, "authorization")?.strip_prefix("Bearer ")?;
    (token == AGENT.token).then_some(&AGENT)
}

/// Base64 as Ruby reads it: other characters are skipped, padding is optional, and a lone last character
/// is dropped.
pub(super) fn lenient_base64(text: &str) -> Vec<u8> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    );
    let mut kept = String::new();
    for c in text.chars() {
        match c {
            // Padding ends the text, but only where padding can stand.
            '=' if kept.len() % 4 >= 2 => break,
            '+' | '/' => kept.push(c),
            _ if c.is_ascii_alphanumeric() => kept.push(c),
            _ => {}
        }
    }
    if kept.len() % 4 == 1 {
        kept.pop();
    }
    LENIENT.decode(kept).unwrap_or_default()
}

/// A header's text. An empty header counts as absent.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// Without one line end, as Ruby's `chomp` leaves it.
fn chomp(bytes: &[u8]) -> &[u8] {
    let without_feed = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    without_feed.strip_suffix(b"\r").unwrap_or(without_feed)
}

/// The issuer must also be one plain string: the library would accept a list that contains it.
fn is_signed(token: &str, key: &DecodingKey, rules: &Validation) -> bool {
    jsonwebtoken::decode::<Map<String, Value>>(token, key, rules)
        .is_ok_and(|token| token.claims.get("iss").is_some_and(Value::is_string))
}

fn shell_rules() -> Validation {
    let mut rules = Validation::new(Algorithm::HS256);
    rules.set_issuer(&["gitlab-shell"]);
    rules.set_required_spec_claims(&["iss"]);
    rules.validate_nbf = true;
    rules.validate_aud = false;
    rules.leeway = 60;
    rules
}

fn kas_rules() -> Validation {
    let mut rules = Validation::new(Algorithm::HS256);
    rules.set_issuer(&["gitlab-kas"]);
    rules.set_audience(&["gitlab"]);
    rules.set_required_spec_claims(&["iss", "aud"]);
    rules.validate_nbf = true;
    rules.leeway = 0;
    rules
}
