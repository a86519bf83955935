//! `railgate demo`: a small sample GitLab, the gateway in front of it, and commands to try. Everything
//! listens on loopback, needs no configuration, and leaves no files.

mod console;
mod sample;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use railgate::Gateway;
use railgate::config::{AdminSettings, GatewayConfig, LogSettings, SecretSettings};
use railgate::log::LogCounters;
use railgate::route::PREFIX;
use railgate::secret::{KasSecret, SecretError, ShellSecret};
use railgate::server::{
    BoundSocket, DEFAULT_OPERATOR_CONNECTIONS, HttpServer, Inbound, ListenAddress, ListenOptions,
    ListenSettings, Listener, ServerLimits,
};
use railgate::upstream::{self, UpstreamTarget};
use railgate::{auth, cache};
use tokio_util::sync::CancellationToken;

use self::console::COLUMNS;
use self::sample::SampleGitlab;
use super::logging;
use super::output::{print_error, print_line};
use super::run::{self, QUICK_FLUSH};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The gateway's port on 127.0.0.1; 0 lets the system choose
    #[arg(long, default_value_t = 8181)]
    port: u16,
    /// The admin listener's port on 127.0.0.1; 0 lets the system choose
    #[arg(long, default_value_t = 9181)]
    admin_port: u16,
}

pub(super) fn main(options: &Options) -> ExitCode {
    let counts = Arc::new(LogCounters::default());
    let outcome = console::init(&counts)
        .and_then(|()| tokio::runtime::Runtime::new())
        .and_then(|runtime| runtime.block_on(demo(options, counts)));
    logging::flush(QUICK_FLUSH);
    match outcome {
        Ok(()) => {
            // On a new line, since a terminal shows ^C.
            print_line("\nThe demo has ended.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = format!("{error} (see `railgate demo --help`: --port, --admin-port)");
            print_error(&wrap(&message));
            ExitCode::FAILURE
        }
    }
}

/// The secrets of the callers, random for each demo.
struct Secrets {
    shell: String,
    kas: [u8; 32],
}

async fn demo(options: &Options, counts: Arc<LogCounters>) -> io::Result<()> {
    let secrets = Secrets {
        shell: format!("{:032x}", fastrand::u128(..)),
        kas: std::array::from_fn(|_| fastrand::u8(..)),
    };
    let sample = Arc::new(SampleGitlab::new(secrets.shell.as_bytes(), secrets.kas));
    let rails = BoundSocket::bind(&loopback(0), ServerLimits::default().connections)?;
    let rails_at = rails.address()?;
    let gateway = Gateway::bind(config(options, &secrets, &rails_at)?, counts)?;
    print_introduction(&gateway, &rails_at, &sample, &secrets)?;

    let rails_server = HttpServer::new(ServerLimits::default());
    rails_server.serve(
        Listener::new(rails)?,
        tower::service_fn(move |inbound| respond(Arc::clone(&sample), inbound)),
    );
    let shutdown = CancellationToken::new();
    run::cancel_on_signal(&shutdown)?;
    gateway.run(shutdown).await?;
    rails_server.drain().await;
    Ok(())
}

fn loopback(port: u16) -> ListenAddress {
    ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn config(options: &Options, secrets: &Secrets, rails_at: &str) -> io::Result<GatewayConfig> {
    let unusable = |error: SecretError| io::Error::other(error);
    // So that each request has the same outcome every time.
    let shadow = cache::shadow::ShadowSettings { one_in: 0, ..cache::shadow::ShadowSettings::default() };
    Ok(GatewayConfig {
        workers: 1,
        listen: vec![ListenSettings {
            address: loopback(options.port),
            connections: ServerLimits::default().connections,
            options: ListenOptions::default(),
        }],
        admin: AdminSettings {
            address: loopback(options.admin_port),
            connections: DEFAULT_OPERATOR_CONNECTIONS,
            token: None,
            hosts: Vec::new(),
        },
        hooks: None,
        upstream: upstream::UpstreamSettings::new(
            UpstreamTarget::parse(&format!("http://{rails_at}")).map_err(io::Error::other)?,
        ),
        upstream_credential: None,
        forward_prefixes: Vec::new(),
        auth: auth::AuthSettings {
            shell_secret: ShellSecret::from_text(secrets.shell.as_bytes()).map_err(unusable)?,
            accept_jwt: true,
            accept_shared_secret: true,
            max_body: auth::DEFAULT_MAX_BODY,
            max_unverified: auth::DEFAULT_MAX_UNVERIFIED,
            kas: Some(auth::KasSettings {
                secret: KasSecret::from_text(STANDARD.encode(secrets.kas).as_bytes()).map_err(unusable)?,
                audience: None,
            }),
        },
        cache: cache::CacheSettings { shadow, ..cache::CacheSettings::default() },
        secrets: SecretSettings::default(),
        upgrade_socket: None,
        fleet: None,
        limits: ServerLimits::default(),
        tracing: None,
        log: LogSettings::default(),
    })
}

async fn respond(
    sample: Arc<SampleGitlab>,
    inbound: Inbound,
) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let (parts, body) = inbound.request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Ok(sample.respond(&http::Request::from_parts(parts, body)).map(Full::new))
}

fn print_introduction(
    gateway: &Gateway,
    rails_at: &str,
    sample: &SampleGitlab,
    secrets: &Secrets,
) -> io::Result<()> {
    let gateway_at = gateway.addresses().join(", ");
    let admin_at = gateway.admin_address()?;
    let api = format!("http://{gateway_at}{PREFIX}");
    let secret = format!("-H 'Gitlab-Shared-Secret: {}'", STANDARD.encode(&secrets.shell));
    let blob = sample.keys().iter().find(|key| key.id == 7).map(|key| key.blob).unwrap_or_default();
    // Apostrophes only around arguments, not in comments: an interactive shell may not know comments.
    print_line(&format!(
        r#"A sample GitLab listens on {rails_at}, railgate in front of it
on {gateway_at}, and its admin listener on {admin_at}.
A page for the browser shows what happens: http://{admin_at}/
Paste these into another terminal, one by one or all at once:

  # Whose key is this? Rails is asked, and its answer is cached.
  curl -iG {api}/authorized_keys \
    {secret} \
    -d key={blob}

  # The same again: from memory. Compare Cache-Status.
  curl -iG {api}/authorized_keys \
    {secret} \
    -d key={blob}

  # Who is behind key 7?
  curl -i '{api}/discover?key_id=7' \
    {secret}

  # May this key fetch? Never cached, always forwarded.
  curl -i {api}/allowed \
    {secret} \
    -d 'key_id=7&project=group/app&action=git-upload-pack' \
    -d 'protocol=ssh&changes=_any'

  # A call of the agent server (kas), with its own token.
  curl -i {api}/kubernetes/agent_info \
    -H 'Authorization: Bearer {agent}' \
    -H "Gitlab-Kas-Api-Request: \
{kas}"

  # Without a credential: refused, cached or not.
  curl -i '{api}/discover?key_id=7'

  # The metrics so far.
  curl -s http://{admin_at}/metrics

Ctrl-C ends the demo. Requests, as they come:
"#,
        kas = fold(&kas_token(&secrets.kas)?),
        agent = sample::data::AGENT.token,
    ));
    Ok(())
}

/// A long word in lines that a shell joins again within double quotes.
fn fold(word: &str) -> String {
    let mut lines = String::new();
    for (at, character) in word.chars().enumerate() {
        if at > 0 && at % (COLUMNS - 1) == 0 {
            lines.push_str("\\\n");
        }
        lines.push(character);
    }
    lines
}

/// A text in lines of at most [`COLUMNS`].
fn wrap(text: &str) -> String {
    let mut column = 0;
    let mut lines = String::new();
    for word in text.split(' ') {
        let length = word.chars().count();
        let fits = column + 1 + length <= COLUMNS;
        match column {
            0 => {}
            _ if fits => lines.push(' '),
            _ => lines.push('\n'),
        }
        lines.push_str(word);
        column = if column > 0 && fits { column + 1 + length } else { length };
    }
    lines
}

/// A real kas token lives for seconds; this one for a day, to be pasted at leisure.
fn kas_token(key: &[u8]) -> io::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
    let claims =
        serde_json::json!({"iss": "gitlab-kas", "aud": "gitlab", "nbf": now - 5, "exp": now + 86_400});
    let key = jsonwebtoken::EncodingKey::from_secret(key);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).map_err(io::Error::other)
}
