//! `POST /servers`: the state of the servers of Rails, and draining them.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use serde_json::{Value, json};

use crate::upstream::{UpstreamServerState, UpstreamState};

/// The state of all servers, after draining or undraining one if there is a body.
pub(super) fn servers(upstream: &UpstreamState, body: &[u8], now: Instant) -> (StatusCode, Value) {
    let servers = upstream.servers();
    match change(&servers, body) {
        Ok(()) => {
            let shown: Vec<Value> = servers.iter().map(|server| show(server, now)).collect();
            (StatusCode::OK, json!({ "servers": shown }))
        }
        Err(message) => {
            (StatusCode::BAD_REQUEST, json!({ "message": format!("400 Bad Request: {message}") }))
        }
    }
}

fn change(servers: &[Arc<UpstreamServerState>], body: &[u8]) -> Result<(), String> {
    if body.is_empty() {
        return Ok(());
    }
    let request = serde_json::from_slice::<Value>(body).ok();
    let request = request.as_ref().and_then(Value::as_object).filter(|request| request.len() == 2);
    let name = request.and_then(|request| request.get("server")?.as_str());
    let drain = request.and_then(|request| request.get("drain")?.as_bool());
    let (Some(name), Some(drain)) = (name, drain) else {
        let example = r#"{"server": "10.0.0.1:8080", "drain": true}"#;
        return Err(format!("say nothing, or which server, and whether to drain it: {example}"));
    };
    let Some(server) = servers.iter().find(|server| server.name == name) else {
        let known: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
        return Err(format!("there is no such server; there is {}", known.join(", ")));
    };
    if server.health.drain(drain) {
        if drain {
            tracing::warn!(server = name, "drained by an operator: it gets no more requests");
        } else {
            tracing::info!(server = name, "no longer drained");
        }
    }
    Ok(())
}

/// What operators are shown of a server.
pub(super) fn show(server: &UpstreamServerState, now: Instant) -> Value {
    json!({
        "server": server.name,
        "state": server.health.status(now).as_str(),
        "why": server.health.last_problem(),
        "backup": server.is_backup(),
        "requests": server.in_flight(),
        "connections": server.connections.open(),
        "failures_in_a_row": server.health.consecutive_failures(),
    })
}
