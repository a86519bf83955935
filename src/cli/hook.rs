//! `railgate hook install`: prints what to set up in GitLab, so that it tells the gateway of changes.

use std::net::IpAddr;
use std::process::ExitCode;

use railgate::config;
use railgate::hooks;
use railgate::server::Endpoint;

use super::{ConfigFile, say, say_error};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print what to set up in GitLab
    Install(Install),
}

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    #[command(flatten)]
    file: ConfigFile,
    /// Where GitLab reaches the [hooks] listener, if not at its address
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub(super) fn main(command: &Command) -> ExitCode {
    let Command::Install(Install { file, url }) = command;
    let settings = match config::load(&file.config) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            say_error(&problems.to_string());
            return ExitCode::FAILURE;
        }
    };
    let file = file.config.display();
    let Some(hooks) = settings.hooks else {
        say_error(&format!(
            "{file}: has no [hooks] section, so there is nobody to tell; see its key hooks.address"
        ));
        return ExitCode::FAILURE;
    };
    match steps(&hooks, url.as_deref()) {
        Ok(steps) => {
            say(&steps);
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            say_error(&format!("{file}: {wrong}"));
            ExitCode::FAILURE
        }
    }
}

/// Never the token itself: what is printed ends up in scrollbacks and tickets.
fn steps(hooks: &hooks::Settings, url: Option<&str>) -> Result<String, String> {
    let url = match url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => url_of(&hooks.endpoint)?,
    };
    let url = if url.ends_with(hooks::PATH) { url } else { format!("{url}{}", hooks::PATH) };
    let (secret, token) = match (&hooks.token, &hooks.signing_token) {
        (Some(_), _) => (
            "Secret token: the word in the file hooks.token_file",
            ",\\\"token\\\":\\\"$(cat TOKEN_FILE)\\\"",
        ),
        (None, _) => ("Signing token: the one in the file hooks.signing_token_file", ""),
    };
    Ok(format!(
        r#"In GitLab, as an administrator: Admin area, System hooks, Add new webhook.

  URL:          {url}
  {secret}
  Triggers:     none; keys and users are told of always

Or with a token of an administrator that has the scope `api`:

  curl --fail --header "PRIVATE-TOKEN: $API_TOKEN" --header "Content-Type: application/json" \
    --data "{{\"url\":\"{url}\"{token},\"push_events\":false,\"repository_update_events\":false}}" \
    https://GITLAB/api/v4/hooks

Then add and remove an SSH key in GitLab: railgate_hooks_total{{event="key_create"}} has to rise. If
railgate_hooks_refused_total does, the tokens differ."#
    ))
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
                let steps = steps(&hooks(tcp(), is_signed), url).unwrap();
                assert!(steps.contains(&format!("URL:          {expected}\n")), "{steps}");
                assert!(steps.contains(&format!(r#"{{\"url\":\"{expected}\""#)), "{steps}");
                assert_eq!(steps.contains("hooks.token_file"), !is_signed, "{steps}");
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
            assert!(steps(&hooks, None).unwrap_err().contains("--url"));
            assert!(steps(&hooks, Some("http://gw")).is_ok());
        }
    }
}
