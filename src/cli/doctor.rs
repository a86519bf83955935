//! `railgate doctor`: asks each server of Rails what an experienced operator would ask first, and says
//! what is wrong and what to do.

mod judge;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use railgate::auth::mint::{Mint, Wanted};
use railgate::body::{Body, Collected};
use railgate::config::{self, Settings};
use railgate::route::{Class, PREFIX};
use railgate::upstream::{
    self, Error, SendOptions, SendReport, Upstream, UpstreamServerSettings, UpstreamState,
};

use self::judge::{Answer, Credential, Facts, Finding, Level};
use super::{client, say, say_error};

/// Bytes of the largest answer that is read.
const MOST: usize = 64 * 1024;

/// Exits 0 if nothing has failed; warnings alone do not fail.
pub(super) fn main(file: &Path) -> ExitCode {
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(problems) => {
            say_error(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let mut has_failed = false;
    let mut tell = |finding: Finding| {
        has_failed |= finding.level == Level::Failed;
        say(&finding.to_string());
    };
    for warning in &loaded.warnings {
        tell(Finding::warning(warning.to_string(), None));
    }
    let settings = &loaded.settings;
    for server in &settings.upstream.servers {
        say(&format!("{}:", server.name()));
        match client::block_on(async { Ok(examine(settings, server).await) }) {
            Ok(facts) => judge::findings(&facts).into_iter().for_each(&mut tell),
            Err(error) => tell(Finding::failed(error, "look at the limits of this machine")),
        }
    }
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Asks one server, each question once.
async fn examine(settings: &Settings, server: &UpstreamServerSettings) -> Facts {
    let alone = upstream::UpstreamSettings { servers: vec![server.clone()], ..settings.upstream.clone() };
    let state = Arc::new(UpstreamState::new(&alone));
    let rails = Upstream::new(&alone, state);
    let (auth, mint) = (&settings.auth, settings.mint.as_ref());
    let shown = match mint {
        Some(mint) => vec![(Credential::Translated, mint.clone())],
        None => vec![
            (Credential::Token, Mint::new(Wanted::Jwt, &auth.shell_secret)),
            (Credential::Secret, Mint::new(Wanted::SharedSecret, &auth.shell_secret)),
        ],
    };
    let mut facts = Facts {
        accepts_token: auth.accept_jwt,
        accepts_secret: auth.accept_shared_secret,
        now: now(),
        answers: Vec::new(),
        longest: None,
        target: settings.limits.target,
    };
    for (credential, mint) in &shown {
        let answer = ask(&rails, "/check", mint).await;
        let is_over = matches!(answer, Answer::None { .. });
        facts.answers.push((*credential, answer));
        if is_over {
            return facts;
        }
    }
    // The longest target that the gateway lets pass, to the server that has just let one pass.
    let taken = facts.answers.iter().position(|(_, answer)| answer.status() == Some(200));
    if let Some((_, mint)) = taken.and_then(|taken| shown.get(taken)) {
        let path = "/check?filler=";
        let filler = "x".repeat(settings.limits.target.saturating_sub(1024 + PREFIX.len() + path.len()));
        facts.longest = Some(ask(&rails, &format!("{path}{filler}"), mint).await);
    }
    facts
}

async fn ask(rails: &Upstream, endpoint: &str, mint: &Mint) -> Answer {
    let mut headers = HeaderMap::new();
    mint.replace(&mut headers, now());
    let request = Request::builder().uri(format!("{PREFIX}{endpoint}"));
    let request = request.header(header::USER_AGENT, "railgate (doctor)").body(Body::empty());
    let Ok(mut request) = request else { return Answer::none("the question is no request", None) };
    request.headers_mut().extend(headers);
    let plan = SendOptions { class: Class::Lookup, ..SendOptions::default() };
    match rails.send(request, &plan, &mut SendReport::default()).await {
        Ok(answer) => read(answer).await,
        Err(error) => Answer::none(&error.chain(), Some(why(&error))),
    }
}

async fn read(answer: Response<Body>) -> Answer {
    let (head, body) = answer.into_parts();
    match body.collect_up_to(MOST).await {
        Ok(Collected::Whole(body)) => Answer::Some { head: Box::new(head), body },
        Ok(Collected::TooLong(_)) => Answer::Some { head: Box::new(head), body: Bytes::new() },
        Err(error) => Answer::none(&format!("the answer broke off: {error}"), None),
    }
}

/// What to do about an answer that did not come, as far as its error does not say so itself.
fn why(error: &Error) -> String {
    let mend = match error {
        Error::Connect(_, error) => judge::mend(upstream::UnreachableCause::of(error)),
        _ => "look at the log of Rails, and of what stands in front of it",
    };
    error.hint().unwrap_or(mend).to_owned()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
