//! What is answered without Rails, and what never is. The counters that Rails keeps tell.

use std::thread;

use serde_json::json;

use super::credentials::{SECRET_HEADER, SHELL_HEADER, kas_token, now, shell_token};
use super::keys;
use super::stage::{Stage, Way};
use super::wire::{Ask, Peer};

/// The three reads; each row is one question in all the spellings that are one entry.
fn hot_reads() -> Vec<Vec<String>> {
    let (root, padded, plus) = (keys::of_root(), keys::padded(), keys::escaped(&keys::with_plus()));
    let key = |key: &str| format!("authorized_keys?key={key}");
    vec![
        vec![key(&root), key(&keys::escaped(&root))],
        // OpenSSH pads, GitLab's own sshd does not.
        vec![key(&padded), key(&keys::escaped(&padded)), key(padded.trim_end_matches('='))],
        vec![key(&plus), key(&plus.replace("%2F", "/"))],
        vec![key(&keys::of_deployment())],
        vec![key(&keys::unknown())],
        vec![key(&keys::for_signing())],
        vec!["discover?key_id=1".into()],
        vec!["discover?key_id=404".into()],
        vec!["discover?user_id=7".into()],
        vec!["discover?username=root".into()],
        vec!["discover?username=nobody".into()],
        vec!["check".into()],
    ]
}

/// The same question by each kind of caller. Who asks is no part of what is kept.
fn by_all_callers(target: &str) -> Vec<Ask> {
    let separator = if target.contains('?') { '&' } else { '?' };
    vec![
        Ask::get(target).with_secret(),
        Ask::get(&format!("{target}{separator}secret_token=s3cret")),
        // GitLab Shell of today, and Gitaly. There is a type, but nothing that is of it.
        Ask::get(target)
            .with_shell_token()
            .header("Content-Type", "application/json")
            .header("User-Agent", "GitLab-Shell")
            .header("X-Forwarded-For", "192.0.2.1")
            .header("X-GitLab-Client-Name", "gitlab-sshd"),
        // GitLab Shell as long as it was written in Ruby.
        Ask::get(target).form("secret_token=s3cret%0A").header("User-Agent", "Ruby"),
    ]
}

#[test]
fn a_hot_read_reaches_rails_once() {
    let stage = Stage::new();
    for way in [Way::Tcp, Way::Unix] {
        let gateway = stage.gateway(way);
        for spellings in hot_reads() {
            let asks: Vec<Ask> = spellings.iter().flat_map(|target| by_all_callers(target)).collect();
            let expected = stage.tcp.send(&asks[0]);
            let (arrived, ()) = stage.arrivals(|| {
                for (ask, peer) in asks.iter().flat_map(|ask| gateway.peers().map(|peer| (ask, peer))) {
                    let answer = peer.send(ask);
                    assert_eq!(
                        (answer.status, &answer.body),
                        (expected.status, &expected.body),
                        "{ask}: {answer}"
                    );
                }
            });
            assert_eq!(arrived, 1, "{spellings:?} reached Rails more than once, or never");
        }
    }
}

#[test]
fn an_answer_from_the_cache_says_so() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let ask = Ask::get("discover?key_id=1").with_secret();
    let first = gateway.tcp.send(&ask);
    let second = gateway.tcp.send(&ask);
    let status = |answer: &super::wire::Answer| answer.header("Cache-Status").unwrap_or_default().to_owned();
    assert!(!status(&first).contains("hit"), "{first}");
    assert!(status(&second).contains("hit"), "{second}");
    assert!(second.header("Age").is_some_and(|age| age.parse::<u64>().is_ok()), "{second}");
    // What Rails wrote for one request is not told to another.
    for name in ["X-Runtime", "X-Gitlab-Meta", "Set-Cookie"] {
        assert_eq!(second.header(name), None, "{second}");
    }
    assert_ne!(first.header("X-Request-Id"), second.header("X-Request-Id"));
}

/// Many at once are one question. Each gets the answer, however they are scheduled.
#[test]
fn a_crowd_reaches_rails_once() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let ask = Ask::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
    let (arrived, ()) = stage.arrivals(|| {
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| assert_eq!(gateway.tcp.send(&ask).status, 200));
            }
        });
    });
    assert_eq!(arrived, 1);
}

/// Questions whose answer could be another one the next time, or that only Rails can read.
#[test]
fn what_is_not_canonical_reaches_rails_every_time() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let root = keys::of_root();
    let plus = keys::with_plus();
    for target in [
        "authorized_keys".to_owned(),
        "authorized_keys?key".into(),
        "authorized_keys?key=".into(),
        "authorized_keys?key=whatever!".into(),
        format!("authorized_keys?key={plus}"),
        format!("authorized_keys?key=*{root}"),
        format!("authorized_keys?key=ssh-ed25519%20{root}"),
        format!("authorized_keys?key={root}&key={root}"),
        format!("authorized_keys?key={root}&fingerprint="),
        format!("authorized_keys?key={root}&other=1"),
        format!("authorized_keys.json?key={root}"),
        format!("authorized_keys/?key={root}"),
        format!("authorized_keys?key={}", keys::expired()),
        "discover".into(),
        "discover?user_id=07".into(),
        "discover?user_id=7abc".into(),
        "discover?user_id=%2B7".into(),
        "discover?key_id=&username=root".into(),
        "discover?key_id=1&username=rubi".into(),
        "discover?identifier=user-1".into(),
        "check?a=1".into(),
        "check/".into(),
    ] {
        let ask = Ask::get(&target).with_secret();
        for _ in 0..2 {
            let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
            assert_eq!(arrived, 1, "{ask}: {answer}");
        }
    }
}

/// A warm cache must not hide what a body says: to Rails, a form beats the query, in either form
/// that forms come in.
#[test]
fn a_form_is_heard_although_the_cache_knows_the_query() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let target = format!("authorized_keys?key={}", keys::of_root());
    let plain = Ask::get(&target).with_secret();
    assert_eq!(gateway.tcp.send(&plain).json()["id"], 1);
    let form = format!("key={}&secret_token=s3cret", keys::escaped(&keys::padded()));
    let parts =
        format!("--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n{}\r\n--b--\r\n", keys::padded());
    for ask in [
        Ask::get(&target).form(&form),
        Ask::get(&target).form(&form).with_secret(),
        Ask::get(&target).form(&form).chunked(),
        Ask::get(&target).body("multipart/form-data; boundary=b", &parts).with_secret(),
    ] {
        let answer = gateway.tcp.send(&ask);
        assert_eq!(answer.json()["id"], 2, "{ask}: {answer}");
        // Nor may the answer to the form be kept for the query.
        assert_eq!(gateway.tcp.send(&plain).json()["id"], 1);
    }
}

/// HEAD has no body, so what it brings is no answer to GET.
#[test]
fn a_head_request_spoils_nothing() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let get = Ask::get("discover?key_id=1").with_secret();
    let head = Ask { method: "HEAD".into(), ..get.clone() };
    for ask in [&head, &get, &head, &get] {
        let (answer, direct) = (gateway.tcp.send(ask), stage.tcp.send(ask));
        assert_eq!((answer.status, &answer.body), (200, &direct.body), "{ask}: {answer}");
    }
}

#[test]
fn bad_news_of_redis_is_never_kept() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let ask = Ask::get("check").with_secret();
    stage.control("POST", "/-/redis?up=false");
    for _ in 0..3 {
        let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
        assert_eq!((arrived, &answer.json()["redis"]), (1, &json!(false)), "{answer}");
    }
    stage.control("POST", "/-/redis?up=true");
    let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
    assert_eq!((arrived, &answer.json()["redis"]), (1, &json!(true)), "{answer}");
    let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
    assert_eq!((arrived, &answer.json()["redis"]), (0, &json!(true)), "{answer}");
}

/// A caller that has the answer already is told "not modified", or gets it again; but that answer
/// without a body is for nobody else.
#[test]
fn a_conditional_question_spoils_nothing() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let ask = Ask::get("discover?key_id=1").with_secret();
    let direct = stage.tcp.send(&ask);
    let tag = direct.header("ETag").unwrap();
    for _ in 0..2 {
        let answer = gateway.tcp.send(&ask.clone().header("If-None-Match", tag));
        assert!(matches!(answer.status, 200 | 304), "{answer}");
        let answer = gateway.tcp.send(&ask);
        assert_eq!((answer.status, answer.body), (200, direct.body.clone()));
    }
}

/// The cache knows the answer, but not for everybody.
#[test]
fn nobody_gets_past_the_credential_to_a_warm_cache() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    for target in hot_reads().into_iter().flatten() {
        gateway.tcp.send(&Ask::get(&target).with_secret());
        let strangers = [
            Ask::get(&target),
            Ask::get(&target).header(SECRET_HEADER, "eHh4"),
            Ask::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "exp": now() - 120 }))),
            Ask::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "iss": "x" }))),
            Ask::get(&target).header(SHELL_HEADER, &kas_token(&json!({}))),
            Ask::get(&target).with_kas_token(),
        ];
        for (ask, peer) in strangers.iter().flat_map(|ask| gateway.peers().map(|peer: &Peer| (ask, peer))) {
            let (arrived, answer) = stage.arrivals(|| peer.send(ask));
            assert_eq!((answer.status, arrived), (401, 0), "{ask}: {answer}");
            assert_eq!(answer.body, br#"{"message":"401 Unauthorized"}"#, "{ask}: {answer}");
        }
    }
}

/// Asking these has an effect, or the answer is a secret.
#[test]
fn nothing_else_is_ever_kept() {
    let stage = Stage::new();
    let gateway = stage.gateway(Way::Tcp);
    let asks = [
        Ask::post("allowed").form("key_id=1&project=gnuwget/wget2"),
        Ask::post("lfs_authenticate").form("key_id=1&project=gnuwget/wget2"),
        Ask::post("two_factor_recovery_codes").form("key_id=1"),
        Ask::post("personal_access_token").form("key_id=1&name=a&scopes[]=api"),
        Ask::post("pre_receive").form("gl_repository=project-1"),
        Ask::post("post_receive").form("gl_repository=project-1&identifier=user-1"),
        Ask::get("kubernetes/agent_info").with_agent_token(),
        Ask::get("kubernetes/project_info?id=1").with_agent_token(),
        Ask::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#),
    ];
    for ask in asks {
        let ask = ask.with_secret().header("Gitlab-Kas-Api-Request", &kas_token(&json!({})));
        for _ in 0..3 {
            let (arrived, answer) = stage.arrivals(|| gateway.tcp.send(&ask));
            assert!(answer.status < 300, "{ask}: {answer}");
            assert_eq!(arrived, 1, "{ask}: {answer}");
        }
    }
}
