//! Whose requests a listener takes.

use crate::route::Access;

/// The callers that may use a listener, if it is not for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptedCallers {
    /// Those with a credential of GitLab Shell.
    pub shell: bool,
    /// Those with a token of kas.
    pub kas: bool,
    /// Those that Rails judges.
    pub rails: bool,
}

impl AcceptedCallers {
    /// Whether they include those with the credential of `access`.
    pub const fn include(self, access: Access) -> bool {
        match access {
            Access::Shell => self.shell,
            Access::Kas => self.kas,
            Access::Rails => self.rails,
        }
    }
}
