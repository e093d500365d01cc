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
pub mod history;
mod judge;
mod kernel;
mod log;
mod named;
mod options;
mod pass;
mod plan;
mod profile;
mod reason;
mod rules;
pub mod tree;
mod verdict;

pub use assessment::Assessment;
pub use check::{Blocker, Report, Subtree, check};
pub use facts::{Fact, FactType, Facts, Key, Text, Type, Value, table as fact, word};
pub use judge::{Judge, Judgement};
pub use kernel::KernelVersion;
pub use log::{Cause, cause, rule_of};
pub use options::{DEFAULT_GHOST_LIMIT, DumpOption, Options, size};
pub use pass::Pass;
pub use plan::Step;
pub use profile::{
    CriuVersion, KNOWN_VERSIONS, NEWEST_KNOWN, OLDEST_KNOWN, ParseVersionError, Profile, VersionSource,
};
pub use reason::{NOT_KNOWN, ParseReasonError, Reason};
pub use rules::{Message, Place, Problem, Rule, RuleError, Rules};
pub use tracker_ebpf::FileKind;
pub use tree::{File, Mounts, Namespaces, Process, Relation, Tree, UnixSocket};
pub use verdict::Verdict;
