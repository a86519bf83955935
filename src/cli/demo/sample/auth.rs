//! The credentials that callers of the sample GitLab show.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::Call;
use super::answer::Answer;
use super::data::{AGENT, Agent};

const SHARED_SECRET: &str = "gitlab-shared-secret";
const SHELL_JWT: &str = "gitlab-shell-api-request";
const KAS_JWT: &str = "gitlab-kas-api-request";

/// Which family of callers an endpoint is for.
#[derive(Clone, Copy)]
pub(super) enum Door {
    /// GitLab Shell and Gitaly: a JWT of the shell, or the plain secret.
    Shell,
    /// The Kubernetes agent server: a JWT of its own.
    Kas,
}

/// What this GitLab shares with its callers.
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

    /// Lets the call through the door, or says how it is refused.
    pub(super) fn admit(&self, door: Door, call: &Call<'_>) -> Result<(), Answer> {
        let is_known = match door {
            // Where there is a JWT, it alone decides, as in a GitLab that has switched over.
            Door::Shell => match text(call.headers, SHELL_JWT) {
                Some(token) => is_signed(token, &self.shell_jwt, &shell_rules()),
                None => self.knows_secret(call)?,
            },
            Door::Kas => {
                text(call.headers, KAS_JWT).is_some_and(|token| is_signed(token, &self.kas_jwt, &kas_rules()))
            }
        };
        is_known.then_some(()).ok_or_else(|| match door {
            Door::Shell => Answer::unauthorized(),
            Door::Kas => Answer::message(StatusCode::UNAUTHORIZED, "KAS JWT authentication invalid"),
        })
    }

    /// The parameter is compared as it is and hides the header, which is Base64, unless it is nil.
    fn knows_secret(&self, call: &Call<'_>) -> Result<bool, Answer> {
        let given = match call.params.value("secret_token") {
            Some(Value::String(secret)) => secret.clone().into_bytes(),
            // Rails calls a string method on it, whatever it is.
            Some(_) => return Err(Answer::broken()),
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

/// Base64 as Ruby reads it: what is not of the alphabet is skipped, padding is not needed and a
/// lone last character is dropped.
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

/// A header's text; an empty one counts as absent.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// Without one line end, as Ruby's `chomp` leaves it.
fn chomp(bytes: &[u8]) -> &[u8] {
    let without_feed = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    without_feed.strip_suffix(b"\r").unwrap_or(without_feed)
}

/// The issuer must also be one plain string: the library would take a list that names it.
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
