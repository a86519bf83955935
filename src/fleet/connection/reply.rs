//! Reads the replies of the commands that are used.

use redis::Value;

use super::error::ConnectionError;
use crate::fleet::stream::{Entry, Envelope, Identity, StreamId};
use crate::upstream::UpstreamAddress;

/// The fields of an entry: the publisher, its number, the sealed content.
pub(super) const FIELDS: [&str; 3] = ["p", "n", "x"];

/// The reply, unless the server has answered with an error.
pub(super) fn accepted(command: &'static str, value: Value) -> Result<Value, ConnectionError> {
    let Value::ServerError(error) = value else { return Ok(value) };
    let (code, detail) = (error.code(), error.details().unwrap_or_default());
    if code == "MOVED" {
        return Err(moved(detail).map_or(ConnectionError::Unexpected(command), ConnectionError::Moved));
    }
    Err(ConnectionError::Refused { command, code: code.to_owned(), detail: detail.to_owned() })
}

/// Reads `3999 127.0.0.1:6381`. IPv6 addresses have no brackets there.
fn moved(detail: &str) -> Option<UpstreamAddress> {
    let (host, port) = detail.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(UpstreamAddress::Tcp(host.to_owned(), port.parse().ok()?))
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(text) => Some(text),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

pub(super) fn id(value: &Value) -> Option<StreamId> {
    StreamId::parse(text(value)?)
}

/// The reply to `XRANGE` and `XREVRANGE`, and what `XREAD` has of a stream: a list of an ID and a list of fields each.
pub(super) fn entries(value: Value) -> Option<Vec<Entry>> {
    match value {
        Value::Array(items) => items.into_iter().map(entry).collect(),
        Value::Nil => Some(Vec::new()),
        _ => None,
    }
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let [id_of_entry, fields] = <[Value; 2]>::try_from(parts).ok()?;
    Some(Entry { id: id(&id_of_entry)?, envelope: envelope(fields) })
}

fn envelope(fields: Value) -> Option<Envelope> {
    let Value::Array(fields) = fields else { return None };
    let [p, publisher, n, number, x, sealed] = <[Value; 6]>::try_from(fields).ok()?;
    let names = [&p, &n, &x].map(text);
    if names != FIELDS.map(|name| Some(name.as_bytes())) {
        return None;
    }
    let Value::BulkString(sealed) = sealed else { return None };
    Some(Envelope {
        publisher: text(&publisher)?.try_into().ok()?,
        number: std::str::from_utf8(text(&number)?).ok()?.parse().ok()?,
        sealed,
    })
}

/// The reply to `XREAD` of one stream: none, if nothing came, or a list with the name and the entries of that stream.
pub(super) fn read_entries(value: Value) -> Option<Vec<Entry>> {
    let streams = match value {
        Value::Nil => return Some(Vec::new()),
        Value::Array(streams) => streams,
        _ => return None,
    };
    let [stream] = <[Value; 1]>::try_from(streams).ok()?;
    let Value::Array(parts) = stream else { return None };
    let [_, found] = <[Value; 2]>::try_from(parts).ok()?;
    entries(found)
}

/// Whether the reply to `ROLE` says that the server is a master. A managed service may refuse to say, and has nothing
/// but masters at its address.
pub(super) fn is_master(value: Value) -> Result<bool, ConnectionError> {
    match value {
        Value::ServerError(error) if is_unavailable(error.code()) => Ok(true),
        Value::Array(parts) => {
            let role = parts.first().and_then(text).ok_or(ConnectionError::Unexpected("ROLE"))?;
            Ok(role == b"master")
        }
        other => accepted("ROLE", other).and(Err(ConnectionError::Unexpected("ROLE"))),
    }
}

/// The replies to `INFO server` and `INFO replication`. `None` if the service refuses them.
pub(super) fn identity(server: Value, replication: Value) -> Result<Option<Identity>, ConnectionError> {
    let field = |value: Value, name: &str| match value {
        Value::ServerError(error) if is_unavailable(error.code()) => Ok(None),
        value => {
            let value = accepted("INFO", value)?;
            text(&value).ok_or(ConnectionError::Unexpected("INFO"))?;
            Ok(info_field(&value, name))
        }
    };
    let (run_id, replid) = (field(server, "run_id")?, field(replication, "master_replid")?);
    Ok(run_id.zip(replid).map(|(run_id, replid)| Identity { run_id, replid }))
}

/// Whether a command is not there, or not for this user.
fn is_unavailable(code: &str) -> bool {
    matches!(code, "NOPERM" | "ERR")
}

/// A field of the reply to `INFO`.
pub(super) fn info_field(info: &Value, name: &str) -> Option<String> {
    let info = std::str::from_utf8(text(info)?).ok()?;
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// The reply to `SENTINEL GET-MASTER-ADDR-BY-NAME`: host and port, or nothing if the Sentinel does not know the name.
pub(super) fn master_address(value: &Value) -> Result<Option<UpstreamAddress>, ConnectionError> {
    let address = |parts: &[Value]| {
        let [host, port] = parts else { return None };
        let [host, port] = [host, port].map(|part| std::str::from_utf8(text(part)?).ok());
        Some(UpstreamAddress::Tcp(host?.to_owned(), port?.parse().ok()?))
    };
    match value {
        Value::Nil => Ok(None),
        Value::Array(parts) => address(parts).map(Some).ok_or(ConnectionError::Unexpected("SENTINEL")),
        _ => Err(ConnectionError::Unexpected("SENTINEL")),
    }
}

#[cfg(test)]
mod tests;
