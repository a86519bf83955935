//! `[auth.shell]` and `[auth.kas]`: which credentials are accepted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Located, Section};
use super::gateway_config::SecretSettings;
use super::key::KeyKind;
use super::scalars::{DAY, GIBIBYTE, ZERO, duration, size};
use super::units;
use crate::auth;
use crate::secret::files::{SecretFile, SecretRole, is_readable_by_all};
use crate::secret::{KasSecret, SecretError, ShellSecret};

/// A key, and the advice for a file that holds something else.
const SECRET_FILE: (&str, &str) = ("secret_file", "copy the file that GitLab uses");

/// Also returns for how long a replaced secret is accepted.
pub(super) fn auth(
    document: &Document<'_>,
    root: &mut Section<'_, '_>,
) -> Option<(auth::AuthSettings, Duration)> {
    let missing = |offset| {
        let message = "is required: the file with the secret that GitLab Shell and Rails share, \
                       such as \"/var/opt/gitlab/gitlab-rails/etc/gitlab_shell_secret\"";
        document.error(offset, "auth.shell.secret_file", message);
    };
    let Some(mut section) = root.section("auth") else {
        missing(0);
        return None;
    };
    let overlap = duration(&mut section, "secret_overlap", SecretSettings::default().overlap, ZERO..=DAY);
    let kas = section.section("kas").and_then(|section| kas(document, section));
    let offset = section.offset();
    let shell = section.section("shell");
    section.reject_unknown_keys();
    let Some(mut shell) = shell else {
        missing(offset);
        return None;
    };
    let has_file = shell.has("secret_file");
    let secret = secret(document, &mut shell, SECRET_FILE, ShellSecret::load);
    if !has_file {
        missing(shell.offset());
    }
    if let Some(secret) = &secret
        && secret.value.has_surrounding_whitespace()
    {
        let message = "the secret has white space around it, which GitLab Shell trims and Rails does not: \
                       tokens will not verify; rewrite the file without it";
        document.warn(secret.offset, &secret.key, message);
    }
    if let Some(secret) = &secret
        && secret.value.has_several_lines()
    {
        let message =
            "the file has several lines, and GitLab reads all of them as one secret; is it the right file?";
        document.warn(secret.offset, &secret.key, message);
    }
    let accept = shell.string_list("accept");
    let (accept_jwt, accept_shared_secret) = accepted_credentials(document, accept.as_ref());
    let max_body = size(&mut shell, "max_body", auth::DEFAULT_MAX_BODY, 0..=GIBIBYTE);
    let max_unverified = max_unverified(&mut shell, max_body);
    shell.reject_unknown_keys();
    let settings = auth::AuthSettings {
        shell_secret: secret?.value,
        accept_jwt,
        accept_shared_secret,
        max_body,
        max_unverified,
        kas,
    };
    Some((settings, overlap))
}

/// The default has room for one body of the largest size.
fn max_unverified(shell: &mut Section<'_, '_>, max_body: usize) -> usize {
    let expected = format!(
        "a size from that of auth.shell.max_body, {max_body}, to {GIBIBYTE} bytes with its unit (B, KiB, MiB, \
         GiB), such as \"16MiB\""
    );
    let within = |size: &usize| (max_body..=GIBIBYTE).contains(size);
    let kind = KeyKind::Size(max_body..=GIBIBYTE);
    let size =
        shell.string_kind("max_unverified", kind, &expected, |text| units::parse_size(text).filter(within));
    size.map_or(auth::DEFAULT_MAX_UNVERIFIED.max(max_body), |located| located.value)
}

/// Whether tokens are accepted, and whether the shared secret is.
fn accepted_credentials(document: &Document<'_>, accept: Option<&Located<Vec<String>>>) -> (bool, bool) {
    let Some(accept) = accept else { return (true, true) };
    let has = |name: &str| accept.value.iter().any(|item| item == name);
    for item in &accept.value {
        if item != "jwt" && item != "shared_secret" {
            let message = format!("unknown credential {item:?}; known are \"jwt\" and \"shared_secret\"");
            document.error(accept.offset, &accept.key, message);
        }
    }
    if accept.value.is_empty() {
        document.error(
            accept.offset,
            &accept.key,
            "must name \"jwt\", \"shared_secret\" or both: with neither, every request would be refused",
        );
    }
    (has("jwt"), has("shared_secret"))
}

fn kas(document: &Document<'_>, mut section: Section<'_, '_>) -> Option<auth::KasSettings> {
    if !section.has("secret_file") {
        document.error(
            section.offset(),
            "auth.kas.secret_file",
            "is required in [auth.kas]; drop the section to refuse kas calls",
        );
    }
    let secret = secret(document, &mut section, SECRET_FILE, KasSecret::load);
    let audience = section.string("audience", "the audience of kas tokens, such as \"gitlab\"", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    });
    section.reject_unknown_keys();
    Some(auth::KasSettings { secret: secret?.value, audience: audience.map(|audience| audience.value) })
}

/// What the secret in the file of each key is for.
const ROLES: [(&str, SecretRole); 6] = [
    ("auth.shell.secret_file", SecretRole::Shell),
    ("auth.kas.secret_file", SecretRole::Kas),
    ("upstream.secret_file", SecretRole::Upstream),
    ("admin.token_file", SecretRole::Admin),
    ("hooks.token_file", SecretRole::Hooks),
    ("hooks.signing_token_file", SecretRole::HooksSigning),
];

/// Loads the file that `key` names; `advice` is for a file that holds something else.
pub(super) fn secret<T>(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
    (key, advice): (&'static str, &str),
    load: impl FnOnce(&Path) -> Result<T, SecretError>,
) -> Option<Located<T>> {
    let file =
        section.string(key, "the path of a file", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
    load_secret(document, &file, advice, load)
}

/// The same for a key that was read.
pub(super) fn load_secret<T>(
    document: &Document<'_>,
    file: &Located<PathBuf>,
    advice: &str,
    load: impl FnOnce(&Path) -> Result<T, SecretError>,
) -> Option<Located<T>> {
    if let Some((_, role)) = ROLES.into_iter().find(|(name, _)| *name == file.key) {
        document.secret_files.borrow_mut().push(SecretFile { role, path: file.value.clone() });
    }
    match load(&file.value) {
        Ok(value) => {
            if is_readable_by_all(&file.value) {
                let message = format!(
                    "{} can be read by every user of this machine; let only the gateway's user or group read it (chmod o= \
                     FILE; `defaultMode: 0440` for a volume of Kubernetes)",
                    file.value.display()
                );
                document.warn(file.offset, &file.key, message);
            }
            Some(Located { value, key: file.key.clone(), offset: file.offset })
        }
        Err(error) => {
            let advice = match &error {
                SecretError::File(error) => error.advice(),
                _ => advice,
            };
            document.error(file.offset, &file.key, format!("{} {error}; {advice}", file.value.display()));
            None
        }
    }
}
