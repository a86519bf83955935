//! GitLab's API for System Hooks (`/api/v4/hooks`), as far as it takes to install one.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::secret::Token;
use railgate::upstream::tls::{self, Tls};
use railgate::upstream::{self, Address, Protocol, ServerSettings, Target, Upstream};
use serde_json::{Value, json};

use super::client;

/// A GitLab, and the token of an administrator.
pub(super) struct Gitlab {
    url: String,
    api: Upstream,
    token: Token,
}

/// It may be far away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What GitLab gives at most in one answer.
const PER_PAGE: usize = 100;

/// Nobody has so many hooks; a server that goes on for ever is no GitLab.
const MOST_PAGES: usize = 100;

impl Gitlab {
    pub(super) fn new(url: &str, api_token: &Path, ca: Option<&Path>) -> Result<Self, String> {
        let target = Target::parse(url).map_err(|error| format!("--gitlab {url}: {error}"))?;
        let token = Token::load(api_token)
            .map_err(|error| format!("--api-token-file {}: {error}", api_token.display()))?;
        if ca.is_some() && !target.is_tls {
            return Err(format!("--ca-file: is for a --gitlab that begins with https://, not {url}"));
        }
        let tls = match &target {
            Target { is_tls: true, address: Address::Tcp(host, _), .. } => {
                let roots = match ca {
                    Some(ca) => tls::authorities(ca)
                        .map_err(|error| format!("--ca-file {}: {error}", ca.display()))?,
                    None => tls::system_authorities().map_err(|error| format!("--gitlab {url}: {error}"))?,
                };
                Some(
                    Tls::new(roots, None, upstream::without_zone(host), Protocol::Http1)
                        .map_err(|error| format!("--gitlab {url}: {error}"))?,
                )
            }
            Target { address: Address::Tcp(host, _), .. } if !is_loopback(host) => {
                return Err(format!("--gitlab {url}: would send the API token in clear; use https://"));
            }
            _ => None,
        };
        let mut settings = upstream::Settings::of(ServerSettings { target, tls, is_backup: false });
        settings.connect_timeout = CONNECT_TIMEOUT;
        let api = Upstream::alone(settings);
        Ok(Self { url: url.to_owned(), api, token })
    }

    /// Has events sent to `url`, with `hook_token` as `X-Gitlab-Token`. What there is to say of it.
    pub(super) async fn install(&self, url: &str, hook_token: Option<&Token>) -> Result<String, String> {
        let hook_token = hook_token.ok_or(
            "with hooks.signing_token_file alone, GitLab has to make the token: set the hook up by hand",
        )?;
        if let Some(id) = self.find(url).await? {
            return Ok(format!(
                "{} tells {url} already (System Hook {id}). If its secret token is not the word in \
                 hooks.token_file, delete it there and run this again.",
                self.url
            ));
        }
        // Keys and users are told of always; these are not of interest.
        let hook = json!({
            "url": url,
            "token": hook_token.revealed(),
            "push_events": false,
            "tag_push_events": false,
            "merge_requests_events": false,
            "repository_update_events": false,
        });
        let answer = self.ask(Method::POST, "/api/v4/hooks", &hook.to_string()).await?;
        let id = answer.get("id").and_then(Value::as_u64).ok_or_else(|| self.is_odd())?;
        Ok(format!("{} tells {url} of keys and users from now on (System Hook {id}).", self.url))
    }

    /// The id of the hook that is there for `url`.
    async fn find(&self, url: &str) -> Result<Option<u64>, String> {
        for page in 1..=MOST_PAGES {
            let path = format!("/api/v4/hooks?per_page={PER_PAGE}&page={page}");
            let answer = self.ask(Method::GET, &path, "").await?;
            let hooks = answer.as_array().ok_or_else(|| self.is_odd())?;
            let is_it = |hook: &&Value| hook.get("url").and_then(Value::as_str) == Some(url);
            if let Some(hook) = hooks.iter().find(is_it) {
                return Ok(Some(hook.get("id").and_then(Value::as_u64).unwrap_or_default()));
            }
            if hooks.len() < PER_PAGE {
                return Ok(None);
            }
        }
        Err(format!("{} has more than {} System Hooks", self.url, MOST_PAGES * PER_PAGE))
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> Result<Value, String> {
        let (status, answer) = client::send(&self.api, method, path, Some(&self.token), body)
            .await
            .map_err(|error| format!("no answer of {}: {error}", self.url))?;
        if status.is_success() {
            return Ok(answer);
        }
        let said = answer.get("message").or_else(|| answer.get("error")).unwrap_or(&Value::Null);
        let said = said.as_str().map_or_else(|| said.to_string(), str::to_owned);
        let advice = match status {
            StatusCode::UNAUTHORIZED => "the API token is wrong, revoked or expired",
            StatusCode::FORBIDDEN => {
                "the API token has to be an administrator's, with the scope `api` (and `admin_mode`, where that is on)"
            }
            StatusCode::NOT_FOUND => "is this the URL of a GitLab, with its relative URL root?",
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                "if it says that the URL is blocked: Admin area, Settings, Network, Outbound requests, \
                 allow requests to the local network from system hooks"
            }
            status if status.is_redirection() => "it redirects elsewhere; name that URL",
            _ => "look at its log",
        };
        Err(format!("{} said {status}: {said}; {advice}", self.url))
    }

    /// What it said is not repeated: it may be what it was told.
    fn is_odd(&self) -> String {
        format!("{} gave an answer that is not that of GitLab's API for System Hooks", self.url)
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
