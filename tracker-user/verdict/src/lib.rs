//! What CRIU would make of an fd. Pure: a verdict depends on its arguments alone.
//!
//! - `rules`: what CRIU does when, as data;
//! - `facts`: what is known of a file;
//! - `profile`, `options`: the CRIU that is used, and how;
//! - `judge`: rules applied to facts. What isn't known makes a verdict `unknown`, never `ok`;
//! - `tree`, `context`: a process tree, and what is inside of it;
//! - `check`: a whole tree; `assessment`: what an agent keeps of that;
//! - `history`: since when a container has been blocked;
//! - `log`: the log of a dump that failed.

#![forbid(unsafe_code)]

mod assessment;
mod check;
mod context;
mod facts;
mod history;
mod judge;
mod kernel;
mod log;
mod options;
mod profile;
mod rules;
pub mod tree;

use std::fmt;

pub use assessment::Assessment;
pub use check::{Blocker, Report, Step, Subtree, check};
pub use facts::{Fact, Facts, Type, Value};
pub use history::{Histories, History, HistorySummary};
pub use judge::{Judge, Judgement, NOT_KNOWN};
pub use kernel::KernelVersion;
pub use log::{Cause, cause, rule_of};
pub use options::{DEFAULT_GHOST_LIMIT, DumpOption, Options, size};
pub use profile::{
    CriuVersion, KNOWN_VERSIONS, NEWEST_KNOWN, OLDEST_KNOWN, ParseVersionError, Profile, Source,
};
pub use rules::{Condition, Message, Pass, Rule, RuleError, Rules, Truth};
pub use tracker_ebpf::FileKind;
pub use tree::{File, Mounts, Namespaces, Process, Relation, Tree, UnixSocket};

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
