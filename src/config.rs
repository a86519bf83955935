//! The configuration file: TOML in, [`GatewayConfig`] out, or every mistake at once.
//!
//! Only this module knows the names of the keys. What they mean, and most of their defaults, belong to
//! the modules whose settings they are.

mod accounts;
mod auth;
mod cache;
mod diagnostic;
mod document;
mod explain;
mod fleet;
mod gateway_config;
mod key;
mod listen;
mod listen_options;
mod own_listeners;
mod read;
mod reference;
mod restart;
mod scalars;
mod schema;
mod servers;
mod show;
mod traces;
mod units;
mod unknown;
mod upstream;
mod values;
mod variable;

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

pub use self::diagnostic::{Diagnostic, Excerpt};
use self::document::Document;
pub use self::explain::explain;
pub use self::gateway_config::{AdminSettings, GatewayConfig, LogSettings, SecretSettings};
pub use self::schema::schema;
use crate::file;
use crate::reload::Mistake;

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

/// Reads a file, the variables of the environment that override it, and the secrets that both name.
pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
    parse_with(&path.display().to_string(), &read_text(path)?, std::env::vars_os())
}

/// Reads only `[admin]`, for commands to a running gateway: these work despite mistakes in other sections.
pub fn load_admin(path: &Path) -> Result<AdminSettings, ConfigError> {
    parse_admin(&path.display().to_string(), &read_text(path)?, std::env::vars_os())
}

/// The configuration in effect, as TOML: what was set and where, and the defaults as comments.
pub fn show(path: &Path) -> Result<String, ConfigError> {
    show_with(&path.display().to_string(), &read_text(path)?, std::env::vars_os())
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let error = |line, message| {
        let (file, key) = (path.display().to_string(), String::new());
        ConfigError(vec![Mistake { file, line, key, message }.into()])
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

/// Reads a configuration from `text`; `file` is its name in diagnostics. The environment is not read.
pub fn parse(file: &str, text: &str) -> Result<LoadedConfig, ConfigError> {
    parse_with(file, text, [])
}

type Pair = (OsString, OsString);

fn parse_with(
    file: &str,
    text: &str,
    environment: impl IntoIterator<Item = Pair>,
) -> Result<LoadedConfig, ConfigError> {
    let (variables, mistakes) = variable::read(environment, read::keys);
    let document = Document::new(file, text, &variables, read::keys);
    let config = read::config(&document);
    finish(config, document, mistakes)
}

fn show_with(
    file: &str,
    text: &str,
    environment: impl IntoIterator<Item = Pair>,
) -> Result<String, ConfigError> {
    let (variables, mistakes) = variable::read(environment, read::keys);
    let document = Document::new(file, text, &variables, read::keys);
    let config = read::config(&document);
    let keys = document.keys();
    let loaded = finish(config, document, mistakes)?;
    Ok(show::show(&loaded.config, &keys, &read::keys()))
}

fn finish(
    config: Option<GatewayConfig>,
    document: Document<'_>,
    mut errors: Vec<Diagnostic>,
) -> Result<LoadedConfig, ConfigError> {
    let (others, warnings) = document.into_diagnostics();
    errors.extend(others);
    match config {
        Some(config) if errors.is_empty() => Ok(LoadedConfig { config, warnings }),
        _ => Err(ConfigError(errors)),
    }
}

/// Syntax errors anywhere are errors here too: `[admin]` might be part of them.
fn parse_admin(
    file: &str,
    text: &str,
    environment: impl IntoIterator<Item = Pair>,
) -> Result<AdminSettings, ConfigError> {
    // A variable that sets no key is a mistake in another section, as far as is known.
    let (variables, mut errors) = variable::read(environment, read::keys);
    errors.retain(|error| !error.mistake.key.is_empty());
    let document = Document::new(file, text, &variables, read::keys);
    let admin = read::admin(&document);
    errors.extend(document.into_diagnostics().0);
    errors.retain(|Diagnostic { mistake: Mistake { key, .. }, .. }| {
        key.is_empty() || key == "admin" || key.starts_with("admin.")
    });
    if errors.is_empty() { Ok(admin) } else { Err(ConfigError(errors)) }
}

#[cfg(test)]
use self::key::KeyRead;
#[cfg(test)]
mod tests;
