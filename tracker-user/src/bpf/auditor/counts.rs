//! Audits where only numbers are kept.
//!
//! Between a change of a slot and the probe that counts it lie some microseconds, and between the
//! iterator and the numbers some milliseconds. So a table whose numbers aren't those that the
//! iterator saw is only *suspect*: a program then measures it at one moment, and again a little
//! later. What is missing both times is really missing, however much the table moves: a change that
//! is counted leaves the difference as it is.

use std::collections::HashMap;

use tracker_ebpf::{Kind, TABLE_STALE, Table};

use super::{Gone, Outdated, SeenTable, gone, idle};

/// What is to be added to a table's numbers, per kind.
pub(in crate::bpf) type Delta = [i64; Kind::COUNT];

/// A table that may be counted wrongly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bpf) struct Suspect {
    pub(in crate::bpf) files: u64,
    /// What is recorded of its users, and wrong.
    pub(in crate::bpf) outdated: Outdated,
    /// The cgroup that it is to be charged to.
    pub(in crate::bpf) cgroup_id: u64,
    /// The table's generation; 0 if it isn't recorded.
    pub(in crate::bpf) generation: u64,
    /// Address of a task that has it.
    pub(in crate::bpf) task: u64,
    /// Slots that a program can't walk.
    pub(in crate::bpf) beyond_reach: Delta,
    /// It is marked stale, charged to a cgroup that none of its users is in, or listed under a
    /// thread group that doesn't have it: it is written to, whatever is measured.
    pub(in crate::bpf) marked: bool,
}

/// What an audit is to measure, and to forget.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::bpf) struct Plan {
    pub(in crate::bpf) suspects: Vec<Suspect>,
    /// Tables that are no more.
    pub(in crate::bpf) gone: Vec<Gone>,
}

/// Compares truth and numbers. `before` was read before the iterator ran, `tables` after it.
pub(in crate::bpf) fn compare(
    pass: u32,
    seen: &HashMap<u64, SeenTable>,
    before: &HashMap<u64, Table>,
    tables: &HashMap<u64, Table>,
) -> Plan {
    let idle = idle(pass, seen, tables);
    let suspects = seen.iter().chain(&idle).filter_map(|(files, truth)| {
        let table = tables.get(files);
        let outdated = truth.outdated(table);
        let marked = !outdated.is_nothing() || table.is_some_and(|table| table.flags & TABLE_STALE != 0);
        let differs = truth.counts() != table.map_or([0; Kind::COUNT], |table| table.n);
        (marked || differs).then(|| Suspect {
            files: *files,
            cgroup_id: truth.cgroup(table),
            outdated,
            generation: table.map_or(0, |table| table.generation),
            task: truth.task,
            beyond_reach: truth.beyond_reach(),
            marked,
        })
    });
    Plan { suspects: suspects.collect(), gone: gone(pass, before, tables) }
}

/// What was measured of a table.
pub(in crate::bpf) struct Measure {
    pub(in crate::bpf) delta: Delta,
    /// The table kept still meanwhile, and all measurements agree.
    pub(in crate::bpf) exact: bool,
}

impl Measure {
    /// Nothing is missing, and nothing is counted that isn't there.
    pub(in crate::bpf) fn is_nothing(&self) -> bool {
        self.exact && size(&self.delta) == 0
    }

    /// Keeps what another measurement finds, too.
    pub(in crate::bpf) fn confirm(&mut self, again: &Self) {
        let both = confirmed(&self.delta, &again.delta);
        self.exact &= again.exact && both == self.delta;
        self.delta = if again.exact { both } else { [0; Kind::COUNT] };
    }
}

/// What two measures agree on.
fn confirmed(first: &Delta, second: &Delta) -> Delta {
    let mut both = [0; Kind::COUNT];
    for (to, (first, second)) in both.iter_mut().zip(first.iter().zip(second)) {
        if first == second {
            *to = *first;
        }
    }
    both
}

/// How many slots a difference is.
pub(in crate::bpf) fn size(delta: &Delta) -> u64 {
    delta.iter().map(|n| n.unsigned_abs()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tracker_ebpf::{MAX_SCANNED_FDS, Tag};

    use super::*;

    const PASS: u32 = 5;

    fn seen(cgroup_id: u64, fds: &[u32]) -> SeenTable {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0x1000);
        let slots = fds.iter().map(|fd| (*fd, tag)).collect();
        SeenTable { task: 0x2000, tgids: HashSet::from([42]), cgroup_ids: HashSet::from([cgroup_id]), slots }
    }

    fn table(cgroup_id: u64, pidfds: i64, visited: u32, flags: u32) -> Table {
        let mut n = [0; Kind::COUNT];
        n[Kind::Pidfd.index()] = pidfds;
        Table { n, seq: 1, generation: 7, cgroup_id, tgid: 42, visited, flags, ..Table::EMPTY }
    }

    fn plan(seen: SeenTable, table: &Table) -> Plan {
        let tables = HashMap::from([(1, *table)]);
        compare(PASS, &HashMap::from([(1, seen)]), &tables, &tables)
    }

    #[test]
    fn agreement_needs_nothing() {
        assert_eq!(plan(seen(100, &[3, 4]), &table(100, 2, PASS, 0)), Plan::default());
    }

    #[test]
    fn tables_that_differ_are_suspect() {
        let plan = plan(seen(100, &[3, 4]), &table(100, 1, PASS, 0));
        let suspect = &plan.suspects[0];
        assert_eq!((suspect.files, suspect.cgroup_id, suspect.generation), (1, 100, 7));
        assert!(!suspect.marked);
        let new = compare(PASS, &HashMap::from([(1, seen(100, &[3]))]), &HashMap::new(), &HashMap::new());
        assert_eq!(new.suspects[0].generation, 0);
    }

    #[test]
    fn a_table_with_nothing_left_is_suspect_if_something_is_counted() {
        let tables = HashMap::from([(1, table(100, 1, PASS, 0))]);
        assert_eq!(compare(PASS, &HashMap::new(), &tables, &tables).suspects.len(), 1);
    }

    #[test]
    fn stale_moved_and_left_tables_are_written_to() {
        assert!(plan(seen(100, &[3]), &table(100, 1, PASS, TABLE_STALE)).suspects[0].marked);
        let moved = plan(seen(200, &[3]), &table(100, 1, PASS, 0));
        assert!(moved.suspects[0].marked && moved.suspects[0].cgroup_id == 200);
        assert_eq!(moved.suspects[0].outdated, Outdated { cgroup_id: 100, tgid: 0 });
        let mut left = table(100, 1, PASS, 0);
        left.tgid = 7;
        let left = plan(seen(100, &[3]), &left);
        assert!(left.suspects[0].marked);
        assert_eq!(left.suspects[0].outdated, Outdated { cgroup_id: 0, tgid: 7 });
    }

    #[test]
    fn a_table_that_nobody_has_is_forgotten_unless_it_moves() {
        let before = HashMap::from([(1, table(100, 2, PASS - 1, 0))]);
        assert_eq!(
            compare(PASS, &HashMap::new(), &before, &before).gone,
            [Gone { files: 1, generation: 7, seq: 1, left: 2 }]
        );
        let mut moved = before.clone();
        moved.get_mut(&1).unwrap().seq += 1;
        assert_eq!(compare(PASS, &HashMap::new(), &before, &moved), Plan::default());
    }

    #[test]
    fn only_what_stays_is_confirmed() {
        let (mut first, mut second) = ([0; Kind::COUNT], [0; Kind::COUNT]);
        (first[1], second[1]) = (2, 2);
        (first[2], second[2]) = (1, 0);
        (first[3], second[3]) = (1, -1);
        let both = confirmed(&first, &second);
        assert_eq!((both[1], size(&both)), (2, 2));
    }

    #[test]
    fn what_no_program_walks_is_taken_from_the_iterator() {
        let truth = seen(100, &[3, MAX_SCANNED_FDS, MAX_SCANNED_FDS + 9]);
        assert_eq!(truth.beyond_reach()[Kind::Pidfd.index()], 2);
    }
}
