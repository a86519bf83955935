//! The SSH keys that the sample GitLab knows, built by the same rule as in
//! `tests/rails/app/database.rb`, in Base64 as sshd passes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Key 1 there, of the user `root`.
pub fn of_root() -> String {
    ed25519(&[1])
}

/// Key 2, of the user `rubi`. Its Base64 needs padding.
pub fn padded() -> String {
    ssh_blob(&[b"ecdsa-sha2-nistp256", b"nistp256", &[&[4][..], &[2; 64]].concat()])
}

/// Key 3, of the user `rubi`. Its Base64 is full of `+`.
pub fn with_plus() -> String {
    ed25519(&[0xef, 0xbe, 0xfb])
}

/// Key 4: for signing only.
pub fn for_signing() -> String {
    ed25519(&[4])
}

/// Key 6: a deploy key.
pub fn of_deployment() -> String {
    ed25519(&[6])
}

/// Key 9: expired long ago.
pub fn expired() -> String {
    ed25519(&[9])
}

/// Key 11, of a user who is blocked.
pub fn of_blocked() -> String {
    ed25519(&[11])
}

/// A key that no user has.
pub fn unknown() -> String {
    ed25519(&[0xee])
}

/// As a value in a query string.
pub fn escaped(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

fn ed25519(fill: &[u8]) -> String {
    let bytes: Vec<u8> = fill.iter().copied().cycle().take(32).collect();
    ssh_blob(&[b"ssh-ed25519", &bytes])
}

/// A public key is its fields, each behind its length.
fn ssh_blob(fields: &[&[u8]]) -> String {
    let mut blob = Vec::new();
    for field in fields {
        blob.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
        blob.extend(*field);
    }
    STANDARD.encode(blob)
}
