//! Base64 with only one spelling for each value, padding aside.
//!
//! Rails decodes leniently and skips other characters (contract §2.3, §3.1). Callers do not need that: what is
//! not strict Base64 is not a credential here, and is not cached.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Standard alphabet; OpenSSH pads, gitlab-sshd does not. Trailing bits must be zero, or two texts would have the
/// same value.
const STRICT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `None` if `text` is not strict Base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STRICT.decode(text).ok()
}
