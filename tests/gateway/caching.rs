//! What is kept, for whom, and what is not.

use super::client::{Ask, eventually};
use super::credentials::{now, rfc3339};
use super::fake::{CHECK, PADDED_KEY, ROOT_KEY, Reply, UNKNOWN_KEY, of_one_request};
use super::stage::{Setup, Stage};

fn escaped(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// The hot reads, each in all its spellings.
fn hot_reads() -> Vec<Vec<String>> {
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

/// The same question by each kind of caller. Who asks is no part of what is kept.
fn by_all_callers(target: &str) -> Vec<Ask> {
    let and = match target.split_once('?') {
        Some((_, "")) => "",
        Some(_) => "&",
        None => "?",
    };
    vec![
        Ask::get(target).with_secret(),
        Ask::get(target).with_shell_token(),
        Ask::get(target).with_secret().header("Content-Type", "application/json"),
        Ask::get(target).with_secret().body(""),
        Ask::get(&format!("{target}{and}secret_token=s3cret")),
        Ask::get(target).form("secret_token=s3cret%0A"),
        Ask::get(target).form("secret_token=s3cret").chunked(1),
    ]
}

#[tokio::test]
async fn a_hot_read_reaches_rails_once_whoever_asks_and_however_it_is_spelled() {
    // The first to ask is a plain reader, and one with a form.
    for first in [0, 6] {
        let stage = Stage::new().await;
        for spellings in hot_reads() {
            let before = stage.rails.count();
            let mut asks: Vec<Ask> = spellings.iter().flat_map(|target| by_all_callers(target)).collect();
            asks.rotate_left(first);
            let mut expected = None;
            for ask in &asks {
                for peer in [&stage.gateway.tcp, &stage.gateway.unix] {
                    let answer = peer.send(ask).await;
                    let seen = (answer.status, answer.header("content-length").map(str::to_owned));
                    assert_eq!(&seen, expected.get_or_insert(seen.clone()), "{ask}: {answer}");
                    assert_eq!(seen.1, Some(answer.body.len().to_string()));
                }
            }
            assert_eq!(stage.rails.count() - before, 1, "{spellings:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_says_where_it_comes_from() {
    let stage = Stage::new().await;
    for spellings in hot_reads() {
        let ask = Ask::get(&spellings[0]).with_secret();
        let first = stage.send(&ask).await;
        assert_eq!((first.cache_status(), first.header("age")), ("railgate; fwd=miss; stored", None));
        let second = stage.send(&ask).await;
        let left = second.cache_status().strip_prefix("railgate; hit; ttl=").unwrap_or_default();
        let left: u64 = left.parse().unwrap_or_else(|_| panic!("{second}"));
        let age: u64 = second.header("age").unwrap().parse().unwrap();
        assert!((3590..=3600).contains(&left) && age <= 10, "{second}");
        assert_eq!(first.body, second.body);
    }
}

/// What Rails wrote for one request is not told to another.
#[tokio::test]
async fn what_is_replayed_was_not_written_for_one_request() {
    let stage = Stage::new().await;
    for spellings in hot_reads() {
        let ask = Ask::get(&spellings[0]).with_secret();
        let first = stage.send(&ask).await;
        let nth = stage.rails.last().nth;
        assert_eq!(first.header("set-cookie"), Some(format!("session={nth}").as_str()));
        assert_eq!(first.header("date"), Some("Mon, 01 Jan 2001 00:00:00 GMT"));
        let mut ids = vec![first.header("x-request-id").unwrap().to_owned()];
        for _ in 0..3 {
            let hit = stage.send(&ask).await;
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

/// Rails reads all of these in ways that only Rails knows.
#[tokio::test]
async fn what_is_not_canonical_reaches_rails_every_time() {
    let stage = Stage::new().await;
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
        // A blob that ends in bits that nobody reads, and one that ends in the middle.
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
    ];
    for target in targets {
        for _ in 0..2 {
            let (answer, seen) = stage.pass(&Ask::get(&target).with_secret()).await;
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=request", "{target}");
            assert_eq!(seen.target, format!("/api/v4/internal/{target}"));
        }
    }
    // A separator that only some see, as long as the credential is not among the parameters.
    for target in [format!("authorized_keys?key={ROOT_KEY};a=b"), "discover?key_id=1;user_id=7".into()] {
        for _ in 0..2 {
            let (answer, _) = stage.pass(&Ask::get(&target).with_shell_token()).await;
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=request", "{target}");
        }
    }
}

/// sshd takes whatever user it is given. One entry for two questions would be somebody else's door.
#[tokio::test]
async fn questions_that_differ_are_never_mixed_up() {
    let stage = Stage::with(|request| {
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
        // Each is a part of the next, and some differ in their last bit only.
        targets.push(format!("authorized_keys?key={}", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AAAB", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AAA", "AAAA".repeat(length)));
        targets.push(format!("authorized_keys?key={}AA", "AAAA".repeat(length)));
    }
    for target in &targets {
        let (answer, _) = stage.pass(&Ask::get(target).with_secret()).await;
        assert_eq!(answer.cache_status(), "railgate; fwd=miss; stored", "{target}");
    }
    for target in &targets {
        let (answer, arrived) = stage.send_counting(&Ask::get(target).with_secret()).await;
        assert_eq!(arrived, 0, "{target}");
        assert_eq!(answer.json()["target"], format!("/api/v4/internal/{target}"));
    }
}

/// Should answers ever slip by one on a connection, nobody gets somebody else's.
#[tokio::test]
async fn an_answer_to_another_question_is_nobodys() {
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
        let stage = Stage::new().await;
        let ask = Ask::get(&target).with_secret();
        stage.rails.always(Reply::json(200, &wrong));
        for _ in 0..2 {
            stage.pass(&ask).await.0.assert_failure(502);
        }
        stage.rails.always(Reply::json(200, &right));
        let (answer, _) = stage.pass(&ask).await;
        assert_eq!((answer.cache_status(), answer.text()), ("railgate; fwd=miss; stored", right.as_str()));
        assert!(stage.send(&ask).await.is_hit());
    }
}

/// They ask for something else than the answer, and get it from Rails; nor is that for others.
#[tokio::test]
async fn conditional_and_partial_requests_go_past_the_cache() {
    let stage = Stage::new().await;
    stage.rails.answer(|request| {
        let asks = |name: &str| !request.all(name).is_empty();
        if asks("if-none-match") || asks("if-modified-since") {
            return Reply::bytes("HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\n\r\n");
        }
        if asks("range") {
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
            let plain = Ask::get("discover?key_id=1").with_secret();
            if is_warm {
                stage.send(&plain).await;
                assert!(stage.send(&plain).await.is_hit());
            }
            let (answer, seen) = stage.pass(&plain.header(name, value)).await;
            assert_eq!((answer.status, seen.header(name)), (status, Some(value)));
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=request");
        }
    }
}

/// An answer that is passed on but not kept, and why.
async fn assert_not_kept(target: &str, cases: &[(Reply, &str)]) {
    let stage = Stage::new().await;
    for (reply, reason) in cases {
        stage.rails.always(reply.clone());
        let mut bodies = Vec::new();
        for _ in 0..2 {
            let (answer, _) = stage.pass(&Ask::get(target).with_secret()).await;
            let status = format!("railgate; fwd=miss; detail={reason}");
            assert_eq!(answer.cache_status(), status, "{target}: {reply:?}");
            bodies.push(answer.body);
        }
        assert_eq!(bodies[0], bodies[1]);
    }
    // All that left nothing behind.
    stage.rails.recover();
    stage.pass(&Ask::get(target).with_secret()).await;
}

#[tokio::test]
async fn only_a_key_row_or_the_absence_of_one_is_kept() {
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
    assert_not_kept(&format!("authorized_keys?key={ROOT_KEY}"), &cases).await;
}

#[tokio::test]
async fn only_a_user_or_the_absence_of_one_is_kept() {
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
    assert_not_kept("discover?username=root", &cases).await;
}

/// A health check must see a change for the worse at once, and one for the better too.
#[tokio::test]
async fn bad_news_of_redis_is_never_kept() {
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
    assert_not_kept("check", &cases).await;
}

#[tokio::test]
async fn what_is_too_large_is_passed_on_and_not_kept() {
    let stage = Setup::new().text("cache.max_body", "1KiB").start().await;
    let of_size = |size: usize| {
        let padded = |padding: &str| format!(r#"{{"id":1,"key":"ssh-ed25519 {ROOT_KEY} {padding}"}}"#);
        padded(&"u".repeat(size - padded("").len()))
    };
    let kind = "Content-Type: application/json\r\n";
    let ask = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    for size in [1025, 5_000, 1 << 20] {
        let body = of_size(size);
        let until_close = Reply::bytes(format!("HTTP/1.1 200 OK\r\n{kind}\r\n")).then(&body).then_close();
        for reply in [
            Reply::new(200, kind, &body),
            Reply::in_chunks(200, kind, &body, 1000),
            Reply::in_chunks(200, kind, &body, 1 << 20),
            until_close,
        ] {
            stage.rails.always(reply);
            let (answer, _) = stage.pass(&ask).await;
            assert_eq!(answer.cache_status(), "railgate; fwd=miss; detail=too_large", "{size}");
            assert!(answer.body == body.as_bytes(), "{size}: the body has changed");
        }
    }
    stage.rails.always(Reply::in_chunks(200, kind, of_size(1024), 100));
    stage.pass(&ask).await;
    let (answer, arrived) = stage.send_counting(&ask).await;
    assert_eq!((answer.is_hit(), arrived, answer.text()), (true, 0, of_size(1024).as_str()));
}

/// The row says when the key expires; nothing is kept beyond that.
#[tokio::test]
async fn a_key_is_not_kept_beyond_its_expiry() {
    let stage = Stage::new().await;
    let ask = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    let row = |at: i64| {
        let at = rfc3339(at);
        Reply::json(200, &format!(r#"{{"id":1,"key":"ssh-ed25519 {ROOT_KEY} u","expires_at":"{at}"}}"#))
    };
    stage.rails.always(row(now() + 2));
    let (answer, _) = stage.pass(&ask).await;
    if answer.cache_status() == "railgate; fwd=miss; stored" {
        eventually("the entry to expire", async || (!stage.send(&ask).await.is_hit()).then_some(())).await;
        assert!(stage.rails.count() == 2);
    }
    stage.rails.always(row(now() + 600));
    eventually("a new row", async || {
        let answer = stage.send(&ask).await;
        let left = answer.cache_status().strip_prefix("railgate; hit; ttl=")?.parse::<u64>().unwrap();
        assert!(left <= 600, "{answer}");
        (left > 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_good_for_as_long_as_the_operator_says() {
    let stage = Setup::new()
        .text("cache.authorized_keys.ttl", "20ms")
        .text("cache.authorized_keys.negative_ttl", "20ms")
        .text("cache.discover.ttl", "20ms")
        .text("cache.discover.negative_ttl", "20ms")
        .text("cache.check.ttl", "20ms")
        .start()
        .await;
    for spellings in hot_reads() {
        let ask = Ask::get(&spellings[0]).with_secret();
        let before = stage.rails.count();
        stage.send(&ask).await;
        eventually("a second question", async || {
            stage.send(&ask).await;
            (stage.rails.count() >= before + 2).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_time_to_live_of_zero_keeps_nothing() {
    let stage = Setup::new()
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
            let (answer, _) = stage.pass(&Ask::get(&target).with_secret()).await;
            assert_eq!(answer.cache_status(), format!("railgate; {detail}"));
        }
    }
    // The other halves are kept.
    for target in [format!("authorized_keys?key={UNKNOWN_KEY}"), "discover?username=root".into()] {
        stage.pass(&Ask::get(&target).with_secret()).await;
        assert!(stage.send(&Ask::get(&target).with_secret()).await.is_hit());
    }
}

/// Whoever asks for what is not there must not push out what is.
#[tokio::test]
async fn the_cache_is_bounded_and_a_scan_does_not_empty_it() {
    let stage = Setup::new().set("cache.max_entries", 20).set("cache.max_negative_entries", 10).start().await;
    let hot = Ask::get(&format!("authorized_keys?key={ROOT_KEY}")).with_secret();
    stage.pass(&hot).await;
    let mut wire = stage.gateway.tcp.connect().await;
    for id in 100..300 {
        let ask = Ask::get(&format!("discover?key_id={id}")).with_secret();
        assert_eq!(wire.exchange(&ask).await.text(), "null");
    }
    assert!(stage.send(&hot).await.is_hit(), "the scan pushed the key out");
    stage.rails.answer(|request| of_one_request(request, 200, r#"{"id":5,"username":"u","name":"u"}"#));
    for id in 1_000..1_200 {
        let ask = Ask::get(&format!("discover?key_id={id}")).with_secret();
        assert_eq!(wire.exchange(&ask).await.json()["id"], 5);
    }
    eventually("the stores to be in bounds", async || {
        let positive = stage.metric(r#"railgate_cache_entries{store="positive"}"#).await?;
        let negative = stage.metric(r#"railgate_cache_entries{store="negative"}"#).await?;
        (positive <= 20 && negative <= 10).then_some(())
    })
    .await;
    // The newest are there, the oldest have left.
    let newest = Ask::get("discover?key_id=1199").with_secret();
    assert!(wire.exchange(&newest).await.is_hit());
    let (_, arrived) = stage.send_counting(&Ask::get("discover?key_id=1000").with_secret()).await;
    assert_eq!(arrived, 1);
}

/// What is in memory is answered whether Rails is there or not.
#[tokio::test]
async fn a_warm_cache_outlives_rails() {
    let stage = Stage::new().await;
    let asks: Vec<Ask> = hot_reads().iter().map(|spellings| Ask::get(&spellings[0]).with_secret()).collect();
    for ask in &asks {
        stage.pass(ask).await;
    }
    stage.rails.always(Reply::hang_up());
    for ask in &asks {
        assert!(stage.send(ask).await.is_hit());
    }
    let (answer, _) = stage.send_counting(&Ask::get("discover?key_id=77").with_secret()).await;
    answer.assert_failure(502);
}
