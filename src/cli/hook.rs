//! `railgate hook install`: prints what to set up in GitLab, so that it tells the gateway of changes, or
//! sets it up.

mod gitlab;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use railgate::config;
use railgate::hooks;
use railgate::server::Endpoint;

use super::{ConfigFile, client, say, say_error};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print what to set up in GitLab, or, with an API token, set it up
    Install(Install),
}

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    #[command(flatten)]
    file: ConfigFile,
    /// Where GitLab reaches the [hooks] listener, if not at its address
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Set it up in this GitLab, such as `https://gitlab.example.com`
    #[arg(long, value_name = "URL", requires = "api_token_file")]
    gitlab: Option<String>,
    /// A file with a token of an administrator that has the scope `api`
    #[arg(long, value_name = "FILE", requires = "gitlab")]
    api_token_file: Option<PathBuf>,
    /// The authorities that are believed about this GitLab, in PEM, in place of the system's
    #[arg(long, value_name = "FILE", requires = "gitlab")]
    ca_file: Option<PathBuf>,
}

pub(super) fn main(command: &Command) -> ExitCode {
    let Command::Install(options) = command;
    let outcome = config::load(&options.file.config)
        .map_err(|problems| problems.to_string())
        .and_then(|loaded| install(options, loaded.settings.hooks));
    match outcome {
        Ok(told) => {
            say(&told);
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            say_error(&wrong);
            ExitCode::FAILURE
        }
    }
}

fn install(options: &Install, hooks: Option<hooks::Settings>) -> Result<String, String> {
    let file = options.file.config.display();
    let hooks = hooks.ok_or_else(|| {
        format!("{file}: has no [hooks] section, so there is nobody to tell; see its key hooks.address")
    })?;
    let url = url(&hooks, options.url.as_deref()).map_err(|wrong| format!("{file}: {wrong}"))?;
    match (&options.gitlab, &options.api_token_file) {
        (Some(gitlab), Some(api_token)) => {
            let gitlab = gitlab::Gitlab::new(gitlab, api_token, options.ca_file.as_deref())?;
            client::block_on(gitlab.install(&url, &hooks))
        }
        _ => Ok(steps(&hooks, &url)),
    }
}

/// Where GitLab sends its events.
fn url(hooks: &hooks::Settings, said: Option<&str>) -> Result<String, String> {
    let url = match said {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => url_of(&hooks.endpoint)?,
    };
    Ok(if url.ends_with(hooks::PATH) { url } else { format!("{url}{}", hooks::PATH) })
}

/// Never the token itself: what is printed ends up in scrollbacks and tickets.
fn steps(hooks: &hooks::Settings, url: &str) -> String {
    let (mut secrets, mut tokens) = (Vec::new(), String::new());
    if hooks.token.is_some() {
        secrets.push("Secret token: the word in the file hooks.token_file");
        tokens.push_str(r#",\"token\":\"$(cat TOKEN_FILE)\""#);
    }
    if hooks.signing_token.is_some() {
        secrets
            .push("Signing token: the one in the file hooks.signing_token_file (not in all releases of 18)");
        tokens.push_str(r#",\"signing_token\":\"$(cat SIGNING_TOKEN_FILE)\""#);
    }
    let secrets = secrets.join("\n  ");
    format!(
        r#"In GitLab, as an administrator: Admin area, System hooks, Add new webhook.

  URL:          {url}
  {secrets}
  Triggers:     none; keys and users are told of always

Or with a token of an administrator that has the scope `api`, run this command again with --gitlab and
--api-token-file, or:

  curl --fail --header "PRIVATE-TOKEN: $API_TOKEN" --header "Content-Type: application/json" \
    --data "{{\"url\":\"{url}\"{tokens},\"push_events\":false,\"repository_update_events\":false}}" \
    https://GITLAB/api/v4/hooks

Then add and remove an SSH key in GitLab: railgate_hooks_total{{event="key_create"}} has to rise. If
railgate_hooks_refused_total does, the tokens differ."#
    )
}

fn url_of(endpoint: &Endpoint) -> Result<String, String> {
    const HOW: &str = "say with --url where GitLab reaches it";
    match endpoint {
        Endpoint::Tcp(address) => match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Err(format!("hooks.address is on every address; {HOW}")),
            IpAddr::V6(ip) if ip.is_unspecified() => Err(format!("hooks.address is on every address; {HOW}")),
            _ => Ok(format!("http://{address}")),
        },
        Endpoint::Unix { .. } => {
            Err(format!("hooks.address is a unix socket, which GitLab cannot call; {HOW}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use railgate::secret::{SigningToken, Token};

    fn hooks(endpoint: Endpoint, is_signed: bool) -> hooks::Settings {
        hooks::Settings {
            endpoint,
            connections: 1,
            token: (!is_signed).then(|| Token::from_text(b"h00k").unwrap()),
            signing_token: is_signed.then(|| SigningToken::from_text(b"whsec_aDAwaw==").unwrap()),
            settle: Duration::ZERO,
        }
    }

    #[test]
    fn the_steps_name_the_url_and_never_the_token() {
        let tcp = || Endpoint::Tcp("127.0.0.1:8282".parse().unwrap());
        for (url, expected) in [
            (None, "http://127.0.0.1:8282/hooks/gitlab"),
            (Some("https://gw.example.com/"), "https://gw.example.com/hooks/gitlab"),
            (Some("https://gw.example.com/x/hooks/gitlab"), "https://gw.example.com/x/hooks/gitlab"),
        ] {
            for is_signed in [false, true] {
                let hooks = hooks(tcp(), is_signed);
                let steps = steps(&hooks, &super::url(&hooks, url).unwrap());
                assert!(steps.contains(&format!("URL:          {expected}\n")), "{steps}");
                assert!(steps.contains(&format!(r#"{{\"url\":\"{expected}\""#)), "{steps}");
                assert_eq!(steps.contains("hooks.token_file"), !is_signed, "{steps}");
                let signed = r#"\"signing_token\":\"$(cat SIGNING_TOKEN_FILE)\""#;
                assert_eq!(steps.contains(signed), is_signed, "{steps}");
                assert!(!steps.contains("h00k") && !steps.contains("aDAwaw"), "{steps}");
            }
        }
    }

    #[test]
    fn an_address_that_gitlab_cannot_call_needs_a_url() {
        for endpoint in [
            Endpoint::Tcp("0.0.0.0:8282".parse().unwrap()),
            Endpoint::Tcp("[::]:8282".parse().unwrap()),
            Endpoint::Unix { path: PathBuf::from("/run/hooks.sock"), mode: 0o660 },
        ] {
            let hooks = hooks(endpoint, false);
            assert!(url(&hooks, None).unwrap_err().contains("--url"));
            assert!(url(&hooks, Some("http://gw")).is_ok());
        }
    }
}
