//! Which headers cross the gateway, in which direction, and which it writes itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::client::Ask;
use super::credentials::{KAS_HEADER, SECRET, SECRET_HEADER, SHELL_HEADER, shell_token};
use super::fake::{ROOT_KEY, Rails, Reply};
use super::stage::{Setup, Stage};

/// A request that is passed on, and one that fills the cache: they take different ways. Each call
/// asks for another user, so that nothing is answered from memory.
fn both_ways(ask: impl Fn(Ask) -> Ask) -> [Ask; 2] {
    static USER: AtomicUsize = AtomicUsize::new(1_000);
    let user = USER.fetch_add(1, Ordering::Relaxed);
    [ask(Ask::post("allowed").with_secret()), ask(Ask::get(&format!("discover?key_id={user}")).with_secret())]
}

/// Rack makes one variable of `Gitlab_Shared_Secret` and `Gitlab-Shared-Secret`.
#[tokio::test]
async fn names_with_underscores_stop_here_and_open_nothing() {
    let stage = Stage::new().await;
    let token = shell_token(&json!({}));
    for (name, value) in [
        ("Gitlab_Shared_Secret", SECRET),
        ("Gitlab-Shared_Secret", SECRET),
        ("GITLAB_SHARED_SECRET", SECRET),
        ("Gitlab_Shell_Api_Request", &token),
        ("_", SECRET),
    ] {
        for ask in [Ask::get("check"), Ask::post("allowed"), Ask::get("discover?key_id=1")] {
            stage.send(&ask.header(name, value)).await.assert_unauthorized();
        }
        assert_eq!(stage.rails.count(), 0, "{name}");
    }
    let spoofed = |ask: Ask| {
        ask.header("Gitlab_Shared_Secret", "eHh4")
            .header("X_Forwarded_For", "1.1.1.1")
            .header("X_Forwarded-Host", "evil.example")
            .header("Content_Type", "text/plain")
            .header("Gitlab_Kas_Api_Request", "x")
            .header("x_request_id", "x")
            .header("_", "x")
    };
    for ask in both_ways(spoofed) {
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert!(seen.headers.iter().all(|(name, _)| !name.contains('_')), "{}", seen.head);
        assert_eq!(seen.header(SECRET_HEADER), Some(SECRET));
    }
}

/// By these a client could show Rails another request than the gateway judged.
#[tokio::test]
async fn names_by_which_rails_could_be_led_astray_stop_here() {
    let stage = Stage::new().await;
    let names = [
        "Forwarded",
        "Proxy",
        "Client-IP",
        "X-Accel-Mapping",
        "X-Accel-Redirect",
        "Version",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Scheme",
        "X-Forwarded-Server",
        "X-Forwarded-SSL",
        "X-HTTP-Method-Override",
        "X-Original-URL",
        "X-Real-IP",
        "X-Rewrite-URL",
        "X-Sendfile",
        "X-Sendfile-Type",
    ];
    for name in names {
        for ask in both_ways(|ask| ask.header(name, "/evil").header(&name.to_uppercase(), "for=evil")) {
            let (_, seen) = stage.pass(&ask).await;
            assert_eq!(seen.all(name), Vec::<&str>::new(), "{}", seen.head);
            assert!(!seen.head.contains("evil"), "{}", seen.head);
        }
    }
}

#[tokio::test]
async fn headers_of_one_connection_stay_with_it() {
    let stage = Stage::new().await;
    let headers = "Content-Type: application/json\r\nConnection: X-Of-Rails, Keep-Alive\r\nX-Of-Rails: 1\r\n\
                   Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\n\
                   Proxy-Authenticate: Basic\r\nX-Kept: 1\r\n";
    stage.rails.always(Reply::new(200, headers, r#"{"id":1,"username":"root","name":"r"}"#));
    let hop_by_hop = |ask: Ask| {
        ask.header("Connection", "X-Mine, close, X-OTHER,, Upgrade")
            .header("Connection", "x-third")
            .header("X-Mine", "1")
            .header("X-Other", "1")
            .header("X-Third", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Connection", "close")
            .header("Proxy-Authorization", "Basic x")
            .header("TE", "gzip")
            .header("Upgrade", "h2c")
    };
    for ask in both_ways(hop_by_hop) {
        let (answer, seen) = stage.pass(&ask).await;
        for name in [
            "X-Mine",
            "X-Other",
            "X-Third",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "TE",
            "Upgrade",
        ] {
            assert_eq!(seen.all(name), Vec::<&str>::new(), "{}", seen.head);
        }
        // None is needed: the connection to Rails is kept.
        assert_eq!(seen.header("connection"), None, "{}", seen.head);
        for name in ["X-Of-Rails", "Keep-Alive", "Proxy-Connection", "Upgrade", "TE", "Proxy-Authenticate"] {
            assert_eq!(answer.all(name), Vec::<&str>::new(), "{answer}");
        }
        assert_eq!(answer.header("connection"), Some("close"), "{answer}");
        assert_eq!(answer.header("x-kept"), Some("1"), "{answer}");
    }
}

/// Named in `Connection`, all the same: what Rails decides by must be what the gateway saw.
#[tokio::test]
async fn connection_can_name_nothing_away_that_counts() {
    let stage = Stage::new().await;
    let names = [
        "Host",
        "Content-Length",
        "Content-Type",
        "Authorization",
        SECRET_HEADER,
        SHELL_HEADER,
        KAS_HEADER,
        "X-Request-Id",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
    ];
    for name in names {
        let ask = Ask::post("allowed")
            .with_secret()
            .with_shell_token()
            .header(KAS_HEADER, "x")
            .header("Authorization", "Bearer x")
            .header("X-Request-Id", "mine")
            .header("Connection", &format!("close, {}", name.to_lowercase()))
            .header("X-Forwarded-For", "203.0.113.7")
            .json("{}");
        let (_, seen) = stage.pass(&ask).await;
        assert!(seen.header(name).is_some(), "{name} was named away: {}", seen.head);
        assert_eq!(seen.body, b"{}");
    }
}

#[tokio::test]
async fn rails_learns_where_a_request_comes_from() {
    let stage = Stage::new().await;
    // The host that one caller asked for must not be in an answer that others get.
    let hosts = [Some("gateway.example:8181"), None];
    for (ask, host) in both_ways(|ask| ask).into_iter().zip(hosts) {
        let (_, seen) = stage.pass(&ask).await;
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.header("x-forwarded-host"), host);
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    }
    let claims = |ask: Ask| {
        ask.header("X-Forwarded-For", "203.0.113.7")
            .header("X-Forwarded-For", "198.51.100.1, 198.51.100.2")
            .header("X-Forwarded-Host", "evil.example")
            .header("X-Forwarded-Proto", "https")
    };
    for (ask, host) in both_ways(claims).into_iter().zip(hosts) {
        let (_, seen) = stage.pass(&ask).await;
        let chain = "203.0.113.7, 198.51.100.1, 198.51.100.2, 127.0.0.1";
        assert_eq!(seen.header("x-forwarded-for"), Some(chain));
        assert_eq!(seen.header("x-forwarded-host"), host);
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    }
    // A peer on a unix socket has no address.
    stage.gateway.unix.send(&Ask::post("allowed").with_secret()).await;
    assert_eq!(stage.rails.last().header("x-forwarded-for"), None);
    let ask = Ask::post("allowed").with_secret().header("X-Forwarded-For", "203.0.113.7");
    stage.gateway.unix.send(&ask).await;
    assert_eq!(stage.rails.last().header("x-forwarded-for"), Some("203.0.113.7"));
}

#[tokio::test]
async fn rails_sees_the_host_that_the_operator_wants() {
    let stage = Stage::new().await;
    let (_, seen) = stage.pass(&Ask::post("allowed").with_secret()).await;
    assert_eq!(Some(format!("http://{}", seen.header("host").unwrap())), Some(stage.rails.peer.url()));

    let stage = Setup::new().text("upstream.host", "gitlab.example:443").start().await;
    for ask in both_ways(|ask| ask) {
        let (_, seen) = stage.pass(&ask).await;
        assert_eq!(seen.header("host"), Some("gitlab.example:443"));
    }

    let setup = Setup::new();
    let rails = Rails::on_unix(&setup.dir.file("rails.sock"));
    let stage = setup.in_front_of(rails);
    let (_, seen) = stage.pass(&Ask::post("allowed").with_secret()).await;
    assert_eq!(seen.header("host"), Some("localhost"));
}

#[tokio::test]
async fn a_request_has_one_id_everywhere() {
    let stage = Stage::new().await;
    let key = format!("authorized_keys?key={ROOT_KEY}");
    for good in ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "a-b_c@d", &"a".repeat(255)] {
        let ask = Ask::post("allowed").with_secret().header("X-Request-Id", good);
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!((answer.header("x-request-id"), seen.header("x-request-id")), (Some(good), Some(good)));
        // A hit has its own caller's, too.
        let ask = Ask::get(&key).with_secret().header("X-Request-Id", good);
        assert_eq!(stage.send(&ask).await.header("x-request-id"), Some(good));
    }
    // Rails would drop these, and the two logs would not meet.
    let mut ids = Vec::new();
    for bad in ["", "a b", "a.b", "a\"b", "\u{e9}", &"a".repeat(256)] {
        let ask = Ask::post("allowed").with_secret().header("X-Request-Id", bad);
        let (answer, seen) = stage.pass(&ask).await;
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(seen.header("x-request-id"), Some(id.as_str()));
        assert_ne!(id, bad);
        ids.push(id);
    }
    let twice = Ask::post("allowed").with_secret().header("X-Request-Id", "a").header("X-Request-Id", "b");
    let (answer, seen) = stage.pass(&twice).await;
    assert_eq!(answer.header("x-request-id"), seen.header("x-request-id"));
    for ask in [Ask::get(&key).with_secret(), Ask::get("check"), Ask::new("GET", "/"), Ask::new("GET", "/..")]
    {
        ids.push(stage.send(&ask).await.header("x-request-id").unwrap().to_owned());
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id was given twice");
}

/// Everything else is the endpoints' own business.
#[tokio::test]
async fn all_other_headers_pass_as_they_are() {
    let stage = Stage::new().await;
    let sent = [
        ("User-Agent", "GitLab-Shell"),
        ("X-GitLab-Client-Name", "gitlab-shell"),
        ("Gitlab-Agent-Api-Request", "agent-token"),
        ("Authorization", "Basic dTpw"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "gzip"),
        ("If-None-Match", "W/\"1\""),
        ("Range", "bytes=0-1"),
        ("Cookie", "a=b; c=d"),
        ("X-Empty", ""),
        ("X-Odd", "!#$%&'*+-.^_`|~ \"(),/:;<=>?@[\\]{}\t\u{e9}"),
    ];
    let mut ask = Ask::post("allowed").with_secret().json("{}").header("X-Twice", "1").header("X-Twice", "2");
    ask = ask.header("Via", "1.1 x");
    for (name, value) in sent {
        ask = ask.header(name, value);
    }
    let answered = "Content-Type: application/json\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
                    X-Odd: \"(),/:;<=>?@[\\]{}\r\nX-Empty:\r\nServer: rails\r\nETag: W/\"1\"\r\n\
                    Retry-After: 60\r\nWWW-Authenticate: Basic\r\nX_Under: score\r\nVia: 1.1 rails\r\n\
                    Date: Mon, 01 Jan 2001 00:00:00 GMT\r\nCache-Status: other; hit\r\n";
    stage.rails.always(Reply::new(200, answered, "{}"));
    let (answer, seen) = stage.pass(&ask).await;
    for (name, value) in sent {
        assert_eq!(seen.header(name), Some(value), "{}", seen.head);
    }
    assert_eq!(seen.all("x-twice"), ["1", "2"]);
    // The gateway's own name comes behind those who had the request before.
    let [before, own] = seen.all("via")[..] else { panic!("{}", seen.head) };
    assert!(before == "1.1 x" && own.starts_with("1.1 railgate-"), "{}", seen.head);
    assert_eq!(answer.all("set-cookie"), ["a=b", "c=d"]);
    for (name, value) in [
        ("x-odd", "\"(),/:;<=>?@[\\]{}"),
        ("x-empty", ""),
        ("server", "rails"),
        ("etag", "W/\"1\""),
        ("retry-after", "60"),
        ("www-authenticate", "Basic"),
        ("x_under", "score"),
        ("via", "1.1 rails"),
        ("date", "Mon, 01 Jan 2001 00:00:00 GMT"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{answer}");
    }
    assert_eq!(answer.all("cache-status"), ["other; hit", "railgate; fwd=bypass; detail=route"]);
}

/// A proxy between the gateway and Rails may want to know the caller as well (`http_settings` of
/// GitLab Shell has a user and a password for it), for a read that fills the cache, too.
#[tokio::test]
async fn basic_credentials_reach_rails_on_every_way() {
    let stage = Stage::new().await;
    for ask in both_ways(|ask| ask.header("Authorization", "Basic dTpw")) {
        let (_, seen) = stage.pass(&ask).await;
        assert_eq!(seen.header("authorization"), Some("Basic dTpw"), "{ask}: {}", seen.head);
    }
}

/// What fills the cache says nothing by which Rails could make an answer for one caller alone.
#[tokio::test]
async fn a_read_for_the_cache_asks_for_the_plain_answer() {
    let stage = Stage::new().await;
    let ask = Ask::get("discover?key_id=1")
        .with_secret()
        .header("Content-Type", "application/json")
        .header("User-Agent", "GitLab-Shell")
        .header("X-GitLab-Client-Name", "gitlab-shell")
        .header("Accept-Encoding", "gzip")
        .header("Accept", "text/html")
        .header("Accept-Language", "de")
        .header("Cookie", "locale=de")
        .header("Origin", "https://evil.example")
        .header("X-Anything", "1")
        .header("Expect", "100-continue")
        .header("Cache-Control", "no-cache");
    let (answer, seen) = stage.pass(&ask).await;
    assert_eq!(answer.cache_status(), "railgate; fwd=miss; stored");
    for name in [
        "Accept-Encoding",
        "Accept",
        "Accept-Language",
        "Cookie",
        "Origin",
        "X-Anything",
        "Expect",
        "Cache-Control",
        "Content-Length",
        "Transfer-Encoding",
    ] {
        assert_eq!(seen.all(name), Vec::<&str>::new(), "{}", seen.head);
    }
    assert_eq!(seen.header("user-agent"), Some("GitLab-Shell"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-gitlab-client-name"), Some("gitlab-shell"));
    assert_eq!(seen.header(SECRET_HEADER), Some(SECRET));
}
