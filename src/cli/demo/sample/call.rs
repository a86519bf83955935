//! A request as the handlers get it.

use http::HeaderMap;

use super::digest::sha256_hex;
use super::params::SampleParams;

/// A parsed request, as handlers get it.
pub(super) struct ApiCall<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) params: SampleParams,
    /// The number of this request, from which all that differs from call to call is derived.
    pub(super) serial: u64,
}

impl ApiCall<'_> {
    /// Hexadecimal text of 64 characters that no other call gets. It is easy to guess, which does
    /// no harm, as it is not accepted as a credential.
    pub(super) fn fresh(&self, purpose: &str) -> String {
        sha256_hex(format!("{purpose} {}", self.serial).as_bytes())
    }
}
