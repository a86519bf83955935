//! The causes of failures to connect, as labels.

/// Why no connection could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum UnreachableCause {
    /// The host name cannot be resolved.
    Dns = 0,
    /// Nothing listens there.
    Refused = 1,
    /// The socket file does not exist.
    NoSocket = 2,
    /// There is no route to the host.
    Unroutable = 3,
    /// No connection within `connect_timeout`.
    Timeout = 4,
    /// The handshake failed: the server does not speak TLS, or its certificate is not trusted.
    Tls = 5,
    /// The gateway's user may not open the socket (file permissions).
    Denied = 6,
    /// File descriptors or memory are exhausted on this machine. That says nothing about the server.
    Resources = 7,
    /// A proxy accepts connections, and reports in its responses that Rails is unreachable.
    Proxy = 8,
    /// An operator has drained all servers.
    Drained = 9,
    /// None of these; the log has the error.
    Other = 10,
}

impl UnreachableCause {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Dns,
        Self::Refused,
        Self::NoSocket,
        Self::Unroutable,
        Self::Timeout,
        Self::Tls,
        Self::Denied,
        Self::Resources,
        Self::Proxy,
        Self::Drained,
        Self::Other,
    ];

    /// The label in metrics, logs and `/ready`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::NoSocket => "no_socket",
            Self::Unroutable => "unroutable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Denied => "denied",
            Self::Resources => "resources",
            Self::Proxy => "proxy",
            Self::Drained => "drained",
            Self::Other => "other",
        }
    }
}

crate::counters::label!(UnreachableCause);
