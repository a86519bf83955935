//! One request to the collector.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use prost::Message as _;

use super::messages::ExportResponse;
use super::settings::ExportSettings;
use crate::body::{Body, Collected};
use crate::log::truncated;
use crate::upstream::{PlainClient, UpstreamTarget};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// Bytes of the collector's words that are logged.
const MAX_WORDS: usize = 256;

/// The longest pause that the collector may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Where spans are sent.
pub(super) struct Collector {
    name: String,
    client: PlainClient,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

/// Spans that the collector has not taken, though it has answered well.
pub(super) struct Rejected {
    pub(super) count: usize,
    words: String,
}

/// Why a batch was not exported.
#[derive(Debug)]
pub(super) enum ExportError {
    /// No answer.
    Failed(String),
    /// Not in time.
    Timeout(Duration),
    /// An answer that says no, and what it says of a pause.
    Status(StatusCode, Duration),
    /// An answer that no collector gives.
    Foreign,
}

impl Collector {
    pub(super) fn new(settings: &ExportSettings) -> Self {
        let UpstreamTarget { address, root, .. } = &settings.collector.target;
        Self {
            name: address.to_string(),
            client: PlainClient::new(&settings.collector, settings.timeout),
            uri: Uri::try_from(format!("{root}/v1/traces")).unwrap_or(Uri::from_static("/v1/traces")),
            headers: settings.headers.0.clone(),
            timeout: settings.timeout,
        }
    }

    /// For the log.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a batch once.
    pub(super) async fn send(&self, body: Bytes) -> Result<Rejected, ExportError> {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().clone_from(&self.headers);
        let agent = HeaderValue::from_static(concat!("railgate/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        request.headers_mut().insert(header::CONTENT_TYPE, PROTOBUF);
        let exchange = async {
            let response = self.client.send(request).await.map_err(ExportError::Failed)?;
            read(response).await
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or(Err(ExportError::Timeout(self.timeout)))
    }
}

async fn read(response: Response<Body>) -> Result<Rejected, ExportError> {
    let (head, body) = response.into_parts();
    let retry_after = retry_after(&head.headers);
    // To its end, so that the connection can be used again.
    let body = body.collect_up_to(MAX_ANSWER).await;
    if head.status != StatusCode::OK {
        return Err(ExportError::Status(head.status, retry_after));
    }
    let of_type = |media_type: &[u8]| {
        let kind = head.headers.get(header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(media_type))
    };
    let body = match body {
        Ok(Collected::Complete(body)) => body,
        Ok(Collected::TooLong(_)) => return Err(ExportError::Foreign),
        Err(error) => return Err(ExportError::Failed(error.to_string())),
    };
    if of_type(b"text/html") {
        return Err(ExportError::Foreign);
    }
    let answer = if of_type(PROTOBUF.as_bytes()) {
        ExportResponse::decode(body).map_err(|_| ExportError::Foreign)?
    } else {
        ExportResponse::default()
    };
    let partial = answer.partial_success.unwrap_or_default();
    let count = usize::try_from(partial.rejected_spans).unwrap_or_default();
    Ok(Rejected { count, words: truncated(&partial.error_message, MAX_WORDS).into_owned() })
}

/// What the collector asks for, in seconds; a date is as good as nothing.
fn retry_after(headers: &HeaderMap) -> Duration {
    let value = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = value.and_then(|value| value.trim().parse().ok()).unwrap_or_default();
    Duration::from_secs(seconds).min(MAX_RETRY_AFTER)
}

impl Rejected {
    /// What to say of it, if there is anything.
    pub(super) fn why(&self) -> Option<String> {
        (self.count > 0)
            .then(|| format!("the collector rejects {} spans of a batch: {:?}", self.count, self.words))
    }
}

impl ExportError {
    /// Whether to try again.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Timeout(_) => true,
            Self::Status(status, _) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Foreign => false,
        }
    }

    /// For how long the collector wants to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Status(_, pause) => *pause,
            _ => Duration::ZERO,
        }
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ENDPOINT: &str =
            "check tracing.endpoint: it takes OTLP over HTTP, by convention on port 4318 (4317 is gRPC)";
        match self {
            Self::Failed(why) => write!(f, "{why}; {ENDPOINT}"),
            Self::Timeout(after) => {
                write!(f, "no answer within {after:?} (tracing.timeout); is the collector overloaded?")
            }
            Self::Status(status, _) if matches!(status.as_u16(), 401 | 403) => {
                write!(f, "the collector answers {status}; check the credential in tracing.headers_file")
            }
            Self::Status(status, _) if self.is_transient() => write!(f, "the collector answers {status}"),
            Self::Status(status, _) => write!(f, "the collector answers {status}; {ENDPOINT}"),
            Self::Foreign => write!(f, "the answer is not that of a collector; {ENDPOINT}"),
        }
    }
}
