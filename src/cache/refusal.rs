//! Whether a 401, 403 or 404 is Rails' own word on what was asked for. All that may end an entry (fills, requests
//! that pass by, comparisons) goes by this. Pure: no I/O and no clock.
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

/// What an answer says of the entry of what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Rails refuses it, or does not know it: the entry ends.
    Refused,
    /// It is refused in words that are not known, perhaps those of a newer Rails: the entry may not be used any
    /// more if Rails fails. With the status.
    Doubtful(StatusCode),
    /// Nothing.
    Unrelated,
}

/// What an answer with such a head says:
///
/// | Body | Of | Verdict |
/// |---|---|---|
/// | `{"message":"404 Key Not Found"}`, or any `message` that begins with `401`, `403` or `404` as a word | the endpoints (`render_api_error!`) | refused |
/// | 401 `{"error":"Unauthorized"}` | the check of credentials before the body is read, since 18.9 | refused |
/// | `{"error":"401 Unauthorized"}`, and the same of a 403 | Grape's `error!` | refused |
/// | 404 `{"error":"404 Not Found"}` | the route for all that has none: this Rails does not know the endpoint | unrelated |
/// | any other object of a 401 or 403, such as `{"message":"Forbidden"}` | what is in front of Rails, or a newer Rails | doubtful |
/// | anything else, such as 404 `{"message":"no Route matched"}` | what is in front of Rails | unrelated |
pub fn judge(status: StatusCode, body: &[u8]) -> Verdict {
    if !is_refusal_status(status) {
        return Verdict::Unrelated;
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Verdict::Unrelated };
    let text_of = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let error = text_of("error");
    let is_refused = begins_with_status(text_of("message"))
        || status != StatusCode::NOT_FOUND && begins_with_status(error)
        || status == StatusCode::UNAUTHORIZED && error == "Unauthorized";
    if is_refused { Verdict::Refused } else { judge_unknown(status) }
}

/// The same of an answer in unknown words, such as one that is too long to be looked at.
pub fn judge_unknown(status: StatusCode) -> Verdict {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Verdict::Doubtful(status),
        _ => Verdict::Unrelated,
    }
}

fn begins_with_status(text: &str) -> bool {
    matches!(text.split(' ').next(), Some("401" | "403" | "404"))
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Refused, Unrelated};
    use super::*;

    const DOUBTED_401: Verdict = Verdict::Doubtful(StatusCode::UNAUTHORIZED);
    const DOUBTED_403: Verdict = Verdict::Doubtful(StatusCode::FORBIDDEN);

    #[test]
    fn only_the_words_of_rails_are_a_refusal_and_others_are_in_doubt() {
        for (status, body, expected) in [
            // Every refusal of the endpoints that are kept, in all releases (contract §1.1, §2.2, §4).
            (401, r#"{"message":"401 Unauthorized"}"#, Refused),
            (401, r#"{"message":"401 Unauthorized - Key"}"#, Refused),
            (401, r#"{"error":"Unauthorized"}"#, Refused),
            (401, r#"{"error":"401 Unauthorized"}"#, Refused),
            (403, r#"{"message":"403 Forbidden"}"#, Refused),
            (403, r#"{"message":"403 Forbidden - Your account is blocked."}"#, Refused),
            (403, r#"{"error":"403 Forbidden"}"#, Refused),
            (404, r#"{"message":"404 Key Not Found"}"#, Refused),
            (404, r#"{"message":"404 User Not Found"}"#, Refused),
            (404, r#"{"message":"404 Not Found"}"#, Refused),
            (404, r#"{"message":"404 Not found"}"#, Refused),
            (404, "{\n \"more\": [1], \"message\": \"404 Not Found\"\n}", Refused),
            (404, r#"{"message":"404"}"#, Refused),
            // A Rails without the endpoint.
            (404, r#"{"error":"404 Not Found"}"#, Unrelated),
            // What a newer GitLab might say.
            (403, r#"{"message":"Key is blocked"}"#, DOUBTED_403),
            // Kong, AWS, a firewall, proxies that ask for a login, Spring, Kubernetes.
            (404, r#"{"message":"no Route matched with those values"}"#, Unrelated),
            (401, r#"{"message":"No API key found in request"}"#, DOUBTED_401),
            (401, r#"{"message":"Unauthorized"}"#, DOUBTED_401),
            (403, r#"{"message":"Forbidden"}"#, DOUBTED_403),
            (403, r#"{"message":"Missing Authentication Token"}"#, DOUBTED_403),
            (403, r#"{"error":"access_denied"}"#, DOUBTED_403),
            (403, r#"{"error":"Unauthorized"}"#, DOUBTED_403),
            (401, r#"{"error":"invalid_token","error_description":"401 expired"}"#, DOUBTED_401),
            (404, r#"{"timestamp":1,"status":404,"error":"Not Found","path":"/"}"#, Unrelated),
            (
                403,
                r#"{"kind":"Status","status":"Failure","message":"forbidden: 403","code":403}"#,
                DOUBTED_403,
            ),
            (404, r#"{"message":"4040 Not Found"}"#, Unrelated),
            (404, r#"{"message":404}"#, Unrelated),
            (404, r#"{"message":["404 Not Found"]}"#, Unrelated),
            (404, r#"["404 Not Found"]"#, Unrelated),
            (404, r#""404 Not Found""#, Unrelated),
            (403, "{}", DOUBTED_403),
            (403, "null", Unrelated),
            (403, "", Unrelated),
            (403, r#"{"message":"403 Forb"#, Unrelated),
            (403, "<html>403 Forbidden</html>", Unrelated),
            // With another status it is no refusal.
            (200, r#"{"message":"404 Not Found"}"#, Unrelated),
            (429, r#"{"message":"403 Forbidden"}"#, Unrelated),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(judge(status, body.as_bytes()), expected, "{status} {body}");
        }
    }
}
