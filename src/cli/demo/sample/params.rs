//! A request's parameters, from query and body, merged as in Rails.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use serde_json::{Map, Value};

use super::response::SampleResponse;

const UNREADABLE: &str = "\nProblem:\n  message body does not match declared format\n\
    Resolution:\n  when specifying application/json as content-type, you must pass valid \
    application/json in the request's 'body' \n";

/// By name. The last of the same name wins, and the body overrides the query.
pub(super) struct SampleParams(Map<String, Value>);

impl SampleParams {
    /// Reads the query and the body.
    ///
    /// A form is read whatever the method is, as old shells send the secret in the body of a GET.
    /// Other bodies of a GET are ignored.
    pub(super) fn read(request: &Request<Bytes>) -> Result<Self, SampleResponse> {
        let mut params = Map::new();
        add_form(&mut params, request.uri().query().unwrap_or_default());
        let body = request.body();
        let content_type = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let is_post = request.method() == Method::POST;
        match media_type.to_ascii_lowercase().as_str() {
            _ if body.is_empty() => {}
            "application/x-www-form-urlencoded" => {
                add_form(&mut params, &String::from_utf8_lossy(body));
            }
            "" if is_post => add_form(&mut params, &String::from_utf8_lossy(body)),
            "application/json" if is_post => add_json(&mut params, body)?,
            _ if is_post => {
                let error = format!("The provided content-type '{content_type}' is not supported.");
                return Err(SampleResponse::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &error));
            }
            _ => {}
        }
        Ok(Self(params))
    }

    /// The parameter, unless it is absent or nil.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The parameter as text; JSON callers may send an id as a number.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        match self.value(name)? {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }

    /// The strings of a list, which is `name[]=a&name[]=b` in a form.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        match self.value(name) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }
}

/// A body that is empty but for blanks, or is no object, brings no parameters.
fn add_json(params: &mut Map<String, Value>, body: &Bytes) -> Result<(), SampleResponse> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => params.extend(object),
        Ok(_) => {}
        Err(_) => return Err(SampleResponse::error(StatusCode::BAD_REQUEST, UNREADABLE)),
    }
    Ok(())
}

/// Rack's reading of a form: `;` separates too, and a name without `=` has the value nil.
fn add_form(params: &mut Map<String, Value>, form: &str) {
    for pair in form.split(['&', ';']).map(str::trim_start).filter(|pair| !pair.is_empty()) {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (decode(name), Value::String(decode(value))),
            None => (decode(pair), Value::Null),
        };
        match name.strip_suffix("[]") {
            Some(list) => match params.entry(list).or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(items) => items.push(value),
                other => *other = Value::Array(vec![value]),
            },
            None => {
                params.insert(name, value);
            }
        }
    }
}

/// Decodes `%xx` and `+`. An invalid escape stays as it is; a real GitLab would refuse the request.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(high << 4 | low);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(if first == b'+' { b' ' } else { first });
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}
