//! GitLab's API for System Hooks (`/api/v4/hooks`), as far as it takes to install one.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::hooks;
use railgate::secret::{SigningToken, Token};
use railgate::upstream::tls::{self, Tls};
use railgate::upstream::{self, Protocol, Upstream, UpstreamAddress, UpstreamServerSettings, UpstreamTarget};
use serde_json::{Map, Value, json};

use super::client;

/// A GitLab, and the token of an administrator.
pub(super) struct Gitlab {
    url: String,
    api: Upstream,
    token: Token,
}

const HOOKS: &str = "/api/v4/hooks";

/// Of the first releases that sign. Not all of 18 do.
const FIRST_WITH_SIGNATURES: u32 = 18;

/// Bytes that a signing token stands for.
const SIGNING_TOKEN: usize = 32;

const IF_NOT_SIGNED: &str = "\nIf railgate_hooks_refused_total rises, it does not sign: some releases of 18 cannot, and it may be turned off \
     (feature flag webhook_signing_token). Then name a hooks.token_file too, and run this again.";

/// It may be far away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What GitLab gives at most in one answer.
const PER_PAGE: usize = 100;

/// Nobody has so many hooks; a server that goes on for ever is no GitLab.
const MOST_PAGES: usize = 100;

impl Gitlab {
    pub(super) fn new(url: &str, api_token: &Path, ca: Option<&Path>) -> Result<Self, String> {
        let target = UpstreamTarget::parse(url).map_err(|error| format!("--gitlab {url}: {error}"))?;
        let token = Token::load(api_token)
            .map_err(|error| format!("--api-token-file {}: {error}", api_token.display()))?;
        if ca.is_some() && !target.is_tls {
            return Err(format!("--ca-file: is for a --gitlab that begins with https://, not {url}"));
        }
        let tls = match &target {
            UpstreamTarget { is_tls: true, address: UpstreamAddress::Tcp(host, _), .. } => {
                let roots = match ca {
                    Some(ca) => tls::read_authorities(ca)
                        .map_err(|error| format!("--ca-file {}: {error}", ca.display()))?,
                    None => tls::system_authorities().map_err(|error| format!("--gitlab {url}: {error}"))?,
                };
                Some(
                    Tls::new(roots, None, upstream::without_zone(host), Protocol::Http1)
                        .map_err(|error| format!("--gitlab {url}: {error}"))?,
                )
            }
            UpstreamTarget { address: UpstreamAddress::Tcp(host, _), .. } if !is_loopback(host) => {
                return Err(format!("--gitlab {url}: would send the API token in clear; use https://"));
            }
            _ => None,
        };
        let mut settings =
            upstream::UpstreamSettings::for_server(UpstreamServerSettings { target, tls, is_backup: false });
        settings.connect_timeout = CONNECT_TIMEOUT;
        let api = Upstream::standalone(settings);
        Ok(Self { url: url.to_owned(), api, token })
    }

    /// Has events sent to `url`, with the tokens that the gateway takes. What there is to say of it.
    pub(super) async fn install(&self, url: &str, hooks: &hooks::Settings) -> Result<String, String> {
        let tokens = self.tokens(hooks).await?;
        // Some releases may take no notice of a signing token, and none says whether it has.
        let relies_on_signature = hooks.token.is_none();
        let advice = if relies_on_signature { IF_NOT_SIGNED } else { "" };
        if let Some(id) = self.find(url).await? {
            return self.renew(id, url, tokens).await.map(|told| told + advice);
        }
        // Keys and users are told of always; these are not of interest.
        let mut hook = json!({
            "url": url,
            "push_events": false,
            "tag_push_events": false,
            "merge_requests_events": false,
            "repository_update_events": false,
        });
        if let Some(hook) = hook.as_object_mut() {
            hook.extend(tokens);
        }
        let answer = accepted(self, self.ask(Method::POST, HOOKS, &hook.to_string()).await?)?;
        let id = answer.get("id").and_then(Value::as_u64).ok_or_else(|| self.is_odd())?;
        Ok(format!("{} tells {url} of keys and users from now on (System Hook {id}).{advice}", self.url))
    }

    /// What a hook is given to show, as far as this GitLab takes it.
    async fn tokens(&self, hooks: &hooks::Settings) -> Result<Map<String, Value>, String> {
        let mut tokens = Map::new();
        if let Some(token) = &hooks.token {
            tokens.insert("token".to_owned(), token.revealed().into());
        }
        let Some(signing) = &hooks.signing_token else { return Ok(tokens) };
        must_be_taken(signing)?;
        match self.version().await? {
            Some((major, version)) if major < FIRST_WITH_SIGNATURES => {
                if hooks.token.is_none() {
                    return Err(format!(
                        "{} is GitLab {version}, which does not sign: name a file with one word as hooks.token_file, in place of \
                         hooks.signing_token_file or beside it, and run this again",
                        self.url
                    ));
                }
            }
            _ => drop(tokens.insert("signing_token".to_owned(), signing.revealed().into())),
        }
        Ok(tokens)
    }

    /// The release of this GitLab, and its first number, if it says so.
    async fn version(&self) -> Result<Option<(u32, String)>, String> {
        let (status, answer) = self.ask(Method::GET, "/api/v4/version", "").await?;
        let version = answer.get("version").and_then(Value::as_str).filter(|_| status.is_success());
        let major = |version: &str| version.split('.').next()?.parse().ok();
        Ok(version.and_then(|version| Some((major(version)?, version.to_owned()))))
    }

    /// Gives the hook that is there the tokens, if this GitLab can change one.
    async fn renew(&self, id: u64, url: &str, tokens: Map<String, Value>) -> Result<String, String> {
        // It stays as it is, but a release that takes no signing token needs something to change.
        let mut hook = tokens;
        hook.insert("url".to_owned(), url.into());
        let (status, answer) =
            self.ask(Method::PUT, &format!("{HOOKS}/{id}"), &Value::Object(hook).to_string()).await?;
        let at = &self.url;
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
            return Ok(format!(
                "{at} tells {url} already (System Hook {id}), and cannot change a hook over its API. If its tokens are not those \
                 in the files of [hooks], delete it there and run this again."
            ));
        }
        accepted(self, (status, answer))?;
        Ok(format!(
            "{at} tells {url} already (System Hook {id}), with the tokens in the files of [hooks] from now on."
        ))
    }

    /// The id of the hook that is there for `url`.
    async fn find(&self, url: &str) -> Result<Option<u64>, String> {
        for page in 1..=MOST_PAGES {
            let path = format!("{HOOKS}?per_page={PER_PAGE}&page={page}");
            let answer = accepted(self, self.ask(Method::GET, &path, "").await?)?;
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

    async fn ask(&self, method: Method, path: &str, body: &str) -> Result<(StatusCode, Value), String> {
        client::send(&self.api, method, path, Some(&self.token), body)
            .await
            .map_err(|error| format!("no answer of {}: {error}", self.url))
    }

    /// What it said is not repeated: it may be what it was told.
    fn is_odd(&self) -> String {
        format!("{} gave an answer that is not that of GitLab's API for System Hooks", self.url)
    }
}

/// The answer, if it is a good one, or what it means.
fn accepted(gitlab: &Gitlab, (status, answer): (StatusCode, Value)) -> Result<Value, String> {
    if status.is_success() {
        return Ok(answer);
    }
    let said = match answer.get("message").or_else(|| answer.get("error")) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(said)) => format!(": {said}"),
        Some(said) => format!(": {said}"),
    };
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
        StatusCode::TOO_MANY_REQUESTS => {
            "GitLab lets one user change System Hooks 5 times a minute: wait for a minute, and run this again"
        }
        status if status.is_redirection() => "it redirects elsewhere; name that URL",
        _ => "look at its log",
    };
    Err(format!("{} said {status}{said}; {advice}", gitlab.url))
}

/// GitLab takes signing tokens of one length only.
fn must_be_taken(signing: &SigningToken) -> Result<(), String> {
    if signing.length() == SIGNING_TOKEN {
        return Ok(());
    }
    Err(format!(
        "hooks.signing_token_file: GitLab takes `whsec_` and Base64 of {SIGNING_TOKEN} bytes, and this is of {}: write what \
         `printf 'whsec_%s\\n' \"$(openssl rand -base64 {SIGNING_TOKEN})\"` prints",
        signing.length()
    ))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
