//! Audits of the [`Machine`], as [`Kernel`](crate::bpf::Kernel) does them, with the code under
//! test. Whatever can happen meanwhile does: before each [`Machine::tick`] and after it the world
//! may be another.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
};

use tracker_ebpf::{
    FileRecord, Kind, MAX_SCANNED_FDS, SEEN_IN_CGROUP, SEEN_IN_TGID, Slot, Sums, TABLE_STALE, Table, Tag,
    kind_sum, slot_sum, walk,
};

use super::{
    super::{
        Departed, Gone, Outdated, SeenTable, agree,
        counts::{self, Delta, Measure, Suspect},
        gone, note,
        slots::{self, DifferingTable},
    },
    machine::{By, FDS, Machine},
};

/// How often an audit rechecks what seems to differ.
const RECHECKS: usize = 3;

impl Machine {
    /// Returns how many slots it repaired.
    pub(super) fn audit(&mut self) -> u64 {
        self.unsettled = false;
        let adopt = self.pass == 0;
        match (self.counts_deltas, adopt) {
            (true, true) => self.adopt_counts() + self.audit_counts(),
            (true, false) => self.audit_counts(),
            (false, true) => self.adopt_slots(),
            (false, false) => self.audit_slots(),
        }
    }

    fn adopt_slots(&mut self) -> u64 {
        let (_, seen) = self.run_pass(walk::TABLES);
        let seen: BTreeMap<u64, SeenTable> = seen.into_iter().collect();
        seen.iter()
            .map(|(files, truth)| u64::from(self.read_again(*files, &DifferingTable::of_all(truth))))
            .sum()
    }

    fn audit_slots(&mut self) -> u64 {
        let mut plan = self.compare_slots();
        self.recheck(&mut plan);
        let mut changes = 0;
        for (files, table) in &plan.scan.iter().collect::<BTreeMap<_, _>>() {
            // What a probe has marked is no correction.
            let told = self.punctual && self.tables.get(files).is_some_and(|t| t.flags & TABLE_STALE != 0);
            let changed = self.read_again(**files, table);
            changes += u64::from(table.corrections(changed)) * u64::from(!told);
        }
        changes += self.forget(plan.gone);
        for slot in plan.drop {
            self.slots.remove(&slot);
        }
        changes
    }

    fn recheck(&mut self, plan: &mut slots::Plan) {
        for _ in 0..RECHECKS {
            if !plan.needs_recheck() {
                return;
            }
            self.sleep();
            let Ok(()) = plan.retain_slots(|files, fd| Ok::<_, Infallible>(self.differs(files, fd)));
        }
        let later = self.compare_slots();
        plan.confirm(&later);
    }

    fn read_again(&mut self, files: u64, table: &DifferingTable) -> u32 {
        let mut changed = 0;
        if table.needs_scan() {
            changed += self.resync(files, None, table, table.needs_recount());
        }
        let mut fds: Vec<u32> = table.slots().collect();
        fds.sort_unstable();
        for fd in fds {
            changed += self.resync(files, Some(fd), table, false);
        }
        changed
    }

    /// `resync::SCAN`, or `resync::SLOT`.
    fn resync(&mut self, files: u64, fd: Option<u32>, table: &DifferingTable, recount: bool) -> u32 {
        self.tick();
        let any = table.generation == 0 || fd.is_some() && table.needs_recount();
        if self.refuses(files, (!any).then_some(table.generation), table.task) {
            return 0;
        }
        let by = self.on_behalf_of(files, table.task, table.outdated());
        if recount {
            self.tables.remove(&files);
        }
        if fd.is_none()
            && let Some(table) = self.tables.get_mut(&files)
        {
            table.flags &= !TABLE_STALE;
        }
        match fd {
            Some(fd) => self.sync_slot(files, fd, by),
            None => self.scan(files, by),
        }
    }

    /// `resync::REFUSED`
    fn refuses(&mut self, files: u64, wanted: Option<u64>, task: u64) -> bool {
        let now = self.tables.get(&files).map_or(0, |table| table.generation);
        let refuses = wanted.is_some_and(|wanted| wanted != now) || self.user(files, task).is_none();
        self.unsettled |= refuses;
        refuses
    }

    /// The task at an address, if it has the table.
    fn user(&self, files: u64, address: u64) -> Option<usize> {
        let at = address.checked_sub(1)? as usize;
        let task = self.tasks.get(at)?;
        (task.files == Some(files) && !task.new && !task.exits).then_some(at)
    }

    /// Corrects whose a table is. Returns whose.
    fn on_behalf_of(&mut self, files: u64, task: u64, outdated: Outdated) -> By {
        let task = self.user(files, task);
        let now = task.map(|task| (self.tasks[task].tgid, self.tasks[task].cgroup));
        let (mut tgid, mut cgroup) = now.unwrap_or_default();
        if let Some(table) = self.tables.get_mut(&files) {
            if table.cgroup_id == outdated.cgroup_id {
                table.cgroup_id = cgroup;
            }
            if table.tgid == outdated.tgid {
                table.tgid = tgid;
            }
            (tgid, cgroup) = (table.tgid, table.cgroup_id);
        }
        By { tgid, cgroup, task, audit: true }
    }

    fn adopt_counts(&mut self) -> u64 {
        let plan = self.compare_counts();
        let mut adopted = 0;
        for suspect in &plan.suspects {
            let measure = self.measure(suspect);
            adopted += self.adjust(suspect, &measure.delta);
        }
        self.forget(plan.gone);
        self.adopted = true;
        self.sleep();
        adopted
    }

    fn audit_counts(&mut self) -> u64 {
        let plan = self.compare_counts();
        let mut found = Vec::new();
        for suspect in plan.suspects {
            let first = self.measure(&suspect);
            if suspect.marked || counts::size(&first.delta) > 0 {
                found.push((suspect, first));
            }
        }
        for _ in 0..RECHECKS {
            if found.iter().all(|(_, measure)| measure.exact && counts::size(&measure.delta) == 0) {
                break;
            }
            self.sleep();
            for (suspect, measure) in &mut found {
                measure.confirm(&self.measure(suspect));
            }
        }
        let mut changes = 0;
        for (suspect, Measure { delta, exact }) in found {
            if exact || !suspect.marked {
                changes += self.adjust(&suspect, &delta);
            }
        }
        changes + self.forget(plan.gone)
    }

    /// `resync::MEASURE`
    fn measure(&mut self, suspect: &Suspect) -> Measure {
        self.tick();
        let mut delta = suspect.beyond_reach;
        for file in self.files.get(&suspect.files).into_iter().flatten() {
            if *file.0 < MAX_SCANNED_FDS && file.1.kind().is_some() {
                delta[file.1.kind_index()] += 1;
            }
        }
        let counted = self.tables.get(&suspect.files).map_or([0; Kind::COUNT], |table| table.n);
        delta.iter_mut().zip(counted).for_each(|(to, n)| *to -= n);
        Measure { delta, exact: true }
    }

    /// `resync::ADJUST`
    fn adjust(&mut self, suspect: &Suspect, delta: &Delta) -> u64 {
        self.tick();
        let Suspect { files, generation, task, outdated, .. } = *suspect;
        let any = !self.adopted && generation == 0;
        if self.refuses(files, (!any).then_some(generation), task) {
            return 0;
        }
        let by = self.on_behalf_of(files, task, outdated);
        let table = self.entry(files, by);
        table.n.iter_mut().zip(delta).for_each(|(n, more)| *n += more);
        table.seq += 1;
        table.flags &= !TABLE_STALE;
        counts::size(delta)
    }

    /// `resync::FORGET`
    fn forget(&mut self, mut gone: Vec<Gone>) -> u64 {
        gone.sort_unstable_by_key(|table| table.files);
        self.unsettled |= self.gone.note(&mut gone, self.now, Departed::REST);
        let mut left = 0;
        for table in &gone {
            self.tick();
            let its = |t: &Table| (t.generation, t.seq) == (table.generation, table.seq);
            if self.tables.get(&table.files).is_some_and(its) {
                self.tables.remove(&table.files);
                left += table.left;
            }
        }
        left
    }

    fn compare_slots(&mut self) -> slots::Plan {
        if let Some(gone) = self.compare_sums() {
            return slots::Plan { gone, ..slots::Plan::default() };
        }
        let (before, seen) = self.run_pass(walk::SLOTS);
        let records: Vec<(Slot, Tag)> = self.slots.iter().map(|(slot, tag)| (*slot, *tag)).collect();
        self.tick();
        slots::compare(self.pass, &seen, &before, &records, &self.tables)
    }

    fn compare_counts(&mut self) -> counts::Plan {
        if self.pass > 0
            && let Some(gone) = self.compare_sums()
        {
            return counts::Plan { gone, ..counts::Plan::default() };
        }
        let (before, seen) = self.run_pass(walk::SLOTS);
        let mut plan = counts::compare(self.pass, &seen, &before, &self.tables);
        plan.suspects.sort_unstable_by_key(|suspect| suspect.files);
        plan
    }

    fn compare_sums(&mut self) -> Option<Vec<Gone>> {
        let (before, seen) = self.run_pass(walk::SUMS);
        let recorded = (!self.counts_deltas).then_some(self.slots.len() as u64);
        let agree = agree(self.pass, &seen, &self.tables, recorded);
        agree.then(|| gone(self.pass, &before, &self.tables))
    }

    /// The tables, and then what the iterator sees, one fd of one task after the other.
    fn run_pass(&mut self, walk: u32) -> (HashMap<u64, Table>, HashMap<u64, SeenTable>) {
        self.pass += 1;
        let before = self.tables.clone();
        let mut seen = HashMap::new();
        let mut task = 0;
        while task < self.tasks.len() {
            for fd in FDS {
                self.tick();
                self.visit(task, fd, walk, &mut seen);
            }
            task += 1;
        }
        self.tick();
        (before, seen)
    }

    fn visit(&mut self, task: usize, fd: u32, walk: u32, seen: &mut HashMap<u64, SeenTable>) {
        let address = task as u64 + 1;
        let task = &self.tasks[task];
        let Some(files) = task.files else { return };
        // Threads that have their leader's table are left out.
        let leader = self.tasks.iter().find(|leader| leader.tgid == task.tgid);
        if leader.is_some_and(|leader| leader.files == task.files && !std::ptr::eq(leader, task)) {
            return;
        }
        let Some(file) = self.file(files, fd) else { return };
        let mut table = self.tables.get_mut(&files);
        if let Some(table) = table.as_mut().filter(|table| table.visited != self.pass) {
            table.visited = self.pass;
            table.sums = Sums { task: address, file: 0, slots: 0, kinds: 0, users: 0 };
        }
        if let Some(kind) = file.kind().filter(|_| !task.new && !task.exits) {
            let kind = kind.index() as u64;
            let (cgroup_id, tgid) = (task.cgroup, task.tgid);
            if walk == walk::TABLES && seen.contains_key(&files) && fd < MAX_SCANNED_FDS {
                return;
            }
            if let Some(table) = table.filter(|_| walk == walk::SUMS) {
                if table.sums.task == address {
                    table.sums.slots = table.sums.slots.wrapping_add(slot_sum(fd, file));
                    table.sums.kinds = table.sums.kinds.wrapping_add(kind_sum(kind));
                }
                table.sums.users |= SEEN_IN_CGROUP * u64::from(table.cgroup_id == cgroup_id);
                table.sums.users |= SEEN_IN_TGID * u64::from(table.tgid == tgid);
                return;
            }
            note(seen, &FileRecord { files, task: address, file: file.file(), cgroup_id, kind, tgid, fd });
        }
    }
}
