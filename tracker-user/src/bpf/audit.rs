//! Audits: compare the kernel's own list of open files with what is counted, and repair what
//! differs.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use tracker_ebpf::{Control, Loss, Table, mode, resync, walk};

use super::{
    BpfError, Kernel, attach_error,
    auditor::{
        self, Audit, Departed, Gone, Outdated, SeenTable,
        counts::{self, Delta, Measure, Suspect},
        slots::{self, DifferingTable},
    },
    call, iterator, program,
};
use crate::host::monotonic;

/// Milliseconds to wait before each recheck of what seems to differ. Between a change and the probe
/// that sees it lie microseconds. In a slot that is opened and closed all the time that may be half
/// of the time, hence many rechecks. It is longer if the task has to wait for a CPU meanwhile,
/// hence long waits.
const RECHECKS_MS: [u64; 24] =
    [1, 2, 1, 3, 1, 2, 1, 3, 2, 1, 2, 3, 1, 2, 3, 5, 10, 20, 40, 40, 80, 160, 320, 640];

/// The tables before a pass of the iterator, and what it saw.
struct Pass {
    before: HashMap<u64, Table>,
    seen: HashMap<u64, SeenTable>,
}

/// An audit under way. While it waits, it locks nothing.
pub struct Auditing {
    start: Instant,
    /// What probes had missed when it began.
    misses: u64,
    room: Room,
    /// Slots that were repaired already.
    changes: u64,
    differences: Differences,
    /// Milliseconds, as in [`RECHECKS_MS`].
    waits: std::slice::Iter<'static, u64>,
}

/// What seems to differ.
enum Differences {
    Slots(slots::Plan),
    Counts { suspects: Vec<(Suspect, Measure)>, gone: Vec<Gone> },
}

impl Differences {
    /// Whether there is something that may be no difference at the next recheck.
    fn need_recheck(&self) -> bool {
        match self {
            Self::Slots(plan) => plan.needs_recheck(),
            Self::Counts { suspects, .. } => suspects.iter().any(|(_, measure)| !measure.is_nothing()),
        }
    }
}

impl Auditing {
    /// How long to wait before the next recheck. `None`: there is no need for another.
    pub fn wait(&mut self) -> Option<Duration> {
        let wait = if self.differences.need_recheck() { self.waits.next() } else { None };
        wait.map(|wait| Duration::from_millis(*wait))
    }
}

impl Kernel {
    /// Compares what is recorded with the kernel's own list of files. What differs is to be
    /// [checked again](Self::recheck) after each [`Auditing::wait`]; what still differs then is
    /// repaired by [`Self::finish_audit`].
    ///
    /// The first audit adopts what was open before the probes were attached.
    ///
    /// # Errors
    /// When the iterator or a map can't be read.
    pub fn begin_audit(&mut self) -> Result<Auditing, BpfError> {
        let start = Instant::now();
        let adopt = self.pass == 0;
        let misses = self.missed()?;
        let changes = match (self.feeder.counts_deltas(), adopt) {
            (true, true) => self.adopt_counts()?,
            (false, true) => self.adopt_slots()?,
            (_, false) => 0,
        };
        let room = Room::note(self);
        let differences = match self.feeder.counts_deltas() {
            // At the first audit, a change that was under way.
            true => self.measure_suspects()?,
            false if adopt => Differences::Slots(slots::Plan::default()),
            false => Differences::Slots(self.compare_slots()?),
        };
        // Without probes every difference is a change.
        let waits = if self.feeder.is_live() { RECHECKS_MS.iter() } else { [].iter() };
        Ok(Auditing { start, misses, room, changes, differences, waits })
    }

    /// Keeps of what seemed to differ what still does.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn recheck(&mut self, audit: &mut Auditing) -> Result<(), BpfError> {
        match &mut audit.differences {
            Differences::Slots(plan) => plan.retain_slots(|files, fd| {
                self.resync(&[resync::COMPARE_SLOT, files, fd.into()]).map(|differs| differs != 0)
            }),
            Differences::Counts { suspects, .. } => suspects.iter_mut().try_for_each(|(suspect, measure)| {
                measure.confirm(&self.measure(suspect)?);
                Ok(())
            }),
        }
    }

    /// Repairs what differs.
    ///
    /// # Errors
    /// When the iterator or a map can't be read.
    pub fn finish_audit(&mut self, audit: Auditing) -> Result<Audit, BpfError> {
        let Auditing { start, misses, mut room, mut changes, differences, .. } = audit;
        changes += match differences {
            Differences::Slots(plan) => self.correct_slots(plan, &mut room)?,
            Differences::Counts { suspects, gone } => self.correct_counts(suspects, gone, &mut room)?,
        };
        let unsettled = std::mem::take(&mut self.unsettled);
        room.settle(self, unsettled);
        self.known_misses = misses;
        Ok(Audit { changes, unsettled, took: start.elapsed() })
    }

    /// Records what every table holds. Returns how many slots.
    fn adopt_slots(&mut self) -> Result<u64, BpfError> {
        let mut room = Room::note(self);
        let mut adopted = 0;
        for (files, truth) in self.run_pass(walk::TABLES)?.seen {
            let table = DifferingTable::of_all(&truth);
            let read = |kernel: &mut Self| kernel.read_again(files, &table, mode::QUIET | mode::ADOPT);
            adopted += u64::from(room.watch(self, table.cgroup_id, read)?);
        }
        room.settle(self, false);
        Ok(adopted)
    }

    /// Has slots read again that aren't as recorded. Returns how many.
    fn correct_slots(&mut self, mut plan: slots::Plan, room: &mut Room) -> Result<u64, BpfError> {
        if self.feeder.is_live() && plan.needs_recheck() {
            let later = self.compare_slots()?;
            plan.confirm(&later);
        }
        let mut changes = 0;
        for (files, table) in &plan.scan {
            let recount = if table.needs_recount() { mode::QUIET | mode::ADOPT | mode::RECOUNT } else { 0 };
            let changed =
                room.watch(self, table.cgroup_id, |kernel| kernel.read_again(*files, table, recount))?;
            tracing::debug!(changed, ?table, "re-read the table {files:#x}");
            changes += u64::from(table.corrections(changed));
        }
        changes += self.forget(plan.gone)?;
        for slot in &plan.drop {
            self.resync(&[resync::FORGET_SLOT, slot.files, slot.generation, slot.fd.into()])?;
        }
        Ok(changes)
    }

    /// Has a table, or those of its slots that differ, read again. Returns how many slots weren't
    /// as recorded.
    fn read_again(&mut self, files: u64, table: &DifferingTable, mode: u32) -> Result<u32, BpfError> {
        // Re-reading does no harm to a table that is recorded by now.
        let generation = if table.generation == 0 { resync::ANY } else { table.generation };
        let mut read = |operation, mode, generation, fd: u32| {
            let user = (table.task, table.outdated());
            self.act(operation, (files, generation), mode, user, fd)
        };
        let mut changed = 0;
        if table.needs_scan() {
            changed += read(resync::SCAN, mode, generation, 0)?;
        }
        // A recount has given the table another generation.
        let generation = if table.needs_recount() { resync::ANY } else { generation };
        for fd in table.slots() {
            changed += read(resync::SLOT, mode & !mode::RECOUNT, generation, fd)?;
        }
        Ok(changed)
    }

    /// Has the program write to a table, of which an address and a generation are known, and a task
    /// that has it. Returns what the program returns; 0 if the table isn't any more the one that
    /// was compared.
    fn act(
        &mut self,
        operation: u64,
        (files, generation): (u64, u64),
        mode: u32,
        (task, Outdated { cgroup_id, tgid }): (u64, Outdated),
        fd: u32,
    ) -> Result<u32, BpfError> {
        let arguments = [operation, files, generation, mode.into(), task, cgroup_id, tgid.into(), fd.into()];
        let result = self.resync(&arguments)?;
        if result == resync::REFUSED {
            self.unsettled = true;
            return Ok(0);
        }
        Ok(result)
    }

    /// Adds to every table what it held before the feeder was attached. Returns how many slots.
    fn adopt_counts(&mut self) -> Result<u64, BpfError> {
        let mut room = Room::note(self);
        let plan = self.compare_counts()?;
        let mut adopted = 0;
        for suspect in &plan.suspects {
            let measure = self.measure(suspect)?;
            let mode = if measure.exact { mode::ADOPT } else { mode::ADOPT | mode::INEXACT };
            adopted += room.watch(self, suspect.cgroup_id, |k| k.adjust(suspect, &measure.delta, mode))?;
        }
        // Tables that went meanwhile.
        self.forget(plan.gone)?;
        room.settle(self, false);
        // From now on a table without an entry has nothing to count.
        self.control(true, walk::SUMS);
        Ok(adopted)
    }

    /// Measures the tables that may be counted wrongly.
    fn measure_suspects(&mut self) -> Result<Differences, BpfError> {
        let plan = self.compare_counts()?;
        let mut suspects = Vec::new();
        for suspect in plan.suspects {
            let first = self.measure(&suspect)?;
            if suspect.marked || first.exact && counts::size(&first.delta) > 0 {
                suspects.push((suspect, first));
            }
        }
        Ok(Differences::Counts { suspects, gone: plan.gone })
    }

    /// Adds to tables what isn't counted, and takes off what is counted and isn't there. Returns
    /// how many slots.
    fn correct_counts(
        &mut self,
        suspects: Vec<(Suspect, Measure)>,
        gone: Vec<Gone>,
        room: &mut Room,
    ) -> Result<u64, BpfError> {
        let mut changes = 0;
        for (suspect, Measure { delta, exact }) in suspects {
            // A table that is marked stays so until all rechecks agree.
            self.unsettled |= suspect.marked && !exact;
            if exact || !suspect.marked {
                let changed = room.watch(self, suspect.cgroup_id, |k| k.adjust(&suspect, &delta, 0))?;
                tracing::debug!(changed, ?suspect, ?delta, "adjust a table");
                changes += changed;
            }
        }
        Ok(changes + self.forget(gone)?)
    }

    /// What a table holds, less what is counted.
    fn measure(&mut self, suspect: &Suspect) -> Result<Measure, BpfError> {
        /// A walk takes microseconds.
        const TRIES: usize = 16;
        let mut exact = false;
        for _ in 0..TRIES {
            exact = self.resync(&[resync::MEASURE, suspect.files])? != 0;
            if exact {
                break;
            }
        }
        let mut delta = self.shared.measured.get();
        for (n, more) in delta.iter_mut().zip(suspect.beyond_reach) {
            *n += more;
        }
        Ok(Measure { delta, exact })
    }

    /// Adds to a table what was measured. Returns how many slots that is.
    fn adjust(&mut self, suspect: &Suspect, delta: &Delta, mode: u32) -> Result<u64, BpfError> {
        self.shared.measured.set(*delta);
        let Suspect { files, generation, task, outdated, .. } = *suspect;
        // While the feeder counts whatever moves, a table that is recorded by now is short of the
        // same.
        let adopt = mode & mode::ADOPT != 0 && generation == 0;
        let generation = if adopt { resync::ANY } else { generation };
        let done = self.act(resync::ADJUST, (files, generation), mode, (task, outdated), 0)?;
        Ok(if done != 0 { counts::size(delta) } else { 0 })
    }

    /// Forgets tables that are certainly no more. Returns how many slots were still counted for
    /// them.
    fn forget(&mut self, mut gone: Vec<Gone>) -> Result<u64, BpfError> {
        // Without probes nothing is counted that a task does on its way out.
        let rest = if self.feeder.is_live() { Departed::REST } else { Duration::ZERO };
        self.unsettled |= self.gone.note(&mut gone, monotonic(), rest);
        let mut left = 0;
        for table in &gone {
            let Gone { files, generation, seq, .. } = *table;
            if self.resync(&[resync::FORGET, files, generation, seq])? != 0 {
                tracing::debug!(?table, "forget a table that no task has");
                left += table.left;
            }
        }
        Ok(left)
    }

    fn compare_slots(&mut self) -> Result<slots::Plan, BpfError> {
        if let Some(gone) = self.compare_sums()? {
            return Ok(slots::Plan { gone, ..slots::Plan::default() });
        }
        let Pass { before, seen } = self.run_pass(walk::SLOTS)?;
        // Slots before tables: a table that comes in between is only not compared.
        let records = self.slots()?;
        let tables = self.tables()?.into_iter().collect();
        Ok(slots::compare(self.pass, &seen, &before, &records, &tables))
    }

    fn compare_counts(&mut self) -> Result<counts::Plan, BpfError> {
        // Before adoption nothing is as recorded.
        if self.pass > 0
            && let Some(gone) = self.compare_sums()?
        {
            return Ok(counts::Plan { gone, ..counts::Plan::default() });
        }
        let Pass { before, seen } = self.run_pass(walk::SLOTS)?;
        let tables = self.tables()?.into_iter().collect();
        Ok(counts::compare(self.pass, &seen, &before, &tables))
    }

    /// Runs a pass that only adds up what it sees, which is all that most audits need. Returns the
    /// tables that no task has, if all others are as recorded.
    fn compare_sums(&mut self) -> Result<Option<Vec<Gone>>, BpfError> {
        let Pass { before, seen } = self.run_pass(walk::SUMS)?;
        let tables = self.tables()?.into_iter().collect();
        let recorded = (!self.feeder.counts_deltas()).then(|| self.shared.recorded.get());
        let agree = auditor::agree(self.pass, &seen, &tables, recorded);
        Ok(agree.then(|| auditor::gone(self.pass, &before, &tables)))
    }

    /// Runs one pass of the iterator.
    fn run_pass(&mut self, walk: u32) -> Result<Pass, BpfError> {
        let adopted = self.pass > 0;
        self.pass = self.pass.wrapping_add(1).max(1);
        self.control(adopted, walk);
        let before = self.tables()?.into_iter().collect();
        Ok(Pass { before, seen: self.iterate()? })
    }

    /// Tells the programs where the auditor is.
    fn control(&self, adopted: bool, walk: u32) {
        let (pass, adopted) = (self.pass, adopted.into());
        self.shared.control.set(Control { pass, adopted, walk, ..Control::default() });
    }

    fn iterate(&mut self) -> Result<HashMap<u64, SeenTable>, BpfError> {
        let file = iterator(&mut self.ebpf, "audit")?;
        auditor::read(file).map_err(|source| call("read the iterator", "audit", source))
    }

    pub(super) fn resync(&mut self, arguments: &[u64]) -> Result<u32, BpfError> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, "resync")?;
        let mut options = RawTracePointRunOptions::new();
        for (to, from) in options.args.iter_mut().zip(arguments) {
            *to = *from;
        }
        program.test_run(options).map(|run| run.return_value).map_err(|e| attach_error("resync", e))
    }
}

/// What an audit learns of tables for which there is no room.
struct Room {
    /// How often there was none, but for the cases that this audit saw itself.
    known: u64,
    /// Cgroups with such tables.
    short: BTreeSet<u64>,
}

impl Room {
    /// Begins before the audit reads anything: it may not see what is lost from here on.
    fn note(kernel: &Kernel) -> Self {
        Self { known: kernel.lost(Loss::Tables), short: BTreeSet::new() }
    }

    /// Does something to a table of a cgroup.
    fn watch<T>(
        &mut self,
        kernel: &mut Kernel,
        cgroup: u64,
        act: impl FnOnce(&mut Kernel) -> Result<T, BpfError>,
    ) -> Result<T, BpfError> {
        let before = kernel.lost(Loss::Tables);
        let result = act(kernel)?;
        let failed = kernel.lost(Loss::Tables) - before;
        if failed > 0 {
            self.short.insert(cgroup);
            self.known += failed;
        }
        Ok(result)
    }

    /// Ends the audit. What wasn't settled may have been a table for which there is no room.
    fn settle(mut self, kernel: &mut Kernel, unsettled: bool) {
        if unsettled {
            self.short.append(&mut kernel.uncounted);
        }
        (kernel.uncounted, kernel.no_room) = (self.short, self.known);
    }
}
