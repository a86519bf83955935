//! The files that secrets are read from, and whether they have changed.
//!
//! Files are polled: a watch on a file misses what replaces it (a rename, the links of a Kubernetes volume), and a
//! secret changes too seldom for that to matter. A change of the file behind a path (another inode) is taken to be
//! complete. One in place may be half done, so it counts once it is the same at two polls.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::pbkdf2;
use zeroize::Zeroizing;

use super::{BearerToken, KasSecret, SecretError, ShellSecret, SigningToken};

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretRole {
    /// GitLab Shell and others prove with it who they are.
    Shell,
    /// Proves kas.
    Kas,
    /// Proves the gateway to Rails.
    Upstream,
    /// Proves operators.
    Admin,
    /// Proves GitLab's System Hooks.
    Hooks,
    /// Signs GitLab's System Hooks.
    HooksSigning,
}

impl SecretRole {
    /// Whether one that was replaced is accepted for a while: not where operators expect it to end at once.
    pub const fn has_overlap(self) -> bool {
        !matches!(self, Self::Upstream | Self::Admin)
    }

    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Kas => "kas",
            Self::Upstream => "upstream",
            Self::Admin => "admin",
            Self::Hooks => "hooks",
            Self::HooksSigning => "hooks_signing",
        }
    }
}

/// A file with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// What the secret is for.
    pub role: SecretRole,
    /// As it is configured; links are followed each time.
    pub path: PathBuf,
}

/// A secret as it is in its file.
#[derive(Clone, Debug)]
pub enum LoadedSecret {
    /// Of GitLab Shell, or of Rails.
    Shell(ShellSecret),
    /// Of kas.
    Kas(KasSecret),
    /// Of operators, or of GitLab.
    Token(BearerToken),
    /// Of GitLab.
    Signing(Box<SigningToken>),
}

impl SecretFile {
    /// Reads the secret.
    pub fn load(&self) -> Result<LoadedSecret, SecretError> {
        Ok(match self.role {
            SecretRole::Shell | SecretRole::Upstream => LoadedSecret::Shell(ShellSecret::load(&self.path)?),
            SecretRole::Kas => LoadedSecret::Kas(KasSecret::load(&self.path)?),
            SecretRole::Admin | SecretRole::Hooks => LoadedSecret::Token(BearerToken::load(&self.path)?),
            SecretRole::HooksSigning => LoadedSecret::Signing(Box::new(SigningToken::load(&self.path)?)),
        })
    }
}

impl LoadedSecret {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shell(secret) => secret.as_hmac_key(),
            Self::Kas(secret) => secret.as_hmac_key(),
            Self::Token(token) => token.expose().as_bytes(),
            Self::Signing(token) => token.expose().as_bytes(),
        }
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn is_same(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.bytes(), other.bytes()).is_ok()
    }

    /// The first eight hex digits of a hash that is the same in all gateways, to compare what they have.
    ///
    /// The hash is a slow one (PBKDF2, about 30 ms), so that trying out short secrets against a metric costs as
    /// much each; and eight digits tell nothing of a random secret.
    pub fn fingerprint(&self) -> String {
        let mut hash = Zeroizing::new([0; 4]);
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, ROUNDS, b"railgate fingerprint", self.bytes(), hash.as_mut());
        format!("{:08x}", u32::from_be_bytes(*hash))
    }
}

/// Rounds of PBKDF2.
const ROUNDS: std::num::NonZeroU32 = std::num::NonZeroU32::new(100_000).unwrap();

/// Which file, in which state, a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl fmt::Debug for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} of {} bytes", self.file.1, self.size)
    }
}

impl FileIdentity {
    /// `None` if there is none.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// When its content was written, in Unix seconds.
    pub fn modified(&self) -> i64 {
        self.modified.0
    }
}

/// Tells when the file at a path is to be read again.
#[derive(Debug)]
pub struct ChangeDetector {
    /// As it was when it was last read, whether or not that was of use.
    read: Option<FileIdentity>,
    /// As the last poll has found it, if that differs.
    pending: Option<FileIdentity>,
}

impl ChangeDetector {
    /// For a file that was read in this state.
    pub fn new(read: Option<FileIdentity>) -> Self {
        Self { read, pending: None }
    }

    /// Whether to read it now. Only a poll (`is_poll`) counts as one of two looks at a file that changes in place.
    pub fn is_due(&mut self, found: Option<FileIdentity>, is_poll: bool) -> bool {
        if found == self.read {
            self.pending = None;
            return false;
        }
        let file = |identity: &Option<FileIdentity>| identity.map(|identity| identity.file);
        if file(&found) != file(&self.read) || is_poll && self.pending == found {
            (self.read, self.pending) = (found, None);
            return true;
        }
        if is_poll {
            self.pending = found;
        }
        false
    }
}

/// Whether any user of the machine can read the file: by its own mode, and by those of the directories above it.
pub fn is_readable_by_all(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let has = |path: &Path, bit: u32| std::fs::metadata(path).is_ok_and(|found| found.mode() & bit != 0);
    has(&path, 0o004) && path.ancestors().skip(1).all(|directory| has(directory, 0o001))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(inode: u64, version: i64) -> Option<FileIdentity> {
        let (modified, changed) = ((version, 0), (version, 0));
        Some(FileIdentity { file: (1, inode), size: 9, modified, changed })
    }

    #[test]
    fn another_file_is_read_at_once_and_one_that_changes_in_place_when_it_rests() {
        let mut detector = ChangeDetector::new(found(1, 1));
        for (step, (identity, is_poll, is_due)) in [
            (found(1, 1), true, false),
            (found(2, 1), false, true),
            (found(2, 1), true, false),
            // In place, and still being written at the next poll.
            (found(2, 2), false, false),
            (found(2, 2), true, false),
            (found(2, 2), false, false),
            (found(2, 3), true, false),
            (found(2, 3), true, true),
            (found(2, 3), true, false),
            // Written and written back between two polls.
            (found(2, 4), true, false),
            (found(2, 3), true, false),
            (found(2, 4), true, false),
            // Gone, which is reported once, and back.
            (None, true, true),
            (None, true, false),
            (found(2, 4), false, true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(detector.is_due(identity, is_poll), is_due, "step {step}");
        }
    }

    #[test]
    fn fingerprints_tell_secrets_apart_and_do_not_depend_on_the_process() {
        let of =
            |text: &str| LoadedSecret::Shell(ShellSecret::from_text(text.as_bytes()).unwrap()).fingerprint();
        assert_eq!(of("s3cret"), of("s3cret\n"));
        assert_ne!(of("s3cret"), of("s3cret2"));
        // As other implementations of PBKDF2 compute it.
        assert_eq!(of("s3cret"), "1366146f");
    }
}
