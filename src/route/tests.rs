//! The table, and how rows are found.

use super::*;

#[test]
fn every_row_is_found_by_its_own_path_and_named_once() {
    let mut ids = HashSet::new();
    for route in TABLE {
        let path = route.path.replace(':', "any-").replace('*', "any");
        let found = find(route.method.as_ref().unwrap_or(&Method::PUT), &path, false);
        assert_eq!(found.route, route);
        assert!(found.exact);
        assert!(ids.insert(route.id), "{} is there twice", route.id);
    }
}

#[test]
fn only_reads_that_demand_the_shell_credential_are_cached() {
    for route in TABLE.iter().filter(|route| route.caching != Caching::Never) {
        assert_eq!((route.access, &route.method), (Access::Shell, &Some(Method::GET)), "{}", route.id);
    }
}

/// Requests that need no credential here must not be able to take the places of those that do.
#[test]
fn what_rails_alone_judges_is_a_class_of_its_own() {
    for route in TABLE.iter().chain([&OTHER_INTERNAL, &FORWARDED_PREFIX]) {
        assert_eq!(route.access == Access::Rails, route.class == Class::Other, "{}", route.id);
        assert_eq!(route.access == Access::Kas, route.class == Class::Kas, "{}", route.id);
    }
}

#[test]
fn head_finds_the_row_of_get() {
    assert_eq!(find(&Method::HEAD, "/check", false).route.id, "check");
    assert_eq!(find(&Method::HEAD, "/allowed", false).route.id, "other_internal");
}

#[test]
fn spellings_that_grape_routes_alike_demand_the_same_credential_but_are_not_exact() {
    for path in ["/check/", "/check.json", "/check.xml/", "/check.a.b"] {
        let found = find(&Method::GET, path, false);
        assert_eq!((found.route.id, found.exact), ("check", false), "{path}");
    }
}

#[test]
fn a_post_that_may_be_another_method_demands_the_credential_of_the_path() {
    for (method, path) in
        [(Method::POST, "/check"), (Method::POST, "/check.json"), (Method::OPTIONS, "/check")]
    {
        let found = find(&method, path, true);
        assert_eq!((found.route.id, found.exact), ("check", false), "{method} {path}");
    }
    assert_eq!(find(&Method::POST, "/check", false).route.id, "other_internal");
}

/// Of the README: a line for all endpoints that are alike.
#[test]
fn the_readme_has_every_endpoint_with_what_is_true_of_it() {
    let readme = include_str!("../../README.md");
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for route in TABLE {
        let who = match route.access {
            Access::Shell => "shell",
            Access::Kas => "kas",
            Access::Rails => "Rails judges",
        };
        let kept = if route.caching == Caching::Never { "no" } else { "yes" };
        let twice = if route.repeat == Repeat::Safe { "yes" } else { "no" };
        let facts = format!("| {who} | {kept} | `{}` | {twice} |", route.class.as_str());
        let method = route.method.as_ref().map_or("any", Method::as_str);
        let endpoint = format!("`{method} {}`", route.path);
        match lines.iter_mut().find(|(known, _)| *known == facts) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => lines.push((facts, vec![endpoint])),
        }
    }
    let lines: Vec<String> =
        lines.iter().map(|(facts, endpoints)| format!("| {} {facts}", endpoints.join(", "))).collect();
    let missing: Vec<&String> = lines.iter().filter(|line| !readme.contains(line.as_str())).collect();
    assert!(missing.is_empty(), "the table of README.md has to be:\n{}", lines.join("\n"));
}

#[test]
fn what_writes_is_asked_once_whatever_its_method() {
    let once = [
        "/authorized_certs",
        "/agents/agentk/agent_info",
        "/kubernetes/verify_project_access",
        "/kubernetes/modules/starboard_vulnerability/policies_configuration",
        "/kubernetes/modules/remote_development/prerequisites",
        "/ci/agents/runnerc/info",
    ];
    for path in once {
        assert_eq!(find(&Method::GET, path, false).route.repeat, Repeat::Once, "{path}");
    }
    for route in TABLE.iter().filter(|route| route.repeat == Repeat::Safe) {
        assert_eq!(route.method, Some(Method::GET), "{}", route.id);
    }
    for path in ["/authorized_keys", "/discover", "/check", "/lfs"] {
        assert_eq!(find(&Method::GET, path, false).route.repeat, Repeat::Safe, "{path}");
    }
}

#[test]
fn unknown_modules_are_those_of_kas() {
    for (method, path) in
        [(Method::GET, "/kubernetes/modules/new/thing"), (Method::PATCH, "/kubernetes/modules/x")]
    {
        let found = find(&method, path, false);
        assert_eq!((found.route.id, found.route.access), ("kubernetes_modules", Access::Kas), "{path}");
    }
    assert_eq!(find(&Method::GET, "/kubernetes/other", false).route.id, "other_internal");
}

#[test]
fn what_no_row_names_is_left_to_rails() {
    for (method, path) in [
        (Method::GET, "/allowed"),
        (Method::PUT, "/check"),
        (Method::GET, "/Check"),
        (Method::GET, "/checks"),
        (Method::GET, ""),
        (Method::GET, "/"),
        (Method::POST, "/mail_room/"),
        (Method::POST, "/mail_room/a/b"),
    ] {
        let found = find(&method, path, false);
        assert_eq!((found.route.id, found.exact), ("other_internal", false), "{method} {path}");
        assert_eq!(found.route.access, Access::Rails);
    }
}
