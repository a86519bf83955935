//! GitLab's API for System Hooks (`/api/v4/hooks`), as far as `hook install` needs it.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use railgate::certificates;
use railgate::hooks;
use railgate::secret::{BearerToken, SigningToken};
use railgate::upstream::tls::Tls;
use railgate::upstream::{self, Protocol, Upstream, UpstreamAddress, UpstreamServerSettings, UpstreamTarget};
use serde_json::{Map, Value, json};

use crate::cli::client;
use crate::cli::output::quoted;

pub(super) struct Gitlab {
    url: String,
    api: Upstream,
    /// Of an administrator.
    token: BearerToken,
}

const HOOKS: &str = "/api/v4/hooks";

/// The major version of the first releases that sign. Not all of 18 do.
const FIRST_WITH_SIGNATURES: u32 = 18;

/// Bytes of the key in a signing token.
const SIGNING_KEY_LEN: usize = 32;

const UNSIGNED_ADVICE: &str = "\nIf railgate_hooks_refused_total rises, it does not sign: some releases of 18 cannot, and it may be turned off \
     (feature flag webhook_signing_token). Then set hooks.token_file too, and run this again.";

/// Longer than for a Rails nearby.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that GitLab returns at once.
const PER_PAGE: usize = 100;

/// No GitLab has so many hooks; a server that returns more pages is not a GitLab.
const MAX_PAGES: usize = 100;

impl Gitlab {
    pub(super) fn new(url: &str, api_token: &Path, ca: Option<&Path>) -> Result<Self, String> {
        let target = UpstreamTarget::parse(url).map_err(|error| format!("--gitlab {url}: {error}"))?;
        let token = BearerToken::load(api_token)
            .map_err(|error| format!("--api-token-file {}: {error}", api_token.display()))?;
        if ca.is_some() && !target.is_tls {
            return Err(format!("--ca-file: is for a --gitlab that begins with https://, not {url}"));
        }
        let tls = match &target {
            UpstreamTarget { is_tls: true, address: UpstreamAddress::Tcp(host, _), .. } => {
                let roots = match ca {
                    Some(ca) => certificates::read_authorities(ca)
                        .map_err(|error| format!("--ca-file {}: {error}", ca.display()))?,
                    None => certificates::system_authorities()
                        .map_err(|error| format!("--gitlab {url}: {error}"))?,
                };
                Some(
                    Tls::new(roots, None, upstream::without_zone(host), Protocol::Http1)
                        .map_err(|error| format!("--gitlab {url}: {error}"))?,
                )
            }
            target if client::is_readable_on_the_way(target) => {
                return Err(format!("--gitlab {url}: would send the API token unencrypted; use https://"));
            }
            _ => None,
        };
        let mut settings =
            upstream::UpstreamSettings::for_server(UpstreamServerSettings { target, tls, is_backup: false });
        settings.connect_timeout = CONNECT_TIMEOUT;
        let api = Upstream::standalone(settings);
        Ok(Self { url: url.to_owned(), api, token })
    }

    /// Has GitLab send events to `url`, with the tokens that the gateway accepts. Returns a report.
    pub(super) async fn install(&self, url: &str, hooks: &hooks::HooksSettings) -> Result<String, String> {
        let tokens = self.tokens(hooks).await?;
        // Some releases may ignore a signing token, and none says whether it does.
        let relies_on_signature = hooks.token.is_none();
        let advice = if relies_on_signature { UNSIGNED_ADVICE } else { "" };
        if let Some(id) = self.find(url).await? {
            return self.update(id, url, tokens).await.map(|report| report + advice);
        }
        // Events of keys and users are always sent; these are not needed.
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
        let answer = check_status(self, self.request(Method::POST, HOOKS, &hook.to_string()).await?)?;
        let id = answer.get("id").and_then(Value::as_u64).ok_or_else(|| self.unexpected_answer())?;
        Ok(format!(
            "{} sends events of keys and users to {url} from now on (System Hook {id}).{advice}",
            self.url
        ))
    }

    /// The tokens that the hook gets, as far as this GitLab supports them.
    async fn tokens(&self, hooks: &hooks::HooksSettings) -> Result<Map<String, Value>, String> {
        let mut tokens = Map::new();
        if let Some(token) = &hooks.token {
            tokens.insert("token".to_owned(), token.expose().into());
        }
        let Some(signing) = &hooks.signing_token else { return Ok(tokens) };
        check_length(signing)?;
        match self.version().await? {
            Some((major, version)) if major < FIRST_WITH_SIGNATURES => {
                if hooks.token.is_none() {
                    return Err(format!(
                        "{} is GitLab {version}, which does not sign: set hooks.token_file to a file with one word, in place of \
                         hooks.signing_token_file or beside it, and run this again",
                        self.url
                    ));
                }
            }
            _ => drop(tokens.insert("signing_token".to_owned(), signing.expose().into())),
        }
        Ok(tokens)
    }

    /// The major version of this GitLab, and its whole version, if it returns one.
    async fn version(&self) -> Result<Option<(u32, String)>, String> {
        let (status, answer) = self.request(Method::GET, "/api/v4/version", "").await?;
        let version = answer.get("version").and_then(Value::as_str).filter(|_| status.is_success());
        let major = |version: &str| version.split('.').next()?.parse().ok();
        Ok(version.and_then(|version| Some((major(version)?, quoted(version)))))
    }

    /// Sets the tokens of the existing hook, if this GitLab can change one.
    async fn update(&self, id: u64, url: &str, tokens: Map<String, Value>) -> Result<String, String> {
        // Unchanged, but a release without signing tokens needs a member that it knows.
        let mut hook = tokens;
        hook.insert("url".to_owned(), url.into());
        let (status, answer) =
            self.request(Method::PUT, &format!("{HOOKS}/{id}"), &Value::Object(hook).to_string()).await?;
        let at = &self.url;
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
            return Ok(format!(
                "{at} sends events to {url} already (System Hook {id}), and cannot change a hook over its API. If its tokens are not \
                 those in the files of [hooks], delete it there and run this again."
            ));
        }
        check_status(self, (status, answer))?;
        Ok(format!(
            "{at} sends events to {url} already (System Hook {id}), with the tokens in the files of [hooks] from now on."
        ))
    }

    /// The id of the existing hook for `url`.
    async fn find(&self, url: &str) -> Result<Option<u64>, String> {
        for page in 1..=MAX_PAGES {
            let path = format!("{HOOKS}?per_page={PER_PAGE}&page={page}");
            let answer = check_status(self, self.request(Method::GET, &path, "").await?)?;
            let hooks = answer.as_array().ok_or_else(|| self.unexpected_answer())?;
            let has_url = |hook: &&Value| hook.get("url").and_then(Value::as_str) == Some(url);
            if let Some(hook) = hooks.iter().find(has_url) {
                let id = hook.get("id").and_then(Value::as_u64);
                return id.map(Some).ok_or_else(|| self.unexpected_answer());
            }
            if hooks.len() < PER_PAGE {
                return Ok(None);
            }
        }
        Err(format!("{} has more than {} System Hooks", self.url, MAX_PAGES * PER_PAGE))
    }

    async fn request(&self, method: Method, path: &str, body: &str) -> Result<(StatusCode, Value), String> {
        client::send(&self.api, method, path, Some(&self.token), body)
            .await
            .map_err(|error| format!("no answer from {}: {error}", self.url))
    }

    /// Without the answer's text, which may repeat the tokens of the request.
    fn unexpected_answer(&self) -> String {
        format!("{} gave an answer that is not that of GitLab's API for System Hooks", self.url)
    }
}

/// The answer of a successful request, or what went wrong and what to do.
fn check_status(gitlab: &Gitlab, (status, answer): (StatusCode, Value)) -> Result<Value, String> {
    if status.is_success() {
        return Ok(answer);
    }
    let message = match answer.get("message").or_else(|| answer.get("error")) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(message)) => format!(": {}", quoted(message)),
        Some(other) => format!(": {}", quoted(&other.to_string())),
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
        status if status.is_redirection() => "it redirects elsewhere; use that URL",
        _ => "look at its log",
    };
    Err(format!("{} answered {status}{message}; {advice}", gitlab.url))
}

/// GitLab accepts signing tokens of one length only.
fn check_length(signing: &SigningToken) -> Result<(), String> {
    if signing.length() == SIGNING_KEY_LEN {
        return Ok(());
    }
    Err(format!(
        "hooks.signing_token_file: GitLab accepts `whsec_` and Base64 of {SIGNING_KEY_LEN} bytes, and this has {}: write what \
         `printf 'whsec_%s\\n' \"$(openssl rand -base64 {SIGNING_KEY_LEN})\"` prints",
        signing.length()
    ))
}
