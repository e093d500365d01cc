//! What CRIU would say of a whole tree: every reason at once, in its order; and which parts could
//! be dumped by themselves.

use std::collections::BTreeMap;

use crate::{
    FileKind, Judge, Judgement, NOT_KNOWN, Pass, Step, Verdict,
    context::Context,
    fact,
    facts::Facts,
    plan::plan,
    tree::{File, Process, Tree},
};

/// A file that isn't dumped, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The fd; `None` for what no slot holds.
    pub fd: Option<u32>,
    /// What the file is.
    pub kind: FileKind,
    /// What its link says.
    pub link: String,
    /// What CRIU says.
    pub judgement: Judgement,
}

/// A process with all that descends from it, as if it were dumped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// Its root.
    pub pid: u32,
    /// The root's parent.
    pub parent: u32,
    /// The root's name.
    pub comm: String,
    /// How far below the tree's root it is.
    pub depth: usize,
    /// How many processes it has.
    pub processes: usize,
    /// What CRIU would make of it.
    pub verdict: Verdict,
    /// How many reasons there are against it.
    pub blockers: usize,
}

/// What CRIU would say of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The worst of all.
    pub verdict: Verdict,
    /// Everything that isn't dumped, in the order in which CRIU would find it.
    pub blockers: Vec<Blocker>,
    /// The tree, each process before its children.
    pub tree: Vec<Subtree>,
    /// The shortest way to a dump of the whole.
    pub plan: Vec<Step>,
}

/// Judges a tree.
#[must_use]
pub fn check(judge: &Judge, tree: &Tree) -> Report {
    let all: Vec<&Process> = tree.processes.iter().collect();
    let blockers = blockers(judge, tree, &all);
    let plan = plan(judge, tree, &all, blockers.clone());
    Report { verdict: worst(&blockers), plan, tree: subtrees(judge, tree), blockers }
}

/// Finds the worst verdict.
pub(crate) fn worst(blockers: &[Blocker]) -> Verdict {
    blockers.iter().map(|blocker| blocker.judgement.verdict).max().unwrap_or(Verdict::Ok)
}

/// Lists what isn't dumped of these processes, in CRIU's order.
pub(crate) fn blockers(judge: &Judge, tree: &Tree, processes: &[&Process]) -> Vec<Blocker> {
    let context = Context::new(tree, processes);
    let mut found = Vec::new();
    for (place, process) in processes.iter().enumerate() {
        let mut add = |file, kind, facts: &Facts| {
            let judgements = judge.file(kind, facts).into_iter();
            found.extend(judgements.map(|judgement| (place, blocker(process, file, kind, judgement))));
        };
        add(None, FileKind::Process, &context.process_facts(process));
        if let Some(why) = &process.unreadable {
            let mut facts = Facts::default();
            facts.set(fact::WHY, why.clone().into());
            add(None, FileKind::Unreadable, &facts);
        }
        for file in &process.files {
            add(Some(file), file.kind, &context.facts(process, file));
        }
    }
    found.extend(tree.unreadable.iter().filter_map(|why| Some((0, unreadable(processes.first()?, why)))));
    // Passes over all; processes one by one, each with its passes; and passes over all.
    found.sort_by_key(|(place, blocker)| {
        let pass = blocker.judgement.pass;
        let place = *place;
        match pass {
            Pass::Collect => (0, place, pass, 0),
            _ if pass.is_of_process() => (1, place, pass, 0),
            _ => (2, 0, pass, place),
        }
    });
    found.into_iter().map(|(_, blocker)| blocker).collect()
}

fn blocker(process: &Process, file: Option<&File>, kind: FileKind, judgement: Judgement) -> Blocker {
    Blocker {
        pid: process.pid,
        comm: process.comm.clone(),
        fd: file.and_then(|file| file.fd),
        kind,
        link: file.map(|file| file.link.clone()).unwrap_or_default(),
        judgement,
    }
}

/// Makes a blocker of a part of the tree's surroundings that couldn't be read.
fn unreadable(root: &Process, why: &str) -> Blocker {
    let judgement = Judgement {
        verdict: Verdict::Unknown,
        reason: NOT_KNOWN,
        pass: Pass::Sessions,
        message: String::new(),
        remedy: why.to_owned(),
        options: Vec::new(),
    };
    blocker(root, None, FileKind::Unreadable, judgement)
}

fn subtrees(judge: &Judge, tree: &Tree) -> Vec<Subtree> {
    let mut depths: BTreeMap<u32, usize> = BTreeMap::new();
    let subtree = |process: &Process| {
        let depth = depths.get(&process.parent).map_or(0, |depth| depth + 1);
        depths.insert(process.pid, depth);
        let below = tree.below(process.pid);
        let blockers = blockers(judge, tree, &below);
        Subtree {
            pid: process.pid,
            parent: process.parent,
            comm: process.comm.clone(),
            depth,
            processes: below.len(),
            verdict: worst(&blockers),
            blockers: blockers.len(),
        }
    };
    tree.processes.iter().map(subtree).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KernelVersion, Profile, Rules, tree::Relation};

    fn judge(criu: &str) -> Judge {
        let kernel = KernelVersion { major: 6, minor: 12 };
        Judge::new(Rules::embedded().unwrap(), Profile::new(Some(criu.parse().unwrap()), None, kernel))
    }

    fn pidfd(fd: u32, target: i64) -> File {
        let mut facts = Facts::default();
        facts.set(fact::MODE, 0o600);
        facts.set(fact::OF_THREAD, false);
        File {
            fd: Some(fd),
            kind: FileKind::Pidfd,
            link: "anon_inode:[pidfd]".into(),
            facts,
            relations: vec![Relation::Target(target)],
        }
    }

    fn process(pid: u32, parent: u32, files: Vec<File>) -> Process {
        Process { pid, parent, comm: format!("p{pid}"), session: 10, files, ..Process::default() }
    }

    /// 10 has a child 11, which has one, 12; each has a pidfd of the next.
    fn tree() -> Tree {
        let processes = vec![
            process(10, 1, vec![pidfd(3, 11)]),
            process(11, 10, vec![pidfd(4, 12)]),
            process(12, 11, vec![]),
        ];
        Tree { processes, ..Tree::default() }
    }

    #[test]
    fn every_blocker_is_listed_in_crius_order() {
        let report = check(&judge("4.0"), &tree());
        assert_eq!(report.verdict, Verdict::Blocked);
        let found: Vec<_> =
            report.blockers.iter().map(|b| (b.pid, b.fd, b.judgement.reason.as_str())).collect();
        assert_eq!(found, [(10, Some(3), "pidfd_unsupported"), (11, Some(4), "pidfd_unsupported")]);
        assert!(report.blockers[0].judgement.message.starts_with("Can't dump file 3 of that type [600]"));
    }

    #[test]
    fn the_way_out_is_a_newer_criu() {
        let report = check(&judge("4.0"), &tree());
        assert_eq!(report.plan, [Step::MoveTo("4.1".parse().unwrap())]);
        assert_eq!(check(&judge("4.1"), &tree()).verdict, Verdict::Ok);
    }

    #[test]
    fn what_is_inside_depends_on_the_subtree() {
        let mut tree = tree();
        // 12 has a pidfd of its grandparent.
        tree.processes[2].files.push(pidfd(5, 10));
        let report = check(&judge("4.1"), &tree);
        assert_eq!(report.verdict, Verdict::Ok);
        let of = |subtree: &Subtree| (subtree.pid, subtree.depth, subtree.processes, subtree.verdict);
        let found: Vec<_> = report.tree.iter().map(of).collect();
        let blocked = Verdict::Blocked;
        assert_eq!(found, [(10, 0, 3, Verdict::Ok), (11, 1, 2, blocked), (12, 2, 1, blocked)]);
    }

    #[test]
    fn a_pidfd_of_another_process_is_to_be_closed() {
        let tree = Tree { processes: vec![process(10, 1, vec![pidfd(3, 1)])], ..Tree::default() };
        let report = check(&judge("4.2.1"), &tree);
        assert_eq!(report.blockers[0].judgement.message, "pidfd pid 1 is not a part of process tree..");
        let Step::Change { reason, processes, .. } = &report.plan[0] else { panic!("{:?}", report.plan) };
        assert_eq!(reason, "pidfd_target_outside_tree");
        assert_eq!(processes.keys().collect::<Vec<_>>(), [&10]);
    }

    #[test]
    fn what_could_not_be_read_is_unknown() {
        let mut tree = Tree { processes: vec![process(10, 1, vec![])], ..Tree::default() };
        assert_eq!(check(&judge("4.2.1"), &tree).verdict, Verdict::Ok);
        tree.processes[0].unreadable = Some("/proc/10/fd: Permission denied".into());
        let report = check(&judge("4.2.1"), &tree);
        assert_eq!(report.verdict, Verdict::Unknown);
        assert!(report.blockers[0].judgement.remedy.contains("Permission denied"));
    }
}
