#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde_json::{Value, json};

use super::{SampleGitlab, TABLE, data};

mod credentials;
mod kas;
mod lookups;
mod tokens;

const SECRET: &[u8] = b"s3cret";
const KAS_SECRET: [u8; 32] = [7; 32];
const H: (&str, &str) = ("Gitlab-Shared-Secret", "czNjcmV0");
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn send(request: &Request<Bytes>) -> Response<Bytes> {
    SampleGitlab::new(SECRET, KAS_SECRET).respond(request)
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(format!("http://gitlab/api/v4/internal{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

/// The status and body of the answer; no body is nil.
fn ask(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let response = send(&request(method, path, headers, body));
    let body = match response.body() {
        empty if empty.is_empty() => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    (response.status().as_u16(), body)
}

fn get(path: &str) -> (u16, Value) {
    ask("GET", path, &[H], "")
}

fn post(path: &str, form: &str) -> (u16, Value) {
    ask("POST", path, &[H, FORM], form)
}

fn sign(secret: &[u8], claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret);
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn kas_token() -> String {
    let now = get_current_timestamp();
    let claims = json!({ "iss": "gitlab-kas", "aud": "gitlab", "nbf": now - 5, "exp": now + 5 });
    sign(&KAS_SECRET, &claims)
}

fn unauthorized() -> (u16, Value) {
    (401, json!({ "message": "401 Unauthorized" }))
}

#[test]
fn unknown_paths_and_methods_are_not_found_for_every_client() {
    let not_found = (404, json!({ "error": "404 Not Found" }));
    for (method, path) in [
        ("GET", "/nothing"),
        ("GET", "/two_factor_recovery_codes"),
        ("POST", "/check"),
        ("GET", "/Check"),
        ("DELETE", "/allowed"),
    ] {
        assert_eq!(ask(method, path, &[], ""), not_found, "{method} {path}");
    }
    let outside = Request::get("/api/v4/projects").body(Bytes::new()).unwrap();
    assert_eq!(send(&outside).status(), 404);
}

#[test]
fn an_unreadable_body_is_refused_before_the_credential_is_checked() {
    let (status, body) = ask("POST", "/allowed", &[JSON], "{");
    assert_eq!(status, 400);
    assert!(body["error"].as_str().unwrap().starts_with("\nProblem:\n  message body does not"));
    let error = json!({ "error": "The provided content-type 'text/csv' is not supported." });
    let csv = ("Content-Type", "text/csv");
    assert_eq!(ask("POST", "/allowed", &[csv], "a,b"), (415, error));
    for empty in ["", " ", "[]", "null"] {
        assert_eq!(ask("POST", "/pre_receive", &[H, JSON], empty).0, 200, "{empty:?}");
    }
}

#[test]
fn responses_have_the_headers_of_rails() {
    let asked = request("GET", "/check", &[H, ("X-Request-Id", "abc-1!")], "");
    let answer = send(&asked);
    let header = |name| answer.headers()[name].to_str().unwrap();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("cache-control"), "max-age=0, private, must-revalidate");
    assert_eq!(header("vary"), "Origin");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("x-frame-options"), "SAMEORIGIN");
    assert_eq!(header("x-request-id"), "abc-1");
    assert_eq!(header("x-gitlab-meta"), r#"{"correlation_id":"abc-1","version":"1"}"#);
    assert!(header("x-runtime").parse::<f64>().is_ok());
    assert!(header("etag").starts_with("W/\"") && header("etag").len() == 36);

    let refused = send(&request("GET", "/check", &[], ""));
    assert_eq!(refused.headers()["cache-control"], "no-cache");
    assert!(!refused.headers().contains_key("etag"));
    assert_eq!(refused.headers()["x-request-id"], "sample-0");
}

#[test]
fn head_is_get_without_the_body() {
    let head = send(&request("HEAD", "/check", &[H], ""));
    let get = send(&request("GET", "/check", &[H], ""));
    assert_eq!((head.status(), head.headers()), (get.status(), get.headers()));
    assert!(head.body().is_empty());
}

#[test]
fn keys_are_well_formed_and_distinct() {
    let sample = SampleGitlab::new(SECRET, KAS_SECRET);
    for key in sample.keys() {
        let blob = STANDARD.decode(key.blob).unwrap();
        let (length, rest) = blob.split_first_chunk::<4>().unwrap();
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        assert_eq!(&rest[..length], key.kind.as_bytes(), "{}", key.title);
        let named = |other: &&data::SampleKey| other.id == key.id || other.blob == key.blob;
        assert_eq!(sample.keys().iter().filter(named).count(), 1, "{}", key.title);
    }
}

#[test]
fn projects_are_stored_where_gitlab_would_store_them() {
    assert_eq!(
        data::project("3").unwrap().relative_path(),
        "@hashed/4e/07/4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce.git",
    );
}
