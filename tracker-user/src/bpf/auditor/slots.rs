//! Audits where each slot is recorded.

use std::collections::{HashMap, HashSet};

use tracker_ebpf::{MAX_SCANNED_FDS, Slot, TABLE_STALE, Table, Tag};

use super::{Gone, Outdated, SeenTable, count, gone, idle, is_same};

/// How a table differs from what is recorded of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::bpf) enum Difference {
    /// A slot holds another file than is recorded; either may be none.
    Slot { fd: u32, truth: Tag, recorded: Tag },
    /// The table is charged to a cgroup that none of its users is in, or listed under a thread
    /// group that doesn't have it.
    Users(Outdated),
    /// As many slots of a kind are recorded as `slots`, but counted as `n`.
    Count { kind: usize, slots: i64, n: i64 },
    /// A probe has marked the table stale.
    Stale,
}

/// A table that differs from what is recorded of it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::bpf) struct DifferingTable {
    /// The cgroup that it is to be charged to.
    pub(in crate::bpf) cgroup_id: u64,
    /// The table's generation; 0 if it isn't recorded.
    pub(in crate::bpf) generation: u64,
    /// Address of a task that has it.
    pub(in crate::bpf) task: u64,
    differences: HashSet<Difference>,
    /// Slots with something to count that no scan reaches.
    far: Vec<u32>,
}

impl DifferingTable {
    /// A table of which nothing is recorded: all its slots are to be read.
    pub(in crate::bpf) fn of_all(truth: &SeenTable) -> Self {
        let far = truth.slots.iter().filter(|(fd, _)| **fd >= MAX_SCANNED_FDS);
        let far = far.map(|(fd, tag)| Difference::Slot { fd: *fd, truth: *tag, recorded: Tag::EMPTY });
        let differences = far.chain([Difference::Stale]).collect();
        Self { cgroup_id: truth.cgroup(None), generation: 0, task: truth.task, differences, far: Vec::new() }
    }

    /// Whether to read slots again isn't enough: the numbers themselves are wrong.
    pub(in crate::bpf) fn needs_recount(&self) -> bool {
        self.differences.iter().any(|difference| matches!(difference, Difference::Count { .. }))
    }

    /// Whether a probe has marked the table stale.
    fn is_stale(&self) -> bool {
        self.differences.contains(&Difference::Stale)
    }

    /// Whether all slots must be read again, not only those that differ.
    pub(in crate::bpf) fn needs_scan(&self) -> bool {
        self.differences.iter().any(|difference| !matches!(difference, Difference::Slot { .. }))
    }

    /// What is recorded of its users, and wrong.
    pub(in crate::bpf) fn outdated(&self) -> Outdated {
        let outdated = self.differences.iter().find_map(|difference| match difference {
            Difference::Users(outdated) => Some(*outdated),
            _ => None,
        });
        outdated.unwrap_or_default()
    }

    /// How many of the slots that changed when they were read again were wrong. A scan that was
    /// made for another reason than a slot only comes before the probes.
    pub(in crate::bpf) fn corrections(&self, changed: u32) -> u32 {
        if self.is_stale() || self.needs_recount() {
            return changed;
        }
        changed.min(u32::try_from(self.slots().count()).unwrap_or(u32::MAX))
    }

    /// The fds whose slots are to be read one by one: those that differ and, where all is counted
    /// anew, those that no scan reaches.
    pub(in crate::bpf) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let differing = self.differences.iter().filter_map(|difference| match difference {
            Difference::Slot { fd, .. } => Some(*fd),
            Difference::Users(_) | Difference::Count { .. } | Difference::Stale => None,
        });
        let recount = self.needs_recount();
        differing.chain(self.far.iter().copied().filter(move |_| recount))
    }
}

/// What to do about differences.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::bpf) struct Plan {
    /// Tables to re-read.
    pub(in crate::bpf) scan: HashMap<u64, DifferingTable>,
    /// Tables that are no more.
    pub(in crate::bpf) gone: Vec<Gone>,
    /// Records of slots of tables that are no more.
    pub(in crate::bpf) drop: Vec<Slot>,
}

impl Plan {
    /// Whether there is a table that may not differ at the next recheck: between a change and the
    /// probe that sees it lie some microseconds, in which the iterator is ahead. A table that a
    /// probe has marked stale does differ.
    pub(in crate::bpf) fn needs_recheck(&self) -> bool {
        self.scan.values().any(|differing| !differing.is_stale())
    }

    /// Keeps of the slots that differ those for which `keep` is true, and all those of stale
    /// tables.
    pub(in crate::bpf) fn retain_slots<E>(
        &mut self,
        mut keep: impl FnMut(u64, u32) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut result = Ok(());
        for (files, differing) in self.scan.iter_mut().filter(|(_, differing)| !differing.is_stale()) {
            differing.differences.retain(|difference| match difference {
                Difference::Slot { fd, .. } if result.is_ok() => keep(*files, *fd).unwrap_or_else(|error| {
                    result = Err(error);
                    true
                }),
                _ => true,
            });
        }
        self.scan.retain(|_, differing| !differing.differences.is_empty());
        result
    }

    /// Keeps of the tables to re-read those that still differ, in the same way, in a later plan;
    /// and those that are stale.
    pub(in crate::bpf) fn confirm(&mut self, later: &Self) {
        self.scan.retain(|files, differing| {
            if differing.is_stale() {
                return true;
            }
            let Some(again) = later.scan.get(files) else { return false };
            differing.differences.retain(|difference| again.differences.contains(difference));
            differing.generation = again.generation;
            !differing.differences.is_empty()
        });
    }
}

/// Compares truth and records.
///
/// `before` was read before the iterator ran, `slots` and then `tables` after it.
pub(in crate::bpf) fn compare(
    pass: u32,
    seen: &HashMap<u64, SeenTable>,
    before: &HashMap<u64, Table>,
    slots: &[(Slot, Tag)],
    tables: &HashMap<u64, Table>,
) -> Plan {
    let mut plan = Plan::default();
    let mut recorded: HashMap<u64, HashMap<u32, Tag>> = HashMap::new();
    for (slot, tag) in slots {
        match tables.get(&slot.files) {
            Some(table) if table.generation == slot.generation => {
                recorded.entry(slot.files).or_default().insert(slot.fd, *tag);
            }
            _ => plan.drop.push(*slot),
        }
    }
    let idle = idle(pass, seen, tables);
    let nothing = HashMap::new();
    for (files, truth) in seen.iter().chain(&idle) {
        let recorded = recorded.get(files).unwrap_or(&nothing);
        let differing = differing(truth, recorded, tables.get(files), before.get(files));
        if !differing.differences.is_empty() {
            plan.scan.insert(*files, differing);
        }
    }
    plan.gone = gone(pass, before, tables);
    plan
}

fn differing(
    truth: &SeenTable,
    recorded: &HashMap<u32, Tag>,
    table: Option<&Table>,
    before: Option<&Table>,
) -> DifferingTable {
    let mut differences = HashSet::new();
    for fd in truth.slots.keys().chain(recorded.keys()) {
        let of = |slots: &HashMap<u32, Tag>| slots.get(fd).copied().unwrap_or(Tag::EMPTY);
        let (truth, recorded) = (of(&truth.slots), of(recorded));
        if truth != recorded {
            differences.insert(Difference::Slot { fd: *fd, truth, recorded });
        }
    }
    let outdated = truth.outdated(table);
    if !outdated.is_nothing() {
        differences.insert(Difference::Users(outdated));
    }
    if let Some(table) = table {
        // Numbers and slots are read one after the other: they can be compared only if nothing
        // moved meanwhile.
        if before.is_some_and(|before| is_same(before, table)) {
            differences.extend(miscounts(recorded, table));
        }
        if table.flags & TABLE_STALE != 0 {
            differences.insert(Difference::Stale);
        }
    }
    let generation = table.map_or(0, |table| table.generation);
    let far = truth.slots.keys().copied().filter(|fd| *fd >= MAX_SCANNED_FDS).collect();
    DifferingTable { cgroup_id: truth.cgroup(table), generation, task: truth.task, differences, far }
}

/// Where the numbers of a table aren't those of its recorded slots.
fn miscounts(recorded: &HashMap<u32, Tag>, table: &Table) -> impl Iterator<Item = Difference> {
    let slots = count(recorded.values());
    let pairs = slots.into_iter().zip(table.n).enumerate();
    pairs.filter(|(_, (slots, n))| slots != n).map(|(kind, (slots, n))| Difference::Count { kind, slots, n })
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::{FileRecord, Kind};

    use super::{super::note, *};

    const PASS: u32 = 5;
    const PIDFD: Tag = Tag::new(Kind::Pidfd.index() as u64, 0x1000);

    fn record(files: u64, fd: u32, cgroup_id: u64) -> FileRecord {
        FileRecord {
            files,
            task: 0x2000,
            file: 0x1000,
            kind: Kind::Pidfd.index() as u64,
            cgroup_id,
            tgid: 42,
            fd,
        }
    }

    fn table(cgroup_id: u64, visited: u32, flags: u32) -> Table {
        Table { generation: 7, cgroup_id, tgid: 42, visited, high_fd: 9, flags, ..Table::EMPTY }
    }

    fn slot(files: u64, generation: u64, fd: u32) -> (Slot, Tag) {
        (Slot { files, generation, fd, pad: 0 }, PIDFD)
    }

    fn plan(records: &[FileRecord], slots: &[(Slot, Tag)], tables: &[(u64, Table)]) -> Plan {
        let mut seen = HashMap::new();
        for record in records {
            note(&mut seen, record);
        }
        let mut tables: HashMap<_, _> = tables.iter().copied().collect();
        for (slot, tag) in slots {
            // Tables count what is recorded, but for the test of those that don't.
            if let (Some(table), Some(kind)) = (tables.get_mut(&slot.files), tag.kind())
                && table.generation == slot.generation
            {
                table.n[kind.index()] += 1;
            }
        }
        compare(PASS, &seen, &tables, slots, &tables)
    }

    /// The tables to re-read: address, and the cgroup that they are to be charged to.
    fn scan(plan: &Plan) -> Vec<(u64, u64)> {
        plan.scan.iter().map(|(files, differing)| (*files, differing.cgroup_id)).collect()
    }

    #[test]
    fn agreement_needs_nothing() {
        let plan = plan(&[record(1, 3, 100)], &[slot(1, 7, 3)], &[(1, table(100, PASS, 0))]);
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn an_unknown_table_is_adopted() {
        assert_eq!(scan(&plan(&[record(1, 3, 100)], &[], &[])), [(1, 100)]);
    }

    #[test]
    fn a_missed_open_and_a_missed_close_are_re_read() {
        let open =
            plan(&[record(1, 3, 100), record(1, 4, 100)], &[slot(1, 7, 3)], &[(1, table(100, PASS, 0))]);
        assert_eq!(scan(&open), [(1, 100)]);
        let close = plan(&[], &[slot(1, 7, 3)], &[(1, table(100, PASS, 0))]);
        assert_eq!(scan(&close), [(1, 100)]);
    }

    #[test]
    fn a_stale_table_is_re_read_at_once() {
        for records in [&[record(1, 3, 100)][..], &[]] {
            let slots = [slot(1, 7, 3)];
            let plan = plan(records, &slots[..records.len()], &[(1, table(100, PASS, TABLE_STALE))]);
            assert_eq!(scan(&plan), [(1, 100)]);
            assert!(!plan.needs_recheck());
        }
    }

    #[test]
    fn a_difference_counts_only_if_it_stays() {
        let tables = [(1, table(100, PASS, 0)), (2, table(100, PASS, 0))];
        let first = || plan(&[record(1, 3, 100), record(2, 3, 100)], &[], &tables);
        let confirmed = |later: &Plan| {
            let mut plan = first();
            assert!(plan.needs_recheck());
            plan.confirm(later);
            plan
        };
        assert_eq!(confirmed(&first()).scan.len(), 2);
        // One is gone at the recheck, and one has become another difference.
        assert_eq!(confirmed(&plan(&[record(1, 4, 100)], &[], &tables)), Plan::default());
        assert_eq!(scan(&confirmed(&plan(&[record(2, 3, 100)], &[], &tables))), [(2, 100)]);
    }

    #[test]
    fn slots_that_turn_out_equal_are_left_out() {
        let tables = [(1, table(100, PASS, 0)), (2, table(100, PASS, TABLE_STALE))];
        let mut plan = plan(&[record(1, 3, 100), record(1, 4, 100), record(2, 3, 100)], &[], &tables);
        plan.retain_slots(|_, fd| Ok::<_, ()>(fd == 4)).unwrap();
        assert_eq!(plan.scan[&1].slots().collect::<Vec<_>>(), [4]);
        // Nothing is asked of a table that is stale.
        assert_eq!(plan.scan[&2].slots().count(), 1);
        assert_eq!(plan.retain_slots(|_, _| Err("unreadable")), Err("unreadable"));
        assert_eq!(plan.scan.len(), 2);
    }

    #[test]
    fn numbers_that_arent_those_of_the_slots_are_counted_anew() {
        let mut wrong = table(100, PASS, 0);
        wrong.n[Kind::Eventfd.index()] = 1;
        let plan = plan(&[record(1, 3, 100)], &[slot(1, 7, 3)], &[(1, wrong)]);
        assert!(plan.scan[&1].needs_recount() && plan.needs_recheck());
        let same = Difference::Count { kind: Kind::Eventfd.index(), slots: 0, n: 1 };
        assert_eq!(plan.scan[&1].differences, HashSet::from([same]));
    }

    #[test]
    fn a_missed_move_is_repaired() {
        let plan = plan(&[record(1, 3, 200)], &[slot(1, 7, 3)], &[(1, table(100, PASS, 0))]);
        assert_eq!(scan(&plan), [(1, 200)]);
        assert_eq!(plan.scan[&1].outdated(), Outdated { cgroup_id: 100, tgid: 0 });
    }

    #[test]
    fn a_table_is_listed_under_a_process_that_has_it() {
        let mut other = table(100, PASS, 0);
        other.tgid = 7;
        let plan = plan(&[record(1, 3, 100)], &[slot(1, 7, 3)], &[(1, other)]);
        assert_eq!(scan(&plan), [(1, 100)]);
        assert_eq!(plan.scan[&1].outdated(), Outdated { cgroup_id: 0, tgid: 7 });
    }

    #[test]
    fn counting_anew_includes_what_no_scan_reaches() {
        let mut wrong = table(100, PASS, 0);
        wrong.n[Kind::Eventfd.index()] = 1;
        let far = MAX_SCANNED_FDS + 1;
        let plan =
            plan(&[record(1, 3, 100), record(1, far, 100)], &[slot(1, 7, 3), slot(1, 7, far)], &[(1, wrong)]);
        assert_eq!(plan.scan[&1].slots().collect::<Vec<_>>(), [far]);
    }

    #[test]
    fn a_table_shared_across_cgroups_stays_where_it_is_charged() {
        let shared = [record(1, 3, 100), record(1, 3, 200)];
        assert_eq!(plan(&shared, &[slot(1, 7, 3)], &[(1, table(200, PASS, 0))]), Plan::default());
    }

    #[test]
    fn a_table_that_nobody_has_is_forgotten_with_its_slots() {
        let plan = plan(&[], &[slot(1, 7, 3), slot(2, 1, 3)], &[(1, table(100, PASS - 1, 0))]);
        assert_eq!(plan.gone, [Gone { files: 1, generation: 7, seq: 0, left: 1 }]);
        // Its own record goes once the table is gone; that of the earlier table goes now.
        assert_eq!(plan.drop, [slot(2, 1, 3).0]);
    }

    #[test]
    fn a_table_that_came_during_the_pass_is_left_alone() {
        let tables = HashMap::from([(1, table(100, 0, 0))]);
        let plan = compare(PASS, &HashMap::new(), &HashMap::new(), &[], &tables);
        assert_eq!(plan, Plan::default());
    }
}
