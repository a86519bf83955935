//! The reasons to refuse a caller.

/// Why a caller was refused. For the log and the metrics; the response never says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// No credential at all.
    Missing,
    /// Not the secret, or a signature by another key.
    Wrong,
    /// A token past its `exp`.
    Expired,
    /// A token that is not valid yet (`nbf`): the clocks differ.
    Skewed,
    /// A token of another issuer.
    WrongIssuer,
    /// A token for another audience.
    WrongAudience,
    /// Not a credential of the expected form: invalid Base64, not a JWT, another algorithm.
    Malformed,
    /// Parameters that Rack versions read differently.
    Ambiguous,
    /// A kas call, but no kas secret is configured.
    NotConfigured,
    /// Callers of this kind are not for the listener.
    NotAcceptedHere,
}

impl Rejection {
    /// The label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Expired => "expired",
            Self::Skewed => "skewed",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::Malformed => "malformed",
            Self::Ambiguous => "ambiguous",
            Self::NotConfigured => "not_configured",
            Self::NotAcceptedHere => "not_accepted_here",
        }
    }
}
