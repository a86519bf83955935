//! An HTTP client for the commands: JSON requests and responses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use railgate::body::{Body, Collected};
use railgate::secret::BearerToken;
use railgate::server::ListenAddress;
use railgate::upstream::{
    SendOptions, SendReport, Upstream, UpstreamAddress, UpstreamSettings, UpstreamTarget,
};
use serde_json::Value;

const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a response. A page of a hundred hooks has a few hundred KiB.
const MAX_BODY: usize = 16 << 20;

pub(super) fn block_on<T>(task: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start the runtime: {error}"))?.block_on(task)
}

/// Sends a request with `token` as its bearer token. A response that is not JSON is `null`.
pub(super) async fn send(
    server: &Upstream,
    method: Method,
    path: &str,
    token: Option<&BearerToken>,
    body: &str,
) -> Result<(StatusCode, Value), String> {
    let (status, body) = fetch(server, method, path, token, body).await?;
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// The same, for a response of any kind.
pub(super) async fn fetch(
    server: &Upstream,
    method: Method,
    path: &str,
    token: Option<&BearerToken>,
    body: &str,
) -> Result<(StatusCode, Bytes), String> {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header(header::CONTENT_TYPE, "application/json");
    if let Some(authorization) = token.and_then(BearerToken::to_authorization) {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request =
        request.body(Body::from(Bytes::from(body.to_owned()))).map_err(|error| error.to_string())?;
    let response = server
        .send(Box::new(request), &SendOptions::default(), &mut SendReport::default())
        .await
        .map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })?;
    let status = response.status();
    let body = tokio::time::timeout(BODY_TIMEOUT, response.into_body().collect_up_to(MAX_BODY)).await;
    match body {
        Ok(Ok(Collected::Complete(body))) => Ok((status, body)),
        Ok(Ok(Collected::TooLong(_))) => Err("the answer is too long".to_owned()),
        Ok(Err(error)) => Err(format!("the answer broke off: {error}")),
        Err(_) => Err("the answer was not complete in time".to_owned()),
    }
}

/// Whether others could read what is sent to it.
pub(super) fn is_readable_on_the_way(target: &UpstreamTarget) -> bool {
    match &target.address {
        UpstreamAddress::Tcp(host, _) if !target.is_tls => {
            host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        _ => false,
    }
}

/// The listener for operators of a gateway on this machine.
pub(super) fn admin_listener(address: &ListenAddress) -> Result<Upstream, String> {
    let target = UpstreamTarget::parse(&url(address)?).map_err(|error| error.to_string())?;
    Ok(Upstream::standalone(UpstreamSettings::new(target)))
}

/// The URL of a listener from this machine.
fn url(address: &ListenAddress) -> Result<String, String> {
    Ok(match address {
        ListenAddress::Systemd(_) => {
            return Err("is a socket of systemd, whose address is not in this file; for this command, set \
                        RAILGATE_ADMIN__ADDRESS to what the .socket unit has as ListenStream=, an IP address with a port or \
                        unix: and a path"
                .to_owned());
        }
        ListenAddress::Tcp(address) => {
            let mut address = *address;
            match address.ip() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                _ => {}
            }
            format!("http://{address}")
        }
        ListenAddress::Unix { path, .. } => {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
            let escape =
                |byte: &u8| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
            format!(
                "http+unix://{}",
                path.as_os_str().as_encoded_bytes().iter().map(escape).collect::<String>()
            )
        }
    })
}
