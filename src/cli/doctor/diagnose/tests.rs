use super::*;
use http::Response;

const CHECK: &str = r#"{"api_version":"v4","gitlab_version":"18.10.0","redis":true}"#;
const REFUSED: &str = r#"{"message":"401 Unauthorized"}"#;
/// Sun, 29 Nov 2026 12:00:00 GMT.
const NOW: i64 = 1_795_953_600;

fn response(status: u16, headers: &[(&str, &str)], body: &'static str) -> ProbeResponse {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let (head, ()) = response.body(()).unwrap().into_parts();
    ProbeResponse::Received { head: Box::new(head), body: Bytes::from_static(body.as_bytes()) }
}

fn results(responses: Vec<(ProbeCredential, ProbeResponse)>, accepts: (bool, bool)) -> ProbeResults {
    let (accepts_token, accepts_secret) = accepts;
    ProbeResults {
        accepts_token,
        accepts_secret,
        now: NOW,
        responses,
        longest_target: None,
        max_target: 11_264,
        page: None,
        name: None,
    }
}

/// The worst level, and the text of all findings.
fn report(results: &ProbeResults) -> (Level, String) {
    let findings = findings(results);
    let worst = |level| findings.iter().any(|finding| finding.level == level);
    let level = [Level::Failed, Level::Warning].into_iter().find(|level| worst(*level));
    let text: Vec<_> = findings.iter().map(ToString::to_string).collect();
    (level.unwrap_or(Level::Ok), text.join("\n"))
}

#[test]
fn other_servers_and_failures_are_recognized() {
    for (response, level, text) in [
        (response(200, &[], CHECK), Level::Ok, "GitLab 18.10.0 answers"),
        (
            response(200, &[], r#"{"api_version":"v4","gitlab_version":"18\u001b[2J\n  ok: 19"}"#),
            Level::Ok,
            "GitLab 18[2J  ok: 19 answers",
        ),
        (response(200, &[], r#"{"api_version":"v4","redis":false}"#), Level::Warning, "cannot reach Redis"),
        (
            response(200, &[("content-type", "text/html")], "<html>"),
            Level::Failed,
            "is not GitLab's internal API",
        ),
        (response(200, &[], "{}"), Level::Failed, "is not GitLab's internal API"),
        (
            response(301, &[("location", "https://gitlab/x")], ""),
            Level::Failed,
            "redirects to \"https://gitlab/x\"\n      set upstream.url to Workhorse itself",
        ),
        (response(401, &[], "who are you?"), Level::Failed, "is not GitLab's internal API"),
        (response(403, &[], "{}"), Level::Failed, "is not GitLab's internal API"),
        (
            response(400, &[], "Client sent an HTTP request to an HTTPS server.\n"),
            Level::Failed,
            "there is TLS, and upstream.url begins with http://",
        ),
        (
            response(400, &[], "<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            Level::Failed,
            "begin it with https://",
        ),
        (response(404, &[], r#"{"error":"404 Not Found"}"#), Level::Failed, "relative URL root"),
        (response(502, &[], ""), Level::Failed, "is Puma running?"),
        (
            ProbeResponse::failed("cannot connect: refused", Some("is it there?".into())),
            Level::Failed,
            "refused\n      is it there?",
        ),
    ] {
        let results = results(vec![(ProbeCredential::Token, response)], (true, false));
        let (worst, shown) = report(&results);
        assert_eq!(worst, level, "{shown}");
        assert!(shown.contains(text), "{shown}");
    }
}

#[test]
fn credentials_of_callers_and_of_rails_are_compared() {
    let accepted = || response(200, &[], CHECK);
    let refused = || response(401, &[], REFUSED);
    for (token, secret, accepts, level, text) in [
        (accepted(), accepted(), (true, true), Level::Ok, "tokens and the secret"),
        (accepted(), refused(), (true, false), Level::Ok, "accepts tokens"),
        (accepted(), refused(), (true, true), Level::Warning, "accept = [\"jwt\"]"),
        (accepted(), refused(), (false, true), Level::Failed, "upstream.credential = \"jwt\""),
        (refused(), accepted(), (false, true), Level::Ok, "accepts the secret itself"),
        (refused(), accepted(), (true, true), Level::Warning, "accept = [\"shared_secret\"]"),
        (refused(), accepted(), (true, false), Level::Failed, "upstream.credential = \"shared_secret\""),
        (refused(), refused(), (true, true), Level::Failed, "auth.shell.secret_file"),
        (
            refused(),
            response(401, &[], r#"{"error":"Unauthorized"}"#),
            (true, true),
            Level::Failed,
            "upstream.secret_file",
        ),
    ] {
        let results =
            results(vec![(ProbeCredential::Token, token), (ProbeCredential::Secret, secret)], accepts);
        let (worst, shown) = report(&results);
        assert_eq!(worst, level, "{accepts:?}\n{shown}");
        assert!(shown.contains(text), "{accepts:?}\n{shown}");
    }
    let translated = |response| results(vec![(ProbeCredential::Translated, response)], (true, true));
    assert_eq!(report(&translated(accepted())).0, Level::Ok);
    assert_eq!(report(&translated(refused())).0, Level::Failed);
}

#[test]
fn clock_differences_and_long_targets_are_reported() {
    let with = |date: &str, longest_target| {
        let response = response(200, &[("date", date)], CHECK);
        ProbeResults { longest_target, ..results(vec![(ProbeCredential::Token, response)], (true, false)) }
    };
    for (date, level, text) in [
        ("Sun, 29 Nov 2026 12:00:05 GMT", Level::Ok, "agrees"),
        ("Sun, 29 Nov 2026 11:59:55 GMT", Level::Ok, "agrees"),
        ("Sun, 29 Nov 2026 12:00:06 GMT", Level::Warning, "6 s ahead of"),
        ("Sun, 29 Nov 2026 11:50:00 GMT", Level::Warning, "600 s behind"),
        ("yesterday", Level::Ok, "answers `check`"),
    ] {
        let (worst, shown) = report(&with(date, None));
        assert_eq!(worst, level, "{shown}");
        assert!(shown.contains(text), "{shown}");
    }
    for (longest_target, level, text) in [
        (response(200, &[], CHECK), Level::Ok, "11264 bytes"),
        (response(414, &[], ""), Level::Failed, "(414 URI Too Long)"),
        (ProbeResponse::failed("the connection failed", None), Level::Failed, "PUMA_QUERY_STRING_MAX_LENGTH"),
    ] {
        let (worst, shown) = report(&with("", Some(longest_target)));
        assert_eq!(worst, level, "{shown}");
        assert!(shown.contains(text), "{shown}");
    }
}

#[test]
fn a_name_with_several_addresses_is_reported() {
    for (addresses, is_reported) in [
        (&["10.0.0.1", "10.0.0.2"][..], true),
        (&["fd00::1", "fd00::2", "10.0.0.1"], true),
        (&["10.0.0.1", "fd00::1"], false),
        (&["127.0.0.1", "::1"], false),
        (&["10.0.0.1"], false),
        (&[], false),
    ] {
        let mut results = results(vec![(ProbeCredential::Token, response(200, &[], CHECK))], (true, false));
        let parsed = addresses.iter().map(|address| address.parse().unwrap()).collect();
        results.name = Some(("rails.example".to_owned(), parsed));
        let (level, text) = report(&results);
        assert_eq!(level == Level::Warning, is_reported, "{addresses:?}: {text}");
        assert_eq!(text.contains("[[upstream.server]]"), is_reported, "{text}");
    }
}

#[test]
fn rails_without_workhorse_is_reported() {
    for (page, level) in
        [(response(200, &[], "<html>"), Level::Ok), (response(404, &[], "{}"), Level::Warning)]
    {
        let mut results = results(vec![(ProbeCredential::Token, response(200, &[], CHECK))], (true, false));
        results.page = Some(page);
        let (found, text) = report(&results);
        assert_eq!((found, text.contains("Workhorse")), (level, true), "{text}");
    }
}
