//! Which requests are answered from the cache, and which never are, by the counters of Rails.

use std::thread;

use serde_json::json;

use super::client::{Address, Request};
use super::credentials::{SECRET_HEADER, SHELL_HEADER, kas_token, now, shell_token};
use super::harness::{Harness, Transport};
use super::keys;

/// Targets of the three cached endpoints; each row is one entry in all its spellings.
fn cacheable_targets() -> Vec<Vec<String>> {
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

/// The same target by each kind of caller. The cache key does not depend on the caller.
fn for_all_callers(target: &str) -> Vec<Request> {
    let separator = if target.contains('?') { '&' } else { '?' };
    vec![
        Request::get(target).with_secret(),
        Request::get(&format!("{target}{separator}secret_token=s3cret")),
        // GitLab Shell of today, and Gitaly. They send a content type without a body.
        Request::get(target)
            .with_shell_token()
            .header("Content-Type", "application/json")
            .header("User-Agent", "GitLab-Shell")
            .header("X-Forwarded-For", "192.0.2.1")
            .header("X-GitLab-Client-Name", "gitlab-sshd"),
        // The Ruby GitLab Shell.
        Request::get(target).form("secret_token=s3cret%0A").header("User-Agent", "Ruby"),
    ]
}

#[test]
fn a_cacheable_read_reaches_rails_once_for_all_callers_and_spellings() {
    let harness = Harness::new();
    for transport in [Transport::Tcp, Transport::Unix] {
        let gateway = harness.gateway(transport);
        for spellings in cacheable_targets() {
            let requests: Vec<Request> =
                spellings.iter().flat_map(|target| for_all_callers(target)).collect();
            let expected = harness.tcp.send(&requests[0]);
            let (arrived, ()) = harness.arrivals(|| {
                for (request, address) in
                    requests.iter().flat_map(|request| gateway.addresses().map(|address| (request, address)))
                {
                    let response = address.send(request);
                    assert_eq!(
                        (response.status, &response.body),
                        (expected.status, &expected.body),
                        "{request}: {response}"
                    );
                }
            });
            assert_eq!(arrived, 1, "{spellings:?} reached Rails more than once, or never");
        }
    }
}

#[test]
fn a_cached_answer_is_marked_by_its_headers() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let request = Request::get("discover?key_id=1").with_secret();
    let first = gateway.tcp.send(&request);
    let second = gateway.tcp.send(&request);
    let status =
        |response: &super::client::Response| response.header("Cache-Status").unwrap_or_default().to_owned();
    assert!(!status(&first).contains("hit"), "{first}");
    assert!(status(&second).contains("hit"), "{second}");
    assert!(second.header("Age").is_some_and(|age| age.parse::<u64>().is_ok()), "{second}");
    // Headers of one request are not replayed.
    for name in ["X-Runtime", "X-Gitlab-Meta", "Set-Cookie"] {
        assert_eq!(second.header(name), None, "{second}");
    }
    assert_ne!(first.header("X-Request-Id"), second.header("X-Request-Id"));
}

#[test]
fn concurrent_callers_cause_one_upstream_request() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let request = Request::get(&format!("authorized_keys?key={}", keys::of_root())).with_secret();
    let (arrived, ()) = harness.arrivals(|| {
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| assert_eq!(gateway.tcp.send(&request).status, 200));
            }
        });
    });
    assert_eq!(arrived, 1);
}

/// Their responses may differ each time, or only Rails knows how it reads them.
#[test]
fn non_canonical_targets_bypass_the_cache() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
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
        let request = Request::get(&target).with_secret();
        for _ in 0..2 {
            let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
            assert_eq!(arrived, 1, "{request}: {response}");
        }
    }
}

/// In Rails, parameters in a form override the query, in both encodings of forms.
#[test]
fn a_form_takes_effect_despite_a_cached_query() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let target = format!("authorized_keys?key={}", keys::of_root());
    let plain = Request::get(&target).with_secret();
    assert_eq!(gateway.tcp.send(&plain).json()["id"], 1);
    let form = format!("key={}&secret_token=s3cret", keys::escaped(&keys::padded()));
    let parts =
        format!("--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n{}\r\n--b--\r\n", keys::padded());
    for request in [
        Request::get(&target).form(&form),
        Request::get(&target).form(&form).with_secret(),
        Request::get(&target).form(&form).chunked(),
        Request::get(&target).body("multipart/form-data; boundary=b", &parts).with_secret(),
    ] {
        let response = gateway.tcp.send(&request);
        assert_eq!(response.json()["id"], 2, "{request}: {response}");
        // The response to the form must not be stored for the query.
        assert_eq!(gateway.tcp.send(&plain).json()["id"], 1);
    }
}

/// The response to HEAD has no body, and must not answer a GET.
#[test]
fn a_head_request_does_not_affect_the_cache() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let get = Request::get("discover?key_id=1").with_secret();
    let head = Request { method: "HEAD".into(), ..get.clone() };
    for request in [&head, &get, &head, &get] {
        let (response, direct) = (gateway.tcp.send(request), harness.tcp.send(request));
        assert_eq!((response.status, &response.body), (200, &direct.body), "{request}: {response}");
    }
}

#[test]
fn an_unhealthy_check_is_never_stored() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let request = Request::get("check").with_secret();
    harness.control("POST", "/-/redis?up=false");
    for _ in 0..3 {
        let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
        assert_eq!((arrived, &response.json()["redis"]), (1, &json!(false)), "{response}");
    }
    harness.control("POST", "/-/redis?up=true");
    let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
    assert_eq!((arrived, &response.json()["redis"]), (1, &json!(true)), "{response}");
    let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
    assert_eq!((arrived, &response.json()["redis"]), (0, &json!(true)), "{response}");
}

/// A 304 has no body, and must not answer other callers.
#[test]
fn a_conditional_request_does_not_affect_the_cache() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let request = Request::get("discover?key_id=1").with_secret();
    let direct = harness.tcp.send(&request);
    let tag = direct.header("ETag").unwrap();
    for _ in 0..2 {
        let response = gateway.tcp.send(&request.clone().header("If-None-Match", tag));
        assert!(matches!(response.status, 200 | 304), "{response}");
        let response = gateway.tcp.send(&request);
        assert_eq!((response.status, response.body), (200, direct.body.clone()));
    }
}

#[test]
fn a_warm_cache_requires_a_credential() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    for target in cacheable_targets().into_iter().flatten() {
        gateway.tcp.send(&Request::get(&target).with_secret());
        let unauthenticated = [
            Request::get(&target),
            Request::get(&target).header(SECRET_HEADER, "eHh4"),
            Request::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "exp": now() - 120 }))),
            Request::get(&target).header(SHELL_HEADER, &shell_token(&json!({ "iss": "x" }))),
            Request::get(&target).header(SHELL_HEADER, &kas_token(&json!({}))),
            Request::get(&target).with_kas_token(),
        ];
        for (request, address) in unauthenticated
            .iter()
            .flat_map(|request| gateway.addresses().map(|address: &Address| (request, address)))
        {
            let (arrived, response) = harness.arrivals(|| address.send(request));
            assert_eq!((response.status, arrived), (401, 0), "{request}: {response}");
            assert_eq!(response.body, br#"{"message":"401 Unauthorized"}"#, "{request}: {response}");
        }
    }
}

/// These requests have an effect, or their response is secret.
#[test]
fn no_other_response_is_stored() {
    let harness = Harness::new();
    let gateway = harness.gateway(Transport::Tcp);
    let requests = [
        Request::post("allowed").form("key_id=1&project=gnuwget/wget2"),
        Request::post("lfs_authenticate").form("key_id=1&project=gnuwget/wget2"),
        Request::post("two_factor_recovery_codes").form("key_id=1"),
        Request::post("personal_access_token").form("key_id=1&name=a&scopes[]=api"),
        Request::post("pre_receive").form("gl_repository=project-1"),
        Request::post("post_receive").form("gl_repository=project-1&identifier=user-1"),
        Request::get("kubernetes/agent_info").with_agent_token(),
        Request::get("kubernetes/project_info?id=1").with_agent_token(),
        Request::post("kubernetes/usage_metrics").json(r#"{"gitops_sync_count":1}"#),
    ];
    for request in requests {
        let request = request.with_secret().header("Gitlab-Kas-Api-Request", &kas_token(&json!({})));
        for _ in 0..3 {
            let (arrived, response) = harness.arrivals(|| gateway.tcp.send(&request));
            assert!(response.status < 300, "{request}: {response}");
            assert_eq!(arrived, 1, "{request}: {response}");
        }
    }
}
