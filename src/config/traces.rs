//! `[tracing]`: which requests are traced, and where their spans are sent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::document::{Document, Located, Section};
use super::scalars::{HOUR, MILLISECOND, as_usize, duration};
use super::{own_listeners, servers};
use crate::file;
use crate::otlp::{self, CollectorHeaders, ExportSettings, TracingSettings};
use crate::server::ListenAddress;
use crate::upstream::{UpstreamServerSettings, UpstreamTarget};

/// Bytes of the file with headers.
const MAX_HEADERS_FILE: usize = 64 * 1024;

const URL: &str = "expected a URL in quotes, such as \"http://127.0.0.1:4318\"";

/// `own`: the listeners of the gateway.
pub(super) fn tracing(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
    own: &[ListenAddress],
) -> Option<Arc<TracingSettings>> {
    let mut section = root.section("tracing")?;
    if !section.has("endpoint") {
        let message = "is required in [tracing]: where the collector takes OTLP over HTTP, such as \"http://127.0.0.1:4318\"";
        document.error(section.offset(), "tracing.endpoint", message);
    }
    let endpoint = section.take("endpoint", |value| {
        UpstreamTarget::parse(value.as_str().ok_or(URL)?).map_err(|error| error.to_string())
    });
    let tls_section = section.section("tls");
    let targets: Vec<_> = endpoint.into_iter().collect();
    let tls = servers::tls_of_each(
        document,
        tls_section,
        "tracing.tls",
        &targets,
        crate::upstream::Protocol::Http1,
    );
    let sample_ratio =
        section.fraction("sample_ratio").map_or(otlp::DEFAULT_SAMPLE_RATIO, |ratio| ratio.value);
    let service_name = section.string("service_name", "a name of 1 to 255 characters", |text| {
        (1..=255).contains(&text.chars().count()).then(|| text.to_owned())
    });
    let headers = section
        .string("headers_file", "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))
        .map_or_else(HeaderMap::new, |file| headers(document, &file));
    let timeout = duration(&mut section, "timeout", otlp::DEFAULT_TIMEOUT, MILLISECOND..=HOUR);
    let interval = duration(&mut section, "interval", otlp::DEFAULT_INTERVAL, MILLISECOND..=HOUR);
    let queue =
        section.integer("queue", 1..1_000_001).map_or(otlp::DEFAULT_QUEUE, |count| as_usize(count.value));
    section.reject_unknown_keys();
    let endpoint = targets.into_iter().next()?;
    if let Some(address) = own_listeners::find_own_listener(&endpoint.value.address, own) {
        let message =
            format!("leads to the gateway's own listener on {address}; use the address of the collector");
        document.error(endpoint.offset, &endpoint.key, message);
    }
    let tls = tls?.into_iter().next()?;
    let export = Arc::new(ExportSettings {
        collector: UpstreamServerSettings { target: endpoint.value, tls, is_backup: false },
        headers: CollectorHeaders(headers),
        service_name: service_name.map_or_else(|| otlp::DEFAULT_SERVICE_NAME.to_owned(), |name| name.value),
        timeout,
        interval,
    });
    Some(Arc::new(TracingSettings { export, sample_ratio, queue }))
}

/// The headers in a file, one in each line. Their values are not quoted in errors, since they may be secret.
fn headers(document: &Document<'_>, file: &Located<PathBuf>) -> HeaderMap {
    let error = |message: String| {
        document.error(file.offset, &file.key, format!("{} {message}", file.value.display()));
    };
    match read_headers(&file.value) {
        Ok(headers) => headers,
        Err(message) => {
            error(message);
            HeaderMap::new()
        }
    }
}

fn read_headers(path: &Path) -> Result<HeaderMap, String> {
    let text = file::read(path, MAX_HEADERS_FILE).map_err(|cause| format!("{cause}; {}", cause.advice()))?;
    let mut headers = HeaderMap::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let malformed = || format!("has no header in line {}; write NAME: VALUE", index + 1);
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
        let (name, value) = line.split_at_checked(colon).ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(name.trim_ascii()).map_err(|_| malformed())?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let mut value = HeaderValue::from_bytes(value).map_err(|_| malformed())?;
        if is_own(&name) {
            return Err(format!("sets {name} in line {}, which the gateway sets itself; drop it", index + 1));
        }
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// What a file cannot set: framing, and what the message is.
fn is_own(name: &HeaderName) -> bool {
    [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::EXPECT,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::USER_AGENT,
    ]
    .contains(name)
}
