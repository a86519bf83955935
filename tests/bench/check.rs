//! Checks before the measurement that every peer does the job.
//!
//! Each has to refuse requests without the secret without asking Rails, to answer repeated cacheable
//! requests from memory and no others, and to give the same responses as Rails.

use http::header::CONTENT_TYPE;

use crate::credentials::{self, KAS_HEADER, SHELL_HEADER, SHELL_TOKEN_HEADER};
use crate::environment::{self, Environment};
use crate::http_client::{self, Address, send};
use crate::load;
use crate::peers::{Running, Software};
use crate::{Fallible, keys};

const ALLOWED: &str = "/api/v4/internal/allowed";
const AGENT_INFO: &str = "/api/v4/internal/kubernetes/agent_info";
const LOOKUPS: [&str; 2] = ["/api/v4/internal/discover?key_id=7", "/api/v4/internal/check"];

/// Runs all checks. Returns a short description of them.
pub(crate) fn all(running: &Running, environment: &Environment, keys: u64) -> Fallible<String> {
    let check = Check { running, environment, secret: credentials::shared_secret() };
    if running.peer.software == Software::BareHyper {
        return Ok("no checks of secrets, no cache, no upstream: a lower limit".to_owned());
    }
    check.refuses_unauthenticated()?;
    check.answers_from_memory()?;
    check.forwards()?;
    let mut done = "credentials, cache, forwarding".to_owned();
    if running.peer.software == Software::Railgate {
        check.accepts_shell_tokens()?;
        done.push_str(", tokens of GitLab Shell");
    }
    if matches!(running.peer.software, Software::Railgate | Software::Haproxy) {
        check.accepts_kas_tokens()?;
        done.push_str(", tokens of kas");
    }
    check.stores_all(keys)?;
    Ok(format!("{done}; all {keys} keys stay cached"))
}

struct Check<'a> {
    running: &'a Running,
    environment: &'a Environment,
    secret: String,
}

impl Check<'_> {
    fn ensure(&self, holds: bool, what: &str) -> Fallible<()> {
        if holds { Ok(()) } else { Err(format!("{}: {what}", self.running.peer.name).into()) }
    }

    fn key(number: u64) -> String {
        let key = keys::key((1 << 50) + number);
        format!("/api/v4/internal/authorized_keys?key={}", keys::escaped(&key))
    }

    /// Sends a request with the right secret.
    fn get(&self, address: &Address, path: &str) -> Fallible<http_client::Response> {
        send(address, "GET", path, &[(SHELL_HEADER, &self.secret)], "")
    }

    /// Asserts that requests with these headers are refused without reaching Rails.
    fn ensure_refused(&self, method: &str, path: &str, headers: &http_client::Headers<'_>) -> Fallible<()> {
        let before = self.environment.rails.count()?;
        for address in self.running.addresses() {
            let body = if method == "POST" { "a=b" } else { "" };
            let status = send(&address, method, path, headers, body)?.status;
            let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
            let what = format!("{method} {path} with a bad credential {names:?} was answered {status}");
            self.ensure(matches!(status, 401 | 403), &what)?;
        }
        let after = self.environment.rails.count()?;
        self.ensure(before == after, "a request without the secret reached Rails")
    }

    fn refuses_unauthenticated(&self) -> Fallible<()> {
        let wrong = format!("{}AAA=", self.secret.get(..self.secret.len() - 4).unwrap_or_default());
        for headers in [&[][..], &[(SHELL_HEADER, wrong.as_str())], &[(SHELL_HEADER, "")]] {
            self.ensure_refused("GET", &Self::key(0), headers)?;
            self.ensure_refused("POST", ALLOWED, headers)?;
        }
        Ok(())
    }

    fn answers_from_memory(&self) -> Fallible<()> {
        let rails = Address::Port(self.environment.rails.port);
        let [tcp, _] = self.running.addresses();
        let paths: Vec<String> = std::iter::once(Self::key(0)).chain(LOOKUPS.map(str::to_owned)).collect();
        for path in &paths {
            self.get(&tcp, path)?;
        }
        for path in &paths {
            let expected = self.get(&rails, path)?.body;
            let before = self.environment.rails.count()?;
            for address in self.running.addresses().iter().cycle().take(20) {
                let response = self.get(address, path)?;
                self.ensure(response.status == 200, &format!("{path} was answered {}", response.status))?;
                self.ensure(response.body == expected, &format!("{path} has another body than from Rails"))?;
            }
            let asked = self.environment.rails.count()? - before;
            self.ensure(asked == 0, &format!("{asked} of 20 repetitions of {path} reached Rails"))?;
        }
        let before = self.environment.rails.count()?;
        let other = self.get(&tcp, &Self::key(1))?.body;
        self.ensure(self.environment.rails.count()? == before + 1, "another key did not reach Rails")?;
        let expected = self.get(&rails, &Self::key(1))?.body;
        self.ensure(other == expected, "another key has another body than from Rails")?;
        // Cached responses require the secret too.
        self.ensure_refused("GET", &Self::key(0), &[])
    }

    fn forwards(&self) -> Fallible<()> {
        let form = (CONTENT_TYPE.as_str(), "application/x-www-form-urlencoded");
        let before = self.environment.rails.count()?;
        let headers = [(SHELL_HEADER, self.secret.as_str()), form];
        for address in self.running.addresses() {
            let response = send(&address, "POST", ALLOWED, &headers, "key_id=1&action=git-upload-pack")?;
            let what = format!("{ALLOWED} was answered {}", response.status);
            self.ensure(response.status == 200 && response.body.starts_with(br#"{"status":true"#), &what)?;
        }
        self.ensure(self.environment.rails.count()? == before + 2, "a POST did not reach Rails")
    }

    fn accepts_shell_tokens(&self) -> Fallible<()> {
        let token = credentials::shell_token();
        let [tcp, _] = self.running.addresses();
        let response = send(&tcp, "GET", &Self::key(0), &[(SHELL_TOKEN_HEADER, &token)], "")?;
        self.ensure(response.status == 200, "a token of GitLab Shell was refused")?;
        let from_memory = response
            .headers
            .get("cache-status")
            .is_some_and(|status| String::from_utf8_lossy(status.as_bytes()).contains("hit"));
        self.ensure(from_memory, "a caller with a token was not answered from memory")?;
        self.ensure_refused("GET", &Self::key(0), &[(SHELL_TOKEN_HEADER, &with_wrong_signature(&token))])
    }

    fn accepts_kas_tokens(&self) -> Fallible<()> {
        let token = credentials::kas_token();
        for address in self.running.addresses() {
            let response = send(&address, "GET", AGENT_INFO, &[(KAS_HEADER, &token)], "")?;
            self.ensure(response.status == 200, "a token of kas was refused")?;
        }
        self.ensure_refused("GET", AGENT_INFO, &[])?;
        self.ensure_refused("GET", AGENT_INFO, &[(SHELL_HEADER, &self.secret)])?;
        self.ensure_refused("GET", AGENT_INFO, &[(KAS_HEADER, &with_wrong_signature(&token))])?;
        self.ensure_refused("GET", AGENT_INFO, &[(KAS_HEADER, &credentials::expired_kas_token())])
    }

    /// Requests every key of the rounds twice.
    fn stores_all(&self, keys: u64) -> Fallible<()> {
        let fill = load::Options {
            to: self.running.port.to_string(),
            requests: keys,
            keys,
            ..load::Options::default()
        };
        environment::run_load(&fill)?;
        let before = self.environment.rails.count()?;
        let figures = environment::run_load(&fill)?;
        let asked = self.environment.rails.count()? - before;
        self.ensure(
            figures.errors == 0,
            &format!("{} errors while all keys were requested", figures.errors),
        )?;
        self.ensure(asked == 0, &format!("{asked} of {keys} keys reached Rails again"))
    }
}

/// The token with a wrong signature.
fn with_wrong_signature(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or_default();
    let changed = if signature.starts_with("AAAA") { "BBBB" } else { "AAAA" };
    format!("{signed}.{changed}{}", signature.get(4..).unwrap_or_default())
}
