//! Other outcomes of the nine shell endpoints than the plain success.

use super::super::client::Request;
use super::super::keys;
use super::{AnsweredBy, Case};

pub fn all() -> Vec<Case> {
    let parts = [allowed(), lfs(), keys_and_users(), recovery_codes(), access_tokens(), hooks()];
    parts.into_iter().flatten().collect()
}

/// A table of POSTs: endpoint, form, status.
fn posts(endpoint: &str, rows: &[(&str, u16)]) -> Vec<Case> {
    let case = |(form, status): &(&str, u16)| {
        Case::new(
            format!("{endpoint} {form}"),
            Request::post(endpoint).form(form).with_secret(),
            *status,
            AnsweredBy::Rails,
        )
    };
    rows.iter().map(case).collect()
}

fn allowed() -> Vec<Case> {
    let mut cases = posts(
        "allowed",
        &[
            ("user_id=7&gl_repository=project-1&action=git-receive-pack&protocol=http&changes=_any", 200),
            (
                "username=rubi&project=gnuwget/wget2&action=git-upload-archive&protocol=ssh&check_ip=192.0.2.1",
                200,
            ),
            ("key_id=1&project=outcome/geo", 300),
            ("key_id=1&project=outcome/denied", 401),
            ("key_id=1&project=no/such", 404),
            ("key_id=1&project=outcome/busy", 429),
            ("key_id=1&project=outcome/unknown", 500),
            ("key_id=1&project=outcome/crash", 500),
            ("key_id=1&project=outcome/timeout", 503),
            ("", 404),
        ],
    );
    let json = r#"{"key_id":"1","project":"gnuwget/wget2","changes":"a b refs/heads/c\n","env":"{}"}"#;
    let request = || Request::post("allowed").json(json).with_shell_token();
    cases.push(Case::new("allowed as JSON", request(), 200, AnsweredBy::Rails));
    cases.push(Case::new("allowed as JSON in chunks", request().chunked(), 200, AnsweredBy::Rails));
    cases
}

fn lfs() -> Vec<Case> {
    posts(
        "lfs_authenticate",
        &[
            ("user_id=7&project=gnuwget/wget2&operation=upload", 200),
            ("key_id=6&project=gnuwget/wget2", 200),
            ("key_id=1&project=rubi/no-lfs", 404),
            ("key_id=1&project=no/such", 404),
            ("key_id=77&project=gnuwget/wget2", 404),
        ],
    )
}

/// The cached endpoints. Which side responds is left open here; `caching` counts.
fn keys_and_users() -> Vec<Case> {
    let root = keys::of_root();
    let rows = [
        (format!("authorized_keys?key={root}=="), 200),
        (format!("authorized_keys?key={}", keys::escaped(&keys::padded())), 200),
        (format!("authorized_keys?key={}", keys::padded()), 200),
        (format!("authorized_keys?key={}", keys::padded().trim_end_matches('=')), 200),
        (format!("authorized_keys?key={}", keys::escaped(&keys::with_plus())), 200),
        // A bare "+" is a space, which Rails' decoder skips: another key.
        (format!("authorized_keys?key={}", keys::with_plus()), 404),
        (format!("authorized_keys?key={}", keys::of_deployment()), 200),
        (format!("authorized_keys?key={}", keys::expired()), 200),
        (format!("authorized_keys?key={}", keys::for_signing()), 404),
        (format!("authorized_keys?key={}", keys::unknown()), 404),
        (format!("authorized_keys?key={}", &root[..60]), 404),
        (format!("authorized_keys?key=*{root}"), 200),
        (format!("authorized_keys?key=ssh-ed25519%20{root}"), 404),
        ("authorized_keys?key=whatever!".into(), 404),
        ("authorized_keys?key=".into(), 404),
        ("authorized_keys?key".into(), 500),
        ("authorized_keys".into(), 500),
        (format!("authorized_keys?key={root}&fingerprint="), 200),
        (format!("authorized_keys?key={}&key={root}", keys::unknown()), 200),
        (format!("authorized_keys?key={root}&key={}", keys::unknown()), 404),
        (format!("authorized_keys?key[]={root}"), 500),
        ("discover?key_id=1".into(), 200),
        ("discover?user_id=7".into(), 200),
        ("discover?username=root".into(), 200),
        ("discover?username=Root".into(), 200),
        ("discover?username=nobody".into(), 200),
        ("discover?identifier=user-7".into(), 200),
        ("discover?identifier=key-1".into(), 200),
        ("discover?key_id=4".into(), 200),
        ("discover?key_id=6".into(), 200),
        ("discover?key_id=8".into(), 200),
        ("discover?key_id=99".into(), 200),
        ("discover?key_id=&username=root".into(), 200),
        ("discover?user_id=7abc".into(), 200),
        ("discover?user_id=07".into(), 200),
        ("discover?user_id=%207".into(), 200),
        ("discover?user_id=%2B7".into(), 200),
        ("discover?user_id=99999999999999999999".into(), 200),
        ("discover".into(), 200),
    ];
    rows.into_iter()
        .map(|(target, status)| {
            let request = Request::get(&target).with_secret();
            Case::new(format!("GET {target}"), request, status, AnsweredBy::Either)
        })
        .collect()
}

fn recovery_codes() -> Vec<Case> {
    let mut cases = posts(
        "two_factor_recovery_codes",
        &[
            ("user_id=1", 200),
            ("key_id=77", 200),  // no such key
            ("key_id=5", 200),   // a key without an owner
            ("key_id=6", 200),   // a deploy key
            ("user_id=77", 200), // no such user
            ("key_id=2", 200),   // no two factors
            ("", 500),
        ],
    );
    let wrong_method = Request::get("two_factor_recovery_codes?key_id=1").with_secret();
    cases.push(Case::new("recovery codes by GET", wrong_method, 404, AnsweredBy::Rails));
    cases
}

fn access_tokens() -> Vec<Case> {
    posts(
        "personal_access_token",
        &[
            ("key_id=77", 200),
            ("key_id=5", 200),
            ("key_id=6", 200),
            ("user_id=77", 200),
            ("key_id=1&scopes[]=api", 200),                            // no name
            ("key_id=1&name=a", 200),                                  // no scopes
            ("key_id=1&name=a&scopes[]=all", 200),                     // no such scope
            ("key_id=1&name=a&scopes[]=api&expires_at=tomorrow", 200), // no date
            ("key_id=1&name=a%26b&scopes[]=api", 200),
        ],
    )
}

fn hooks() -> Vec<Case> {
    let mut cases = posts("pre_receive", &[("gl_repository=project-7", 200), ("", 200)]);
    cases.extend(posts(
        "post_receive",
        &[("gl_repository=project-7&identifier=key-2&changes=a%0Ab", 200), ("", 200)],
    ));
    // More than fits into any single buffer on the way.
    let changes =
        "0000000000000000000000000000000000000000 fd9e76b9136bdd9fe217061b497745792fe5a5ee refs/heads/a\\n";
    let long = format!(
        r#"{{"gl_repository":"project-1","identifier":"user-1","changes":"{}"}}"#,
        changes.repeat(20_000)
    );
    let request = Request::post("post_receive").json(&long).with_secret();
    cases.push(Case::new("post_receive of 20000 refs", request.clone(), 200, AnsweredBy::Rails));
    cases.push(Case::new(
        "post_receive of 20000 refs in chunks",
        request.clone().chunked(),
        200,
        AnsweredBy::Rails,
    ));
    let polite = request.header("Expect", "100-continue");
    cases.push(Case::new("post_receive of 20000 refs, announced", polite, 200, AnsweredBy::Rails));
    cases
}
