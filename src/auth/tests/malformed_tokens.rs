//! Malformed tokens, and those that are refused despite a valid signature.

use aws_lc_rs::hmac;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// ruby-jwt 2.5.0 and 3.3.0 refuse all but the one with padding.
#[test]
fn malformed_tokens_are_refused() {
    let good = token(
        Algorithm::HS256,
        SECRET.as_bytes(),
        &json!({"iss": "gitlab-shell", "iat": NOW, "exp": NOW + 60}),
    );
    let mut parts = good.split('.');
    let (_, payload) = (parts.next().unwrap(), parts.next().unwrap());
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let auth = auth(true, true, None);
    for bad in [
        "x".to_owned(),
        "..".to_owned(),
        format!("Bearer {good}"),
        format!("{good}, {good}"),
        format!("{good}="),
        format!("{none}.{payload}."),
        good.trim_end_matches(|c| c != '.').to_owned(),
    ] {
        let headers = headers("gitlab-shell-api-request", &bad);
        let outcome =
            auth.authenticate(Access::Shell, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        assert!(matches!(outcome, AuthOutcome::Rejected(_)), "{bad}");
    }
}

/// A token with exactly this header and payload, signed with HS256: as only a holder of the secret can.
fn signed(header: &str, payload: &str, key: &[u8]) -> String {
    let signed = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// What a ruby-jwt refuses is refused: each row says whether 2.5.0 and 3.3.0 were seen to accept it. Beyond that,
/// every `crit` and every `b64` but true is refused: they demand what neither reader does.
#[test]
fn unusual_headers_are_refused_despite_a_valid_signature() {
    const BOTH: [bool; 2] = [true, true];
    const OLD: [bool; 2] = [true, false];
    let claims = format!(r#"{{"iss":"gitlab-shell","exp":{}}}"#, NOW + 60);
    let auth = auth(true, true, None);
    for (members, accepted_by, is_accepted) in [
        (r#""typ":"JWT""#, BOTH, true),
        (r#""kid":"x""#, BOTH, true),
        (r#""b64":true"#, BOTH, true),
        (r#""b64":false,"b64":true"#, BOTH, true),
        (r#""b64":false"#, OLD, false),
        (r#""b64":true,"b64":false"#, OLD, false),
        (r#""b64":false,"crit":["b64"]"#, OLD, false),
        (r#""b64":true,"crit":["b64"]"#, BOTH, false),
        (r#""b64":"true""#, BOTH, false),
        (r#""b64":null"#, BOTH, false),
        (r#""b64":0"#, BOTH, false),
        (r#""crit":[]"#, BOTH, false),
        (r#""crit":null"#, BOTH, false),
        (r#""crit":["exp"]"#, BOTH, false),
        (r#""crit":["exp"],"crit":[]"#, BOTH, false),
    ] {
        let token = signed(&format!(r#"{{"alg":"HS256",{members}}}"#), &claims, SECRET.as_bytes());
        let headers = headers("gitlab-shell-api-request", &token);
        let outcome =
            auth.authenticate(Access::Shell, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        let expected =
            if is_accepted { accepted(CallerKind::ShellJwt) } else { rejected(Rejection::Malformed) };
        assert_eq!(without_expiry(outcome), expected, "{members}");
        assert!(!is_accepted || accepted_by == BOTH, "{members}");
    }
}

/// Ruby's JSON reads 100 levels. So does every ruby-jwt (2.5.0 and 3.3.0 were run), also in a member that a later
/// one of the same name replaces.
#[test]
fn json_deeper_than_ruby_reads_is_refused_despite_a_valid_signature() {
    let nested: [fn(usize) -> String; 3] = [
        |levels| "[".repeat(levels) + "1" + &"]".repeat(levels),
        |levels| "[".repeat(levels) + &"]".repeat(levels),
        |levels| r#"{"a":"#.repeat(levels) + "1" + &"}".repeat(levels),
    ];
    let auth = auth(true, true, None);
    for (access, name, kind, issuer, key) in [
        (Access::Shell, "gitlab-shell-api-request", CallerKind::ShellJwt, "gitlab-shell", SECRET.as_bytes()),
        (Access::Kas, "gitlab-kas-api-request", CallerKind::Kas, "gitlab-kas", &KAS_KEY),
    ] {
        let verify = |header_members: &str, claims: &str| {
            let header = format!(r#"{{"alg":"HS256"{header_members}}}"#);
            let payload = format!(r#"{{{claims}"iss":"{issuer}","exp":{}}}"#, NOW + 60);
            let headers = headers(name, &signed(&header, &payload, key));
            let outcome =
                auth.authenticate(access, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
            without_expiry(outcome)
        };
        for nested in nested {
            for (member, outside) in [
                (r#""x":@"#, 1),
                (r#""x":@,"x":1"#, 1),
                (r#""x":{"y":@,"y":1}"#, 2),
                (r#""x":[0,{"y":@},[1]],"x":null"#, 3),
            ] {
                let at = |levels: usize| member.replace('@', &nested(levels - outside));
                for (levels, expected) in [
                    (100, accepted(kind)),
                    (101, rejected(Rejection::Malformed)),
                    (127, rejected(Rejection::Malformed)),
                    (10_000, rejected(Rejection::Malformed)),
                ] {
                    let label = format!("{levels} levels for {issuer}: {member}");
                    assert_eq!(verify(&format!(",{}", at(levels)), ""), expected, "header, {label}");
                    assert_eq!(verify("", &format!("{},", at(levels))), expected, "claims, {label}");
                }
            }
            // Those that are verified may not be repeated at all, which Ruby permits.
            for member in ["exp", "iss", "nbf"] {
                let repeated = format!(r#""{member}":{},"nbf":0,"#, nested(100));
                assert_eq!(verify("", &repeated), rejected(Rejection::Malformed), "{member}");
            }
        }
        // Brackets in a text are not levels, and those side by side are one.
        for member in [format!(r#""x":"{}""#, "[".repeat(300)), format!(r#""x":[{}0]"#, "[],{},".repeat(100))]
        {
            assert_eq!(verify(&format!(",{member}"), &format!("{member},")), accepted(kind), "{member}");
        }
    }
}
