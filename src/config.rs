//! The configuration file: TOML in, [`GatewayConfig`] out, or every mistake at once.
//!
//! Only this module knows the names of the keys. What they mean, and most of their defaults, belong to
//! the modules whose settings they are.

mod auth;
mod cache;
mod document;
mod gateway_config;
mod listen;
mod own_listeners;
mod read;
mod scalars;
mod servers;
mod units;
mod upstream;

use std::fmt;
use std::path::Path;

pub use self::document::Diagnostic;
use self::document::Document;
pub use self::gateway_config::{AdminSettings, GatewayConfig, LogFormat, LogSettings};
use crate::file;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The settings.
    pub config: GatewayConfig,
    /// What is allowed but is probably a mistake.
    pub warnings: Vec<Diagnostic>,
}

/// Every mistake in a configuration file, a line each.
#[derive(Debug)]
pub struct ConfigError(pub Vec<Diagnostic>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads a file, and the secrets that it names.
pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
    parse(&path.display().to_string(), &read_text(path)?)
}

/// Reads only `[admin]` of a file, for commands to a running gateway: these work despite mistakes in other sections.
pub fn load_admin(path: &Path) -> Result<AdminSettings, ConfigError> {
    parse_admin(&path.display().to_string(), &read_text(path)?)
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let error = |line, message| {
        let (file, key) = (path.display().to_string(), String::new());
        ConfigError(vec![Diagnostic { file, line, key, message }])
    };
    let bytes = file::read(path, MAX_CONFIG).map_err(|cause| {
        error(None, format!("{cause}; {}; --config takes the path of a TOML file", cause.advice()))
    })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) if file::is_utf16(&bytes) => Err(error(None, "is UTF-16; save it as UTF-8".to_owned())),
        Err(invalid) => {
            let before = bytes.iter().take(invalid.valid_up_to());
            let line = before.filter(|byte| **byte == b'\n').count() + 1;
            Err(error(Some(line), "holds bytes that are not UTF-8; save the file as UTF-8".to_owned()))
        }
    }
}

/// Bytes of a configuration file. The annotated one, which has every key, has a fiftieth of that.
const MAX_CONFIG: usize = 1 << 20;

/// Reads a configuration from `text`; `file` is its name in diagnostics.
pub fn parse(file: &str, text: &str) -> Result<LoadedConfig, ConfigError> {
    let document = Document::new(file, text);
    let config = read::config(&document);
    let (errors, warnings) = document.into_diagnostics();
    match config {
        Some(config) if errors.is_empty() => Ok(LoadedConfig { config, warnings }),
        _ => Err(ConfigError(errors)),
    }
}

/// Syntax errors anywhere are errors here too: `[admin]` might be part of them.
fn parse_admin(file: &str, text: &str) -> Result<AdminSettings, ConfigError> {
    let document = Document::new(file, text);
    let admin = read::admin(&document);
    let (mut errors, _) = document.into_diagnostics();
    errors.retain(|error| error.key.is_empty() || error.key == "admin" || error.key.starts_with("admin."));
    if errors.is_empty() { Ok(admin) } else { Err(ConfigError(errors)) }
}

#[cfg(test)]
mod tests;
