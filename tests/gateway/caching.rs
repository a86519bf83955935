//! What is stored, which callers share it, and what is not stored.

use super::client::{Request, eventually};
use super::credentials::{now, rfc3339};
use super::fake_rails::{CHECK, PADDED_KEY, ROOT_KEY, Reply, UNKNOWN_KEY, of_one_request};
use super::harness::{Harness, Setup};

fn escaped(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// Targets of the cached endpoints; each row is one entry in all its spellings.
fn cacheable_targets() -> Vec<Vec<String>> {
    let key = |key: &str| format!("authorized_keys?key={key}");
    let (padded, bare) = (PADDED_KEY, PADDED_KEY.trim_end_matches('='));
    let [unescaped, unescaped_bare] = [padded, bare].map(|text| text.replace('+', "%2B"));
    vec![
        vec![key(ROOT_KEY), key(&ROOT_KEY.replace('A', "%41")), key(&ROOT_KEY.replace('c', "%63"))],
        // OpenSSH pads, GitLab's own sshd does not; some escape more than others.
        vec![
            key(&escaped(padded)),
            key(&escaped(bare)),
            key(&unescaped),
            key(&unescaped_bare),
            key(&escaped(padded).to_lowercase_escapes()),
        ],
        vec![key(UNKNOWN_KEY)],
        vec!["discover?key_id=1".into(), "discover?key_id=%31".into()],
        vec!["discover?key_id=9223372036854775807".into()],
        vec!["discover?user_id=7".into()],
        vec!["discover?username=root".into(), "discover?username=r%6Fot".into()],
        vec!["discover?username=Root".into()],
        vec!["discover?username=no.body-_9".into()],
        vec!["check".into(), "check?".into()],
    ]
}

trait LowercaseEscapes {
    fn to_lowercase_escapes(&self) -> String;
}

impl LowercaseEscapes for String {
    fn to_lowercase_escapes(&self) -> String {
        self.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
    }
}

/// The same target by each kind of caller. The cache key does not depend on the caller.
fn for_all_callers(target: &str) -> Vec<Request> {
    let and = match target.split_once('?') {
        Some((_, "")) => "",
        Some(_) => "&",
        None => "?",
    };
    vec![
        Request::get(target).with_secret(),
        Request::get(target).with_shell_token(),
        Request::get(target).with_secret().header("Content-Type", "application/json"),
        Request::get(target).with_secret().body(""),
        Request::get(&format!("{target}{and}secret_token=s3cret")),
        Request::get(target).form("secret_token=s3cret%0A"),
        Request::get(target).form("secret_token=s3cret").chunked(1),
    ]
}

#[tokio::test]
async fn a_cacheable_read_reaches_rails_once_for_all_callers_and_spellings() {
    // The first caller shows the secret in a header, then in a form.
    for first in [0, 6] {
        let harness = Harness::new().await;
        for spellings in cacheable_targets() {
            let before = harness.rails.request_count();
            let mut requests: Vec<Request> =
                spellings.iter().flat_map(|target| for_all_callers(target)).collect();
            requests.rotate_left(first);
            let mut expected = None;
            for request in &requests {
                for address in [&harness.gateway.tcp, &harness.gateway.unix] {
                    let response = address.send(request).await;
                    let seen = (response.status, response.header("content-length").map(str::to_owned));
                    assert_eq!(&seen, expected.get_or_insert(seen.clone()), "{request}: {response}");
                    assert_eq!(seen.1, Some(response.body.len().to_string()));
                }
            }
            assert_eq!(harness.rails.request_count() - before, 1, "{spellings:?}");
        }
    }
}

#[tokio::test]
async fn the_cache_status_header_tells_hits_from_misses() {
    let harness = Harness::new().await;
    for spellings in cacheable_targets() {
        let request = Request::get(&spellings[0]).with_secret();
        let first = harness.send(&request).await;
        assert_eq!((first.cache_status(), first.header("age")), ("railgate; fwd=miss; stored", None));
        let second = harness.send(&request).await;
        let left = second.cache_status().strip_prefix("railgate; hit; ttl=").unwrap_or_default();
        let left: u64 = left.parse().unwrap_or_else(|_| panic!("{second}"));
        let age: u64 = second.header("age").unwrap().parse().unwrap();
        assert!((3590..=3600).contains(&left) && age <= 10, "{second}");
        assert_eq!(first.body, second.body);
    }
}

#[tokio::test]
async fn headers_of_a_single_request_are_not_replayed() {
    let harness = Harness::new().await;
    for spellings in cacheable_targets() {
        let request = Request::get(&spellings[0]).with_secret();
        let first = harness.send(&request).await;
        let nth = harness.rails.last_request().nth;
        assert_eq!(first.header("set-cookie"), Some(format!("session={nth}").as_str()));
        assert_eq!(first.header("date"), Some("Mon, 01 Jan 2001 00:00:00 GMT"));
        let mut ids = vec![first.header("x-request-id").unwrap().to_owned()];
        for _ in 0..3 {
            let hit = harness.send(&request).await;
            for name in ["Set-Cookie", "X-Runtime", "X-Gitlab-Meta", "X-Unheard-Of"] {
                assert_eq!(hit.header(name), None, "{hit}");
            }
            let etag = format!("W/\"{nth}\"");
            for (name, value) in [
                ("Content-Type", "application/json"),
                ("ETag", &etag),
                ("Cache-Control", "max-age=0, private, must-revalidate"),
                ("Vary", "Origin"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "SAMEORIGIN"),
            ] {
                assert_eq!(hit.header(name), Some(value), "{hit}");
            }
            let date = hit.header("date").unwrap();
            assert!(!date.contains("2001"), "{hit}");
            let id = hit.header("x-request-id").unwrap();
            assert!(!id.contains("of-rails"), "{hit}");
            ids.push(id.to_owned());
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 4);
    }
}

/// Only Rails knows how it reads these.
#[tokio::test]
async fn non_canonical_targets_bypass_the_cache() {
    let harness = Harness::new().await;
    let plus = PADDED_KEY;
    let key = |value: &str| format!("authorized_keys?key={value}");
    let targets = vec![
        "authorized_keys".to_owned(),
        "authorized_keys?key".into(),
        key(""),
        key("whatever!"),
        key(plus),
        key(&format!("*{ROOT_KEY}")),
        key(&format!("{ROOT_KEY}%0A")),
        key(&format!("{ROOT_KEY}+")),
        key(&format!("{ROOT_KEY}=")),
        key(&format!("{ROOT_KEY}==")),
        key(&format!("ssh-ed25519%20{ROOT_KEY}")),
        key(&format!("{ROOT_KEY}%20comment")),
        key(&escaped(plus).replace("%2F", "_").replace("%2B", "-")),
        // A blob whose last bits are unused, and a truncated one.
        key(&escaped("AAAAB3NzaC1yc2EAAAADAQABAAAAgQ+/v/7/7777/x==")),
        key(&ROOT_KEY[..ROOT_KEY.len() - 3]),
        key(&format!("{ROOT_KEY}&key={ROOT_KEY}")),
        key(&format!("{ROOT_KEY}&fingerprint=")),
        key(&format!("{ROOT_KEY}&fingerprint=aa:bb")),
        key(&format!("{ROOT_KEY}&other=1")),
        key(&format!("{ROOT_KEY}&")),
        key(&format!("{ROOT_KEY}&&")),
        key(&format!("{ROOT_KEY}%ff")),
        format!("authorized_keys?&key={ROOT_KEY}"),
        format!("authorized_keys?key[]={ROOT_KEY}"),
        format!("authorized_keys?k%65y={ROOT_KEY}"),
        format!("authorized_keys?Key={ROOT_KEY}"),
        format!("authorized_keys?fingerprint={ROOT_KEY}"),
        format!("authorized_keys?key_id=1&key={ROOT_KEY}"),
        "discover".into(),
        "discover?".into(),
        "discover?key_id".into(),
        "discover?key_id=".into(),
        "discover?key_id=0".into(),
        "discover?key_id=01".into(),
        "discover?key_id=+1".into(),
        "discover?key_id=%2B1".into(),
        "discover?key_id=%201".into(),
        "discover?key_id=1%20".into(),
        "discover?key_id=-1".into(),
        "discover?key_id=1abc".into(),
        "discover?key_id=1_0".into(),
        "discover?key_id=1.0".into(),
        "discover?key_id=1e1".into(),
        "discover?key_id=0x1".into(),
        "discover?key_id=%EF%BC%91".into(),
        "discover?key_id=9223372036854775808".into(),
        "discover?key_id=18446744073709551617".into(),
        "discover?key_id=1&key_id=1".into(),
        "discover?key_id=1&user_id=7".into(),
        "discover?key_id=1&username=rubi".into(),
        "discover?key_id=&username=root".into(),
        "discover?key_id[]=1".into(),
        "discover?user_id=07".into(),
        "discover?username=".into(),
        "discover?username=root%20".into(),
        "discover?username=r+oot".into(),
        "discover?username=ro%00ot".into(),
        "discover?username=%C3%A9".into(),
        "discover?username=root%2Fx".into(),
        format!("discover?username={}", "a".repeat(256)),
        "discover?identifier=user-1".into(),
        "discover?identifier=key-1".into(),
        "discover?id=1".into(),
        "check?a".into(),
        "check?a=1".into(),
        "check?&".into(),
        // To Rack 3.0.0 to 3.0.6, this is an empty credential, which Rails refuses despite the header.
        "check?secret_token".into(),
        "discover?key_id=1&secret_token".into(),
        format!("authorized_keys?secret_token&key={ROOT_KEY}"),
    ];
    // A good header would be answered from memory.
    for target in [key(ROOT_KEY), "discover?key_id=1".into(), "check".into()] {
        assert_eq!(harness.send(&Request::get(&target).with_secret()).await.status, 200);
        assert!(harness.send(&Request::get(&target).with_secret()).await.is_hit(), "{target}");
    }
    for target in targets {
        for _ in 0..2 {
            let (response, seen) = harness.send_forwarded(&Request::get(&target).with_secret()).await;
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=request", "{target}");
            assert_eq!(seen.target, format!("/api/v4/internal/{target}"));
        }
    }
    // Some versions of Rack treat `;` as a separator; here the credential is not among the parameters.
    for target in [format!("authorized_keys?key={ROOT_KEY};a=b"), "discover?key_id=1;user_id=7".into()] {
        for _ in 0..2 {
            let (response, _) = harness.send_forwarded(&Request::get(&target).with_shell_token()).await;
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=request", "{target}");
        }
    }
}

/// sshd logs in whichever user it is given, so a mixed-up entry would be another user's login.
#[tokio::test]
async fn different_targets_never_share_an_entry() {
    let harness = Harness::with(|request| {
        let id = request.param("user_id").unwrap_or("5".to_owned());
        let username = request.param("username").unwrap_or_default();
        let key = request.param("key").unwrap_or_default();
        let target = &request.target;
        let user = format!(r#""id":{id},"username":"{username}","key":"ssh-rsa {key} u""#);
        Reply::json(200, &format!(r#"{{{user},"target":"{target}"}}"#))
    })
    .await;
    let mut targets: Vec<String> = Vec::new();
    for id in [1_u64, 2, 10, 11, 12, 100, 9_223_372_036_854_775_807] {
        for kind in ["key_id", "user_id", "username"] {
            targets.push(format!("discover?{kind}={id}"));
        }
    }
    for name in ["root", "Root", "ROOT", "root.", "root-", "root_", ".root", "user-1", "key-1", "null"] {
        targets.push(format!("discover?username={name}"));
    }
    for length in 1..40 {
        // Each is a prefix of the next one, and some differ only in their last bits.
        targets.push(format!("authorized_keys?key={}", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AAAB", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AAA", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AA", "AAAA".repeat(length)));
    }
    for target in &targets {
        let (response, _) = harness.send_forwarded(&Request::get(target).with_secret()).await;
        assert_eq!(response.cache_status(), "railgate; fwd=miss; stored", "{target}");
    }
    for target in &targets {
        let (response, arrived) = harness.send_counting(&Request::get(target).with_secret()).await;
        assert_eq!(arrived, 0, "{target}");
        assert_eq!(response.json()["target"], format!("/api/v4/internal/{target}"));
    }
}

/// If responses were ever shifted on a connection, no caller may get the answer meant for another one.
#[tokio::test]
async fn a_response_to_another_target_is_refused() {
    let row = |key: &str| format!(r#"{{"id":1,"key":"ssh-rsa {key} root (host)"}}"#);
    let user = |id: u64, name: &str| format!(r#"{{"id":{id},"username":"{name}","name":"n"}}"#);
    let padded = format!("authorized_keys?key={}", escaped(PADDED_KEY));
    for (target, wrong, right) in [
        (format!("authorized_keys?key={ROOT_KEY}"), row(PADDED_KEY), row(ROOT_KEY)),
        (format!("authorized_keys?key={ROOT_KEY}"), row(&ROOT_KEY[..ROOT_KEY.len() - 4]), row(ROOT_KEY)),
        (format!("authorized_keys?key={ROOT_KEY}"), row(""), row(ROOT_KEY)),
        // Padded or not, it is the same key.
        (padded, row(ROOT_KEY), row(PADDED_KEY.trim_end_matches('='))),
        ("discover?user_id=7".into(), user(1, "root"), user(7, "rubi")),
        ("discover?username=root".into(), user(7, "rubi"), user(1, "Root")),
    ] {
        let harness = Harness::new().await;
        let request = Request::get(&target).with_secret();
        harness.rails.respond_always(Reply::json(200, &wrong));
        for _ in 0..2 {
            harness.send_forwarded(&request).await.0.assert_failure(502);
        }
        harness.rails.respond_always(Reply::json(200, &right));
        let (response, _) = harness.send_forwarded(&request).await;
        assert_eq!(
            (response.cache_status(), response.text()),
            ("railgate; fwd=miss; stored", right.as_str())
        );
        assert!(harness.send(&request).await.is_hit());
    }
}

/// Their responses differ from the full one, and are not stored.
#[tokio::test]
async fn conditional_and_partial_requests_bypass_the_cache() {
    let harness = Harness::new().await;
    harness.rails.respond_with(|request| {
        let requests = |name: &str| !request.header_values(name).is_empty();
        if requests("if-none-match") || requests("if-modified-since") {
            return Reply::bytes("HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\n\r\n");
        }
        if requests("range") {
            return Reply::new(
                206,
                "Content-Type: application/json\r\nContent-Range: bytes 0-1/9\r\n",
                r#"{"id":1,"username":"no"}"#,
            );
        }
        Reply::json(200, r#"{"id":1,"username":"root","name":"r"}"#)
    });
    for is_warm in [false, true] {
        for (name, value, status) in [
            ("If-None-Match", "W/\"1\"", 304),
            ("If-None-Match", "*", 304),
            ("If-Modified-Since", "Mon, 01 Jan 2001 00:00:00 GMT", 304),
            ("If-Match", "\"1\"", 200),
            ("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT", 200),
            ("Range", "bytes=0-1", 206),
            ("If-Range", "\"1\"", 200),
        ] {
            let plain = Request::get("discover?key_id=1").with_secret();
            if is_warm {
                harness.send(&plain).await;
                assert!(harness.send(&plain).await.is_hit());
            }
            let (response, seen) = harness.send_forwarded(&plain.header(name, value)).await;
            assert_eq!((response.status, seen.header(name)), (status, Some(value)));
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=request");
        }
    }
}

/// Each reply is forwarded and not stored, for this reason.
async fn assert_not_stored(target: &str, cases: &[(Reply, &str)]) {
    let harness = Harness::new().await;
    for (reply, reason) in cases {
        harness.rails.respond_always(reply.clone());
        let mut bodies = Vec::new();
        for _ in 0..2 {
            let (response, _) = harness.send_forwarded(&Request::get(target).with_secret()).await;
            let status = format!("railgate; fwd=miss; detail={reason}");
            assert_eq!(response.cache_status(), status, "{target}: {reply:?}");
            bodies.push(response.body);
        }
        assert_eq!(bodies[0], bodies[1]);
    }
    // None of them left an entry.
    harness.rails.recover();
    harness.send_forwarded(&Request::get(target).with_secret()).await;
}

#[tokio::test]
async fn only_a_key_row_or_the_absence_of_one_is_stored() {
    let json = Reply::json;
    let row = |more: &str| format!(r#"{{"id":1,"key":"ssh-ed25519 {ROOT_KEY} u"{more}}}"#);
    let typed = |headers: &str| Reply::new(200, headers, row(""));
    let expiring = |at: &str| json(200, &row(&format!(r#","expires_at":{at}"#)));
    let cases = [
        (json(200, "null"), "shape"),
        (json(200, "{}"), "shape"),
        (json(200, ""), "shape"),
        (json(200, r#"{"id":1}"#), "shape"),
        (json(200, r#"{"id":"1","key":"k"}"#), "shape"),
        (json(200, r#"{"id":-1,"key":"k"}"#), "shape"),
        (json(200, r#"{"id":1,"key":null}"#), "shape"),
        (json(200, r#"{"id":1,"key":"k""#), "shape"),
        (json(200, r#"{"id":1,"key":"k"}}"#), "shape"),
        (json(200, r#"[{"id":1,"key":"k"}]"#), "shape"),
        (json(200, &"[".repeat(60_000)), "shape"),
        (json(200, r#"{"id":18446744073709551616,"key":"k"}"#), "shape"),
        (Reply::new(200, "Content-Type: application/json\r\n", b"{\"id\":1,\"key\":\"\xff\"}"), "shape"),
        (json(200, "{\"id\":1,\"key\":\"\u{1}\"}"), "shape"),
        (json(404, r#"{"error":"404 Not Found"}"#), "shape"),
        (json(404, r#"{"message":"404 Key Not Found","a":1}"#), "shape"),
        (json(404, r#"{"message":"404 Not Found"}"#), "shape"),
        (json(404, "null"), "shape"),
        (json(404, r#"{"id":1,"key":"k"}"#), "shape"),
        (json(201, r#"{"id":1,"key":"k"}"#), "status"),
        (json(203, r#"{"id":1,"key":"k"}"#), "status"),
        (json(300, r#"{"id":1,"key":"k"}"#), "status"),
        (json(401, r#"{"message":"401 Unauthorized"}"#), "status"),
        (json(403, r#"{"message":"403 Forbidden"}"#), "status"),
        (json(410, r#"{"message":"404 Key Not Found"}"#), "status"),
        (json(429, r#"{"message":{"error":"slowly"}}"#), "status"),
        (json(500, r#"{"message":"500 Internal Server Error"}"#), "status"),
        (json(503, r#"{"id":1,"key":"k"}"#), "status"),
        (typed(""), "type"),
        (typed("Content-Type: text/html\r\n"), "type"),
        (typed("Content-Type: application/json-seq\r\n"), "type"),
        (typed("Content-Type: text/plain, application/json\r\n"), "type"),
        (typed("Content-Type: application/json\r\nContent-Encoding: gzip\r\n"), "type"),
        (
            Reply::new(200, "Content-Type: application/json\r\nContent-Encoding: gzip\r\n", [0x1f, 0x8b]),
            "type",
        ),
        (expiring(r#""2020-01-01T00:00:00.000Z""#), "expired"),
        (expiring(r#""2020-01-01T00:00:00+02:00""#), "expired"),
        (expiring(r#""soon""#), "expired"),
        (expiring(r#""2099-01-01""#), "expired"),
        (expiring(r#""2099-01-01T00:00:00""#), "expired"),
        (expiring(r#""""#), "expired"),
        (expiring("5"), "expired"),
        (expiring("false"), "expired"),
        (Reply::in_chunks(200, "Content-Type: application/json\r\n", r#"{"id":1"#, 3), "shape"),
    ];
    assert_not_stored(&format!("authorized_keys?key={ROOT_KEY}"), &cases).await;
}

#[tokio::test]
async fn only_a_user_or_the_absence_of_one_is_stored() {
    let json = Reply::json;
    let cases = [
        (json(200, "{}"), "shape"),
        (json(200, r#"{"id":1}"#), "shape"),
        (json(200, r#"{"id":null,"username":null,"name":null}"#), "shape"),
        (json(200, r#"{"id":1,"username":5}"#), "shape"),
        (json(200, "nul"), "shape"),
        (json(200, r#""null""#), "shape"),
        (json(200, "[]"), "shape"),
        (json(200, ""), "shape"),
        (json(404, "null"), "status"),
        (json(404, r#"{"message":"404 User Not Found"}"#), "status"),
        (json(401, r#"{"message":"401 Unauthorized"}"#), "status"),
        (Reply::new(200, "Content-Type: text/html\r\n", "null"), "type"),
    ];
    assert_not_stored("discover?username=root", &cases).await;
}

/// A health check must see every change immediately.
#[tokio::test]
async fn an_unhealthy_check_is_never_stored() {
    let json = Reply::json;
    let cases = [
        (
            json(200, r#"{"api_version":"v4","gitlab_version":"1","gitlab_rev":"a","redis":false}"#),
            "unhealthy",
        ),
        (json(200, r#"{"api_version":"v4","redis":null}"#), "shape"),
        (json(200, r#"{"api_version":"v4","redis":"true"}"#), "shape"),
        (json(200, r#"{"api_version":"v4"}"#), "shape"),
        (json(200, r#"{"redis":true}"#), "shape"),
        (json(200, "null"), "shape"),
        (json(404, r#"{"error":"404 Not Found"}"#), "status"),
        (json(503, CHECK), "status"),
        (json(500, CHECK), "status"),
    ];
    assert_not_stored("check", &cases).await;
}

#[tokio::test]
async fn a_too_large_response_is_forwarded_and_not_stored() {
    let harness = Setup::new().text("cache.max_body", "1KiB").start().await;
    let of_size = |size: usize| {
        let padded = |padding: &str| format!(r#"{{"id":1,"key":"ssh-ed25519 {ROOT_KEY} {padding}"}}"#);
        padded(&"u".repeat(size - padded("").len()))
    };
    let kind = "Content-Type: application/json\r\n";
    let request = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for size in [1025, 5_000, 1 << 20] {
        let body = of_size(size);
        let until_close = Reply::bytes(format!("HTTP/1.1 200 OK\r\n{kind}\r\n")).then(&body).then_close();
        for reply in [
            Reply::new(200, kind, &body),
            Reply::in_chunks(200, kind, &body, 1000),
            Reply::in_chunks(200, kind, &body, 1 << 20),
            until_close,
        ] {
            harness.rails.respond_always(reply);
            let (response, _) = harness.send_forwarded(&request).await;
            assert_eq!(response.cache_status(), "railgate; fwd=miss; detail=too_large", "{size}");
            assert!(response.body == body.as_bytes(), "{size}: the body has changed");
        }
    }
    harness.rails.respond_always(Reply::in_chunks(200, kind, of_size(1024), 100));
    harness.send_forwarded(&request).await;
    let (response, arrived) = harness.send_counting(&request).await;
    assert_eq!((response.is_hit(), arrived, response.text()), (true, 0, of_size(1024).as_str()));
}

#[tokio::test]
async fn an_entry_does_not_outlive_the_expiry_of_its_key() {
    let harness = Harness::new().await;
    let request = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let row = |at: i64| {
        let at = rfc3339(at);
        Reply::json(200, &format!(r#"{{"id":1,"key":"ssh-ed25519 {ROOT_KEY} u","expires_at":"{at}"}}"#))
    };
    harness.rails.respond_always(row(now() + 2));
    let (response, _) = harness.send_forwarded(&request).await;
    if response.cache_status() == "railgate; fwd=miss; stored" {
        eventually("the entry to expire", async || (!harness.send(&request).await.is_hit()).then_some(()))
            .await;
        assert!(harness.rails.request_count() == 2);
    }
    harness.rails.respond_always(row(now() + 600));
    eventually("a new row", async || {
        let response = harness.send(&request).await;
        let left = response.cache_status().strip_prefix("railgate; hit; ttl=")?.parse::<u64>().unwrap();
        assert!(left <= 600, "{response}");
        (left > 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_entry_expires_after_the_configured_ttl() {
    let harness = Setup::new()
        .text("cache.authorized_keys.ttl", "20ms")
        .text("cache.authorized_keys.negative_ttl", "20ms")
        .text("cache.discover.ttl", "20ms")
        .text("cache.discover.negative_ttl", "20ms")
        .text("cache.check.ttl", "20ms")
        .start()
        .await;
    for spellings in cacheable_targets() {
        let request = Request::get(&spellings[0]).with_secret();
        let before = harness.rails.request_count();
        harness.send(&request).await;
        eventually("a second question", async || {
            harness.send(&request).await;
            (harness.rails.request_count() >= before + 2).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_zero_ttl_disables_storing() {
    let harness = Setup::new()
        .text("cache.authorized_keys.ttl", "0s")
        .text("cache.discover.negative_ttl", "0s")
        .text("cache.check.ttl", "0s")
        .start()
        .await;
    for (target, detail) in [
        (format!("authorized_keys?key={ROOT_KEY}"), "fwd=miss; detail=disabled"),
        ("discover?username=nobody".into(), "fwd=miss; detail=disabled"),
        ("check".into(), "fwd=bypass; detail=request"),
    ] {
        for _ in 0..2 {
            let (response, _) = harness.send_forwarded(&Request::get(&target).with_secret()).await;
            assert_eq!(response.cache_status(), format!("railgate; {detail}"));
        }
    }
    // The other entries are stored.
    for target in [format!("authorized_keys?key={UNKNOWN_KEY}"), "discover?username=root".into()] {
        harness.send_forwarded(&Request::get(&target).with_secret()).await;
        assert!(harness.send(&Request::get(&target).with_secret()).await.is_hit());
    }
}

/// Look-ups of unknown keys must not evict known ones.
#[tokio::test]
async fn the_cache_is_bounded_and_a_scan_does_not_empty_it() {
    let harness =
        Setup::new().set("cache.max_entries", 20).set("cache.max_negative_entries", 10).start().await;
    let hot = Request::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    harness.send_forwarded(&hot).await;
    let mut connection = harness.gateway.tcp.connect().await;
    for id in 100..300 {
        let request = Request::get(&format!("discover?key_id={id}")).with_secret();
        assert_eq!(connection.exchange(&request).await.text(), "null");
    }
    assert!(harness.send(&hot).await.is_hit(), "the scan pushed the key out");
    harness
        .rails
        .respond_with(|request| of_one_request(request, 200, r#"{"id":5,"username":"u","name":"u"}"#));
    for id in 1_000..1_200 {
        let request = Request::get(&format!("discover?key_id={id}")).with_secret();
        assert_eq!(connection.exchange(&request).await.json()["id"], 5);
    }
    eventually("the stores to be in bounds", async || {
        let positive = harness.metric(r#"railgate_cache_entries{store="positive"}"#).await?;
        let negative = harness.metric(r#"railgate_cache_entries{store="negative"}"#).await?;
        (positive <= 20 && negative <= 10).then_some(())
    })
    .await;
    // The newest entry is there, the oldest one was evicted.
    let newest = Request::get("discover?key_id=1199").with_secret();
    assert!(connection.exchange(&newest).await.is_hit());
    let (_, arrived) = harness.send_counting(&Request::get("discover?key_id=1000").with_secret()).await;
    assert_eq!(arrived, 1);
}

#[tokio::test]
async fn cached_answers_are_served_while_rails_fails() {
    let harness = Harness::new().await;
    let requests: Vec<Request> =
        cacheable_targets().iter().map(|spellings| Request::get(&spellings[0]).with_secret()).collect();
    for request in &requests {
        harness.send_forwarded(request).await;
    }
    harness.rails.respond_always(Reply::hang_up());
    for request in &requests {
        assert!(harness.send(request).await.is_hit());
    }
    let (response, _) = harness.send_counting(&Request::get("discover?key_id=77").with_secret()).await;
    response.assert_failure(502);
}
