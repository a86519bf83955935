//! `railgate hook install`: prints how to set up the System Hook by which GitLab notifies the gateway of changes, or
//! sets it up.

mod gitlab;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use railgate::config;
use railgate::hooks;
use railgate::server::ListenAddress;

use super::client;
use super::config_file::ConfigFile;
use super::output::{print_error, print_line};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print how to set it up in GitLab, or, with an API token, set it up
    Install(InstallOptions),
}

#[derive(Debug, clap::Args)]
pub(super) struct InstallOptions {
    #[command(flatten)]
    file: ConfigFile,
    /// The URL at which GitLab reaches the [hooks] listener, if not its address
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Set it up in this GitLab, such as `https://gitlab.example.com`
    #[arg(long, value_name = "URL", requires = "api_token_file")]
    gitlab: Option<String>,
    /// A file with an API token of an administrator, with the scope `api`
    #[arg(long, value_name = "FILE", requires = "gitlab")]
    api_token_file: Option<PathBuf>,
    /// A PEM file with the certificate authorities to trust for this GitLab, in place of the system's
    #[arg(long, value_name = "FILE", requires = "gitlab")]
    ca_file: Option<PathBuf>,
}

pub(super) fn main(command: &Command) -> ExitCode {
    let Command::Install(options) = command;
    let outcome = config::load(&options.file.config)
        .map_err(|error| error.to_string())
        .and_then(|loaded| install(options, loaded.config.hooks));
    match outcome {
        Ok(text) => {
            print_line(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn install(options: &InstallOptions, hooks: Option<hooks::HooksSettings>) -> Result<String, String> {
    let file = options.file.config.display();
    let hooks = hooks.ok_or_else(|| {
        format!("{file}: has no [hooks] section, so there is no listener for a System Hook; see its key hooks.address")
    })?;
    let url = url(&hooks, options.url.as_deref()).map_err(|error| format!("{file}: {error}"))?;
    match (&options.gitlab, &options.api_token_file) {
        (Some(gitlab), Some(api_token)) => {
            let gitlab = gitlab::Gitlab::new(gitlab, api_token, options.ca_file.as_deref())?;
            client::block_on(gitlab.install(&url, &hooks))
        }
        _ => Ok(instructions(&hooks, &url)),
    }
}

/// The URL to which GitLab sends its events.
fn url(hooks: &hooks::HooksSettings, configured: Option<&str>) -> Result<String, String> {
    let url = match configured {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => endpoint_url(&hooks.address)?,
    };
    Ok(if url.ends_with(hooks::PATH) { url } else { format!("{url}{}", hooks::PATH) })
}

/// Without the tokens themselves: the text ends up in scrollbacks and tickets.
fn instructions(hooks: &hooks::HooksSettings, url: &str) -> String {
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
  Triggers:     none; events of keys and users are always sent

Or, with an API token of an administrator with the scope `api`, run this command again with --gitlab and
--api-token-file, or:

  curl --fail --header "PRIVATE-TOKEN: $API_TOKEN" --header "Content-Type: application/json" \
    --data "{{\"url\":\"{url}\"{tokens},\"push_events\":false,\"repository_update_events\":false}}" \
    https://GITLAB/api/v4/hooks

Then add and remove an SSH key in GitLab: railgate_hooks_total{{event="key_create"}} has to rise. If
railgate_hooks_refused_total does, the tokens differ."#
    )
}

fn endpoint_url(address: &ListenAddress) -> Result<String, String> {
    const ADVICE: &str = "set --url to the URL at which GitLab reaches it";
    match address {
        ListenAddress::Tcp(address) => match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                Err(format!("hooks.address is on every address; {ADVICE}"))
            }
            IpAddr::V6(ip) if ip.is_unspecified() => {
                Err(format!("hooks.address is on every address; {ADVICE}"))
            }
            _ => Ok(format!("http://{address}")),
        },
        ListenAddress::Unix { .. } => {
            Err(format!("hooks.address is a unix socket, which GitLab cannot call; {ADVICE}"))
        }
        ListenAddress::Systemd(_) => {
            Err(format!("hooks.address is a socket of systemd, whose address is not in this file; {ADVICE}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use railgate::secret::{BearerToken, SigningToken};
    use railgate::server::SocketOwner;

    fn hooks(address: ListenAddress, is_signed: bool) -> hooks::HooksSettings {
        hooks::HooksSettings {
            address,
            connections: 1,
            token: (!is_signed).then(|| BearerToken::from_text(b"h00k").unwrap()),
            signing_token: is_signed.then(|| SigningToken::from_text(b"whsec_aDAwaw==").unwrap()),
            previous: hooks::PreviousHookSecrets::default(),
            settle: Duration::ZERO,
        }
    }

    #[test]
    fn the_instructions_have_the_url_and_never_the_token() {
        let tcp = || ListenAddress::Tcp("127.0.0.1:8282".parse().unwrap());
        for (url, expected) in [
            (None, "http://127.0.0.1:8282/hooks/gitlab"),
            (Some("https://gw.example.com/"), "https://gw.example.com/hooks/gitlab"),
            (Some("https://gw.example.com/x/hooks/gitlab"), "https://gw.example.com/x/hooks/gitlab"),
        ] {
            for is_signed in [false, true] {
                let hooks = hooks(tcp(), is_signed);
                let text = instructions(&hooks, &super::url(&hooks, url).unwrap());
                assert!(text.contains(&format!("URL:          {expected}\n")), "{text}");
                assert!(text.contains(&format!(r#"{{\"url\":\"{expected}\""#)), "{text}");
                assert_eq!(text.contains("hooks.token_file"), !is_signed, "{text}");
                let signed = r#"\"signing_token\":\"$(cat SIGNING_TOKEN_FILE)\""#;
                assert_eq!(text.contains(signed), is_signed, "{text}");
                assert!(!text.contains("h00k") && !text.contains("aDAwaw"), "{text}");
            }
        }
    }

    #[test]
    fn an_address_that_gitlab_cannot_reach_needs_a_url() {
        for address in [
            ListenAddress::Tcp("0.0.0.0:8282".parse().unwrap()),
            ListenAddress::Tcp("[::]:8282".parse().unwrap()),
            ListenAddress::Unix {
                path: PathBuf::from("/run/hooks.sock"),
                mode: 0o660,
                owner: SocketOwner::default(),
            },
        ] {
            let hooks = hooks(address, false);
            assert!(url(&hooks, None).unwrap_err().contains("--url"));
            assert!(url(&hooks, Some("http://gw")).is_ok());
        }
    }
}
