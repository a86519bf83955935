//! Authentication.

use super::super::auth::CallerFamily;
use super::*;

#[test]
fn every_endpoint_requires_a_credential() {
    for (method, path, family, _) in &TABLE {
        let refused = match family {
            CallerFamily::Shell => unauthorized(),
            CallerFamily::Kas => (401, json!({ "message": "KAS JWT authentication invalid" })),
        };
        assert_eq!(ask(method.as_str(), path, &[], ""), refused, "{method} {path}");
        let wrong = [
            ("Gitlab-Shared-Secret", "d3Jvbmc="),
            ("Gitlab-Kas-Api-Request", "a.b.c"),
            ("Authorization", "Bearer sample-agent-token"),
        ];
        assert_eq!(ask(method.as_str(), path, &wrong, ""), refused, "{method} {path}");
    }
}

#[test]
fn secret_comes_in_header_or_parameter() {
    let padded = ("Gitlab-Shared-Secret", "czNjcmV0Cg==");
    let none: [(&str, &str); 0] = [];
    for (query, headers, body, status) in [
        ("", &[H][..], "", 200),
        ("", &[padded], "", 200),
        ("", &[("Gitlab-Shared-Secret", " czNj cmV0 ")], "", 200),
        ("", &[("Gitlab-Shared-Secret", "")], "", 401),
        ("?secret_token=bad", &[H], "", 401),
        ("?secret_token=", &[H], "", 401),
        ("?secret_token", &[H], "", 200),
        ("?secret_token=s3cret", &none, "", 200),
        ("?secret_token=s3cret%0A", &none, "", 200),
        ("?secret_token=bad&secret_token=s3cret", &none, "", 200),
        ("?secret_token=s3cret;secret_token=bad", &none, "", 401),
        ("?secret_token[]=s3cret", &[H], "", 500),
        ("", &[FORM], "secret_token=s3cret%0A", 200),
        ("?secret_token=s3cret", &[FORM], "secret_token=bad", 401),
        ("?secret_token=s3cret", &[JSON], r#"{"secret_token":"bad"}"#, 200),
    ] {
        let (answered, _) = ask("GET", &format!("/check{query}"), headers, body);
        assert_eq!(answered, status, "{query} {headers:?} {body}");
    }
}

#[test]
fn null_in_json_does_not_override_the_header() {
    let body = r#"{"secret_token":null,"gl_repository":"project-7"}"#;
    assert_eq!(ask("POST", "/pre_receive", &[H, JSON], body).0, 200);
    assert_eq!(ask("POST", "/pre_receive?secret_token=s3cret", &[JSON], body).0, 401);
}

#[test]
fn a_shell_jwt_decides_alone() {
    let now = get_current_timestamp();
    let with = |token: &str| get_with_jwt(token, &[]);
    let claims = json!({ "iss": "gitlab-shell", "iat": now, "exp": now + 60 });
    assert_eq!(with(&sign(SECRET, &claims)), 200);
    assert_eq!(with(&sign(b"other", &claims)), 401);
    assert_eq!(get_with_jwt(&sign(b"other", &claims), &[H]), 401);
    assert_eq!(get_with_jwt("", &[H]), 200);
    for (claims, status) in [
        (json!({ "iss": "gitlab-shell" }), 200),
        (json!({ "iss": "gitlab-shell", "exp": now - 50 }), 200),
        (json!({ "iss": "gitlab-shell", "exp": now - 70 }), 401),
        (json!({ "iss": "gitlab-shell", "iat": now + 10, "exp": now + 60 }), 200),
        (json!({ "iss": "gitlab-shell", "nbf": now + 90 }), 401),
        (json!({ "iss": "gitlab-workhorse", "exp": now + 60 }), 401),
        (json!({ "iss": ["gitlab-shell"], "exp": now + 60 }), 401),
        (json!({ "exp": now + 60 }), 401),
    ] {
        assert_eq!(with(&sign(SECRET, &claims)), status, "{claims}");
    }
}

fn get_with_jwt(token: &str, more: &[(&str, &str)]) -> u16 {
    let headers = [&[("Gitlab-Shell-Api-Request", token)], more].concat();
    ask("GET", "/check", &headers, "").0
}

#[test]
fn kas_jwt_is_checked_without_leeway() {
    let now = get_current_timestamp();
    let ask_with = |secret: &[u8], claims: &Value| {
        let token = sign(secret, claims);
        let headers = [("Gitlab-Kas-Api-Request", token.as_str()), JSON];
        ask("POST", "/kubernetes/usage_metrics", &headers, r#"{"gitops_sync_count":1}"#).0
    };
    let good = json!({ "iss": "gitlab-kas", "aud": "gitlab", "nbf": now - 5, "exp": now + 5 });
    assert_eq!(ask_with(&KAS_SECRET, &good), 204);
    assert_eq!(ask_with(&[8; 32], &good), 401);
    for claims in [
        json!({ "iss": "gitlab-kas", "aud": "gitlab", "exp": now - 2 }),
        json!({ "iss": "gitlab-kas", "aud": "gitlab", "nbf": now + 9 }),
        json!({ "iss": "gitlab-kas", "aud": "other", "exp": now + 5 }),
        json!({ "iss": "gitlab-kas", "exp": now + 5 }),
        json!({ "iss": "gitlab-shell", "aud": "gitlab", "exp": now + 5 }),
    ] {
        assert_eq!(ask_with(&KAS_SECRET, &claims), 401, "{claims}");
    }
}
