//! Whether a 401, 403 or 404 is Rails' own word on what was asked for. Pure: no I/O and no clock.
//!
//! What stands in front of Rails refuses requests too, often in JSON: a gateway without a route, a firewall, a
//! proxy that asks for a login. It knows nothing of keys and users, so what is kept of them stays.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::storable::is_plain_json;

/// Bytes of the largest refusal that is looked at. Those of Rails have fewer than a hundred.
pub const MAX_REFUSAL_BODY: usize = 4 * 1024;

/// Whether the head may be that of a refusal by Rails, so that the body has to be looked at.
pub fn may_be_refusal(status: StatusCode, headers: &HeaderMap) -> bool {
    is_refusal_status(status) && is_plain_json(headers)
}

const fn is_refusal_status(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
}

/// Whether an answer with such a head refuses, or does not know, what was asked for:
///
/// | Body | Of | Refusal |
/// |---|---|---|
/// | `{"message":"404 Key Not Found"}`, or any `message` that begins with `401`, `403` or `404` as a word | the endpoints (`render_api_error!`) | yes |
/// | 401 `{"error":"Unauthorized"}` | the check of credentials before the body is read, since 18.9 | yes |
/// | `{"error":"401 Unauthorized"}`, and the same of a 403 | Grape's `error!` | yes |
/// | 404 `{"error":"404 Not Found"}` | the route for all that has none: this Rails does not know the endpoint | no |
/// | anything else, such as `{"message":"Forbidden"}` | what is in front of Rails | no |
pub fn is_refusal(status: StatusCode, body: &[u8]) -> bool {
    if !is_refusal_status(status) {
        return false;
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return false };
    let text_of = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let error = text_of("error");
    begins_with_status(text_of("message"))
        || status != StatusCode::NOT_FOUND && begins_with_status(error)
        || status == StatusCode::UNAUTHORIZED && error == "Unauthorized"
}

fn begins_with_status(text: &str) -> bool {
    matches!(text.split(' ').next(), Some("401" | "403" | "404"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_of_rails_are_a_refusal() {
        for (status, body, expected) in [
            // Every refusal of the endpoints that are kept, in all releases (contract §1.1, §2.2, §4).
            (401, r#"{"message":"401 Unauthorized"}"#, true),
            (401, r#"{"message":"401 Unauthorized - Key"}"#, true),
            (401, r#"{"error":"Unauthorized"}"#, true),
            (401, r#"{"error":"401 Unauthorized"}"#, true),
            (403, r#"{"message":"403 Forbidden"}"#, true),
            (403, r#"{"message":"403 Forbidden - Your account is blocked."}"#, true),
            (403, r#"{"error":"403 Forbidden"}"#, true),
            (404, r#"{"message":"404 Key Not Found"}"#, true),
            (404, r#"{"message":"404 User Not Found"}"#, true),
            (404, r#"{"message":"404 Not Found"}"#, true),
            (404, r#"{"message":"404 Not found"}"#, true),
            (404, "{\n \"more\": [1], \"message\": \"404 Not Found\"\n}", true),
            (404, r#"{"message":"404"}"#, true),
            // A Rails without the endpoint.
            (404, r#"{"error":"404 Not Found"}"#, false),
            // Kong, AWS, a firewall, proxies that ask for a login, Spring, Kubernetes.
            (404, r#"{"message":"no Route matched with those values"}"#, false),
            (401, r#"{"message":"No API key found in request"}"#, false),
            (401, r#"{"message":"Unauthorized"}"#, false),
            (403, r#"{"message":"Forbidden"}"#, false),
            (403, r#"{"message":"Missing Authentication Token"}"#, false),
            (403, r#"{"error":"access_denied"}"#, false),
            (403, r#"{"error":"Unauthorized"}"#, false),
            (401, r#"{"error":"invalid_token","error_description":"401 expired"}"#, false),
            (404, r#"{"timestamp":1,"status":404,"error":"Not Found","path":"/"}"#, false),
            (403, r#"{"kind":"Status","status":"Failure","message":"forbidden: 403","code":403}"#, false),
            (404, r#"{"message":"4040 Not Found"}"#, false),
            (404, r#"{"message":404}"#, false),
            (404, r#"{"message":["404 Not Found"]}"#, false),
            (404, r#"["404 Not Found"]"#, false),
            (404, r#""404 Not Found""#, false),
            (403, "{}", false),
            (403, "null", false),
            (403, "", false),
            (403, r#"{"message":"403 Forb"#, false),
            (403, "<html>403 Forbidden</html>", false),
            // With another status it is no refusal.
            (200, r#"{"message":"404 Not Found"}"#, false),
            (429, r#"{"message":"403 Forbidden"}"#, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_refusal(status, body.as_bytes()), expected, "{status} {body}");
        }
    }
}
