//! Every shell endpoint, with every kind of credential. Kas has its own in `kas`.

use std::rc::Rc;

use serde_json::{Value, json};

use super::super::credentials::{
    KAS_HEADER, SECRET_HEADER, SHELL_HEADER, SHELL_SECRET, now, shell_token, sign, sign_as,
};
use super::super::keys;
use super::super::wire::Ask;
use super::{By, Case, Question, Show};

/// One good request to each of the nine endpoints, still without a credential.
fn endpoints() -> Vec<Ask> {
    vec![
        Ask::post("allowed")
            .form("key_id=1&project=gnuwget/wget2&action=git-upload-pack&protocol=ssh&changes=_any"),
        Ask::post("lfs_authenticate").form("key_id=1&project=gnuwget/wget2&operation=download"),
        Ask::get(&format!("authorized_keys?key={}", keys::of_root())),
        Ask::get("discover?key_id=2"),
        Ask::get("check"),
        Ask::post("two_factor_recovery_codes").form("key_id=1"),
        Ask::post("personal_access_token")
            .form("user_id=7&name=mine&scopes[]=read_user&expires_at=2030-01-01"),
        Ask::post("pre_receive").form("gl_repository=project-1"),
        Ask::post("post_receive")
            .form("gl_repository=project-1&identifier=user-1&changes=x&push_options[]=ci.skip"),
    ]
}

fn header(name: &'static str, value: &'static str) -> Show {
    Rc::new(move |ask| ask.header(name, value))
}

/// A token that is made when it is shown.
fn token(make: impl Fn() -> String + 'static) -> Show {
    Rc::new(move |ask| ask.header(SHELL_HEADER, &make()))
}

/// A token with claims of its own.
fn with(changes: fn() -> Value) -> Show {
    token(move || shell_token(&changes()))
}

fn good() -> Vec<(&'static str, Show)> {
    vec![
        ("secret", Rc::new(Ask::with_secret)),
        ("secret with its line feed, as GitLab Shell sends it", header(SECRET_HEADER, "czNjcmV0Cg==")),
        ("secret with its line feed, unpadded", header(SECRET_HEADER, "czNjcmV0Cg")),
        ("secret in the query", Rc::new(in_query)),
        ("token", Rc::new(Ask::with_shell_token)),
        ("token, expired but within the leeway", with(|| json!({ "exp": now() - 10 }))),
        ("token, issued by a clock that is ahead", with(|| json!({ "iat": now() + 10 }))),
        ("token issued in ten minutes", with(|| json!({ "iat": now() + 600 }))),
        ("token issued at a date of text", with(|| json!({ "iat": "soon" }))),
        ("token beside a wrong secret", Rc::new(|ask| ask.header(SECRET_HEADER, "eHh4").with_shell_token())),
    ]
}

fn bad() -> Vec<(&'static str, Show)> {
    vec![
        ("nothing", Rc::new(|ask| ask)),
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
        ("bad token beside the secret", Rc::new(|ask| ask.header(SHELL_HEADER, "rubbish").with_secret())),
    ]
}

pub fn all() -> Vec<Case> {
    let good = good().into_iter().map(|(name, show)| (name, show, 200));
    let bad = bad().into_iter().map(|(name, show)| (name, show, 401));
    let credentials: Vec<_> = good.chain(bad).collect();
    let mut cases = Vec::new();
    for ask in endpoints() {
        let endpoint = ask.target.split('?').next().unwrap_or_default().to_owned();
        for (name, show, status) in credentials.iter().cloned() {
            let answered_by = match (status, ask.method.as_str()) {
                (401, _) => By::Gateway,
                (_, "GET") => By::Either,
                _ => By::Rails,
            };
            let case = Case::new(format!("{endpoint} with {name}"), ask.clone(), status, answered_by);
            cases.push(case.showing(move |ask| show(ask)));
        }
    }
    cases
}

/// Credentials in a form that no client of GitLab's uses.
pub fn odd() -> Vec<Question> {
    let secret = |value: &'static str| header(SECRET_HEADER, value);
    let rows: Vec<(&str, Show)> = vec![
        ("space in the Base64", secret("cz Nj cmV0")),
        ("comma in the Base64", secret("czNjcmV0, czNjcmV0")),
        ("padding, then more", secret("czNjcmV0Cg==, eHh4")),
        ("too much padding", secret("czNjcmV0===")),
        ("padding first", secret("=czNjcmV0")),
        ("a stray letter", secret("czNjcmV0x")),
        ("URL-safe letters", secret("c3Nj-mV0")),
        ("two secret headers", Rc::new(|ask| ask.with_secret().with_secret())),
        ("two tokens", Rc::new(|ask| ask.with_shell_token().with_shell_token())),
        ("a wrong secret, then a good one", Rc::new(|ask| ask.header(SECRET_HEADER, "eHh4").with_secret())),
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
        (
            "token too deep",
            token(|| {
                sign_as(
                    &format!(r#"{{"alg":"HS256","x":{}1{}}}"#, "[".repeat(100), "]".repeat(100)),
                    &claims(),
                    KEY,
                )
            }),
        ),
        ("token with a lower-case algorithm", token(|| sign_as(r#"{"alg":"hs256"}"#, &claims(), KEY))),
    ];
    let question =
        |(name, show): (&str, Show)| Question::new(name, Ask::get("check")).showing(move |ask| show(ask));
    rows.into_iter().map(question).collect()
}

fn in_query(mut ask: Ask) -> Ask {
    let separator = if ask.target.contains('?') { '&' } else { '?' };
    ask.target = format!("{}{separator}secret_token={SHELL_SECRET}", ask.target);
    ask
}

const KEY: &[u8] = SHELL_SECRET.as_bytes();

fn claims() -> Value {
    json!({ "iss": "gitlab-shell", "iat": now(), "exp": now() + 60 })
}

fn unsigned(claims: &Value) -> String {
    let token = sign_as(r#"{"alg":"none"}"#, claims, b"");
    token.rsplit_once('.').map_or(String::new(), |(signed, _)| format!("{signed}."))
}
