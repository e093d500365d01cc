//! Adds up tables by process, and processes by container. Pure: the caller provides the kernel
//! side's tables, and the owners of cgroups.
//!
//! The counts are in the kernel (`TABLES`), where fork, exec, exit, dup, close and cgroup moves
//! keep them current. Hidden files are those of the last hidden scan. The inventory is made again
//! for every snapshot. So it has no state that could become outdated, and a lost event can't make
//! it wrong.

mod counts;
mod ledger;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use counts::{Counts, Hidden, Totals};
pub use ledger::{Ledger, OwnerKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracker_ebpf::{Flow, Kind, TABLE_STALE, Table};

use crate::{
    runtime::{Container, Owner},
    verdict::{Assessment, Judge, Verdict, history::Summary},
};

/// Cgroups with fd tables that weren't counted, because there was no room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// The cgroups that an audit found.
    pub cgroups: BTreeSet<u64>,
    /// Whether it may be any cgroup since the last audit.
    pub any: bool,
}

/// Everything that holds fds: the host, the containers, and owners that aren't known.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Processes that are in no container.
    pub host: Entry,
    /// Containers, sorted by name and id.
    pub containers: Vec<(Arc<Container>, Entry)>,
    /// Processes of cgroups that had gone before they could be resolved.
    pub unknown: Entry,
    /// The numbers of fd tables that were added up.
    pub tables: Tables,
    /// How many cgroups have had counted slots filled or emptied.
    pub flows: usize,
}

/// Numbers of fd tables, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    counted: usize,
    empty: usize,
    stale: usize,
}

impl Tables {
    fn count(&mut self, table: &Table) {
        *match table.flags & TABLE_STALE {
            0 if table.n.iter().all(|n| *n == 0) => &mut self.empty,
            0 => &mut self.counted,
            _ => &mut self.stale,
        } += 1;
    }

    /// Returns how many there are in each state.
    #[must_use]
    pub const fn by_state(&self) -> [(&'static str, usize); 3] {
        [("counted", self.counted), ("empty", self.empty), ("stale", self.stale)]
    }

    /// Returns how many there are.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.counted + self.empty + self.stale
    }
}

/// The state of a container: its verdict, or that a count is being repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum State {
    /// The verdict.
    Judged(Verdict),
    /// A count is being repaired, and isn't exact.
    Stale,
}

/// A text that names no state.
#[derive(Debug, Error)]
#[error("{0:?} is no state of a container")]
pub struct ParseStateError(String);

impl State {
    /// Returns all states.
    pub fn all() -> impl Iterator<Item = Self> {
        Verdict::ALL.iter().copied().map(Self::Judged).chain([Self::Stale])
    }

    /// Returns the stable name that metrics and JSON use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Judged(verdict) => verdict.name(),
            Self::Stale => "stale",
        }
    }
}

impl From<State> for &'static str {
    fn from(state: State) -> Self {
        state.name()
    }
}

impl TryFrom<String> for State {
    type Error = ParseStateError;

    fn try_from(name: String) -> Result<Self, ParseStateError> {
        Self::all().find(|state| state.name() == name).ok_or(ParseStateError(name))
    }
}

/// What the host, or a container, holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Slots of each kind now, and hidden files as of the last scan.
    pub counts: Counts,
    /// Slots filled and emptied since the agent started.
    pub totals: Totals,
    /// Whether a count is being repaired, and so isn't exact.
    pub stale: bool,
    /// The counts by process (thread group), for processes that have any.
    pub processes: BTreeMap<u32, Counts>,
    /// What is known besides counts.
    pub detail: Detail,
    /// The verdict, once [`Inventory::judge`] was called.
    pub judged: Judged,
    /// When it could last be dumped, and for how long it could not.
    pub history: Summary,
}

/// The verdict on an entry, for a certain CRIU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Files of each kind, by verdict.
    pub files: Vec<(Kind, Verdict, i64)>,
    /// Whether there are as many files of each kind as at the inspection.
    pub is_current: bool,
}

impl Default for Judged {
    fn default() -> Self {
        Self { verdict: Verdict::Ok, files: Vec::new(), is_current: false }
    }
}

/// What is known of a container besides counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Nothing, and there will be no inspection: only kinds decide. This is so for the host, which
    /// is never dumped.
    #[default]
    None,
    /// It will be inspected.
    Pending,
    /// It was inspected.
    Known(Arc<Assessment>),
}

fn worst(files: &[(Kind, Verdict, i64)]) -> Verdict {
    files.iter().map(|(_, verdict, _)| *verdict).max().unwrap_or(Verdict::Ok)
}

/// Whether there are as many files of each kind as at the inspection.
fn has_as_many_files(inside: &Counts, assessment: &Assessment) -> bool {
    let mut slots = Kind::ALL.iter().filter(|kind| !kind.is_hidden());
    slots.all(|kind| assessment.of_kind(*kind, inside.get(*kind)).is_some())
}

impl Entry {
    fn charge(&mut self, table: &Table) {
        self.counts.add(&table.n);
        self.stale |= table.flags & TABLE_STALE != 0;
        if table.n.iter().any(|n| *n != 0) {
            self.processes.entry(table.tgid).or_default().add(&table.n);
        }
    }

    fn charge_hidden(&mut self, hidden: &Hidden) {
        self.counts.add_hidden(hidden);
        self.processes.entry(hidden.tgid).or_default().add_hidden(hidden);
    }

    /// Judges the entry. For a container that was inspected, the inspection's verdict holds while
    /// there are as many files of each kind as then. Kinds that can't be dumped in any case block
    /// at once.
    fn judge(&mut self, judge: &Judge) {
        self.judged = match &self.detail {
            Detail::None => self.judged_by_kind(judge, |worst| worst),
            Detail::Pending => self.judged_by_kind(judge, |worst| match worst {
                Verdict::Blocked => Verdict::Blocked,
                Verdict::Ok | Verdict::NeedsOption | Verdict::Unknown => Verdict::Unknown,
            }),
            Detail::Known(assessment) => self.judged_in_detail(judge, assessment),
        };
    }

    fn judged_by_kind(&self, judge: &Judge, verdict: impl Fn(Verdict) -> Verdict) -> Judged {
        let files: Vec<_> = self.counts.judged(judge).collect();
        Judged { verdict: verdict(worst(&files)), files, is_current: false }
    }

    fn judged_in_detail(&self, judge: &Judge, assessment: &Assessment) -> Judged {
        let inside = self.inside(assessment);
        let by_kind: Vec<_> = inside.judged(judge).collect();
        let is_current = has_as_many_files(&inside, assessment);
        let verdict = match worst(&by_kind) {
            Verdict::Blocked => Verdict::Blocked,
            _ => assessment.verdict.filter(|_| is_current).unwrap_or(Verdict::Unknown),
        };
        let mut files: BTreeMap<(Kind, Verdict), i64> = BTreeMap::new();
        let mut add = |kind, verdict, n| *files.entry((kind, verdict)).or_default() += n;
        for (kind, verdict, n) in by_kind {
            match assessment.of_kind(kind, n).filter(|_| !kind.is_hidden()) {
                Some(files) => files.into_iter().for_each(|(verdict, n)| add(kind, verdict, n)),
                None => add(kind, verdict, n),
            }
        }
        for outside in self.outside(assessment) {
            outside.judged(judge).for_each(|(kind, verdict, n)| add(kind, verdict, n));
        }
        let files = files.into_iter().map(|((kind, verdict), n)| (kind, verdict, n)).collect();
        Judged { verdict, files, is_current }
    }

    /// Returns the counts of those of its processes that no dump takes.
    fn outside<'a>(&'a self, assessment: &'a Assessment) -> impl Iterator<Item = &'a Counts> {
        self.processes.iter().filter(|(pid, _)| assessment.is_outside(**pid)).map(|(_, counts)| counts)
    }

    /// Returns the counts of the rest.
    fn inside(&self, assessment: &Assessment) -> Counts {
        let mut inside = self.counts;
        self.outside(assessment).for_each(|counts| inside.subtract(counts));
        inside
    }

    /// Returns the verdict; unknown while a count is being repaired.
    #[must_use]
    pub fn known_verdict(&self) -> Verdict {
        if self.stale { Verdict::Unknown } else { self.judged.verdict }
    }

    /// Returns the verdict, or that a count is being repaired.
    #[must_use]
    pub fn state(&self) -> State {
        if self.stale { State::Stale } else { State::Judged(self.judged.verdict) }
    }
}

impl Inventory {
    /// Adds up tables, hidden files and flows.
    ///
    /// `containers` are listed even if they hold nothing. `owner` returns the owner of a cgroup.
    pub fn take(
        tables: &[(u64, Table)],
        flows: &[(u64, Flow)],
        hidden: &[Hidden],
        ledger: &Ledger,
        containers: Vec<Arc<Container>>,
        uncounted: &Uncounted,
        mut owner: impl FnMut(u64) -> Owner,
    ) -> Self {
        let mut entries: BTreeMap<OwnerKey, Entry> = BTreeMap::new();
        let mut known: BTreeMap<OwnerKey, Arc<Container>> = BTreeMap::new();
        let mut learn = |owner: Owner| {
            let key = OwnerKey::of(&owner);
            if let Owner::Container(container) = owner {
                known.entry(key.clone()).or_insert(container);
            }
            key
        };
        for container in containers {
            let key = learn(Owner::Container(container));
            entries.entry(key).or_default();
        }
        let mut states = Tables::default();
        for (_, table) in tables {
            states.count(table);
            let key = learn(owner(table.cgroup_id));
            entries.entry(key).or_default().charge(table);
        }
        for hidden in hidden {
            // The container may have gone since the last scan. Then it isn't listed because of
            // hidden files alone.
            let key = OwnerKey::of(&owner(hidden.cgroup_id));
            match entries.get_mut(&key) {
                Some(entry) => entry.charge_hidden(hidden),
                None if matches!(key, OwnerKey::Container(_)) => {}
                None => entries.entry(key).or_default().charge_hidden(hidden),
            }
        }
        for cgroup in &uncounted.cgroups {
            let key = learn(owner(*cgroup));
            entries.entry(key).or_default().stale = true;
        }
        entries.entry(OwnerKey::Host).or_default();
        for (cgroup, flow) in flows {
            // A container that has gone isn't listed only because its flows still exist.
            let key = OwnerKey::of(&owner(*cgroup));
            if let Some(entry) = entries.get_mut(&key) {
                entry.totals.add(flow);
            } else if !matches!(key, OwnerKey::Container(_)) {
                entries.entry(key).or_default().totals.add(flow);
            }
        }
        for (key, entry) in &mut entries {
            entry.stale |= uncounted.any;
            entry.totals.merge(&ledger.retired(key));
        }
        Self { tables: states, flows: flows.len(), ..Self::arrange(entries, &known) }
    }

    /// Judges all entries for this CRIU.
    pub fn judge(&mut self, judge: &Judge) {
        let containers = self.containers.iter_mut().map(|(_, entry)| entry);
        containers.chain([&mut self.host, &mut self.unknown]).for_each(|entry| entry.judge(judge));
    }

    fn arrange(mut entries: BTreeMap<OwnerKey, Entry>, known: &BTreeMap<OwnerKey, Arc<Container>>) -> Self {
        let host = entries.remove(&OwnerKey::Host).unwrap_or_default();
        let unknown = entries.remove(&OwnerKey::Unknown).unwrap_or_default();
        let mut containers: Vec<_> = entries
            .into_iter()
            .filter_map(|(key, entry)| known.get(&key).map(|container| (Arc::clone(container), entry)))
            .collect();
        containers.sort_by(|(a, _), (b, _)| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self { host, containers, unknown, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::KernelVersion,
        runtime::{Identity, Runtime},
        verdict::{Judge, NEWEST_KNOWN, Profile, Rules},
    };

    fn container(name: &str) -> Arc<Container> {
        let (id, cgroup) = (name.into(), format!("/{name}"));
        Arc::new(Container::new(Identity { id, runtime: Runtime::Runc, pod_uid: None, cgroup }))
    }

    /// Cgroup 1 is the host's, 2 and 3 are web's, 4 is db's, 5 has gone.
    fn owner(cgroup: u64) -> Owner {
        match cgroup {
            1 => Owner::Host,
            2 | 3 => Owner::Container(container("web")),
            4 => Owner::Container(container("db")),
            _ => Owner::Unknown,
        }
    }

    fn table(cgroup_id: u64, tgid: u32, slots: &[(Kind, i64)]) -> (u64, Table) {
        let mut n = [0; Kind::COUNT];
        for (kind, count) in slots {
            n[kind.index()] = *count;
        }
        let files = 0xffff_0000 + u64::from(tgid);
        (files, Table { n, generation: 1, cgroup_id, tgid, ..Table::EMPTY })
    }

    fn flow(kind: Kind, opened: u64, closed: u64) -> Flow {
        let mut flow = Flow { opened: [0; Kind::COUNT], closed: [0; Kind::COUNT] };
        flow.opened[kind.index()] = opened;
        flow.closed[kind.index()] = closed;
        flow
    }

    fn take(tables: &[(u64, Table)], flows: &[(u64, Flow)]) -> Inventory {
        let all = vec![container("web"), container("db")];
        Inventory::take(tables, flows, &[], &Ledger::default(), all, &Uncounted::default(), owner)
    }

    fn entry<'a>(inventory: &'a Inventory, name: &str) -> &'a Entry {
        inventory.containers.iter().find(|(c, _)| c.name == name).map(|(_, entry)| entry).unwrap()
    }

    fn judge(criu: &str) -> Judge {
        let kernel = KernelVersion { major: 6, minor: 12 };
        Judge::new(Rules::embedded().unwrap(), Profile::new(Some(criu.parse().unwrap()), None, kernel))
    }

    #[test]
    fn tables_add_up_to_processes_and_containers() {
        let inventory = take(
            &[
                table(2, 10, &[(Kind::Pidfd, 2), (Kind::Epoll, 1)]),
                // Another table of the same process, and one in a cgroup that the container made.
                table(2, 10, &[(Kind::Pidfd, 1)]),
                table(3, 11, &[(Kind::Pidfd, 4)]),
                table(1, 1, &[(Kind::Eventfd, 5)]),
            ],
            &[],
        );
        let web = entry(&inventory, "web");
        assert_eq!(web.counts.get(Kind::Pidfd), 7);
        assert_eq!(web.processes[&10].get(Kind::Pidfd), 3);
        assert_eq!(web.processes[&11].get(Kind::Pidfd), 4);
        assert_eq!(inventory.host.counts.get(Kind::Eventfd), 5);
    }

    #[test]
    fn a_container_that_holds_nothing_is_listed() {
        let inventory = take(&[], &[]);
        let names: Vec<_> = inventory.containers.iter().map(|(c, _)| c.name.as_str()).collect();
        assert_eq!(names, ["db", "web"]);
        assert_eq!(entry(&inventory, "db"), &Entry::default());
    }

    #[test]
    fn a_container_that_came_after_the_list_was_made_is_listed() {
        let inventory = Inventory::take(
            &[table(4, 7, &[(Kind::Tun, 1)])],
            &[],
            &[],
            &Ledger::default(),
            vec![],
            &Uncounted::default(),
            owner,
        );
        assert_eq!(entry(&inventory, "db").counts.get(Kind::Tun), 1);
    }

    #[test]
    fn a_table_that_moves_takes_its_counts_along() {
        let before = take(&[table(1, 10, &[(Kind::Pidfd, 2)])], &[]);
        assert_eq!(before.host.counts.get(Kind::Pidfd), 2);
        let after = take(&[table(4, 10, &[(Kind::Pidfd, 2)])], &[]);
        assert_eq!(after.host.counts.get(Kind::Pidfd), 0);
        assert_eq!(entry(&after, "db").counts.get(Kind::Pidfd), 2);
    }

    #[test]
    fn a_process_that_closed_everything_isnt_listed() {
        let inventory = take(&[table(4, 10, &[(Kind::Pidfd, 0)])], &[]);
        assert!(entry(&inventory, "db").processes.is_empty());
    }

    #[test]
    fn flows_add_up_over_cgroups_and_what_was_retired() {
        let mut ledger = Ledger::default();
        ledger.retire(&Owner::Container(container("web")), &flow(Kind::Pidfd, 100, 100));
        ledger.retire(&Owner::Host, &flow(Kind::Pidfd, 7, 7));
        let flows =
            [(2, flow(Kind::Pidfd, 3, 1)), (3, flow(Kind::Pidfd, 2, 2)), (1, flow(Kind::Pidfd, 1, 0))];
        let inventory =
            Inventory::take(&[], &flows, &[], &ledger, vec![container("web")], &Uncounted::default(), owner);
        let web = &entry(&inventory, "web").totals;
        assert_eq!((web.opened.get(Kind::Pidfd), web.closed.get(Kind::Pidfd)), (105, 103));
        assert_eq!(inventory.host.totals.opened.get(Kind::Pidfd), 8);
    }

    #[test]
    fn flows_of_a_container_that_has_gone_dont_bring_it_back() {
        let inventory = Inventory::take(
            &[],
            &[(4, flow(Kind::Pidfd, 3, 3))],
            &[],
            &Ledger::default(),
            vec![],
            &Uncounted::default(),
            owner,
        );
        assert!(inventory.containers.is_empty());
    }

    #[test]
    fn what_cant_be_told_shares_one_entry() {
        let tables = [table(8, 10, &[(Kind::Tun, 1)]), table(9, 11, &[(Kind::Tun, 1)])];
        let inventory = take(&tables, &[(9, flow(Kind::Tun, 1, 0))]);
        assert_eq!(inventory.unknown.counts.get(Kind::Tun), 2);
        assert_eq!(inventory.unknown.totals.opened.get(Kind::Tun), 1);
    }

    #[test]
    fn a_container_is_as_bad_as_its_worst_slot() {
        let state = |slots: &[(Kind, i64)], criu: &str| {
            let mut inventory = take(&[table(4, 10, slots)], &[]);
            inventory.judge(&judge(criu));
            entry(&inventory, "db").state().name()
        };
        let pidfd = [(Kind::Eventfd, 1), (Kind::Pidfd, 1)];
        assert_eq!(state(&[], "4.0"), "ok");
        assert_eq!(state(&[(Kind::Eventfd, 1)], "4.0"), "ok");
        assert_eq!(state(&pidfd, "4.0"), "blocked");
        assert_eq!(state(&pidfd, &NEWEST_KNOWN.to_string()), "unknown");
    }

    #[test]
    fn what_there_was_no_room_for_isnt_called_clean() {
        let all = || vec![container("web"), container("db")];
        let states = |uncounted: &Uncounted| -> Vec<bool> {
            let inventory = Inventory::take(&[], &[], &[], &Ledger::default(), all(), uncounted, owner);
            inventory.containers.iter().map(|(_, entry)| entry.stale).chain([inventory.host.stale]).collect()
        };
        // db, web, the host
        assert_eq!(states(&Uncounted::default()), [false, false, false]);
        assert_eq!(states(&Uncounted { cgroups: BTreeSet::from([3]), any: false }), [false, true, false]);
        assert_eq!(states(&Uncounted { cgroups: BTreeSet::new(), any: true }), [true, true, true]);
    }

    fn with_hidden(cgroup_id: u64, kind: Kind, of: Kind) -> Inventory {
        let hidden = [Hidden { cgroup_id, tgid: 10, kind, of, n: 2 }];
        let all = vec![container("db")];
        Inventory::take(&[], &[], &hidden, &Ledger::default(), all, &Uncounted::default(), owner)
    }

    #[test]
    fn what_no_slot_holds_counts_like_the_rest() {
        let mut inventory = with_hidden(4, Kind::IoUringMapped, Kind::IoUring);
        inventory.judge(&judge("4.0"));
        let db = entry(&inventory, "db");
        assert_eq!(db.counts.get(Kind::IoUringMapped), 2);
        assert_eq!(db.processes[&10].get(Kind::IoUringMapped), 2);
        assert_eq!(db.state().name(), "blocked");
        // A container that has gone isn't listed because of its hidden files.
        assert!(
            with_hidden(2, Kind::IoUringMapped, Kind::IoUring).containers.iter().all(|(c, _)| c.name == "db")
        );
    }

    #[test]
    fn an_fd_in_flight_is_as_bad_as_its_file() {
        let state = |of, criu: &str| {
            let mut inventory = with_hidden(4, Kind::FdInFlight, of);
            assert_eq!(entry(&inventory, "db").counts.total(), 2);
            inventory.judge(&judge(criu));
            entry(&inventory, "db").state().name()
        };
        assert_eq!(state(Kind::Eventfd, "4.0"), "ok");
        assert_eq!(state(Kind::Pidfd, "4.0"), "blocked");
        assert_eq!(state(Kind::Pidfd, "4.1"), "unknown");
    }

    #[test]
    fn a_table_under_repair_makes_its_container_stale() {
        let mut broken = table(4, 10, &[(Kind::Eventfd, 1)]);
        broken.1.flags = TABLE_STALE;
        let mut inventory = take(&[broken], &[]);
        inventory.judge(&judge("4.0"));
        assert_eq!(entry(&inventory, "db").state().name(), "stale");
        assert_eq!(entry(&inventory, "web").state().name(), "ok");
    }
}
