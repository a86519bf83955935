use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

mod malformed_tokens;

const NOW: i64 = 1_700_000_000;
const SECRET: &str = "s3cret";
/// Base64 of `s3cret`, and of `s3cret\n` as the Go shell of the secret's era sends it.
const H: &str = "czNjcmV0";
const HN: &str = "czNjcmV0Cg==";
const KAS_KEY: [u8; 32] = [9; 32];

fn auth(accept_jwt: bool, accept_shared_secret: bool, audience: Option<&str>) -> Authenticator {
    Authenticator::new(AuthSettings {
        shell_secret: ShellSecret::from_text(b"s3cret\n").unwrap(),
        accept_jwt,
        accept_shared_secret,
        max_body: DEFAULT_MAX_BODY,
        max_unverified: DEFAULT_MAX_UNVERIFIED,
        kas: Some(KasSettings {
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

const fn accepted(kind: CallerKind) -> AuthOutcome {
    AuthOutcome::Accepted(Caller { kind, expires: None })
}

/// The outcome without the time at which the credential expires.
fn without_expiry(outcome: AuthOutcome) -> AuthOutcome {
    match outcome {
        AuthOutcome::Accepted(caller) => accepted(caller.kind),
        other => other,
    }
}

const fn rejected(rejection: Rejection) -> AuthOutcome {
    AuthOutcome::Rejected(rejection)
}

const BY_SECRET: AuthOutcome = accepted(CallerKind::SharedSecret);

#[test]
fn the_secret_is_searched_for_where_rails_searches() {
    use AuthBody::{Form, Irrelevant, Json, Unread};
    let rows: &[(&str, &str, AuthBody<'_>, AuthOutcome)] = &[
        // header, query, body, outcome: contract §2.2 and §8
        (H, "", Irrelevant, BY_SECRET),
        (HN, "", Irrelevant, BY_SECRET),
        ("czNjcmV0Cg", "", Irrelevant, BY_SECRET),
        ("  czNjcmV0\t", "", Irrelevant, BY_SECRET),
        ("", "", Irrelevant, rejected(Rejection::Missing)),
        ("bm90aXQ=", "", Irrelevant, rejected(Rejection::Wrong)),
        (SECRET, "", Irrelevant, rejected(Rejection::Malformed)),
        ("czNj cmV0", "", Irrelevant, rejected(Rejection::Malformed)),
        ("czNjcmV0, czNjcmV0", "", Irrelevant, rejected(Rejection::Malformed)),
        (H, "secret_token=bad", Irrelevant, rejected(Rejection::Wrong)),
        (H, "secret_token=", Irrelevant, rejected(Rejection::Wrong)),
        (H, "secret_token", Irrelevant, BY_SECRET),
        ("", "secret_token=s3cret", Irrelevant, BY_SECRET),
        ("", "secret_token=s3cret%0A", Irrelevant, BY_SECRET),
        ("bm90aXQ=", "secret_token=s3cret", Irrelevant, BY_SECRET),
        ("", "secret_token=czNjcmV0", Irrelevant, rejected(Rejection::Wrong)),
        ("", "secret_token=bad&secret_token=s3cret", Irrelevant, BY_SECRET),
        ("", "secret_token=s3cret&secret_token=bad", Irrelevant, rejected(Rejection::Wrong)),
        ("", "a=1;secret_token=s3cret", Irrelevant, rejected(Rejection::Ambiguous)),
        (H, "secret_token[]=bad", Irrelevant, rejected(Rejection::Ambiguous)),
        // A valid credential outside the body: the body is not read, and Rails decides about it.
        (H, "", Unread, BY_SECRET),
        ("", "secret_token=s3cret", Unread, BY_SECRET),
        // None outside the body, or only an invalid one: Rails would look into the body.
        ("", "", Unread, AuthOutcome::BodyNeeded),
        ("bm90aXQ=", "", Unread, AuthOutcome::BodyNeeded),
        ("c", "", Unread, AuthOutcome::BodyNeeded),
        ("", "secret_token=bad", Unread, AuthOutcome::BodyNeeded),
        ("", "", Form(b"secret_token=s3cret%0A&key_id=1"), BY_SECRET),
        ("", "", Form(b"key_id=1"), rejected(Rejection::Missing)),
        (H, "", Form(b"secret_token=bad"), rejected(Rejection::Wrong)),
        (H, "", Form(b"secret_token="), rejected(Rejection::Wrong)),
        (H, "secret_token=bad", Form(b"secret_token"), BY_SECRET),
        ("", "secret_token=s3cret", Form(b"secret_token"), rejected(Rejection::Missing)),
        ("bm90aXQ=", "", Form(b"secret_token=s3cret"), BY_SECRET),
        ("", "secret_token=bad", Form(b"secret_token=s3cret"), BY_SECRET),
        ("", "secret_token=s3cret", Form(b"secret_token=bad"), rejected(Rejection::Wrong)),
        ("", "", Form(b"a=1;secret_token=s3cret"), rejected(Rejection::Ambiguous)),
        ("", "", Json(br#"{"secret_token":"s3cret"}"#), BY_SECRET),
        ("", "", Json(br#"{"secret_token":"bad"}"#), rejected(Rejection::Wrong)),
        (H, "", Json(br#"{"secret_token":null}"#), BY_SECRET),
        (H, "secret_token=bad", Json(br#"{"secret_token":null}"#), BY_SECRET),
        ("", "secret_token=s3cret", Json(br#"{"secret_token":null}"#), rejected(Rejection::Missing)),
        ("", "", Json(br#"{"secret_token":["s3cret"]}"#), rejected(Rejection::Ambiguous)),
        ("", "", Json(br#"{"secret_token":5}"#), rejected(Rejection::Ambiguous)),
        ("", "", Json(b""), rejected(Rejection::Missing)),
        ("", "", Json(b"[]"), rejected(Rejection::Missing)),
        ("", "", Json(b"{"), rejected(Rejection::Ambiguous)),
        ("", "", Json(br#"{"a":{"secret_token":"s3cret"}}"#), rejected(Rejection::Missing)),
    ];
    let auth = auth(true, true, None);
    for (header, query, body, expected) in rows {
        let headers = headers("gitlab-shared-secret", header);
        let outcome =
            auth.authenticate(Access::Shell, &headers, &Params::parse(query.as_bytes()), *body, || NOW);
        assert_eq!(without_expiry(outcome), *expected, "{header:?} {query:?} {body:?}");
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
    let authenticate = |auth: &Authenticator, headers: &HeaderMap| {
        auth.authenticate(Access::Shell, headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW)
    };
    let (jwt_only, secret_only) = (auth(true, false, None), auth(false, true, None));
    assert_eq!(without_expiry(authenticate(&jwt_only, &jwt)), accepted(CallerKind::ShellJwt));
    assert_eq!(authenticate(&jwt_only, &secret), rejected(Rejection::Missing));
    assert_eq!(authenticate(&secret_only, &secret), BY_SECRET);
    assert_eq!(authenticate(&secret_only, &jwt), rejected(Rejection::Missing));
}

#[test]
fn a_token_decides_alone() {
    let mut both = headers("gitlab-shared-secret", H);
    both.insert("gitlab-shell-api-request", HeaderValue::from_static("x.y.z"));
    let outcome = auth(true, true, None).authenticate(
        Access::Shell,
        &both,
        &Params::parse(b""),
        AuthBody::Irrelevant,
        || NOW,
    );
    assert_eq!(without_expiry(outcome), rejected(Rejection::Malformed));
}

/// The verdicts of ruby-jwt 2.5.0 and 3.3.0, but for two: both accept a token without `exp`, and one with digits as
/// its text.
#[test]
fn shell_tokens_are_verified_as_in_rails() {
    let claims = |iss: Value, iat: i64, exp: Value| json!({"iss": iss, "iat": iat, "exp": exp});
    let shell = || json!("gitlab-shell");
    let good = claims(shell(), NOW, json!(NOW + 60));
    let rows: &[(Algorithm, &[u8], Value, AuthOutcome)] = &[
        (Algorithm::HS256, b"s3cret", good.clone(), accepted(CallerKind::ShellJwt)),
        (Algorithm::HS256, b"s3cret\n", good.clone(), rejected(Rejection::Wrong)),
        (Algorithm::HS512, b"s3cret", good.clone(), rejected(Rejection::Malformed)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, json!(NOW - 59)), accepted(CallerKind::ShellJwt)),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, json!(NOW - 60)), rejected(Rejection::Expired)),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(shell(), NOW + 60, json!(NOW + 120)),
            accepted(CallerKind::ShellJwt),
        ),
        // When it was issued does not matter, whatever it says.
        (
            Algorithm::HS256,
            b"s3cret",
            claims(shell(), NOW + 9_999, json!(NOW + 60)),
            accepted(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(shell(), i64::MAX, json!(NOW + 60)),
            accepted(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "iat": "soon"}),
            accepted(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "nbf": NOW + 60}),
            accepted(CallerKind::ShellJwt),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "exp": NOW + 60, "nbf": NOW + 61}),
            rejected(Rejection::Skewed),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(json!("gitlab-kas"), NOW, json!(NOW + 60)),
            rejected(Rejection::WrongIssuer),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(json!(["gitlab-shell"]), NOW, json!(NOW + 60)),
            rejected(Rejection::WrongIssuer),
        ),
        (Algorithm::HS256, b"s3cret", json!({"iat": NOW, "exp": NOW + 60}), rejected(Rejection::WrongIssuer)),
        (
            Algorithm::HS256,
            b"s3cret",
            json!({"iss": "gitlab-shell", "iat": NOW}),
            rejected(Rejection::Malformed),
        ),
        (Algorithm::HS256, b"s3cret", claims(shell(), NOW, Value::Null), rejected(Rejection::Malformed)),
        (
            Algorithm::HS256,
            b"s3cret",
            claims(shell(), NOW, json!("9999999999")),
            rejected(Rejection::Malformed),
        ),
        (
            Algorithm::HS256,
            b"s3cret",
            json!(["gitlab-shell", null, NOW + 60, null, null]),
            rejected(Rejection::Malformed),
        ),
        (Algorithm::HS256, b"s3cret", json!("gitlab-shell"), rejected(Rejection::Malformed)),
    ];
    let auth = auth(true, true, None);
    for (alg, key, claims, expected) in rows {
        let headers = headers("gitlab-shell-api-request", &token(*alg, key, claims));
        let outcome =
            auth.authenticate(Access::Shell, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        assert_eq!(without_expiry(outcome), *expected, "{alg:?} {claims}");
    }
}

/// The verdicts of ruby-jwt 2.5.0 and 3.3.0, with which `exp` and `nbf` have no leeway unless the caller gives one.
#[test]
fn kas_tokens_have_no_leeway() {
    let claims = |nbf: i64, exp: i64| json!({"iss": "gitlab-kas", "aud": "gitlab", "nbf": nbf, "exp": exp});
    let rows: &[(Value, AuthOutcome)] = &[
        (claims(NOW - 5, NOW + 5), accepted(CallerKind::Kas)),
        (claims(NOW, NOW + 1), accepted(CallerKind::Kas)),
        (claims(NOW - 5, NOW), rejected(Rejection::Expired)),
        (claims(NOW - 5, NOW - 1), rejected(Rejection::Expired)),
        (claims(NOW + 1, NOW + 5), rejected(Rejection::Skewed)),
        (json!({"iss": "gitlab-shell", "aud": "gitlab", "exp": NOW + 5}), rejected(Rejection::WrongIssuer)),
        (json!({"iss": "gitlab-kas", "aud": ["x", "gitlab"], "exp": NOW + 5}), accepted(CallerKind::Kas)),
        (json!({"iss": "gitlab-kas", "aud": "x", "exp": NOW + 5}), rejected(Rejection::WrongAudience)),
        (json!({"iss": "gitlab-kas", "exp": NOW + 5}), rejected(Rejection::WrongAudience)),
    ];
    let strict = auth(true, true, Some("gitlab"));
    for (claims, expected) in rows {
        let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, claims));
        let outcome =
            strict.authenticate(Access::Kas, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        assert_eq!(without_expiry(outcome), *expected, "{claims}");
    }
    // Where no audience is required, one that a token has must still be that of Rails.
    for (claims, expected) in rows {
        let expected = if claims.get("aud").is_none() { accepted(CallerKind::Kas) } else { *expected };
        let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, claims));
        let auth = auth(true, true, None);
        let outcome =
            auth.authenticate(Access::Kas, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        assert_eq!(without_expiry(outcome), expected, "{claims}");
    }
    let without = json!({"iss": "gitlab-kas", "exp": NOW + 5});
    let headers = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, &without));
    let outcome = auth(true, true, None).authenticate(
        Access::Kas,
        &headers,
        &Params::parse(b""),
        AuthBody::Irrelevant,
        || NOW,
    );
    assert_eq!(without_expiry(outcome), accepted(CallerKind::Kas));
}

#[test]
fn credentials_of_one_scheme_are_not_accepted_by_another() {
    let auth = auth(true, true, None);
    let shell = headers("gitlab-shared-secret", H);
    let claims = json!({"iss": "gitlab-kas", "exp": NOW + 5});
    let kas = headers("gitlab-kas-api-request", &token(Algorithm::HS256, &KAS_KEY, &claims));
    let empty = headers("gitlab-kas-api-request", "");
    let authenticate = |access, headers: &HeaderMap| {
        auth.authenticate(access, headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW)
    };
    assert_eq!(authenticate(Access::Kas, &shell), rejected(Rejection::Missing));
    assert_eq!(authenticate(Access::Kas, &empty), rejected(Rejection::Missing));
    assert_eq!(authenticate(Access::Shell, &kas), rejected(Rejection::Missing));
    assert_eq!(authenticate(Access::Rails, &HeaderMap::new()), accepted(CallerKind::LeftToRails));
    // There a valid credential identifies the caller, and no caller is refused.
    assert_eq!(authenticate(Access::Rails, &shell), BY_SECRET);
    for other in [kas, headers("gitlab-shared-secret", "eHh4"), headers("gitlab-shell-api-request", "x")] {
        assert_eq!(authenticate(Access::Rails, &other), accepted(CallerKind::LeftToRails));
    }
}

/// So that a request is not kept waiting for longer. The leeway of Rails is not added: some releases have none.
#[test]
fn callers_know_when_their_token_expires() {
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
        let outcome = auth.authenticate(access, &headers, &Params::parse(b""), AuthBody::Irrelevant, || NOW);
        let AuthOutcome::Accepted(caller) = outcome else { unreachable!("{outcome:?}") };
        assert_eq!(caller.expires(), expires);
    }
}

/// Tokens are remembered, verdicts are not.
#[test]
fn the_same_token_is_judged_at_each_time_and_by_each_key_anew() {
    let auth = auth(true, true, None);
    let claims = json!({"iss": "gitlab-shell", "iat": NOW, "nbf": NOW, "exp": NOW + 60});
    let signed = token(Algorithm::HS256, SECRET.as_bytes(), &claims);
    let shell = headers("gitlab-shell-api-request", &signed);
    let verdict = |auth: &Authenticator, access, headers: &HeaderMap, now| {
        without_expiry(auth.authenticate(access, headers, &Params::parse(b""), AuthBody::Irrelevant, || now))
    };
    for (now, expected) in [
        (NOW - 61, rejected(Rejection::Skewed)),
        (NOW, accepted(CallerKind::ShellJwt)),
        (NOW - 61, rejected(Rejection::Skewed)),
        (NOW + 119, accepted(CallerKind::ShellJwt)),
        (NOW + 120, rejected(Rejection::Expired)),
        (NOW + 1, accepted(CallerKind::ShellJwt)),
    ] {
        assert_eq!(verdict(&auth, Access::Shell, &shell, now), expected, "at {now}");
    }
    let (rest, last) = signed.split_at(signed.len() - 2);
    let other_end = if last.starts_with('A') { "B" } else { "A" };
    let changed = headers("gitlab-shell-api-request", &format!("{rest}{other_end}{}", &last[1..]));
    assert_eq!(verdict(&auth, Access::Shell, &changed, NOW), rejected(Rejection::Wrong));
    let as_kas = headers("gitlab-kas-api-request", &signed);
    assert_eq!(verdict(&auth, Access::Kas, &as_kas, NOW), rejected(Rejection::Wrong));

    let settings = AuthSettings {
        shell_secret: ShellSecret::from_text(b"an0ther").unwrap(),
        accept_jwt: true,
        accept_shared_secret: true,
        max_body: DEFAULT_MAX_BODY,
        max_unverified: DEFAULT_MAX_UNVERIFIED,
        kas: None,
    };
    let exchanged = Authenticator::new(settings);
    assert_eq!(verdict(&exchanged, Access::Shell, &shell, NOW), rejected(Rejection::Wrong));
}

#[test]
fn without_a_kas_secret_kas_calls_are_refused() {
    let mut auth = auth(true, true, None);
    auth.kas = None;
    let outcome =
        auth.authenticate(Access::Kas, &HeaderMap::new(), &Params::parse(b""), AuthBody::Irrelevant, || NOW);
    assert_eq!(without_expiry(outcome), rejected(Rejection::NotConfigured));
}
