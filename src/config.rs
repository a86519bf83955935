//! The configuration file: TOML in, [`Settings`] out, or every mistake at once.
//!
//! Only this room knows what the keys are called. What they mean, and their defaults, belong to
//! the rooms whose settings they are.

mod auth;
mod cache;
mod document;
mod listen;
mod own_listeners;
mod read;
mod scalars;
mod servers;
mod units;
mod upstream;

use std::fmt;
use std::path::Path;

pub use self::document::Problem;
use crate::{file, server};

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many threads answer requests.
    pub workers: usize,
    /// Where clients connect.
    pub listen: Vec<server::ListenSettings>,
    /// Where operators and their tools connect.
    pub admin: server::Endpoint,
    /// Connections open there at one time.
    pub admin_connections: usize,
    /// What operators have to show to change something.
    pub admin_token: Option<crate::secret::Token>,
    /// The names by which operators may ask for it, besides addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// Where GitLab tells of changes, if it does.
    pub hooks: Option<crate::hooks::Settings>,
    /// Rails.
    pub upstream: crate::upstream::UpstreamSettings,
    /// What Rails is shown in place of what GitLab Shell has shown.
    pub mint: Option<crate::auth::mint::Mint>,
    /// Path prefixes outside the internal API that are forwarded.
    pub forward_prefixes: Vec<String>,
    /// Who is let in.
    pub auth: crate::auth::Settings,
    /// What is kept.
    pub cache: crate::cache::CacheSettings,
    /// Bounds on clients.
    pub limits: server::Limits,
    /// What is logged.
    pub log: Log,
}

/// What `[log]` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// The least important lines that are written.
    pub level: tracing::Level,
    /// Whether requests that went well get a line too.
    pub requests: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: tracing::Level::INFO, requests: true }
    }
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub settings: Settings,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Everything that is wrong with a file.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads a file, and the secrets that it names.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let refused = |line, message| {
        let (file, key) = (name.clone(), String::new());
        Problems(vec![Problem { file, line, key, message }])
    };
    let bytes = file::read(path, MOST).map_err(|error| {
        refused(None, format!("{error}; {}; --config wants the path of a text file in TOML", error.advice()))
    })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(&name, text),
        Err(_) if file::is_utf16(&bytes) => Err(refused(None, "is UTF-16; save it as UTF-8".to_owned())),
        Err(error) => {
            let before = bytes.iter().take(error.valid_up_to());
            let line = before.filter(|byte| **byte == b'\n').count() + 1;
            Err(refused(Some(line), "holds bytes that are not UTF-8; save the file as UTF-8".to_owned()))
        }
    }
}

/// Bytes of a configuration file; the annotated one, which has every key, is a fiftieth of that.
const MOST: usize = 1 << 20;

/// Reads a configuration from `text`; `file` is what problems call it.
pub fn parse(file: &str, text: &str) -> Result<Loaded, Problems> {
    let document = document::Document::new(file, text);
    let settings = read::settings(&document);
    let (problems, warnings) = document.into_findings();
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, warnings }),
        _ => Err(Problems(problems)),
    }
}

#[cfg(test)]
mod tests;
