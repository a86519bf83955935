//! Which paths are served, under which name they are counted, and how they look to Rails.

use super::client::Ask;
use super::fake::{ROOT_KEY, Rails};
use super::stage::{Setup, Stage};

const PREFIX: &str = "/api/v4/internal";

/// Waits until the endpoint has been counted under its name.
async fn assert_counted(stage: &Stage, route: &str, caller: &str, count: usize) {
    let series =
        format!(r#"railgate_requests_total{{route="{route}",caller="{caller}",status="2xx",cache="never"}}"#);
    stage.reaches(&series, count).await;
}

#[tokio::test]
async fn endpoints_of_the_shell_demand_its_credential_and_are_counted_by_name() {
    let stage = Stage::new().await;
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
        let ask = Ask::new(method, &format!("{PREFIX}/{path}?a=b"));
        stage.send(&ask).await.assert_unauthorized();
        stage.send(&ask.clone().with_kas_token()).await.assert_unauthorized();
        // None is ever kept.
        for _ in 0..2 {
            let (answer, seen) = stage.pass(&ask.clone().with_secret()).await;
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=route");
            assert_eq!((seen.method.as_str(), seen.target), (method, ask.target.clone()));
        }
        assert_counted(&stage, route, "shared_secret", count).await;
    }
}

/// A POST with a body can be any other method to Rails (`_method` in its form), and OPTIONS is answered
/// by the endpoint itself.
#[tokio::test]
async fn a_method_that_may_be_another_one_demands_the_same_credential() {
    let stage = Stage::new().await;
    for path in ["check", "check.json", "authorized_keys", "discover/", "lfs", "allowed"] {
        for method in ["POST", "OPTIONS"] {
            let ask = Ask::new(method, &format!("{PREFIX}/{path}"));
            if method == "OPTIONS" {
                stage.send(&ask).await.assert_unauthorized();
            }
            stage.send(&ask.clone().form("_method=GET")).await.assert_unauthorized();
            for _ in 0..2 {
                let (answer, seen) = stage.pass(&ask.clone().with_secret()).await;
                assert!(!answer.is_hit() && seen.method == method, "{ask}: {answer}");
            }
        }
    }
    for path in ["kubernetes/agent_info", "kubernetes/project_info/"] {
        stage.send(&Ask::post(path).form("_method=GET").with_secret()).await.assert_unauthorized_as_kas();
    }
}

/// Their credentials are theirs, and Rails judges them.
#[tokio::test]
async fn other_families_pass_without_the_shells_credential() {
    let stage = Stage::new().await;
    for (method, path, route) in [
        ("GET", "/pages?host=a", "pages"),
        ("GET", "/pages/status", "pages_status"),
        ("POST", "/workhorse/authorize_upload", "authorize_upload"),
        ("POST", "/mail_room/incoming_email", "mail_room"),
        ("POST", "/error_tracking/allowed", "error_tracking_allowed"),
        ("POST", "/shellhorse/git_audit_event", "git_audit_event"),
        ("POST", "/orbit/x", "orbit"),
    ] {
        let header = "Gitlab-Pages-Api-Request";
        let ask = Ask::new(method, &format!("{PREFIX}{path}")).header(header, "a.b.c");
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!((answer.status, seen.header(header)), (200, Some("a.b.c")));
        assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, ask.target.as_str()));
        assert_counted(&stage, route, "left_to_rails", 1).await;
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
        ("BREW", "/tea"),
        ("ABCDEFGHIJKLMNOPQRST", "/check"),
    ];
    for (method, path) in unknown {
        let (answer, seen) = stage.pass(&Ask::new(method, &format!("{PREFIX}{path}"))).await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer}");
        assert_eq!((seen.method.as_str(), seen.target), (method, format!("{PREFIX}{path}")));
    }
    assert_counted(&stage, "other_internal", "left_to_rails", unknown.len()).await;
}

/// Grape routes these to the same endpoint, so the same credential is demanded; what it makes of
/// them is not known well enough to be kept.
#[tokio::test]
async fn other_spellings_demand_the_same_credential_and_are_not_kept() {
    let stage = Stage::new().await;
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
        stage.send(&Ask::get(spelling)).await.assert_unauthorized();
        for _ in 0..2 {
            let (answer, seen) = stage.pass(&Ask::get(spelling).with_secret()).await;
            assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=request", "{spelling}");
            assert_eq!(seen.target, format!("{PREFIX}/{spelling}"));
        }
        // Nor is what the exact one knows shown to it.
        stage.send(&Ask::get(exact).with_secret()).await;
        assert!(stage.send(&Ask::get(exact).with_secret()).await.is_hit());
        stage.pass(&Ask::get(spelling).with_secret()).await;
        stage.send(&Ask::get(spelling)).await.assert_unauthorized();
    }
    for spelling in ["allowed.json", "allowed/", "kubernetes/agent_info.json", "kubernetes/agent_info/"] {
        let method = if spelling.starts_with("allowed") { "POST" } else { "GET" };
        let ask = Ask::new(method, &format!("{PREFIX}/{spelling}"));
        let refused = stage.send(&ask).await;
        if method == "GET" {
            refused.assert_unauthorized_as_kas();
        } else {
            refused.assert_unauthorized();
        }
        stage.pass(&ask.with_secret().with_kas_token()).await;
    }
}

#[tokio::test]
async fn nothing_else_is_served() {
    let stage = Stage::new().await;
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
            let (answer, arrived) = stage.send_counting(&Ask::new(method, path).with_secret()).await;
            assert_eq!((answer.status, arrived), (404, 0), "{method} {path}: {answer}");
            if method != "HEAD" {
                answer.assert_failure(404);
            }
        }
    }
}

#[tokio::test]
async fn listed_prefixes_are_forwarded() {
    let list = r#"["/api/v4/geo/", "/group/"]"#;
    let stage = Setup::new().set("upstream.forward_prefixes", list).start().await;
    let paths = ["/api/v4/geo/proxy_git_ssh/info_refs?a=b", "/api/v4/geo/", "/group/project.git/info/refs"];
    for path in paths {
        let (answer, seen) = stage.pass(&Ask::new("POST", path).body("x")).await;
        assert_eq!((answer.status, seen.target.as_str()), (200, path));
        assert_eq!(answer.cache_status(), "railgate; fwd=bypass; detail=route");
    }
    assert_counted(&stage, "forwarded_prefix", "left_to_rails", paths.len()).await;
    for path in ["/api/v4/geo", "/api/v4/geox/", "/groups/x", "/x/group/", "/", "/Group/x"] {
        let (answer, arrived) = stage.send_counting(&Ask::new("GET", path)).await;
        assert_eq!((answer.status, arrived), (404, 0), "{path}");
    }
    // No way around the rows of the table.
    for path in ["/group/../api/v4/internal/check", "/group//x", "/group/%2e%2e/x", "/group/a;b"] {
        let (answer, arrived) = stage.send_counting(&Ask::new("GET", path)).await;
        assert_eq!((answer.status, arrived), (400, 0), "{path}");
    }
    let wide = Setup::new().set("upstream.forward_prefixes", r#"["/api/"]"#).start().await;
    wide.send(&Ask::get("check")).await.assert_unauthorized();
    wide.send(&Ask::post("allowed")).await.assert_unauthorized();
    assert_eq!(wide.rails.count(), 0);
}

/// Clients may send the relative URL root of Rails, or leave it out: it is the same question.
#[tokio::test]
async fn a_relative_root_is_understood_on_both_sides() {
    for root in ["/gitlab", "/a/b-c.d"] {
        let stage = Setup::new().below(root).start().await;
        let spellings = |path: &str| [format!("{PREFIX}{path}"), format!("{root}{PREFIX}{path}")];
        for target in spellings("/allowed?a=b") {
            let (_, seen) = stage.pass(&Ask::new("POST", &target).with_secret()).await;
            assert_eq!(seen.target, format!("{root}{PREFIX}/allowed?a=b"));
            stage.send(&Ask::new("POST", &target)).await.assert_unauthorized();
        }
        let [short, long] =
            spellings("/discover?key_id=1").map(|target| Ask::new("GET", &target).with_secret());
        let (_, seen) = stage.pass(&long).await;
        assert_eq!(seen.target, long.target);
        for ask in [short, long.clone()] {
            let (answer, arrived) = stage.send_counting(&ask).await;
            assert_eq!((answer.is_hit(), arrived), (true, 0), "{ask}");
            let stranger = Ask::new("GET", &ask.target);
            stage.send(&stranger).await.assert_unauthorized();
        }
        for other in [
            format!("{root}{root}{PREFIX}/check"),
            format!("{root}x{PREFIX}/check"),
            format!("{root}/"),
            root.to_owned(),
            format!("/x{PREFIX}/check"),
        ] {
            let (answer, arrived) = stage.send_counting(&Ask::new("GET", &other).with_secret()).await;
            assert_eq!((answer.status, arrived), (404, 0), "{other}");
        }
        let (answer, _) = stage.send_counting(&Ask::new("GET", &format!("{root}/..{PREFIX}/check"))).await;
        assert_eq!(answer.status, 400);
    }
}

#[tokio::test]
async fn a_forwarded_prefix_lives_below_the_root_too() {
    let stage =
        Setup::new().below("/gitlab").set("upstream.forward_prefixes", r#"["/api/v4/geo/"]"#).start().await;
    for target in ["/api/v4/geo/x?y", "/gitlab/api/v4/geo/x?y"] {
        let (_, seen) = stage.pass(&Ask::new("GET", target)).await;
        assert_eq!(seen.target, "/gitlab/api/v4/geo/x?y");
    }
}

/// Rails decodes the query, so it gets it as it was written.
#[tokio::test]
async fn a_query_passes_as_it_is() {
    let stage = Stage::new().await;
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
        let ask = Ask::post(&format!("allowed{query}")).with_shell_token();
        let (answer, seen) = stage.pass(&ask).await;
        assert_eq!((answer.status, &seen.target), (200, &ask.target));
    }
}

/// Over TCP and over unix sockets, on both sides.
#[tokio::test]
async fn both_kinds_of_sockets_lead_to_both_kinds_of_rails() {
    for is_unix in [false, true] {
        let setup = Setup::new();
        let rails =
            if is_unix { Rails::on_unix(&setup.dir.file("rails.sock")) } else { Rails::on_tcp().await };
        let stage = setup.in_front_of(rails);
        for peer in [&stage.gateway.tcp, &stage.gateway.unix] {
            let answer = peer.send(&Ask::post("allowed").with_secret().json("{}")).await;
            assert_eq!(answer.status, 200, "{answer}");
        }
        assert_eq!(stage.rails.count(), 2);
    }
}
