//! The files of the status page, which are part of the program. They load nothing from elsewhere.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use http_body_util::Full;

/// The files: path, media type, content.
const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/status.css", "text/css; charset=utf-8", include_str!("page/status.css")),
    ("/status.js", "text/javascript; charset=utf-8", include_str!("page/status.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The file at this path.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (_, media_type, content) = FILES.into_iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(Full::from(content));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Some(response)
}

/// What a browser may do with a response to the page. Nothing is kept: a newer gateway has other files.
pub(super) fn restrict(headers: &mut HeaderMap) {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
