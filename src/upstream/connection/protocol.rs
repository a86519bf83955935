//! The version of HTTP spoken with Rails.

/// The version of HTTP spoken with Rails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 over a pool of connections.
    #[default]
    Http1,
    /// HTTP/2: negotiated over TLS (ALPN), and without TLS assumed (RFC 9113 §3.3).
    Http2,
}
