//! The auditor, as far as it is pure: reads the absolute truth that the iterator writes, and finds what differs from the records.
//!
//! - `slots`: where each slot is recorded (tracepoint feeder, or none), those that differ are read again by a program. That is
//!   idempotent and follows the same locks as the probes;
//! - `counts`: where only numbers are kept (kprobe feeder), what is missing is measured and added.
//!
//! It never writes a count itself: an audit that runs while fds come and go finds false differences at worst, which the
//! programs then turn out to be none.

pub(super) mod counts;
pub(super) mod slots;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tracker_ebpf::{FileRecord, Kind, MAX_SCANNED_FDS, Table, Tag};

use super::sys;

/// What an audit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Slots that were not as recorded, put right. At the first audit: adopted.
    pub changes: u64,
    /// A table that is marked stale didn't keep still: another audit must look.
    pub unsettled: bool,
    /// How long it took.
    pub took: Duration,
}

/// One table as the iterator saw it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) tgid: u32,
    pub(super) cgroup_ids: HashSet<u64>,
    slots: HashMap<u32, Tag>,
}

impl Seen {
    /// A table whose users have files open, but none to count.
    fn idle(table: &Table) -> Self {
        Self { tgid: table.tgid, cgroup_ids: HashSet::from([table.cgroup_id]), slots: HashMap::new() }
    }

    /// Slots per kind.
    fn counts(&self) -> [i64; Kind::COUNT] {
        count(self.slots.values())
    }

    /// Slots per kind beyond those that a program can walk.
    pub(super) fn beyond_reach(&self) -> [i64; Kind::COUNT] {
        count(self.slots.iter().filter(|(fd, _)| **fd >= MAX_SCANNED_FDS).map(|(_, tag)| tag))
    }

    /// The cgroup that the table is to be charged to: where it is charged already, if one of its users is there.
    fn cgroup(&self, table: Option<&Table>) -> u64 {
        let charged = table.map(|table| table.cgroup_id).filter(|id| self.cgroup_ids.contains(id));
        charged.or_else(|| self.cgroup_ids.iter().min().copied()).unwrap_or(0)
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

/// Tables whose users the pass met, but which hold nothing to count.
fn idle(pass: u32, seen: &HashMap<u64, Seen>, tables: &HashMap<u64, Table>) -> HashMap<u64, Seen> {
    let met = tables.iter().filter(|(files, table)| table.visited == pass && !seen.contains_key(files));
    met.map(|(files, table)| (*files, Seen::idle(table))).collect()
}

/// Tables that were there before the iterator ran, which met no task that has them, and in which nothing has moved since.
fn gone<'a>(
    pass: u32,
    before: &'a HashMap<u64, Table>,
    tables: &'a HashMap<u64, Table>,
) -> impl Iterator<Item = (u64, &'a Table)> {
    let unmet = tables.iter().filter(move |(_, table)| table.visited != pass);
    unmet
        .filter(|(files, table)| before.get(files).is_some_and(|earlier| is_same(earlier, table)))
        .map(|(files, table)| (*files, table))
}

/// Whether this is the same table, and nothing has moved in it.
fn is_same(earlier: &Table, later: &Table) -> bool {
    (earlier.generation, earlier.seq) == (later.generation, later.seq)
}

/// Reads everything that the iterator writes.
pub(super) fn read(iterator: impl std::io::Read) -> std::io::Result<HashMap<u64, Seen>> {
    let mut seen: HashMap<u64, Seen> = HashMap::new();
    sys::read_records(iterator, |record: FileRecord| note(&mut seen, &record))?;
    Ok(seen)
}

fn note(seen: &mut HashMap<u64, Seen>, record: &FileRecord) {
    let table = seen.entry(record.files).or_insert_with(|| Seen {
        tgid: record.tgid,
        cgroup_ids: HashSet::new(),
        slots: HashMap::new(),
    });
    table.cgroup_ids.insert(record.cgroup_id);
    table.slots.insert(record.fd, Tag::new(record.kind, record.file));
}
