//! The limits of a response's head: its size, its fields, and the odd spellings that are accepted.

use hyper::client::conn::http1;

/// Bytes of the largest head of a response, and of what may wait to be sent to a server that does not read.
pub(super) const HEAD_BUFFER: u32 = 32 * 1024;

/// Fields of the largest head of a response. Rails sends about 20, and a proxy in front of it may add its own.
pub(super) const MAX_RESPONSE_FIELDS: usize = 256;

/// Reads responses over HTTP/1.1. Odd spellings with a single meaning are accepted (RFC 9112 §5.1, §5.2): the
/// client gets a head that is written anew.
pub(super) fn http1_builder() -> http1::Builder {
    let buffer = usize::try_from(HEAD_BUFFER).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(buffer)
        .max_header_size(buffer)
        .max_headers(MAX_RESPONSE_FIELDS)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    builder
}
