//! What a response may be.

/// Bytes of the largest head of a response.
pub(super) const HEAD_BUFFER: u32 = 32 * 1024;

/// Fields of the largest head of a response. Rails sends about 20, and a proxy in front of it may add its own.
pub(super) const MAX_RESPONSE_FIELDS: usize = 256;

/// Why a response that switches the protocol is of no use: the gateway never asks for another one.
pub(super) const UNASKED_UPGRADE: &str = "an upgrade that was not requested";
