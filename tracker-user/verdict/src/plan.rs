//! The shortest way to a dump of a whole tree.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    CriuVersion, Judge, Judgement, KNOWN_VERSIONS, Reason, Verdict,
    check::{Blocker, blockers},
    tree::{Process, Tree},
};

/// One change on the way to a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give CRIU this option.
    AddOption(String),
    /// Use this release of CRIU, or a newer one.
    MoveTo(CriuVersion),
    /// Do something about these processes: why, and what.
    Change {
        /// The reason.
        reason: Reason,
        /// The remedy.
        remedy: String,
        /// The processes that must change; each with its name.
        processes: BTreeMap<u32, String>,
    },
}

/// Plans the way: another CRIU, if it helps; then options, if they do; then changes of what runs.
pub(crate) fn plan(judge: &Judge, tree: &Tree, processes: &[&Process], found: Vec<Blocker>) -> Vec<Step> {
    let mut steps = Vec::new();
    let (judge, left) = with_newer_criu(judge, tree, processes, found, &mut steps);
    let (_, left) = with_options(&judge, tree, processes, left, &mut steps);
    let mut changes: BTreeMap<(Reason, String), BTreeMap<u32, String>> = BTreeMap::new();
    for blocker in left.into_iter().filter(|blocker| blocker.judgement.verdict != Verdict::Ok) {
        let Judgement { reason, remedy, .. } = blocker.judgement;
        changes.entry((reason, remedy)).or_default().insert(blocker.pid, blocker.comm);
    }
    let change = |((reason, remedy), processes)| Step::Change { reason, remedy, processes };
    steps.extend(changes.into_iter().map(change));
    steps
}

/// Finds the oldest release from the profile's on with which the least is left.
fn with_newer_criu(
    judge: &Judge,
    tree: &Tree,
    processes: &[&Process],
    found: Vec<Blocker>,
    steps: &mut Vec<Step>,
) -> (Judge, Vec<Blocker>) {
    let mut best = (judge.clone(), found);
    let current = judge.profile().version;
    for version in KNOWN_VERSIONS.iter().copied().filter(|version| *version > current) {
        if severe(&best.1) == 0 {
            break;
        }
        let newer = judge.with_profile(judge.profile().with_version(version));
        let left = blockers(&newer, tree, processes);
        if severe(&left) < severe(&best.1) {
            best = (newer, left);
        }
    }
    let chosen = best.0.profile().version;
    if chosen != current {
        steps.push(Step::MoveTo(chosen));
    }
    best
}

/// Counts reasons that no option does away with.
fn severe(blockers: &[Blocker]) -> usize {
    blockers.iter().filter(|blocker| blocker.judgement.verdict == Verdict::Blocked).count()
}

/// Adds options for as long as they help: a file that one option lets pass may need another.
fn with_options(
    judge: &Judge,
    tree: &Tree,
    processes: &[&Process],
    mut left: Vec<Blocker>,
    steps: &mut Vec<Step>,
) -> (Judge, Vec<Blocker>) {
    let mut judge = judge.clone();
    let mut added = BTreeSet::new();
    loop {
        let options = left.iter().filter(|blocker| blocker.judgement.verdict == Verdict::NeedsOption);
        let first: BTreeSet<String> =
            options.filter_map(|blocker| blocker.judgement.options.first().cloned()).collect();
        let new: Vec<String> = first.into_iter().filter(|option| added.insert(option.clone())).collect();
        if new.is_empty() {
            return (judge, left);
        }
        let mut profile = judge.profile().clone();
        for option in &new {
            profile.options.add(option);
        }
        judge = judge.with_profile(profile);
        left = blockers(&judge, tree, processes);
        left.retain(|blocker| !blocker.judgement.options.iter().any(|option| added.contains(option)));
        steps.extend(new.into_iter().map(Step::AddOption));
    }
}
