use super::*;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

const NOW: i64 = 1_700_000_000;
const SECRET: &str = "s3cret";
/// Base64 of `s3cret`, and of `s3cret\n` as the Go shell of the secret's era sends it.
const H: &str = "czNjcmV0";
const HN: &str = "czNjcmV0Cg==";
const KAS_KEY: [u8; 32] = [9; 32];

fn auth(accept_jwt: bool, accept_shared_secret: bool, audience: Option<&str>) -> Auth {
    Auth::new(Settings {
        shell_secret: ShellSecret::from_text(b"s3cret\n").unwrap(),
        accept_jwt,
        accept_shared_secret,
        max_body: DEFAULT_MAX_BODY,
        max_unverified: DEFAULT_MAX_UNVERIFIED,
        kas: Some(Kas {
            secret: KasSecret::from_text(STANDARD.encode(KAS_KEY).as_bytes()).unwrap(),
            audience: audience.map(str::to_owned),
        }),
    })
}

fn headers(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
}

fn token(alg: Algorithm, key: &[u8], claims: &Value) -> String {
    encode(&Header::new(alg), claims, &EncodingKey::from_secret(key)).unwrap()
}

const fn yes(kind: CallerKind) -> Verdict {
    Verdict::Granted(Caller { kind, expires: None })
}

/// The verdict, but for when the credential expires.
fn timeless(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Granted(caller) => yes(caller.kind),
        other => other,
    }
}

const fn no(rejection: Rejection) -> Verdict {
    Verdict::Refused(rejection)
}

const IN: Verdict = yes(CallerKind::SharedSecret);

#[test]
fn the_secret_is_looked_for_where_rails_looks() {
    use BodyOf::{Form, Irrelevant, Json, Unread};
    let rows: &[(&str, &str, BodyOf<'_>, Verdict)] = &[
        // header, query, body, verdict: contract §2.2 and §8
        (H, "", Irrelevant, IN),
        (HN, "", Irrelevant, IN),
        ("czNjcmV0Cg", "", Irrelevant, IN),
        ("  czNjcmV0\t", "", Irrelevant, IN),
        ("", "", Irrelevant, no(Rejection::Missing)),
        ("bm90aXQ=", "", Irrelevant, no(Rejection::Wrong)),
        (SECRET, "", Irrelevant, no(Rejection::Malformed)),
        ("czNj cmV0", "", Irrelevant, no(Rejection::Malformed)),
        ("czNjcmV0, czNjcmV0", "", Irrelevant, no(Rejection::Malformed)),
        (H, "secret_token=bad", Irrelevant, no(Rejection::Wrong)),
        (H, "secret_token=", Irrelevant, no(Rejection::Wrong)),
        (H, "secret_token", Irrelevant, IN),
        ("", "secret_token=s3cret", Irrelevant, IN),
        ("", "secret_token=s3cret%0A", Irrelevant, IN),
        ("bm90aXQ=", "secret_token=s3cret", Irrelevant, IN),
        ("", "secret_token=czNjcmV0", Irrelevant, no(Rejection::Wrong)),
        ("", "secret_token=bad&secret_token=s3cret", Irrelevant, IN),
        ("", "secret_token=s3cret&secret_token=bad", Irrelevant, no(Rejection::Wrong)),
        ("", "a=1;secret_token=s3cret", Irrelevant, no(Rejection::Ambiguous)),
        (H, "secret_token[]=bad", Irrelevant, no(Rejection::Ambiguous)),
        // A good credential in sight: the body is left alone, and Rails judges the rest.
        (H, "", Unread, IN),
        ("", "secret_token=s3cret", Unread, IN),
        // None in sight, or only a bad one: Rails would look into the body.
        ("", "", Unread, Verdict::ReadBody),
        ("bm90aXQ=", "", Unread, Verdict::ReadBody),
        ("c", "", Unread, Verdict::ReadBody),
        ("", "secret_token=bad", Unread, Verdict::ReadBody),
        ("", "", Form(b"secret_token=s3cret%0A&key_id=1"), IN),
        ("", "", Form(b"key_id=1"), no(Rejection::Missing)),
        (H, "", Form(b"secret_token=bad"), no(Rejection::Wrong)),
        (H, "", Form(b"secret_token="), no(Rejection::Wrong)),
        (H, "secret_token=bad", Form(b"secret_token"), IN),
        ("", "secret_token=s3cret", Form(b"secret_token"), no(Rejection::Missing)),
        ("bm90aXQ=", "", Form(b"secret_token=s3cret"), IN),
        ("", "secret_token=bad", Form(b"secret_token=s3cret"), IN),
        ("", "secret_token=s3cret", Form(b"secret_token=bad"), no(Rejection::Wrong)),
        ("", "", Form(b"a=1;secret_token=s3cret"), no(Rejection::Ambiguous)),
        ("", "", Json(br#"{"secret_token":"s3cret"}"#), IN),
        ("", "", Json(br#"{"secret_token":"bad"}"#), no(Rejection::Wrong)),
        (H, "", Json(br#"{"secret_token":null}"#), IN),
        (H, "secret_token=bad", Json(br#"{"secret_token":null}"#), IN),
        ("", "secret_token=s3cret", Json(br#"{"secret_token":null}"#), no(Rejection::Missing)),
        ("", "", Json(br#"{"secret_token":["s3cret"]}"#), no(Rejection::Ambiguous)),
        ("", "", Json(br#"{"secret_token":5}"#), no(Rejection::Ambiguous)),
        ("", "", Json(b""), no(Rejection::Missing)),
        ("", "", Json(b"[]"), no(Rejection::Missing)),
        ("", "", Json(b"{"), no(Rejection::Ambiguous)),
        ("", "", Json(br#"{"a":{"secret_token":"s3cret"}}"#), no(Rejection::Missing)),
    ];
    let auth = auth(true, true, None);
    for (header, query, body, expected) in rows {
        let headers = headers("gitlab-shared-secret", header);
        let verdict = auth.judge(Access::Shell, &headers, &Params::parse(query.as_bytes()), *body, || NOW);
        assert_eq!(timeless(verdict), *expected, "{header:?} {query:?} {body:?}");
    }
}

#[test]
fn only_accepted_credentials_count() {
    let good_token = token(
        Algorithm::HS256,
        SECRET.as_bytes(),
        &json!({"iss": "gitlab-shell", "iat": NOW, "exp": NOW + 60}),
    );
    let secret = headers("gitlab-shared-secret", H);
    let jwt = headers("gitlab-shell-api-request", &good_token);
    let judge = |auth: &Auth, headers: &HeaderMap| {
        auth.judge(Access::Shell, headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW)
    };
    let (jwt_only, secret_only) = (auth(true, false, None), auth(false, true, None));
    assert_eq!(timeless(judge(&jwt_only, &jwt)), yes(CallerKind::ShellJwt));
    assert_eq!(judge(&jwt_only, &secret), no(Rejection::Missing));
    assert_eq!(judge(&secret_only, &secret), IN);
    assert_eq!(judge(&secret_only, &jwt), no(Rejection::Missing));
}

#[test]
fn a_token_that_is_there_decides_alone() {
    let mut both = headers("gitlab-shared-secret", H);
    both.insert("gitlab-shell-api-request", HeaderValue::from_static("x.y.z"));
    let verdict =
        auth(true, true, None).judge(Access::Shell, &both, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
    assert_eq!(timeless(verdict), no(Rejection::Malformed));
}

#[test]
fn shell_tokens() {
    let claims = |iss: Value, iat: i64, exp: Value| json!({"iss": iss, "iat": iat, "exp": exp});
    let shell = || json!("gitlab-shell");
    let good = claims(shell(), NOW, json!(NOW + 60));
    let rows: &[(Algorithm, &[u8], Value, Verdict)] = &[
        (Algorithm::HS256, b"s3cret", good.clone(), yes(CallerKind::ShellJwt)),
        (Algorithm::HS256, b"s3cret\n", good.clone(), no(Rejection::Wrong)),
        (Algorithm::HS512, b"s3cret", good.clone(), no(Rejection::Malformed)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, json!(NOW - 59)), yes(CallerKind::ShellJwt)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, json!(NOW - 60)), no(Rejection::Expired)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW + 60, json!(NOW + 120)), yes(CallerKind::ShellJwt)),
        // When it was issued decides nothing, whatever it says.
        (
            Algorithm::HS256,
            b"s3cret",
            claims(shell(), NOW + 9_999, json!(NOW + 60)),
            yes(CallerKind::ShellJwt),
        ),
        (Algorithm::HS256, b"s3cret", claims(shell(), i64::MAX, json!(NOW + 60)), yes(CallerKind::ShellJwt)),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "iat": "soon"}),
            yes(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "nbf": NOW + 60}),
            yes(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "nbf": NOW + 61}),
            no(Rejection::Skewed),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(json!("gitlab-kas"), NOW, json!(NOW + 60)),
            no(Rejection::WrongIssuer),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(json!(["gitlab-shell"]), NOW, json!(NOW + 60)),
            no(Rejection::WrongIssuer),
        ),
        (Algorithm::HS256, b"s3cret", json!({"iat": NOW, "exp": NOW + 60}), no(Rejection::WrongIssuer)),
        (Algorithm::HS256, b"s3cret", json!({"iss": "gitlab-shell", "iat": NOW}), no(Rejection::Malformed)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, Value::Null), no(Rejection::Malformed)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, json!("9999999999")), no(Rejection::Malformed)),
        (
            Algorithm::HS256,
            b"s3cret",
            json!(["gitlab-shell", null, NOW + 60, null, null]),
            no(Rejection::Malformed),
        ),
        (Algorithm::HS256, b"s3cret", json!("gitlab-shell"), no(Rejection::Malformed)),
    ];
    let auth = auth(true, true, None);
    for (alg, key, claims, expected) in rows {
        let headers = headers("gitlab-shell-api-request", &token(*alg, key, claims));
        let verdict = auth.judge(Access::Shell, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        assert_eq!(timeless(verdict), *expected, "{alg:?} {claims}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
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
        let verdict = auth.judge(Access::Shell, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        assert!(matches!(verdict, Verdict::Refused(_)), "{bad}");
    }
}

/// Signed, as only a holder of the secret can. What any ruby-jwt refuses is refused: beside each form is
/// whether 2.5.0 and 3.3.0 were seen to take it. The depth is that of Ruby's JSON, alike in both.
#[test]
fn odd_headers_and_deep_claims_are_refused_with_the_right_signature_too() {
    const BOTH: [bool; 2] = [true, true];
    const OLD: [bool; 2] = [true, false];
    const NONE: [bool; 2] = [false, false];
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let plain = r#"{"alg":"HS256","typ":"JWT"}"#;
    let claims = format!(r#"{{"iss":"gitlab-shell","exp":{}}}"#, NOW + 60);
    let with = |member: &str| plain.replace('}', &format!(",{member}}}"));
    let claims_with = |member: &str| claims.replace('}', &format!(",{member}}}"));
    let auth = auth(true, true, None);
    for (header, claims, seen) in [
        (plain.to_owned(), claims.clone(), BOTH),
        (with(r#""b64":true"#), claims.clone(), BOTH),
        (with(r#""kid":"x""#), claims.clone(), BOTH),
        (with(r#""b64":false"#), claims.clone(), OLD),
        (with(r#""b64":"true""#), claims.clone(), OLD),
        (with(r#""b64":false,"crit":["b64"]"#), claims.clone(), OLD),
        (with(r#""crit":[]"#), claims.clone(), OLD),
        (with(r#""crit":null"#), claims.clone(), OLD),
        (with(r#""crit":["exp"]"#), claims.clone(), OLD),
        (with(&format!(r#""x":{}"#, deep(99))), claims.clone(), BOTH),
        (with(&format!(r#""x":{}"#, deep(100))), claims.clone(), NONE),
        (plain.to_owned(), claims_with(&format!(r#""x":{}"#, deep(99))), BOTH),
        (plain.to_owned(), claims_with(&format!(r#""x":{}"#, deep(100))), NONE),
        (plain.to_owned(), claims_with(&format!(r#""x":{}"#, deep(10_000))), NONE),
    ] {
        let signed = [&header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), signed.as_bytes());
        let headers =
            headers("gitlab-shell-api-request", &format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)));
        let verdict = auth.judge(Access::Shell, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        let expected = if seen == BOTH { yes(CallerKind::ShellJwt) } else { no(Rejection::Malformed) };
        assert_eq!(timeless(verdict), expected, "{header:.80} {claims:.80}");
    }
}

#[test]
fn kas_tokens_have_no_leeway() {
    let claims = |nbf: i64, exp: i64| json!({"iss": "gitlab-kas", "aud": "gitlab", "nbf": nbf, "exp": exp});
    let rows: &[(Value, Verdict)] = &[
        (claims(NOW - 5, NOW + 5), yes(CallerKind::Kas)),
        (claims(NOW, NOW + 1), yes(CallerKind::Kas)),
        (claims(NOW - 5, NOW), no(Rejection::Expired)),
        (claims(NOW - 5, NOW - 1), no(Rejection::Expired)),
        (claims(NOW + 1, NOW + 5), no(Rejection::Skewed)),
        (json!({"iss": "gitlab-shell", "aud": "gitlab", "exp": NOW + 5}), no(Rejection::WrongIssuer)),
        (json!({"iss": "gitlab-kas", "aud": ["x", "gitlab"], "exp": NOW + 5}), yes(CallerKind::Kas)),
        (json!({"iss": "gitlab-kas", "aud": "x", "exp": NOW + 5}), no(Rejection::WrongAudience)),
        (json!({"iss": "gitlab-kas", "exp": NOW + 5}), no(Rejection::WrongAudience)),
    ];
    let strict = auth(true, true, Some("gitlab"));
    for (claims, expected) in rows {
        let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, claims));
        let verdict = strict.judge(Access::Kas, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        assert_eq!(timeless(verdict), *expected, "{claims}");
    }
    // Where none is demanded, one that is named has to be that of Rails all the same.
    for (claims, expected) in rows {
        let expected = if claims.get("aud").is_none() { yes(CallerKind::Kas) } else { *expected };
        let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, claims));
        let auth = auth(true, true, None);
        let verdict = auth.judge(Access::Kas, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        assert_eq!(timeless(verdict), expected, "{claims}");
    }
    let without = json!({"iss": "gitlab-kas", "exp": NOW + 5});
    let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, &without));
    let verdict =
        auth(true, true, None).judge(Access::Kas, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
    assert_eq!(timeless(verdict), yes(CallerKind::Kas));
}

#[test]
fn the_families_do_not_open_each_others_doors() {
    let auth = auth(true, true, None);
    let shell = headers("gitlab-shared-secret", H);
    let claims = json!({"iss": "gitlab-kas", "exp": NOW + 5});
    let kas = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, &claims));
    let empty = headers("gitlab-kas-api-request", "");
    let judge = |access, headers: &HeaderMap| {
        auth.judge(access, headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW)
    };
    assert_eq!(judge(Access::Kas, &shell), no(Rejection::Missing));
    assert_eq!(judge(Access::Kas, &empty), no(Rejection::Missing));
    assert_eq!(judge(Access::Shell, &kas), no(Rejection::Missing));
    assert_eq!(judge(Access::Rails, &HeaderMap::new()), yes(CallerKind::LeftToRails));
    // There a credential says who is calling, and refuses no caller.
    assert_eq!(judge(Access::Rails, &shell), IN);
    for other in [kas, headers("gitlab-shared-secret", "eHh4"), headers("gitlab-shell-api-request", "x")] {
        assert_eq!(judge(Access::Rails, &other), yes(CallerKind::LeftToRails));
    }
}

/// Whoever keeps a request waiting has to know for how long it is worth anything. Rails' leeway is not
/// counted on: some releases have none.
#[test]
fn a_token_says_until_when_it_is_good() {
    let auth = auth(true, true, None);
    let shell = json!({"iss": "gitlab-shell", "exp": NOW - 10});
    let kas = json!({"iss": "gitlab-kas", "exp": NOW + 5});
    for (access, headers, expires) in [
        (Access::Shell, headers("gitlab-shared-secret", H), None),
        (
            Access::Shell,
            headers("gitlab-shell-api-request", &token(Algorithm::HS256, SECRET.as_bytes(), &shell)),
            Some(NOW - 10),
        ),
        (
            Access::Kas,
            headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, &kas)),
            Some(NOW + 5),
        ),
        (Access::Rails, HeaderMap::new(), None),
    ] {
        let verdict = auth.judge(access, &headers, &Params::parse(b""), BodyOf::Irrelevant, || NOW);
        let Verdict::Granted(caller) = verdict else { unreachable!("{verdict:?}") };
        assert_eq!(caller.expires(), expires);
    }
}

#[test]
fn without_a_kas_secret_kas_calls_are_refused() {
    let mut auth = auth(true, true, None);
    auth.kas = None;
    let verdict = auth.judge(Access::Kas, &HeaderMap::new(), &Params::parse(b""), BodyOf::Irrelevant, || NOW);
    assert_eq!(timeless(verdict), no(Rejection::NotConfigured));
}
