//! The table, and the search for rows.

use std::fs;
use std::path::Path;

use super::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_row_is_found_by_its_path_and_ids_are_unique() {
    let mut ids = HashSet::new();
    for route in TABLE {
        let path = route.path.replace(':', "any-").replace('*', "any");
        let found = find(route.method.as_ref().unwrap_or(&Method::PUT), &path, false);
        assert_eq!(found.route, route);
        assert!(found.is_exact);
        assert!(ids.insert(route.id), "{} is used twice", route.id);
    }
}

#[test]
fn only_gets_that_require_the_shell_credential_are_cached() {
    for route in TABLE.iter().filter(|route| route.caching != Caching::Never) {
        assert_eq!((route.access, &route.method), (Access::Shell, &Some(Method::GET)), "{}", route.id);
    }
}

/// Requests that need no credential here must not use up the limits of those that do.
#[test]
fn endpoints_without_a_credential_have_their_own_class() {
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
fn other_spellings_require_the_same_credential_but_are_not_exact() {
    for path in ["/check/", "/check.json", "/check.xml/", "/check.a.b"] {
        let found = find(&Method::GET, path, false);
        assert_eq!((found.route.id, found.is_exact), ("check", false), "{path}");
    }
}

#[test]
fn a_post_that_may_override_its_method_requires_the_credential_of_the_path() {
    for (method, path) in
        [(Method::POST, "/check"), (Method::POST, "/check.json"), (Method::OPTIONS, "/check")]
    {
        let found = find(&method, path, true);
        assert_eq!((found.route.id, found.is_exact), ("check", false), "{method} {path}");
    }
    assert_eq!(find(&Method::POST, "/check", false).route.id, "other_internal");
}

/// The rows of the table of endpoints, in whichever README has it.
fn documented_endpoints() -> Vec<String> {
    let files = ["README.md", "config/README.md", "deploy/README.md", "tests/README.md"];
    let texts = files.iter().filter_map(|file| fs::read_to_string(Path::new(ROOT).join(file)).ok());
    let tables = texts.filter_map(|text| {
        let (_, table) = text.split_once("\n| Endpoint | Who may call |")?;
        let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
        Some(rows.filter(|line| line.starts_with("| `")).map(str::to_owned).collect())
    });
    tables.collect::<Vec<Vec<_>>>().concat()
}

/// The table has one line for all endpoints with the same properties.
#[test]
fn the_documentation_lists_every_endpoint_with_its_properties() {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for route in TABLE {
        let who = match route.access {
            Access::Shell => "shell",
            Access::Kas => "kas",
            Access::Rails => "Rails judges",
        };
        let cached = if route.caching == Caching::Never { "no" } else { "yes" };
        let resent = if route.effect == Effect::Read { "yes" } else { "no" };
        let facts = format!("| {who} | {cached} | `{}` | {resent} |", route.class.as_str());
        let method = route.method.as_ref().map_or("any", Method::as_str);
        let endpoint = format!("`{method} {}`", route.path);
        match lines.iter_mut().find(|(known, _)| *known == facts) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => lines.push((facts, vec![endpoint])),
        }
    }
    let lines: Vec<String> =
        lines.iter().map(|(facts, endpoints)| format!("| {} {facts}", endpoints.join(", "))).collect();
    let mut documented = documented_endpoints();
    documented.sort_unstable();
    let mut expected = lines.clone();
    expected.sort_unstable();
    assert!(documented == expected, "the table of endpoints has to be:\n{}", lines.join("\n"));
}

#[test]
fn requests_that_write_are_known_whatever_their_method() {
    let writes = [
        "/authorized_certs",
        "/agents/agentk/agent_info",
        "/kubernetes/verify_project_access",
        "/kubernetes/modules/starboard_vulnerability/policies_configuration",
        "/kubernetes/modules/remote_development/prerequisites",
        "/ci/agents/runnerc/info",
    ];
    for path in writes {
        assert_eq!(find(&Method::GET, path, false).route.effect, Effect::Write, "{path}");
    }
    for route in TABLE.iter().filter(|route| route.effect == Effect::Read) {
        assert_eq!(route.method, Some(Method::GET), "{}", route.id);
    }
    for path in ["/authorized_keys", "/discover", "/check", "/lfs"] {
        assert_eq!(find(&Method::GET, path, false).route.effect, Effect::Read, "{path}");
    }
}

#[test]
fn unknown_modules_belong_to_kas() {
    for (method, path) in
        [(Method::GET, "/kubernetes/modules/new/thing"), (Method::PATCH, "/kubernetes/modules/x")]
    {
        let found = find(&method, path, false);
        assert_eq!((found.route.id, found.route.access), ("kubernetes_modules", Access::Kas), "{path}");
    }
    assert_eq!(find(&Method::GET, "/kubernetes/other", false).route.id, "other_internal");
}

#[test]
fn paths_in_no_row_are_left_to_rails() {
    for (method, path) in [
        (Method::GET, "/allowed"),
        (Method::PUT, "/check"),
        (Method::GET, "/Check"),
        (Method::GET, "/checks"),
        (Method::GET, ""),
        (Method::GET, "/"),
        (Method::POST, "/mail_room/"),
        (Method::POST, "/mail_room/a/b"),
        (Method::POST, "/jobs//x_ray/scan"),
        (Method::POST, "/jobs/1/x_ray"),
        (Method::POST, "/jobs/1/2/x_ray/scan"),
    ] {
        let found = find(&method, path, false);
        assert_eq!((found.route.id, found.is_exact), ("other_internal", false), "{method} {path}");
        assert_eq!(found.route.access, Access::Rails);
    }
}
