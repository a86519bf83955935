//! What commands ask of servers: JSON there, JSON back.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use railgate::body::Body;
use railgate::secret::Token;
use railgate::upstream::Upstream;
use serde_json::Value;

/// Runs one task to its end.
pub(super) fn block_on<T>(task: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start the runtime: {error}"))?.block_on(task)
}

/// Sends a request that shows `token`. What is no JSON in the answer is `null`.
pub(super) async fn send(
    server: &Upstream,
    method: Method,
    path: &str,
    token: Option<&Token>,
    body: &str,
) -> Result<(StatusCode, Value), String> {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header(header::CONTENT_TYPE, "application/json");
    if let Some(shown) = token.and_then(Token::to_header) {
        request = request.header(header::AUTHORIZATION, shown);
    }
    let request =
        request.body(Body::from(Bytes::from(body.to_owned()))).map_err(|error| error.to_string())?;
    let answer = server.send(request).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    let status = answer.status();
    let body =
        answer.into_body().collect().await.map_err(|error| format!("the answer broke off: {error}"))?;
    Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
}
