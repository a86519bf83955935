//! Which paths are served, how they are counted, and how they are forwarded.

use super::client::Request;
use super::fake_rails::{FakeRails, ROOT_KEY};
use super::harness::{Harness, Setup};

const PREFIX: &str = "/api/v4/internal";

/// Waits until so many requests have been counted for a route.
async fn assert_counted(harness: &Harness, route: &str, caller: &str, count: usize) {
    let series =
        format!(r#"railgate_requests_total{{route="{route}",caller="{caller}",status="2xx",cache="never"}}"#);
    harness.wait_for_metric(&series, count).await;
}

#[tokio::test]
async fn shell_endpoints_require_its_credential_and_are_counted_by_name() {
    let harness = Harness::new().await;
    for (method, path, route, count) in [
        ("POST", "allowed", "allowed", 2),
        ("POST", "pre_receive", "pre_receive", 2),
        ("POST", "post_receive", "post_receive", 2),
        ("POST", "lfs_authenticate", "lfs_authenticate", 2),
        ("POST", "two_factor_recovery_codes", "two_factor_recovery_codes", 2),
        ("POST", "personal_access_token", "personal_access_token", 2),
        ("POST", "two_factor_config", "two_factor_config", 2),
        ("POST", "two_factor_push_otp_check", "two_factor_push_otp_check", 2),
        ("POST", "two_factor_manual_otp_check", "two_factor_manual_otp_check", 2),
        ("GET", "authorized_certs", "authorized_certs", 2),
        ("GET", "lfs", "lfs", 2),
        ("GET", "gitaly/object_pool_members", "object_pool_members", 2),
        ("POST", "search/zoekt/0-1-2/heartbeat", "zoekt_heartbeat", 2),
        ("POST", "search/zoekt/0-1-2/tasks", "zoekt_tasks", 2),
        ("POST", "search/zoekt/0-1-2/callback", "zoekt_callback", 2),
        ("POST", "org_mover/a/b", "org_mover", 2),
        ("GET", "org_mover/c", "org_mover", 4),
    ] {
        let request = Request::new(method, &format!("{PREFIX}/{path}?a=b"));
        harness.send(&request).await.assert_unauthorized();
        harness.send(&request.clone().with_kas_token()).await.assert_unauthorized();
        // None is ever stored.
        for _ in 0..2 {
            let (response, seen) = harness.send_forwarded(&request.clone().with_secret()).await;
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=route");
            assert_eq!((seen.method.as_str(), seen.target), (method, request.target.clone()));
        }
        assert_counted(&harness, route, "shared_secret", count).await;
    }
}

/// Rails takes the method of a POST from `_method` in its form, and an endpoint answers OPTIONS itself.
#[tokio::test]
async fn overridable_methods_require_the_same_credential() {
    let harness = Harness::new().await;
    for path in ["check", "check.json", "authorized_keys", "discover/", "lfs", "allowed"] {
        for method in ["POST", "OPTIONS"] {
            let request = Request::new(method, &format!("{PREFIX}/{path}"));
            if method == "OPTIONS" {
                harness.send(&request).await.assert_unauthorized();
            }
            harness.send(&request.clone().form("_method=GET")).await.assert_unauthorized();
            for _ in 0..2 {
                let (response, seen) = harness.send_forwarded(&request.clone().with_secret()).await;
                assert!(!response.is_hit() && seen.method == method, "{request}: {response}");
            }
        }
    }
    for path in ["kubernetes/agent_info", "kubernetes/project_info/"] {
        harness
            .send(&Request::post(path).form("_method=GET").with_secret())
            .await
            .assert_unauthorized_as_kas();
    }
}

/// Rails verifies their credentials.
#[tokio::test]
async fn endpoints_of_other_families_are_forwarded_without_shell_credentials() {
    let harness = Harness::new().await;
    for (method, path, route, count) in [
        ("GET", "/pages?host=a", "pages", 1),
        ("GET", "/pages/status", "pages_status", 1),
        ("POST", "/workhorse/authorize_upload", "authorize_upload", 1),
        ("POST", "/mail_room/incoming_email", "mail_room", 1),
        ("POST", "/error_tracking/allowed", "error_tracking_allowed", 1),
        ("POST", "/shellhorse/git_audit_event", "git_audit_event", 1),
        ("POST", "/orbit/x", "orbit", 1),
        ("GET", "/orbit/project/1/info", "orbit", 2),
        ("POST", "/secrets_manager/audit_logs", "secrets_manager_audit_logs", 1),
        ("GET", "/observability/project/1/read/analytics", "observability", 1),
        ("POST", "/observability/project/1/write/v1/traces", "observability", 2),
        ("POST", "/suggested_reviewers/tokens", "suggested_reviewers_tokens", 1),
        ("POST", "/jobs/1/x_ray/scan", "x_ray", 1),
        ("POST", "/jobs/1/x_ray/dependencies", "x_ray", 2),
        ("PUT", "/jobs/1/x_ray/new/thing", "x_ray", 3),
        ("PUT", "/upcoming_reconciliations", "upcoming_reconciliations", 1),
        ("DELETE", "/upcoming_reconciliations", "upcoming_reconciliations", 2),
        ("POST", "/gitlab_subscriptions/users/1/permissions", "gitlab_subscriptions", 1),
        ("POST", "/dast/site_validations/1/transition", "dast", 1),
        ("POST", "/coverage", "coverage", 1),
    ] {
        let header = "Gitlab-Pages-Api-Request";
        let request = Request::new(method, &format!("{PREFIX}{path}")).header(header, "a.b.c");
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!((response.status, seen.header(header)), (200, Some("a.b.c")));
        assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, request.target.as_str()));
        assert_counted(&harness, route, "left_to_rails", count).await;
    }
    let unknown = [
        ("GET", ""),
        ("GET", "/"),
        ("GET", "/something/new?a=b"),
        ("DELETE", "/discover"),
        ("PATCH", "/allowed"),
        ("GET", "/allowed"),
        ("PUT", "/check"),
        ("HEAD", "/allowed"),
        ("GET", "/Check"),
        ("GET", "/checks"),
        ("GET", "/check/x"),
        ("POST", "/mail_room/a/b"),
        ("POST", "/jobs/1/x_ray"),
        ("POST", "/jobs/x_ray/scan"),
        ("POST", "/jobs/1/2/x_ray/scan"),
        ("POST", "/jobs/1/x_rays/scan"),
        ("BREW", "/tea"),
        ("ABCDEFGHIJKLMNOPQRST", "/check"),
    ];
    for (method, path) in unknown {
        let (response, seen) =
            harness.send_forwarded(&Request::new(method, &format!("{PREFIX}{path}"))).await;
        assert_eq!(response.status, 200, "{method} {path}: {response}");
        assert_eq!((seen.method.as_str(), seen.target), (method, format!("{PREFIX}{path}")));
    }
    assert_counted(&harness, "other_internal", "left_to_rails", unknown.len()).await;
}

/// Grape routes these spellings to the same endpoint, so they require the same credential; how it reads them
/// is not known well enough to store the response.
#[tokio::test]
async fn other_spellings_require_the_same_credential_and_are_not_stored() {
    let harness = Harness::new().await;
    let key = format!("?key={ROOT_KEY}");
    for (spelling, exact) in [
        ("check.json", "check"),
        ("check/", "check"),
        ("check.json/", "check"),
        ("check.xml", "check"),
        ("check.a.b", "check"),
        ("check.", "check"),
        ("discover.json?key_id=1", "discover?key_id=1"),
        ("discover/?key_id=1", "discover?key_id=1"),
        (&format!("authorized_keys.json{key}"), &format!("authorized_keys{key}")),
        (&format!("authorized_keys/{key}"), &format!("authorized_keys{key}")),
    ] {
        harness.send(&Request::get(spelling)).await.assert_unauthorized();
        for _ in 0..2 {
            let (response, seen) = harness.send_forwarded(&Request::get(spelling).with_secret()).await;
            assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=request", "{spelling}");
            assert_eq!(seen.target, format!("{PREFIX}/{spelling}"));
        }
        // Nor does it get the entry of the exact spelling.
        harness.send(&Request::get(exact).with_secret()).await;
        assert!(harness.send(&Request::get(exact).with_secret()).await.is_hit());
        harness.send_forwarded(&Request::get(spelling).with_secret()).await;
        harness.send(&Request::get(spelling)).await.assert_unauthorized();
    }
    for spelling in ["allowed.json", "allowed/", "kubernetes/agent_info.json", "kubernetes/agent_info/"] {
        let method = if spelling.starts_with("allowed") { "POST" } else { "GET" };
        let request = Request::new(method, &format!("{PREFIX}/{spelling}"));
        let refused = harness.send(&request).await;
        if method == "GET" {
            refused.assert_unauthorized_as_kas();
        } else {
            refused.assert_unauthorized();
        }
        harness.send_forwarded(&request.with_secret().with_kas_token()).await;
    }
}

#[tokio::test]
async fn other_paths_are_not_served() {
    let harness = Harness::new().await;
    for path in [
        "/",
        "/api",
        "/api/v4",
        "/api/v4/",
        "/api/v4/internals/check",
        "/api/v4/projects",
        "/api/v3/internal/check",
        "/API/V4/internal/check",
        "/api/v4/Internal/check",
        "/api/v4/internal.json",
        "/api/v4/geo/proxy",
        "/x/api/v4/internal/check",
        "/gitlab/api/v4/internal/check",
        "/metrics",
        "/live",
        "/ready",
        "/-/health",
        "/users/sign_in",
    ] {
        for method in ["GET", "POST", "HEAD", "OPTIONS"] {
            let (response, arrived) = harness.send_counting(&Request::new(method, path).with_secret()).await;
            assert_eq!((response.status, arrived), (404, 0), "{method} {path}: {response}");
            if method != "HEAD" {
                response.assert_failure(404);
            }
        }
    }
}

#[tokio::test]
async fn configured_prefixes_are_forwarded() {
    let list = r#"["/api/v4/geo/", "/group/"]"#;
    let harness = Setup::new().set("upstream.forward_prefixes", list).start().await;
    let paths = ["/api/v4/geo/proxy_git_ssh/info_refs?a=b", "/api/v4/geo/", "/group/project.git/info/refs"];
    for path in paths {
        let (response, seen) = harness.send_forwarded(&Request::new("POST", path).body("x")).await;
        assert_eq!((response.status, seen.target.as_str()), (200, path));
        assert_eq!(response.cache_status(), "railgate; fwd=bypass; detail=route");
    }
    assert_counted(&harness, "forwarded_prefix", "left_to_rails", paths.len()).await;
    for path in ["/api/v4/geo", "/api/v4/geox/", "/groups/x", "/x/group/", "/", "/Group/x"] {
        let (response, arrived) = harness.send_counting(&Request::new("GET", path)).await;
        assert_eq!((response.status, arrived), (404, 0), "{path}");
    }
    // Prefixes do not bypass the route table.
    for path in ["/group/../api/v4/internal/check", "/group//x", "/group/%2e%2e/x", "/group/a;b"] {
        let (response, arrived) = harness.send_counting(&Request::new("GET", path)).await;
        assert_eq!((response.status, arrived), (400, 0), "{path}");
    }
    let wide = Setup::new().set("upstream.forward_prefixes", r#"["/api/"]"#).start().await;
    wide.send(&Request::get("check")).await.assert_unauthorized();
    wide.send(&Request::post("allowed")).await.assert_unauthorized();
    assert_eq!(wide.rails.request_count(), 0);
}

/// Clients may send the relative URL root of Rails, or omit it: both share cache entries.
#[tokio::test]
async fn the_relative_root_is_optional_for_clients() {
    for root in ["/gitlab", "/a/b-c.d"] {
        let harness = Setup::new().root_path(root).start().await;
        let spellings = |path: &str| [format!("{PREFIX}{path}"), format!("{root}{PREFIX}{path}")];
        for target in spellings("/allowed?a=b") {
            let (_, seen) = harness.send_forwarded(&Request::new("POST", &target).with_secret()).await;
            assert_eq!(seen.target, format!("{root}{PREFIX}/allowed?a=b"));
            harness.send(&Request::new("POST", &target)).await.assert_unauthorized();
        }
        let [short, long] =
            spellings("/discover?key_id=1").map(|target| Request::new("GET", &target).with_secret());
        let (_, seen) = harness.send_forwarded(&long).await;
        assert_eq!(seen.target, long.target);
        for request in [short, long.clone()] {
            let (response, arrived) = harness.send_counting(&request).await;
            assert_eq!((response.is_hit(), arrived), (true, 0), "{request}");
            let unauthenticated = Request::new("GET", &request.target);
            harness.send(&unauthenticated).await.assert_unauthorized();
        }
        for other in [
            format!("{root}{root}{PREFIX}/check"),
            format!("{root}x{PREFIX}/check"),
            format!("{root}/"),
            root.to_owned(),
            format!("/x{PREFIX}/check"),
        ] {
            let (response, arrived) = harness.send_counting(&Request::new("GET", &other).with_secret()).await;
            assert_eq!((response.status, arrived), (404, 0), "{other}");
        }
        let (response, _) =
            harness.send_counting(&Request::new("GET", &format!("{root}/..{PREFIX}/check"))).await;
        assert_eq!(response.status, 400);
    }
}

#[tokio::test]
async fn a_forwarded_prefix_gets_the_relative_root() {
    let harness = Setup::new()
        .root_path("/gitlab")
        .set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#)
        .start()
        .await;
    for target in ["/api/v4/geo/x?y", "/gitlab/api/v4/geo/x?y"] {
        let (_, seen) = harness.send_forwarded(&Request::new("GET", target)).await;
        assert_eq!(seen.target, "/gitlab/api/v4/geo/x?y");
    }
}

/// Rails decodes the query itself.
#[tokio::test]
async fn a_query_is_forwarded_unchanged() {
    let harness = Harness::new().await;
    for query in [
        "?",
        "?a",
        "?a=",
        "?=a",
        "?a=b&a=c",
        "?a=b;c=d",
        "?a=%2f..%2F//../;x",
        "?a=%zz%",
        "?a=%00",
        "?a[]=b&a[c]=d",
        "?a=b?c=d",
        "?a=+%20%2B",
        "?a=http://b/c:d@e",
        "?!$&'()*+,;=:@/?-._~%5B",
    ] {
        let request = Request::post(&format!("allowed{query}")).with_shell_token();
        let (response, seen) = harness.send_forwarded(&request).await;
        assert_eq!((response.status, &seen.target), (200, &request.target));
    }
}

#[tokio::test]
async fn tcp_and_unix_sockets_work_on_both_sides() {
    for is_unix in [false, true] {
        let setup = Setup::new();
        let rails = if is_unix {
            FakeRails::listen_unix(&setup.dir.file("rails.sock"))
        } else {
            FakeRails::listen_tcp().await
        };
        let harness = setup.start_with(rails);
        for address in [&harness.gateway.tcp, &harness.gateway.unix] {
            let response = address.send(&Request::post("allowed").with_secret().json("{}")).await;
            assert_eq!(response.status, 200, "{response}");
        }
        assert_eq!(harness.rails.request_count(), 2);
    }
}
