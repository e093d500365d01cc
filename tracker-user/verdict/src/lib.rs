//! What CRIU would say of a process tree. A verdict depends on its arguments alone: nothing here
//! does I/O.
//!
//! A [`Judge`] has [`Rules`], which are data, and a [`Profile`]: the CRIU and the kernel in
//! question. It is asked about a file, of which a [`FileKind`] and [`Facts`] are known. What isn't
//! known makes a verdict `unknown`, unless it comes to the same either way; never `ok`.
//!
//! ```
//! use tracker_verdict::{
//!     Facts, FileKind, Judge, KernelVersion, Profile, Rules, Verdict, fact, word::Target,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kernel = KernelVersion { major: 6, minor: 12 };
//! let judge = Judge::new(Rules::embedded()?, Profile::new(Some("4.1".parse()?), None, kernel));
//!
//! // What becomes of a pidfd depends on its target.
//! let mut facts = Facts::default();
//! assert_eq!(judge.worst(FileKind::Pidfd, &facts), Verdict::Unknown);
//!
//! facts.set(fact::OF_THREAD, false);
//! facts.set(fact::TARGET_PID, 1);
//! facts.set(fact::TARGET, Target::Outside);
//! let reasons = judge.file(FileKind::Pidfd, &facts);
//! assert_eq!(reasons.len(), 1);
//! assert_eq!(reasons[0].verdict, Verdict::Blocked);
//! assert_eq!(reasons[0].reason, "pidfd_target_outside_tree");
//! assert_eq!(reasons[0].message, "pidfd pid 1 is not a part of process tree..");
//! # Ok(())
//! # }
//! ```
//!
//! Of a whole [`Tree`], [`check`] tells every reason at once, which parts could be dumped by
//! themselves, and the shortest way to a dump. There, what is inside and outside follows from
//! [`Relation`]s.
//!
//! - [`fact`], [`word`]: what can be known of a file;
//! - [`tree`]: a process tree as it was inspected;
//! - [`Assessment`], [`history`]: what an agent keeps of an inspection, and what became of that in
//!   time;
//! - [`cause`], [`rule_of`]: the log of a dump that failed.

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
pub use rules::{Expected, Message, Problem, Rule, RuleError, Rules};
pub use tracker_ebpf::FileKind;
pub use tree::{File, Mounts, Namespaces, Process, Relation, Tree, UnixSocket};
pub use verdict::Verdict;
