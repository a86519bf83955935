//! Before anyone is measured: does every peer do the job at all?
//!
//! Each has to refuse whoever does not know the secret without asking Rails, to answer from memory
//! what it has asked before and only that, and to give the same answers as Rails.

use http::header::CONTENT_TYPE;

use crate::ask::{self, Place, ask};
use crate::credentials::{self, KAS_HEADER, SHELL_HEADER, SHELL_TOKEN_HEADER};
use crate::load;
use crate::peers::{Running, Software};
use crate::stage::{self, Stage};
use crate::{Fallible, keys};

const ALLOWED: &str = "/api/v4/internal/allowed";
const AGENT_INFO: &str = "/api/v4/internal/kubernetes/agent_info";
const LOOKUPS: [&str; 2] = ["/api/v4/internal/discover?key_id=7", "/api/v4/internal/check"];

/// Everything that a peer is to do. Says in a few words what was checked.
pub(crate) fn all(running: &Running, stage: &Stage, keys: u64) -> Fallible<String> {
    let check = Check { running, stage, secret: credentials::shared_secret() };
    if running.peer.software == Software::Floor {
        return Ok("checks no secret, keeps nothing, asks nobody: a limit".to_owned());
    }
    check.refuses_strangers()?;
    check.answers_from_memory()?;
    check.forwards()?;
    let mut done = "credentials, memory, forwarding".to_owned();
    if running.peer.software == Software::Railgate {
        check.knows_shell_tokens()?;
        done.push_str(", tokens of GitLab Shell");
    }
    if matches!(running.peer.software, Software::Railgate | Software::Haproxy) {
        check.knows_kas_tokens()?;
        done.push_str(", tokens of kas");
    }
    check.holds_all(keys)?;
    Ok(format!("{done}; all {keys} keys stay in memory"))
}

struct Check<'a> {
    running: &'a Running,
    stage: &'a Stage,
    secret: String,
}

impl Check<'_> {
    fn must(&self, holds: bool, what: &str) -> Fallible<()> {
        if holds { Ok(()) } else { Err(format!("{}: {what}", self.running.peer.name).into()) }
    }

    fn key(number: u64) -> String {
        let key = keys::key((1 << 50) + number);
        format!("/api/v4/internal/authorized_keys?key={}", keys::escaped(&key))
    }

    /// Asks with the right secret.
    fn get(&self, place: &Place, path: &str) -> Fallible<ask::Answer> {
        ask(place, "GET", path, &[(SHELL_HEADER, &self.secret)], "")
    }

    /// Nothing of what `headers` ask for may reach Rails.
    fn must_refuse(&self, method: &str, path: &str, headers: &ask::Headers<'_>) -> Fallible<()> {
        let before = self.stage.rails.count()?;
        for place in self.running.places() {
            let body = if method == "POST" { "a=b" } else { "" };
            let status = ask(&place, method, path, headers, body)?.status;
            let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
            let what = format!("{method} {path} with a bad credential {names:?} was answered {status}");
            self.must(matches!(status, 401 | 403), &what)?;
        }
        let after = self.stage.rails.count()?;
        self.must(before == after, "a request without the secret reached Rails")
    }

    fn refuses_strangers(&self) -> Fallible<()> {
        let wrong = format!("{}AAA=", self.secret.get(..self.secret.len() - 4).unwrap_or_default());
        for headers in [&[][..], &[(SHELL_HEADER, wrong.as_str())], &[(SHELL_HEADER, "")]] {
            self.must_refuse("GET", &Self::key(0), headers)?;
            self.must_refuse("POST", ALLOWED, headers)?;
        }
        Ok(())
    }

    fn answers_from_memory(&self) -> Fallible<()> {
        let rails = Place::Port(self.stage.rails.port);
        let [tcp, _] = self.running.places();
        let paths: Vec<String> = std::iter::once(Self::key(0)).chain(LOOKUPS.map(str::to_owned)).collect();
        for path in &paths {
            self.get(&tcp, path)?;
        }
        for path in &paths {
            let expected = self.get(&rails, path)?.body;
            let before = self.stage.rails.count()?;
            for place in self.running.places().iter().cycle().take(20) {
                let answer = self.get(place, path)?;
                self.must(answer.status == 200, &format!("{path} was answered {}", answer.status))?;
                self.must(answer.body == expected, &format!("{path} has another body than from Rails"))?;
            }
            let asked = self.stage.rails.count()? - before;
            self.must(asked == 0, &format!("{asked} of 20 repetitions of {path} reached Rails"))?;
        }
        let before = self.stage.rails.count()?;
        let other = self.get(&tcp, &Self::key(1))?.body;
        self.must(self.stage.rails.count()? == before + 1, "another key was not asked of Rails")?;
        let expected = self.get(&rails, &Self::key(1))?.body;
        self.must(other == expected, "another key has another body than from Rails")?;
        // What is in memory by now is for those with the secret only.
        self.must_refuse("GET", &Self::key(0), &[])
    }

    fn forwards(&self) -> Fallible<()> {
        let form = (CONTENT_TYPE.as_str(), "application/x-www-form-urlencoded");
        let before = self.stage.rails.count()?;
        let headers = [(SHELL_HEADER, self.secret.as_str()), form];
        for place in self.running.places() {
            let answer = ask(&place, "POST", ALLOWED, &headers, "key_id=1&action=git-upload-pack")?;
            let what = format!("{ALLOWED} was answered {}", answer.status);
            self.must(answer.status == 200 && answer.body.starts_with(br#"{"status":true"#), &what)?;
        }
        self.must(self.stage.rails.count()? == before + 2, "a POST did not reach Rails")
    }

    fn knows_shell_tokens(&self) -> Fallible<()> {
        let token = credentials::shell_token();
        let [tcp, _] = self.running.places();
        let answer = ask(&tcp, "GET", &Self::key(0), &[(SHELL_TOKEN_HEADER, &token)], "")?;
        self.must(answer.status == 200, "a token of GitLab Shell was refused")?;
        let from_memory = answer
            .headers
            .get("cache-status")
            .is_some_and(|status| String::from_utf8_lossy(status.as_bytes()).contains("hit"));
        self.must(from_memory, "a caller with a token was not answered from memory")?;
        self.must_refuse("GET", &Self::key(0), &[(SHELL_TOKEN_HEADER, &spoilt(&token))])
    }

    fn knows_kas_tokens(&self) -> Fallible<()> {
        let token = credentials::kas_token();
        for place in self.running.places() {
            let answer = ask(&place, "GET", AGENT_INFO, &[(KAS_HEADER, &token)], "")?;
            self.must(answer.status == 200, "a token of kas was refused")?;
        }
        self.must_refuse("GET", AGENT_INFO, &[])?;
        self.must_refuse("GET", AGENT_INFO, &[(SHELL_HEADER, &self.secret)])?;
        self.must_refuse("GET", AGENT_INFO, &[(KAS_HEADER, &spoilt(&token))])?;
        self.must_refuse("GET", AGENT_INFO, &[(KAS_HEADER, &credentials::expired_kas_token())])
    }

    /// Asks for every key that the rounds will ask for, twice.
    fn holds_all(&self, keys: u64) -> Fallible<()> {
        let fill = load::Options {
            to: self.running.port.to_string(),
            requests: keys,
            keys,
            ..load::Options::default()
        };
        stage::run_load(&fill)?;
        let before = self.stage.rails.count()?;
        let figures = stage::run_load(&fill)?;
        let asked = self.stage.rails.count()? - before;
        self.must(figures.errors == 0, &format!("{} errors while all keys were asked for", figures.errors))?;
        self.must(asked == 0, &format!("{asked} of {keys} keys were asked for again"))
    }
}

/// The token with another signature.
fn spoilt(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or_default();
    let changed = if signature.starts_with("AAAA") { "BBBB" } else { "AAAA" };
    format!("{signed}.{changed}{}", signature.get(4..).unwrap_or_default())
}
