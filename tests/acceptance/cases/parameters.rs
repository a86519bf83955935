//! The secret as a parameter: in the query, in a form, in JSON, and in several of them at once.

use super::super::client::Request;
use super::{AnsweredBy, Case, TestRequest};

pub fn all() -> Vec<Case> {
    let mut cases = in_queries();
    cases.extend(in_bodies());
    cases
}

fn in_queries() -> Vec<Case> {
    let check = |query: &str| Request::get(&format!("check{query}"));
    let bad = |name, request| Case::new(name, request, 401, AnsweredBy::Gateway);
    let good = |name, request| Case::new(name, request, 200, AnsweredBy::Either);
    vec![
        bad("good header, wrong parameter", check("?secret_token=bad").with_secret()),
        bad("good header, empty parameter", check("?secret_token=").with_secret()),
        good("good header, bare parameter", check("?secret_token").with_secret()),
        good(
            "wrong header, good parameter",
            check("?secret_token=s3cret").header("Gitlab-Shared-Secret", "eHh4"),
        ),
        good("parameter with a line feed", check("?secret_token=s3cret%0A")),
        good("escaped parameter", check("?secret_token=%733cret")),
        good("the last of two counts", check("?secret_token=bad&secret_token=s3cret")),
        bad("the last of two counts", check("?secret_token=s3cret&secret_token=bad")),
        bad("parameter in Base64", check("?secret_token=czNjcmV0")),
        good("escaped name", check("?secret%5ftoken=s3cret")),
        bad("escaped name, good header", check("?secret%5ftoken=bad").with_secret()),
        bad("name in brackets, good header", check("?[secret_token]=bad").with_secret()),
        good("name behind a space, good header", check("?+secret_token=bad").with_secret()),
        good("longer name, good header", check("?my_secret_token=bad").with_secret()),
        good("name in another one, good header", check("?a[secret_token]=bad").with_secret()),
        good("semicolon elsewhere, good header", check("?a=1;b=2").with_secret()),
        good("braces and bars, good header", check("?a={b}|c^d`e").with_secret()),
        good("a backslash and UTF-8, good header", check("?a=\\\u{e9}").with_secret()),
        good("a bracket at the end of the name, good header", check("?secret_token[=bad").with_secret()),
        good("brackets around the name, good header", check("?[secret_token][=bad").with_secret()),
    ]
}

fn in_bodies() -> Vec<Case> {
    let check = || Request::new("GET", "/api/v4/internal/check");
    let hook = |query: &str| Request::post(&format!("pre_receive{query}"));
    let good = |name, request| Case::new(name, request, 200, AnsweredBy::Rails);
    let bad = |name, request| Case::new(name, request, 401, AnsweredBy::Gateway);
    // With a valid secret outside of the body the request reaches Rails, which also checks the one in the
    // body.
    let overruled = |name, request| Case::new(name, request, 401, AnsweredBy::Rails);
    vec![
        // The Ruby GitLab Shell sends a form even with GET.
        Case::new("form with GET", check().form("secret_token=s3cret%0A"), 200, AnsweredBy::Either),
        Case::new(
            "form with GET, in chunks",
            check().form("secret_token=s3cret").chunked(),
            200,
            AnsweredBy::Either,
        ),
        bad("wrong form with GET", check().form("secret_token=bad")),
        overruled("wrong form, good header", check().form("secret_token=bad").with_secret()),
        overruled(
            "wrong form, good query",
            Request::get("check?secret_token=s3cret").form("secret_token=bad"),
        ),
        bad("JSON with GET is not read", check().json(r#"{"secret_token":"s3cret"}"#)),
        good("form", hook("").form("secret_token=s3cret&gl_repository=project-1")),
        good("form in chunks", hook("").form("secret_token=s3cret&gl_repository=project-1").chunked()),
        bad("wrong form", hook("").form("secret_token=bad")),
        good("JSON", hook("").json(r#"{"secret_token":"s3cret","gl_repository":"project-1"}"#)),
        bad("wrong JSON", hook("").json(r#"{"secret_token":"bad"}"#)),
        overruled("wrong JSON, good query", hook("?secret_token=s3cret").json(r#"{"secret_token":"bad"}"#)),
        overruled("wrong JSON, good header", hook("").json(r#"{"secret_token":"bad"}"#).with_secret()),
        // Geo sends this: `null` means "look at the header".
        good("JSON null, good header", hook("").json(r#"{"secret_token":null}"#).with_secret()),
        good(
            "JSON null, any query, good header",
            hook("?secret_token=bad").json(r#"{"secret_token":null}"#).with_secret(),
        ),
        overruled(
            "JSON null, good query, no header",
            hook("?secret_token=s3cret").json(r#"{"secret_token":null}"#),
        ),
        good("empty JSON", hook("").json("").with_secret()),
        good("JSON list", hook("").json("[1]").with_secret()),
        good("form with lists", hook("").form("push_options[]=a&push_options[]=b").with_secret()),
    ]
}

/// Parameters whose meaning depends on Rack.
pub fn unusual() -> Vec<TestRequest> {
    let check = |query: &str| Request::get(&format!("check?{query}"));
    let hook = || Request::post("pre_receive");
    let rows = vec![
        ("semicolon before the secret", check("a=1;secret_token=s3cret")),
        ("semicolon behind the secret", check("secret_token=bad;secret_token=s3cret")),
        ("escaped name", check("secret%5ftoken=s3cret")),
        ("escaped name overrides", check("secret%5ftoken=bad").with_secret()),
        ("list", check("secret_token[]=s3cret").with_secret()),
        ("hash", check("secret_token[a]=s3cret").with_secret()),
        ("escape without digits", check("a=%").with_secret()),
        ("escape without digits, no credential", check("a=%zz")),
        ("no UTF-8", check("secret_token=%ff").with_secret()),
        ("no UTF-8, no credential", check("secret_token=%ff")),
        ("text and hash", check("a=1&a[b]=2").with_secret()),
        ("space behind the separator", Request::get("check").form("a=1& secret_token=s3cret")),
        ("JSON number", hook().json(r#"{"secret_token":5}"#).with_secret()),
        ("JSON text", hook().json(r#""secret_token""#).with_secret()),
        ("JSON twice", hook().json(r#"{"secret_token":"s3cret","secret_token":"bad"}"#)),
        ("JSON twice, reversed", hook().json(r#"{"secret_token":"bad","secret_token":"s3cret"}"#)),
        ("no JSON, no credential", hook().json("{bad")),
        ("no JSON", hook().json("{bad").with_secret()),
        ("body of no type", Request { body: b"secret_token=s3cret".to_vec(), ..hook() }),
        (
            "GET with a body of no type",
            Request { body: b"secret_token=s3cret".to_vec(), ..Request::get("check") },
        ),
        ("body of an unknown type, no credential", hook().body("application/xml", "<a/>")),
        ("body of an unknown type", hook().body("application/xml", "<a/>").with_secret()),
        ("multipart", hook().body(MULTIPART.0, MULTIPART.1)),
    ];
    rows.into_iter().map(|(name, request)| TestRequest::new(name, request)).collect()
}

const MULTIPART: (&str, &str) = (
    "multipart/form-data; boundary=b",
    "--b\r\nContent-Disposition: form-data; name=\"secret_token\"\r\n\r\ns3cret\r\n--b--\r\n",
);
