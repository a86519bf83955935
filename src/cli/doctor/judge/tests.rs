use super::*;
use http::Response;

const CHECK: &str = r#"{"api_version":"v4","gitlab_version":"18.10.0","redis":true}"#;
const REFUSED: &str = r#"{"message":"401 Unauthorized"}"#;
/// Sun, 29 Nov 2026 12:00:00 GMT.
const NOW: i64 = 1_795_953_600;

fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Answer {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    let (head, ()) = answer.body(()).unwrap().into_parts();
    Answer::Some { head: Box::new(head), body: Bytes::from_static(body.as_bytes()) }
}

fn facts(answers: Vec<(Credential, Answer)>, accepts: (bool, bool)) -> Facts {
    let (accepts_token, accepts_secret) = accepts;
    Facts { accepts_token, accepts_secret, now: NOW, answers, longest: None, target: 11_264 }
}

/// The worst that is found, and all that is said.
fn told(facts: &Facts) -> (Level, String) {
    let findings = findings(facts);
    let worst = |level| findings.iter().any(|finding| finding.level == level);
    let level = [Level::Failed, Level::Warning].into_iter().find(|level| worst(*level));
    let text: Vec<_> = findings.iter().map(ToString::to_string).collect();
    (level.unwrap_or(Level::Ok), text.join("\n"))
}

#[test]
fn what_answers_is_told_from_what_should() {
    for (answer, level, text) in [
        (answer(200, &[], CHECK), Level::Ok, "GitLab 18.10.0 answers"),
        (answer(200, &[], r#"{"api_version":"v4","redis":false}"#), Level::Warning, "cannot reach Redis"),
        (
            answer(200, &[("content-type", "text/html")], "<html>"),
            Level::Failed,
            "is not GitLab's internal API",
        ),
        (answer(200, &[], "{}"), Level::Failed, "is not GitLab's internal API"),
        (
            answer(301, &[("location", "https://gitlab/x")], ""),
            Level::Failed,
            "redirects to \"https://gitlab/x\"",
        ),
        (answer(401, &[], "who are you?"), Level::Failed, "is not GitLab's internal API"),
        (answer(403, &[], "{}"), Level::Failed, "is not GitLab's internal API"),
        (answer(404, &[], r#"{"error":"404 Not Found"}"#), Level::Failed, "relative URL root"),
        (answer(502, &[], ""), Level::Failed, "is Puma running?"),
        (
            Answer::none("cannot connect: refused", Some("is it there?".into())),
            Level::Failed,
            "refused\n      is it there?",
        ),
    ] {
        let facts = facts(vec![(Credential::Token, answer)], (true, false));
        let (found, told) = told(&facts);
        assert_eq!(found, level, "{told}");
        assert!(told.contains(text), "{told}");
    }
}

#[test]
fn credentials_of_callers_and_of_rails_have_to_agree() {
    let taken = || answer(200, &[], CHECK);
    let refused = || answer(401, &[], REFUSED);
    for (token, secret, accepts, level, text) in [
        (taken(), taken(), (true, true), Level::Ok, "tokens and the secret"),
        (taken(), refused(), (true, false), Level::Ok, "takes tokens"),
        (taken(), refused(), (true, true), Level::Warning, "accept = [\"jwt\"]"),
        (taken(), refused(), (false, true), Level::Failed, "upstream.credential = \"jwt\""),
        (refused(), taken(), (false, true), Level::Ok, "takes the secret itself"),
        (refused(), taken(), (true, true), Level::Warning, "accept = [\"shared_secret\"]"),
        (refused(), taken(), (true, false), Level::Failed, "upstream.credential = \"shared_secret\""),
        (refused(), refused(), (true, true), Level::Failed, "auth.shell.secret_file"),
        (
            refused(),
            answer(401, &[], r#"{"error":"Unauthorized"}"#),
            (true, true),
            Level::Failed,
            "upstream.secret_file",
        ),
    ] {
        let facts = facts(vec![(Credential::Token, token), (Credential::Secret, secret)], accepts);
        let (found, told) = told(&facts);
        assert_eq!(found, level, "{accepts:?}\n{told}");
        assert!(told.contains(text), "{accepts:?}\n{told}");
    }
    let translated = |answer| facts(vec![(Credential::Translated, answer)], (true, true));
    assert_eq!(told(&translated(taken())).0, Level::Ok);
    assert_eq!(told(&translated(refused())).0, Level::Failed);
}

#[test]
fn clocks_that_differ_and_targets_that_are_too_long_are_told() {
    let with = |date: &str, longest| {
        let answer = answer(200, &[("date", date)], CHECK);
        Facts { longest, ..facts(vec![(Credential::Token, answer)], (true, false)) }
    };
    for (date, level, text) in [
        ("Sun, 29 Nov 2026 12:00:05 GMT", Level::Ok, "agrees"),
        ("Sun, 29 Nov 2026 11:59:55 GMT", Level::Ok, "agrees"),
        ("Sun, 29 Nov 2026 12:00:06 GMT", Level::Warning, "6 s ahead of"),
        ("Sun, 29 Nov 2026 11:50:00 GMT", Level::Warning, "600 s behind"),
        ("yesterday", Level::Ok, "answers `check`"),
    ] {
        let (found, told) = told(&with(date, None));
        assert_eq!(found, level, "{told}");
        assert!(told.contains(text), "{told}");
    }
    for (longest, level, text) in [
        (answer(200, &[], CHECK), Level::Ok, "11264 bytes"),
        (answer(414, &[], ""), Level::Failed, "(414 URI Too Long)"),
        (Answer::none("the connection failed", None), Level::Failed, "PUMA_QUERY_STRING_MAX_LENGTH"),
    ] {
        let (found, told) = told(&with("", Some(longest)));
        assert_eq!(found, level, "{told}");
        assert!(told.contains(text), "{told}");
    }
}
