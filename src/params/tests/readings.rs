//! How releases of Rack read parameters that resemble the credential, by `Rack::Utils.parse_nested_query`, as JSON.
//!
//! Run: 2.1.4 and 2.2.22; 3.1.20 and 3.2.7. Only read, in their sources: 2.0 and 3.0. An acceptance test compares
//! the column of the installed release.

/// What the gateway makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The credential, with the value `x`.
    Credential,
    /// The credential without a value. The header counts, and Rails is always asked.
    Nil,
    /// Parameters of other names.
    Absent,
    /// No caller is accepted.
    Refused,
}

use Verdict::{Absent, Credential, Nil, Refused};

/// In both columns.
pub(super) const SAME: &str = "the same";
/// The request as a whole is one.
pub(super) const ERROR: &str = "an error";

/// Parameters, Rack 2, Rack 3, verdict.
pub(super) const READINGS: &[(&str, &str, &str, Verdict)] = &[
    // The name percent-encoded, and names that contain it.
    ("secret_token=x", r#"{"secret_token":"x"}"#, SAME, Credential),
    ("secret%5ftoken=x", r#"{"secret_token":"x"}"#, SAME, Credential),
    ("secret_token%5B%5D=x", r#"{"secret_token":["x"]}"#, SAME, Refused),
    ("+secret_token=x", r#"{" secret_token":"x"}"#, SAME, Absent),
    ("%20secret_token=x", r#"{" secret_token":"x"}"#, SAME, Absent),
    ("secret_token+=x", r#"{"secret_token ":"x"}"#, SAME, Absent),
    ("secret_token%00=x", r#"{"secret_token\u0000":"x"}"#, SAME, Absent),
    ("secret_token%0A=x", r#"{"secret_token\n":"x"}"#, SAME, Absent),
    ("my_secret_token=x", r#"{"my_secret_token":"x"}"#, SAME, Absent),
    ("secret_tokens=x", r#"{"secret_tokens":"x"}"#, SAME, Absent),
    ("secret_token.a=x", r#"{"secret_token.a":"x"}"#, SAME, Absent),
    ("SECRET_TOKEN=x", r#"{"SECRET_TOKEN":"x"}"#, SAME, Absent),
    ("secret%255ftoken=x", r#"{"secret%5ftoken":"x"}"#, SAME, Absent),
    ("a[secret_token]=x", r#"{"a":{"secret_token":"x"}}"#, SAME, Absent),
    ("a%5Bsecret_token%5D=x", r#"{"a":{"secret_token":"x"}}"#, SAME, Absent),
    ("a[][secret_token]=x", r#"{"a":[{"secret_token":"x"}]}"#, SAME, Absent),
    ("{secret_token}=x", r#"{"{secret_token}":"x"}"#, SAME, Absent),
    ("|secret_token|=x&a=`^", r#"{"|secret_token|":"x","a":"`^"}"#, SAME, Absent),
    ("\\secret_token=x&a=é", r#"{"\\secret_token":"x","a":"é"}"#, SAME, Absent),
    // Without a value: to 3.0.0 to 3.0.6 it is an empty text (changelog of 3.0.7), as it is with `=` to all.
    ("secret_token", r#"{"secret_token":null}"#, SAME, Nil),
    ("a=1&secret_token", r#"{"a":"1","secret_token":null}"#, SAME, Nil),
    ("secret_token=x&secret_token", r#"{"secret_token":null}"#, SAME, Nil),
    ("secret_token&secret_token=x", r#"{"secret_token":"x"}"#, SAME, Credential),
    // Brackets: lists and hashes to all, and those that Rack 2 drops.
    ("secret_token[]=x", r#"{"secret_token":["x"]}"#, SAME, Refused),
    ("secret_token[a]=x", r#"{"secret_token":{"a":"x"}}"#, SAME, Refused),
    ("secret_token=x&secret_token[a]=y", ERROR, SAME, Refused),
    ("[secret_token]=x", r#"{"secret_token":"x"}"#, r#"{"[secret_token]":"x"}"#, Refused),
    ("[secret_token]=", r#"{"secret_token":""}"#, r#"{"[secret_token]":""}"#, Refused),
    ("[secret_token]", r#"{"secret_token":null}"#, r#"{"[secret_token]":null}"#, Refused),
    ("%5Bsecret_token%5D=x", r#"{"secret_token":"x"}"#, r#"{"[secret_token]":"x"}"#, Refused),
    ("[secret_token=x", r#"{"secret_token":"x"}"#, r#"{"[secret_token":"x"}"#, Refused),
    ("secret_token]=x", r#"{"secret_token":"x"}"#, r#"{"secret_token]":"x"}"#, Refused),
    ("[]secret_token=x", r#"{"secret_token":"x"}"#, r#"{"[]secret_token":"x"}"#, Refused),
    ("][secret_token]]=x", r#"{"secret_token":"x"}"#, r#"{"]":{"secret_token":{"]":"x"}}}"#, Refused),
    // One at the end that opens, behind any that close, is a part of the name.
    ("secret_token[=x", r#"{"secret_token[":"x"}"#, SAME, Absent),
    ("secret_token%5B=x", r#"{"secret_token[":"x"}"#, SAME, Absent),
    ("[secret_token[=x", r#"{"[secret_token[":"x"}"#, SAME, Absent),
    ("secret_token][=x", r#"{"secret_token][":"x"}"#, SAME, Absent),
    ("secret_token]%5D[=x", r#"{"secret_token]][":"x"}"#, SAME, Absent),
    ("[]secret_token[=x", r#"{"[]secret_token[":"x"}"#, SAME, Absent),
    ("][secret_token[=x", r#"{"][secret_token[":"x"}"#, r#"{"]":{"[secret_token[":"x"}}"#, Absent),
    ("secret_token[=y&secret_token=x", r#"{"secret_token[":"y","secret_token":"x"}"#, SAME, Credential),
    ("secret_token[[=x", r#"{"secret_token":null}"#, r#"{"secret_token":{"[[":"x"}}"#, Refused),
    ("secret_token[]]=x", r#"{"secret_token":[null]}"#, r#"{"secret_token":[{"]":"x"}]}"#, Refused),
    ("secret_token[a=x", r#"{"secret_token":{"a":"x"}}"#, r#"{"secret_token":{"[a":"x"}}"#, Refused),
    // `;` separates to Rack 2, in a query, and not to Rack 3.
    ("a=1;b=2", r#"{"a":"1","b":"2"}"#, r#"{"a":"1;b=2"}"#, Absent),
    (";;=;", "{}", r#"{";;":";"}"#, Absent),
    ("a=1;secret_token=x", r#"{"a":"1","secret_token":"x"}"#, r#"{"a":"1;secret_token=x"}"#, Refused),
    ("a=1;%73ecret_token=x", r#"{"a":"1","secret_token":"x"}"#, r#"{"a":"1;secret_token=x"}"#, Refused),
    ("a=1; secret_token=x", r#"{"a":"1","secret_token":"x"}"#, r#"{"a":"1; secret_token=x"}"#, Refused),
    ("a=1;[secret_token]=x", r#"{"a":"1","secret_token":"x"}"#, r#"{"a":"1;[secret_token]=x"}"#, Refused),
    ("secret_token=x;b=1", r#"{"secret_token":"x","b":"1"}"#, r#"{"secret_token":"x;b=1"}"#, Refused),
    ("secret_token=x;", r#"{"secret_token":"x"}"#, r#"{"secret_token":"x;"}"#, Refused),
    ("secret_token;a=x", r#"{"secret_token":null,"a":"x"}"#, r#"{"secret_token;a":"x"}"#, Refused),
    (
        "secret_token=x&a=1;b=2",
        r#"{"secret_token":"x","a":"1","b":"2"}"#,
        r#"{"secret_token":"x","a":"1;b=2"}"#,
        Credential,
    ),
    // Spaces behind a separator are dropped, those at the very beginning are not. Though all agree, these are
    // refused: a reader that keeps them would find another name.
    ("a=1& secret_token=x", r#"{"a":"1","secret_token":"x"}"#, SAME, Refused),
    ("a=1& b=2", r#"{"a":"1","b":"2"}"#, SAME, Refused),
    (" secret_token=x", r#"{" secret_token":"x"}"#, SAME, Absent),
    ("secret_token=%", ERROR, SAME, Refused),
    ("secret_token=%zz", ERROR, SAME, Refused),
    ("secret_token%=x", ERROR, SAME, Refused),
    ("a=%f", ERROR, SAME, Refused),
];
