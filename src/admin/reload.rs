//! `POST /reload`, and `GET` and `POST /log`.

use http::StatusCode;
use serde_json::{Value, json};

use crate::log::{LogCounters, LogSwitch};
use crate::reload::{Mistake, Reload, ReloadError};

/// Reads the configuration again.
pub(super) fn reload(reload: &dyn Reload, body: &[u8]) -> (StatusCode, Value) {
    let is_empty = body.is_empty() || serde_json::from_slice(body).is_ok_and(|body: Value| body == json!({}));
    if !is_empty {
        return bad_request("say nothing: the file is that of the start");
    }
    match reload.reload() {
        Ok(reloaded) => (
            StatusCode::OK,
            json!({ "restart_needed": reloaded.restart_needed, "warnings": reloaded.warnings }),
        ),
        Err(ReloadError::NoFile) => (
            StatusCode::CONFLICT,
            json!({ "message": "409 Conflict: this gateway was not started with a configuration file" }),
        ),
        Err(ReloadError::Busy) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "message": "503 Service Unavailable: another reload still reads the files; does their disk hang?" }),
        ),
        Err(ReloadError::Mistakes(mistakes)) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            json!({
                "message": "422 Unprocessable Entity: nothing was changed, since the file has mistakes",
                "mistakes": mistakes.iter().map(show).collect::<Vec<_>>(),
            }),
        ),
    }
}

fn show(mistake: &Mistake) -> Value {
    let Mistake { file, line, key, message } = mistake;
    json!({ "file": file, "line": line, "key": key, "message": message })
}

/// The level of the log, after it was changed if there is a body.
pub(super) fn log(log: &LogCounters, body: &[u8]) -> (StatusCode, Value) {
    if !body.is_empty() {
        let request = serde_json::from_slice::<Value>(body).ok();
        let request = request.as_ref().and_then(Value::as_object).filter(|request| request.len() == 1);
        let level = request.and_then(|request| LogSwitch::parse(request.get("level")?.as_str()?));
        let Some(level) = level else {
            return bad_request(r#"name a level, error, warn, info or debug, as in {"level": "debug"}"#);
        };
        let before = log.switch.name();
        log.switch.set_level(level);
        tracing::warn!(before, now = log.switch.name(), "an operator has set the level of the log");
    }
    (StatusCode::OK, json!({ "level": log.switch.name() }))
}

fn bad_request(what: &str) -> (StatusCode, Value) {
    (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad Request: {what}") }))
}
