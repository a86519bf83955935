//! Positive and negative entries.

/// Whether an answer says that something exists or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A key row, a user, the instance.
    Positive = 0,
    /// The 404 of an unknown key, the `null` of an unknown user.
    Negative = 1,
}

impl EntryKind {
    /// In the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Positive, Self::Negative];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

crate::counters::label!(EntryKind);
