//! Every shell endpoint with every kind of credential. Those of kas are in `kas`.
//!
//! The verdicts on tokens are those of the installed ruby-jwt, 2.5.0 in Debian 12.

use std::rc::Rc;

use serde_json::{Value, json};

use super::super::client::Request;
use super::super::credentials::{
    KAS_HEADER, SECRET_HEADER, SHELL_HEADER, SHELL_SECRET, now, shell_token, sign, sign_as, sign_text,
};
use super::super::keys;
use super::{AddCredential, AnsweredBy, Case, TestRequest};

/// A valid request to each of the nine endpoints, without a credential.
fn endpoints() -> Vec<Request> {
    vec![
        Request::post("allowed")
            .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&protocol=ssh&changes=_any"),
        Request::post("lfs_authenticate").form("key_id=1&project=gnuwget/wget2&operation=download"),
        Request::get(&format!("authorized_keys?key={}", keys::of_root())),
        Request::get("discover?key_id=2"),
        Request::get("check"),
        Request::post("two_factor_recovery_codes").form("key_id=1"),
        Request::post("personal_access_token")
            .form("user_id=7&name=mine&scopes[]=read_user&expires_at=2030-01-01"),
        Request::post("pre_receive").form("gl_repository=project-1"),
        Request::post("post_receive")
            .form("gl_repository=project-1&identifier=user-1&changes=x&push_options[]=ci.skip"),
    ]
}

fn header(name: &'static str, value: &'static str) -> AddCredential {
    Rc::new(move |request| request.header(name, value))
}

/// A token that is made when it is sent.
fn token(make: impl Fn() -> String + 'static) -> AddCredential {
    Rc::new(move |request| request.header(SHELL_HEADER, &make()))
}

/// A token with changed claims.
fn with(changes: fn() -> Value) -> AddCredential {
    token(move || shell_token(&changes()))
}

fn good() -> Vec<(&'static str, AddCredential)> {
    vec![
        ("secret", Rc::new(Request::with_secret)),
        ("secret with its line feed, as GitLab Shell sends it", header(SECRET_HEADER, "czNjcmV0Cg==")),
        ("secret with its line feed, unpadded", header(SECRET_HEADER, "czNjcmV0Cg")),
        ("secret in the query", Rc::new(in_query)),
        ("token", Rc::new(Request::with_shell_token)),
        ("token, expired but within the leeway", with(|| json!({ "exp": now() - 10 }))),
        ("token, issued by a clock that is ahead", with(|| json!({ "iat": now() + 10 }))),
        ("token issued in ten minutes", with(|| json!({ "iat": now() + 600 }))),
        ("token issued at a date of text", with(|| json!({ "iat": "soon" }))),
        (
            "token beside a wrong secret",
            Rc::new(|request| request.header(SECRET_HEADER, "eHh4").with_shell_token()),
        ),
    ]
}

fn bad() -> Vec<(&'static str, AddCredential)> {
    vec![
        ("nothing", Rc::new(|request| request)),
        ("wrong secret", header(SECRET_HEADER, "eHh4")),
        ("secret that is not encoded", header(SECRET_HEADER, SHELL_SECRET)),
        ("empty secret", header(SECRET_HEADER, "")),
        ("secret in the header of kas", header(KAS_HEADER, "czNjcmV0")),
        ("no token", header(SHELL_HEADER, "rubbish")),
        ("empty token", header(SHELL_HEADER, "")),
        ("token past the leeway", with(|| json!({ "iat": now() - 180, "exp": now() - 120 }))),
        ("token of the future", with(|| json!({ "nbf": now() + 600 }))),
        ("token of another issuer", with(|| json!({ "iss": "gitlab-kas" }))),
        ("token of several issuers", with(|| json!({ "iss": ["gitlab-shell"] }))),
        ("token of no issuer", with(|| json!({ "iss": null }))),
        ("token of another key", token(|| sign(&claims(), b"another"))),
        ("token of the key with its line feed", token(|| sign(&claims(), b"s3cret\n"))),
        ("token without signature", token(|| unsigned(&claims()))),
        ("token of another algorithm", token(|| sign_as(r#"{"alg":"HS512"}"#, &claims(), KEY))),
        ("token of text", token(|| sign(&json!("gitlab-shell"), KEY))),
        ("token after Bearer", token(|| format!("Bearer {}", sign(&claims(), KEY)))),
        (
            "bad token beside the secret",
            Rc::new(|request| request.header(SHELL_HEADER, "rubbish").with_secret()),
        ),
    ]
}

pub fn all() -> Vec<Case> {
    let good = good().into_iter().map(|(name, add_credential)| (name, add_credential, 200));
    let bad = bad().into_iter().map(|(name, add_credential)| (name, add_credential, 401));
    let credentials: Vec<_> = good.chain(bad).collect();
    let mut cases = Vec::new();
    for request in endpoints() {
        let endpoint = request.target.split('?').next().unwrap_or_default().to_owned();
        for (name, add_credential, status) in credentials.iter().cloned() {
            let answered_by = match (status, request.method.as_str()) {
                (401, _) => AnsweredBy::Gateway,
                (_, "GET") => AnsweredBy::Either,
                _ => AnsweredBy::Rails,
            };
            let case = Case::new(format!("{endpoint} with {name}"), request.clone(), status, answered_by);
            cases.push(case.with_credential(move |request| add_credential(request)));
        }
    }
    cases
}

/// Credentials in a form that no client of GitLab's uses.
pub fn unusual() -> Vec<TestRequest> {
    let secret = |value: &'static str| header(SECRET_HEADER, value);
    let rows: Vec<(&str, AddCredential)> = vec![
        ("space in the Base64", secret("cz Nj cmV0")),
        ("comma in the Base64", secret("czNjcmV0, czNjcmV0")),
        ("padding, then more", secret("czNjcmV0Cg==, eHh4")),
        ("too much padding", secret("czNjcmV0===")),
        ("padding first", secret("=czNjcmV0")),
        ("a stray letter", secret("czNjcmV0x")),
        ("URL-safe letters", secret("c3Nj-mV0")),
        ("two secret headers", Rc::new(|request| request.with_secret().with_secret())),
        ("two tokens", Rc::new(|request| request.with_shell_token().with_shell_token())),
        (
            "a wrong secret, then a good one",
            Rc::new(|request| request.header(SECRET_HEADER, "eHh4").with_secret()),
        ),
        ("token without end", with(|| json!({ "exp": null }))),
        ("token with a fraction", with(|| json!({ "exp": 9_999_999_999.5 }))),
        ("token with a date of text", with(|| json!({ "exp": "9999999999" }))),
        ("token with padding", token(|| sign(&claims(), KEY) + "=")),
        ("token with a dot", token(|| sign(&claims(), KEY) + ".")),
        ("token of a list", token(|| sign(&json!([claims()]), KEY))),
        ("token of a number", token(|| sign(&json!(5), KEY))),
        ("token with b64", token(|| sign_as(r#"{"alg":"HS256","b64":false}"#, &claims(), KEY))),
        (
            "token with crit",
            token(|| sign_as(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &claims(), KEY)),
        ),
        ("token with an empty crit", token(|| sign_as(r#"{"alg":"HS256","crit":[]}"#, &claims(), KEY))),
        ("token with a deep header", token(|| nested(&format!(r#","x":{}"#, deep()), ""))),
        ("token with a deep header, hidden", token(|| nested(&format!(r#","x":{},"x":1"#, deep()), ""))),
        ("token with deep claims", token(|| nested("", &format!(r#","x":{}"#, deep())))),
        ("token with deep claims, hidden", token(|| nested("", &format!(r#","x":{},"x":1"#, deep())))),
        ("token with a deep date, hidden", token(|| nested("", &format!(r#","nbf":{},"nbf":1"#, deep())))),
        ("token with a lower-case algorithm", token(|| sign_as(r#"{"alg":"hs256"}"#, &claims(), KEY))),
    ];
    let request = |(name, add_credential): (&str, AddCredential)| {
        TestRequest::new(name, Request::get("check")).with_credential(move |request| add_credential(request))
    };
    rows.into_iter().map(request).collect()
}

fn in_query(mut request: Request) -> Request {
    let separator = if request.target.contains('?') { '&' } else { '?' };
    request.target = format!("{}{separator}secret_token={SHELL_SECRET}", request.target);
    request
}

const KEY: &[u8] = SHELL_SECRET.as_bytes();

fn claims() -> Value {
    json!({ "iss": "gitlab-shell", "iat": now(), "exp": now() + 60 })
}

fn unsigned(claims: &Value) -> String {
    let token = sign_as(r#"{"alg":"none"}"#, claims, b"");
    token.rsplit_once('.').map_or(String::new(), |(signed, _)| format!("{signed}."))
}

/// A token with more members in its header and payload.
fn nested(header: &str, payload: &str) -> String {
    let claims = claims().to_string();
    let payload = format!("{}{payload}}}", claims.trim_end_matches('}'));
    sign_text(&format!(r#"{{"alg":"HS256"{header}}}"#), &payload, KEY)
}

/// One level deeper than Ruby's JSON reads, as a member.
fn deep() -> String {
    "[".repeat(100) + "1" + &"]".repeat(100)
}
