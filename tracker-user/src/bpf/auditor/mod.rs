//! The auditor, as far as it is pure: reads what the iterator writes, which is the truth, and finds
//! what differs from the records.
//!
//! - `slots`: where each slot is recorded (tracepoint feeder, or none), a program reads those again
//!   that differ. That is idempotent, and takes the same locks as the probes;
//! - `counts`: where only numbers are kept (kprobe feeder), what is missing is measured and added.
//!
//! It never writes a count itself: an audit that runs while fds come and go finds false differences
//! at worst, and the programs find that there is none.

pub(super) mod counts;
#[cfg(test)]
mod model;
pub(super) mod slots;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use tracker_ebpf::{
    FileRecord, Kind, MAX_SCANNED_FDS, SEEN_IN_CGROUP, SEEN_IN_TGID, TABLE_STALE, Table, Tag, kind_sum,
};

use super::sys;

/// What an audit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Slots that were not as recorded, and were repaired. At the first audit: adopted.
    pub changes: u64,
    /// Something was left for the next audit, which should follow soon: a table that is marked
    /// stale didn't keep still, or one that seems to be gone may not have ended yet.
    pub unsettled: bool,
    /// How long it took.
    pub took: Duration,
}

/// One table as the iterator saw it.
#[derive(Debug)]
pub(super) struct SeenTable {
    /// Address of a task that has it.
    task: u64,
    tgids: HashSet<u32>,
    pub(super) cgroup_ids: HashSet<u64>,
    slots: HashMap<u32, Tag>,
}

impl SeenTable {
    /// A table whose users have files open, but none to count.
    fn idle(table: &Table) -> Self {
        Self {
            task: table.sums.task,
            tgids: HashSet::from([table.tgid]),
            cgroup_ids: HashSet::from([table.cgroup_id]),
            slots: HashMap::new(),
        }
    }

    /// Slots per kind.
    fn counts(&self) -> [i64; Kind::COUNT] {
        count(self.slots.values())
    }

    /// Slots per kind beyond those that a program can walk.
    pub(super) fn beyond_reach(&self) -> [i64; Kind::COUNT] {
        count(self.slots.iter().filter(|(fd, _)| **fd >= MAX_SCANNED_FDS).map(|(_, tag)| tag))
    }

    /// The cgroup that the table is to be charged to: where it is charged already, if one of its
    /// users is there.
    fn cgroup(&self, table: Option<&Table>) -> u64 {
        let charged = table.map(|table| table.cgroup_id).filter(|cgroup| self.cgroup_ids.contains(cgroup));
        charged.or_else(|| self.cgroup_ids.iter().min().copied()).unwrap_or_default()
    }

    fn outdated(&self, table: Option<&Table>) -> Outdated {
        let Some(Table { cgroup_id, tgid, .. }) = table else { return Outdated::default() };
        Outdated {
            cgroup_id: if self.cgroup_ids.contains(cgroup_id) { 0 } else { *cgroup_id },
            tgid: if self.tgids.contains(tgid) { 0 } else { *tgid },
        }
    }
}

/// What is recorded of a table's users, and is true of none of them; 0 if it is true of one. A
/// program finds out what is true when it writes: users may have been moved since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Outdated {
    /// The cgroup that the table is charged to.
    pub(super) cgroup_id: u64,
    /// The thread group that it is listed under.
    pub(super) tgid: u32,
}

impl Outdated {
    fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

fn count<'a>(tags: impl Iterator<Item = &'a Tag>) -> [i64; Kind::COUNT] {
    let mut counts = [0; Kind::COUNT];
    for tag in tags {
        if let Some(count) = counts.get_mut(tag.kind_index()) {
            *count += 1;
        }
    }
    counts
}

/// Tables whose users the pass visited, but which hold nothing to count.
fn idle(pass: u32, seen: &HashMap<u64, SeenTable>, tables: &HashMap<u64, Table>) -> HashMap<u64, SeenTable> {
    let visited = tables.iter().filter(|(files, table)| table.visited == pass && !seen.contains_key(files));
    visited.map(|(files, table)| (*files, SeenTable::idle(table))).collect()
}

/// A table that no task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gone {
    pub(super) files: u64,
    pub(super) generation: u64,
    pub(super) seq: u64,
    /// The slots that are still counted for it, and that nothing was said about: none if it is
    /// marked stale.
    pub(super) left: u64,
}

/// Tables that the last audit found gone, and when one first did.
#[derive(Default)]
pub(super) struct Departed(HashMap<Gone, Duration>);

impl Departed {
    /// How long a table with something to count must have been gone before it is forgotten. A task
    /// that exits may have to wait for a CPU between leaving its table and emptying it, which the
    /// kprobe feeder then counts; this is longer than such a wait, even where CPUs are too few.
    pub(super) const REST: Duration = Duration::from_secs(5);

    /// Notes what an audit found gone at a time, and keeps of it what is to be forgotten: what has
    /// been gone for so long. Returns whether something hasn't yet.
    pub(super) fn note(&mut self, gone: &mut Vec<Gone>, now: Duration, rest: Duration) -> bool {
        let earlier = std::mem::take(&mut self.0);
        let all = gone.len();
        gone.retain(|table| {
            let since = earlier.get(table).copied().unwrap_or(now);
            self.0.insert(*table, since);
            table.left == 0 || now.saturating_sub(since) >= rest
        });
        gone.len() < all
    }
}

/// Tables that were there before the iterator ran, of which it saw no task, and in which nothing
/// has moved since.
pub(super) fn gone(pass: u32, before: &HashMap<u64, Table>, tables: &HashMap<u64, Table>) -> Vec<Gone> {
    let unseen = tables.iter().filter(|(_, table)| table.visited != pass);
    let gone =
        unseen.filter(|(files, table)| before.get(files).is_some_and(|earlier| is_same(earlier, table)));
    let gone = gone.map(|(files, table)| {
        let told = table.flags & TABLE_STALE != 0;
        let left = if told { 0 } else { table.n.iter().map(|n| n.unsigned_abs()).sum() };
        Gone { files: *files, generation: table.generation, seq: table.seq, left }
    });
    gone.collect()
}

/// Whether this is the same table, and nothing has moved in it.
fn is_same(earlier: &Table, later: &Table) -> bool {
    (earlier.generation, earlier.seq) == (later.generation, later.seq)
}

/// Whether the sums of a pass are those of what is recorded: then there is nothing to compare.
///
/// `recorded` is how many slots are recorded in all; `None` where only numbers are kept.
pub(super) fn agree(
    pass: u32,
    seen: &HashMap<u64, SeenTable>,
    tables: &HashMap<u64, Table>,
    recorded: Option<u64>,
) -> bool {
    let mut visited = tables.values().filter(|table| table.visited == pass);
    let counted = tables.values().flat_map(|table| table.n).fold(0, u64::wrapping_add_signed);
    // Only tables without an entry are in `seen`.
    seen.is_empty()
        && recorded.is_none_or(|recorded| recorded == counted)
        && visited.all(|table| is_as_recorded(table, recorded.is_some()))
}

fn is_as_recorded(Table { n, flags, slots, sums, .. }: &Table, by_slots: bool) -> bool {
    let weigh = |sum: u64, (index, n): (usize, &i64)| {
        sum.wrapping_add(kind_sum(index as u64).wrapping_mul(n.cast_unsigned()))
    };
    flags & TABLE_STALE == 0
        && sums.kinds == n.iter().enumerate().fold(0, weigh)
        && (!by_slots || sums.slots == *slots)
        // It isn't known who has a table with nothing to count.
        && (n.iter().all(|n| *n == 0) || sums.users == SEEN_IN_CGROUP | SEEN_IN_TGID)
}

/// Reads everything that the iterator writes.
pub(super) fn read(iterator: impl std::io::Read) -> std::io::Result<HashMap<u64, SeenTable>> {
    let mut seen: HashMap<u64, SeenTable> = HashMap::new();
    sys::read_records(iterator, |record: FileRecord| note(&mut seen, &record))?;
    Ok(seen)
}

fn note(seen: &mut HashMap<u64, SeenTable>, record: &FileRecord) {
    let table = seen.entry(record.files).or_insert_with(|| SeenTable {
        task: record.task,
        tgids: HashSet::new(),
        cgroup_ids: HashSet::new(),
        slots: HashMap::new(),
    });
    table.tgids.insert(record.tgid);
    table.cgroup_ids.insert(record.cgroup_id);
    table.slots.insert(record.fd, Tag::new(record.kind, record.file));
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::{Sums, slot_sum};

    use super::*;

    /// A table with one pidfd, as a pass leaves it.
    fn visited_table() -> Table {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0x1000);
        let mut n = [0; Kind::COUNT];
        n[Kind::Pidfd.index()] = 1;
        let kinds = kind_sum(Kind::Pidfd.index() as u64);
        let sums = Sums {
            task: 0x2000,
            file: 0x1000,
            slots: slot_sum(3, tag),
            kinds,
            users: SEEN_IN_CGROUP | SEEN_IN_TGID,
        };
        Table { n, visited: 5, slots: slot_sum(3, tag), sums, ..Table::EMPTY }
    }

    #[test]
    fn tables_that_are_as_recorded_agree() {
        let agrees = |table, recorded| agree(5, &HashMap::new(), &HashMap::from([(1, table)]), recorded);
        assert!(agrees(visited_table(), Some(1)) && agrees(visited_table(), None));
        assert!(agrees(Table { visited: 5, ..Table::EMPTY }, Some(0)), "nothing to count");
        assert!(!agrees(visited_table(), Some(2)), "a slot of a table that is no more");
        let spoil: [fn(&mut Table); 5] = [
            |table| table.sums.kinds = 0,
            |table| table.sums.users = SEEN_IN_CGROUP,
            |table| table.sums.users = SEEN_IN_TGID,
            |table| table.flags = TABLE_STALE,
            |table| table.n[Kind::Eventfd.index()] = 1,
        ];
        for spoil in spoil {
            let mut table = visited_table();
            spoil(&mut table);
            assert!(!agrees(table, Some(1)) && !agrees(table, None), "{table:?}");
        }
        // Other slots with the same kinds.
        let moved = Table { slots: 7, ..visited_table() };
        assert!(!agrees(moved, Some(1)) && agrees(moved, None));
        // It wasn't visited.
        assert!(agrees(Table { visited: 4, ..moved }, Some(1)));
    }

    #[test]
    fn a_table_without_an_entry_disagrees() {
        let mut seen = HashMap::new();
        let (kind, file) = (Kind::Pidfd.index() as u64, 0x1000);
        note(&mut seen, &FileRecord { files: 1, task: 2, file, cgroup_id: 1, kind, tgid: 42, fd: 3 });
        assert!(!agree(5, &seen, &HashMap::new(), Some(0)));
    }

    #[test]
    fn a_table_with_something_left_is_forgotten_once_nothing_has_moved_in_it_for_long() {
        let mut departed = Departed::default();
        let mut forgets = |seq, left, now| {
            let mut gone = vec![Gone { files: 1, generation: 1, seq, left }];
            let waits = departed.note(&mut gone, Duration::from_secs(now), Departed::REST);
            assert_eq!(waits, gone.is_empty());
            !waits
        };
        assert_eq!([forgets(0, 1, 10), forgets(0, 1, 14), forgets(0, 1, 15)], [false, false, true]);
        assert_eq!([forgets(1, 1, 16), forgets(1, 1, 20), forgets(1, 1, 21)], [false, false, true]);
        assert!(forgets(2, 0, 22));
    }
}
