//! What commands ask of servers: JSON there, JSON back.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use railgate::body::{Body, Collected};
use railgate::secret::Token;
use railgate::upstream::{SendOptions, SendReport, Upstream};
use serde_json::Value;

/// How long the body of an answer may take, and how many bytes it may have: a page of a hundred hooks has a few
/// hundred KiB.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const MOST: usize = 16 << 20;

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
    let answer =
        server.send(request, &SendOptions::default(), &mut SendReport::default()).await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })?;
    let status = answer.status();
    let read = tokio::time::timeout(BODY_TIMEOUT, answer.into_body().collect_up_to(MOST)).await;
    match read {
        Ok(Ok(Collected::Whole(body))) => Ok((status, serde_json::from_slice(&body).unwrap_or_default())),
        Ok(Ok(Collected::TooLong(_))) => Err("the answer is too long".to_owned()),
        Ok(Err(error)) => Err(format!("the answer broke off: {error}")),
        Err(_) => Err("the answer does not come to its end".to_owned()),
    }
}
