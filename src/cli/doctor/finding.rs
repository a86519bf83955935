//! One finding of the doctor, and all of them as text or JSON.

use std::fmt;

use serde_json::{Value, json};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) summary: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
}

/// From the least to the most severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    /// Something that could not be examined, or that the operator has to know.
    Note,
    Warning,
    Failed,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

impl Finding {
    pub(super) fn ok(summary: impl Into<String>) -> Self {
        Self { level: Level::Ok, summary: summary.into(), advice: None }
    }

    pub(super) fn note(summary: impl Into<String>, advice: &str) -> Self {
        Self { level: Level::Note, summary: summary.into(), advice: Some(advice.to_owned()) }
    }

    pub(super) fn warning(summary: impl Into<String>, advice: Option<&str>) -> Self {
        Self { level: Level::Warning, summary: summary.into(), advice: advice.map(str::to_owned) }
    }

    pub(super) fn failed(summary: impl Into<String>, advice: &str) -> Self {
        Self { level: Level::Failed, summary: summary.into(), advice: Some(advice.to_owned()) }
    }

    /// For `--json`. `subject` is what was examined.
    pub(super) fn to_json(&self, subject: &str) -> Value {
        json!({
            "subject": subject,
            "level": self.level.as_str(),
            "summary": self.summary,
            "advice": self.advice,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}: {}", self.level.as_str(), self.summary)?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "\n      {advice}"))
    }
}
