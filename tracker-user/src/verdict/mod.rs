//! What CRIU would make of an fd. Pure: a verdict depends on its arguments alone.
//!
//! So far a slot is judged by its kind and the CRIU profile only; what needs more than that is `unknown`, never `ok`.

mod profile;
mod rules;

use std::fmt;

pub use profile::{CriuVersion, NEWEST_KNOWN, OLDEST_KNOWN, ParseVersionError, Profile, Source};
pub use rules::judge;

/// What CRIU would make of a slot; of a container, the worst of its slots. Ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Dumped.
    Ok,
    /// Dumped with an option that the profile doesn't have.
    NeedsOption,
    /// It depends on something that was not looked at.
    Unknown,
    /// The dump fails.
    Blocked,
}

impl Verdict {
    /// The stable name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NeedsOption => "needs_option",
            Self::Unknown => "unknown",
            Self::Blocked => "blocked",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
