//! What an agent keeps of an inspection of a container, and how long that stays true.

use std::collections::{BTreeMap, BTreeSet};

use tracker_ebpf::Kind;

use crate::{
    Judge, NOT_KNOWN, Verdict,
    check::{Blocker, blockers, worst},
    tree::{Process, Tree},
};

/// What an inspection of a container came to. It holds for as long as its processes have as many
/// files of each kind that is counted: what probes see. What they don't see is seen by the next
/// inspection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What CRIU would make of the container.
    pub verdict: Option<Verdict>,
    /// Everything that isn't dumped, in the order in which CRIU would find it.
    pub blockers: Vec<Blocker>,
    /// Files of kinds that are counted, by what CRIU would make of each.
    files: BTreeMap<Kind, BTreeMap<Verdict, i64>>,
    /// Processes in the container's cgroup that no dump takes: they don't descend from its first.
    outside: BTreeSet<u32>,
}

impl Assessment {
    /// Judges a tree. `pids` are those in the container's cgroup.
    #[must_use]
    pub fn new(judge: &Judge, tree: &Tree, pids: &[u32]) -> Self {
        let all: Vec<&Process> = tree.processes.iter().collect();
        let blockers = blockers(judge, tree, &all);
        let inside: BTreeSet<u32> = all.iter().map(|process| process.pid).collect();
        let mut assessment = Self {
            verdict: Some(worst(&blockers)),
            files: BTreeMap::new(),
            outside: pids.iter().copied().filter(|pid| !inside.contains(pid)).collect(),
            blockers,
        };
        assessment.count(&all);
        assessment
    }

    /// Counts files by their verdicts: of each the worst of its judgements, or ok without any.
    fn count(&mut self, processes: &[&Process]) {
        let mut verdicts: BTreeMap<(u32, Option<u32>), Verdict> = BTreeMap::new();
        for blocker in &self.blockers {
            let of_file = verdicts.entry((blocker.pid, blocker.fd)).or_insert(Verdict::Ok);
            *of_file = (*of_file).max(blocker.judgement.verdict);
        }
        for process in processes {
            for file in process.files.iter().filter(|file| file.fd.is_some()) {
                let Some(kind) = file.kind.counted() else { continue };
                let verdict = verdicts.get(&(process.pid, file.fd)).copied().unwrap_or(Verdict::Ok);
                *self.files.entry(kind).or_default().entry(verdict).or_default() += 1;
            }
        }
    }

    /// Whether a process is in the container and not in the tree.
    #[must_use]
    pub fn is_outside(&self, pid: u32) -> bool {
        self.outside.contains(&pid)
    }

    /// Says what CRIU would make of each of `n` files of a kind, if there are as many in the
    /// assessment.
    #[must_use]
    pub fn of_kind(&self, kind: Kind, n: i64) -> Option<Vec<(Verdict, i64)>> {
        let files = self.files.get(&kind);
        let sum: i64 = files.into_iter().flatten().map(|(_, n)| n).sum();
        (sum == n).then(|| files.into_iter().flatten().map(|(verdict, n)| (*verdict, *n)).collect())
    }

    /// Finds the first reason against a dump, in CRIU's order, that isn't only a lack of knowledge.
    #[must_use]
    pub fn first_reason(&self) -> Option<&Blocker> {
        self.blockers.iter().find(|blocker| blocker.judgement.reason != NOT_KNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Facts, File, FileKind, KernelVersion, Profile, Relation, Rules, fact};

    fn judge() -> Judge {
        let kernel = KernelVersion { major: 6, minor: 12 };
        Judge::new(Rules::embedded().unwrap(), Profile::new("4.1".parse().ok(), None, kernel))
    }

    fn pidfd(fd: u32, target: i64) -> File {
        let mut facts = Facts::default();
        facts.set(fact::OF_THREAD, false);
        let (kind, relations) = (FileKind::from(Kind::Pidfd), vec![Relation::Target(target)]);
        File { fd: Some(fd), kind, link: "anon_inode:[pidfd]".into(), facts, relations }
    }

    #[test]
    fn it_holds_while_there_are_as_many_files() {
        let process = Process { pid: 10, files: vec![pidfd(3, 10), pidfd(4, 1)], ..Process::default() };
        let tree = Tree { processes: vec![process], ..Tree::default() };
        let assessment = Assessment::new(&judge(), &tree, &[10, 12]);
        assert_eq!(assessment.verdict, Some(Verdict::Blocked));
        let pidfds = vec![(Verdict::Ok, 1), (Verdict::Blocked, 1)];
        assert_eq!(assessment.of_kind(Kind::Pidfd, 2), Some(pidfds));
        assert_eq!(assessment.of_kind(Kind::Pidfd, 3), None);
        assert_eq!(assessment.of_kind(Kind::IoUring, 0), Some(vec![]));
        assert!(assessment.is_outside(12) && !assessment.is_outside(10));
        assert_eq!(assessment.first_reason().unwrap().judgement.reason, "pidfd_target_outside_tree");
    }
}
