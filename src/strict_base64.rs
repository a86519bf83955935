//! Base64 with one spelling, but for its padding.
//!
//! Rails decodes leniently and skips what is no Base64 (contract §2.3, §3.1). Callers have no need
//! of that: what is not strict is no credential here, and is not cached.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Standard alphabet; OpenSSH pads, gitlab-sshd does not. Trailing bits must be zero, or two texts
/// would be one blob.
const STRICT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes that `text` stands for, if it is strict Base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STRICT.decode(text).ok()
}
