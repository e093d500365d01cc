//! The kernel's tables, and what the probes record of them, step by step.
//!
//! A system call is a change at once, and steps that its task does later: changes and runs of
//! probes, in the kernel's order. Between any two of them other tasks, and audits, have their turn.
//! The programs are those of `tracker-ebpf`, without their locks: here nothing comes between a
//! program's run, but a move of its task while it makes an entry.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use tracker_ebpf::{MAX_SCANNED_FDS, Slot, TABLE_STALE, Table, Tag, slot_sum};

use super::{super::Departed, Event, Op};

/// A slot without a file yet.
const RESERVED: Tag = Tag::EMPTY;

/// A file with nothing to count.
pub(super) const PLAIN: Tag = Tag(1);

/// The fds that there are; the last is one that no program's walk reaches.
pub(super) const FDS: [u32; 5] = [0, 3, 4, 70, MAX_SCANNED_FDS + 1];

type Step = Box<dyn FnOnce(&mut Machine)>;

#[derive(Default)]
pub(super) struct Task {
    pub(super) tgid: u32,
    pub(super) cgroup: u64,
    /// `None`: it has exited.
    pub(super) files: Option<u64>,
    /// It doesn't run: not yet, or never again.
    asleep: bool,
    /// `TASK_NEW`
    pub(super) new: bool,
    /// `PF_EXITING`
    pub(super) exits: bool,
    steps: VecDeque<Step>,
}

/// On whose behalf a program runs.
#[derive(Clone, Copy)]
pub(super) struct By {
    pub(super) tgid: u32,
    /// Where the task was when the program asked.
    pub(super) cgroup: u64,
    pub(super) task: Option<usize>,
    /// An audit: it isn't the task itself, and looks after far fds by other means.
    pub(super) audit: bool,
}

#[derive(Default)]
pub(super) struct Machine {
    /// What there is: tables, and the files in their slots.
    pub(super) files: BTreeMap<u64, BTreeMap<u32, Tag>>,
    pub(super) tasks: Vec<Task>,
    /// What is recorded.
    pub(super) tables: HashMap<u64, Table>,
    pub(super) slots: HashMap<Slot, Tag>,
    /// Only numbers are kept.
    pub(super) counts_deltas: bool,
    /// What is under way when an audit goes to sleep is done when it wakes.
    pub(super) punctual: bool,
    pub(super) attached: bool,
    pub(super) adopted: bool,
    pub(super) pass: u32,
    /// What the last audit found gone.
    pub(super) gone: Departed,
    /// The last audit couldn't settle something: another is to follow.
    pub(super) unsettled: bool,
    /// Tables that several tasks have had.
    shared: BTreeSet<u64>,
    pub(super) now: Duration,
    /// What is still to happen.
    pub(super) events: VecDeque<Event>,
}

impl Machine {
    pub(super) fn new(counts_deltas: bool, punctual: bool) -> Self {
        let init = Task { tgid: 1, cgroup: 1, files: Some(1), ..Task::default() };
        let files = BTreeMap::from([(1, BTreeMap::from([(0, PLAIN)]))]);
        Self { files, tasks: vec![init], counts_deltas, punctual, ..Self::default() }
    }

    /// While something else is at work: the next event, if it is time.
    pub(super) fn tick(&mut self) {
        match self.events.front_mut() {
            Some(event) if event.wait > 0 => event.wait -= 1,
            _ => {
                if let Some(event) = self.events.pop_front() {
                    self.apply(&event);
                }
            }
        }
    }

    /// An audit waits.
    pub(super) fn sleep(&mut self) {
        if self.punctual {
            self.finish();
        }
        self.tick();
    }

    /// Tables that are charged to a cgroup that their only user isn't in, though nothing is under
    /// way.
    pub(super) fn mischarged(&self) -> Vec<u64> {
        if self.tasks.iter().any(|task| !task.steps.is_empty()) {
            return Vec::new();
        }
        let alone = self.tables.iter().filter(|(files, table)| {
            // One that others had, too, may be charged to where they were, until an audit.
            !self.shared.contains(files)
                && self.tasks.iter().any(|t| t.files == Some(**files) && t.cgroup != table.cgroup_id)
        });
        alone.map(|(files, _)| *files).collect()
    }

    pub(super) fn finish(&mut self) {
        (0..self.tasks.len()).for_each(|task| self.run(task, usize::MAX));
    }

    /// The task that an event names: of those that run.
    fn named(&self, task: usize) -> usize {
        let runs: Vec<usize> = (0..self.tasks.len()).filter(|t| !self.tasks[*t].asleep).collect();
        runs[task % runs.len()]
    }

    /// Does some of the steps that a task has still to do.
    fn run(&mut self, task: usize, steps: usize) {
        for _ in 0..steps {
            let Some(step) = self.tasks[task].steps.pop_front() else { return };
            step(self);
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        let task = self.named(event.task);
        if let Op::Step = event.op {
            return self.run(event.task % self.tasks.len(), 1);
        }
        // A task does one thing after the other.
        self.run(task, usize::MAX);
        let Some(files) = self.tasks[task].files else { return };
        let attached = self.attached;
        let lost = event.lost;
        let sees = move |probe: usize| attached && lost >> probe & 1 == 0;
        match event.op {
            Op::Step | Op::Audit => {}
            Op::Open { fd, file } => self.open(task, files, fd, file, sees(0)),
            Op::Dup { from, to } => {
                if let Some(file) = self.file(files, from) {
                    self.open(task, files, to, file, sees(0));
                }
            }
            Op::Dup2 { from, to } => self.dup2(task, files, (from, to), sees),
            Op::Close { fd } => self.close(task, files, fd, sees(0)),
            Op::Fork => self.fork(task, files, sees),
            Op::Share { thread } => {
                let Task { tgid, cgroup, .. } = self.tasks[task];
                let tgid = if thread { tgid } else { self.new_tgid() };
                self.shared.insert(files);
                self.tasks.push(Task { tgid, cgroup, files: Some(files), ..Task::default() });
            }
            Op::Unshare => {
                let files = self.own_table(task, files, sees(0));
                if !self.counts_deltas {
                    self.probe(task, sees(0), move |m| m.born(files, m.by(task)));
                }
            }
            Op::Exec { closes } => self.exec(task, files, closes, sees),
            // Somebody must be there.
            Op::Exit if task == 0 => {}
            Op::Exit => self.exit(task, files, sees),
            Op::Stray { file } => {
                if let Some(table) = self.tables.get_mut(&files) {
                    record(table, Tag::EMPTY, file);
                }
            }
            Op::Move { cgroup } => {
                let tgid = self.tasks[task].tgid;
                self.move_to(tgid, cgroup);
                self.probe(task, sees(0), move |m| m.attach_task(tgid));
            }
        }
        self.run(task, event.steps.into());
    }

    fn then(&mut self, task: usize, step: impl FnOnce(&mut Self) + 'static) {
        self.tasks[task].steps.push_back(Box::new(step));
    }

    /// A probe's run is to come, if it isn't lost.
    fn probe(&mut self, task: usize, sees: bool, run: impl FnOnce(&mut Self) + 'static) {
        if sees {
            self.then(task, run);
        }
    }

    /// The exit of a system call that has changed a slot.
    fn follow(&mut self, task: usize, files: u64, fd: u32, sees: bool) {
        self.probe(task, sees, move |m| {
            m.sync_slot(files, fd, m.by(task));
        });
    }

    // What a task does.

    fn open(&mut self, task: usize, files: u64, fd: u32, file: Tag, sees: bool) {
        if self.read(files, fd).is_some() {
            return;
        }
        if self.counts_deltas {
            if sees {
                self.filled(files, file, task);
            }
            self.write(files, fd, RESERVED);
            self.then(task, move |m| m.write(files, fd, file));
        } else {
            self.write(files, fd, file);
            self.follow(task, files, fd, sees);
        }
    }

    fn dup2(&mut self, task: usize, files: u64, (from, to): (u32, u32), sees: impl Fn(usize) -> bool) {
        let Some(file) = self.file(files, from) else { return };
        if from == to || self.read(files, to) == Some(RESERVED) {
            return;
        }
        if self.counts_deltas && sees(0) {
            self.filled(files, file, task);
        }
        let was = self.file(files, to);
        self.write(files, to, file);
        match was {
            Some(was) if self.counts_deltas => {
                self.probe(task, sees(1), move |m| m.emptied(files, was, task));
            }
            _ if self.counts_deltas => {}
            _ => self.follow(task, files, to, sees(0)),
        }
    }

    fn close(&mut self, task: usize, files: u64, fd: u32, sees: bool) {
        let Some(was) = self.file(files, fd) else { return };
        self.files.get_mut(&files).unwrap().remove(&fd);
        if self.counts_deltas {
            self.probe(task, sees, move |m| m.emptied(files, was, task));
        } else {
            self.follow(task, files, fd, sees);
        }
    }

    fn fork(&mut self, task: usize, files: u64, sees: impl Fn(usize) -> bool) {
        let (new, tgid) = (self.copy(files), self.new_tgid());
        let child = self.tasks.len();
        // Of this moment, so that nobody else has its number.
        self.tasks.push(Task { tgid, asleep: true, new: true, ..Task::default() });
        // It is in the list of tasks, and in the first cgroup (kernel: `cgroup_fork`,
        // `cgroup_post_fork`).
        self.then(task, move |m| (m.tasks[child].files, m.tasks[child].cgroup) = (Some(new), 1));
        self.then(task, move |m| m.tasks[child].cgroup = m.tasks[task].cgroup);
        self.probe(task, sees(1), move |m| {
            let by = m.by(child);
            if m.counts_deltas { m.count_birth(new, files, by) } else { m.born(new, by) }
        });
        self.then(task, move |m| (m.tasks[child].new, m.tasks[child].asleep) = (false, false));
    }

    /// A table that the task has for itself.
    fn own_table(&mut self, task: usize, files: u64, sees: bool) -> u64 {
        if self.sharers(files) < 2 {
            return files;
        }
        let new = self.copy(files);
        if self.counts_deltas && sees {
            self.count_birth(new, files, self.by(task));
        }
        self.tasks[task].files = Some(new);
        new
    }

    fn exec(&mut self, task: usize, files: u64, closes: u8, sees: impl Fn(usize) -> bool) {
        // It ends all other threads, which `exit` does.
        if self.live_threads(self.tasks[task].tgid) > 1 {
            return;
        }
        let files = self.own_table(task, files, sees(0));
        for (i, fd) in FDS.into_iter().enumerate().filter(|(i, _)| closes >> i & 1 != 0) {
            if self.counts_deltas {
                self.close(task, files, fd, sees(1 + i));
            } else {
                self.close(task, files, fd, false);
            }
        }
        self.probe(task, sees(6), move |m| {
            if !m.counts_deltas {
                m.scan(files, m.by(task));
            }
        });
    }

    fn exit(&mut self, task: usize, files: u64, sees: impl Fn(usize) -> bool + 'static) {
        (self.tasks[task].asleep, self.tasks[task].exits) = (true, true);
        if sees(0) {
            self.exiting(files, self.tasks[task].tgid);
        }
        self.then(task, move |m| {
            m.tasks[task].files = None;
            if m.sharers(files) > 0 {
                return;
            }
            let held = std::mem::take(m.files.get_mut(&files).unwrap());
            for (i, file) in held.into_values().enumerate() {
                m.probe(task, m.counts_deltas && sees(1 + i), move |m| {
                    if m.tables.contains_key(&files) {
                        m.emptied(files, file, task);
                    }
                });
            }
            m.then(task, move |m| drop(m.files.remove(&files)));
        });
        // Others that have the table and go meanwhile may all take it for shared: that is a loss.
        if self.punctual {
            self.run(task, usize::MAX);
        }
    }

    // Tables and tasks.

    fn read(&self, files: u64, fd: u32) -> Option<Tag> {
        self.files.get(&files)?.get(&fd).copied()
    }

    pub(super) fn file(&self, files: u64, fd: u32) -> Option<Tag> {
        self.read(files, fd).filter(|file| *file != RESERVED)
    }

    fn write(&mut self, files: u64, fd: u32, file: Tag) {
        self.files.get_mut(&files).unwrap().insert(fd, file);
    }

    /// A new table, at the lowest address that is free: where the last one was that went.
    fn copy(&mut self, files: u64) -> u64 {
        let new = (1..=u64::MAX).find(|address| !self.files.contains_key(address)).unwrap();
        let held = self.files[&files].iter().filter(|(_, file)| **file != RESERVED);
        let held = held.map(|(fd, file)| (*fd, *file)).collect();
        self.files.insert(new, held);
        new
    }

    fn sharers(&self, files: u64) -> usize {
        self.tasks.iter().filter(|task| task.files == Some(files)).count()
    }

    fn live_threads(&self, tgid: u32) -> usize {
        self.tasks.iter().filter(|task| task.tgid == tgid && !task.asleep).count()
    }

    fn new_tgid(&self) -> u32 {
        self.tasks.iter().map(|task| task.tgid).max().unwrap_or(0) + 1
    }

    fn by(&self, task: usize) -> By {
        let Task { tgid, cgroup, .. } = self.tasks[task];
        By { tgid, cgroup, task: Some(task), audit: false }
    }

    // The programs.

    pub(super) fn entry(&mut self, files: u64, by: By) -> &mut Table {
        self.now += Duration::from_nanos(1);
        if !self.tables.contains_key(&files) {
            let (generation, cgroup_id) = (self.now.as_nanos() as u64, by.cgroup);
            self.somebody_moves();
            self.tables.insert(files, Table { generation, cgroup_id, tgid: by.tgid, ..Table::EMPTY });
            self.somebody_moves();
            self.follow_move(files, by);
        }
        self.tables.get_mut(&files).unwrap()
    }

    fn follow_move(&mut self, files: u64, by: By) {
        let now = by.task.map_or(by.cgroup, |task| self.tasks[task].cgroup);
        if now != by.cgroup
            && let Some(table) = self.tables.get_mut(&files)
        {
            table.cgroup_id = now;
        }
    }

    /// In the middle of a program's run, if that is what happens next.
    fn somebody_moves(&mut self) {
        let next = self.events.front().cloned();
        let Some(Event { task, op: Op::Move { cgroup }, lost, wait: ..3, .. }) = next else { return };
        self.events.pop_front();
        let tgid = self.tasks[self.named(task)].tgid;
        self.move_to(tgid, cgroup);
        if self.attached && lost & 1 == 0 {
            self.attach_task(tgid);
        }
    }

    fn move_to(&mut self, tgid: u32, cgroup: u64) {
        self.tasks.iter_mut().filter(|task| task.tgid == tgid).for_each(|task| task.cgroup = cgroup);
    }

    /// What is recorded of a table's slots.
    fn recorded(&self, files: u64) -> impl Iterator<Item = (u32, Tag)> + '_ {
        let generation = self.tables.get(&files).map(|table| table.generation);
        let its = move |slot: &Slot| slot.files == files && Some(slot.generation) == generation;
        self.slots.iter().filter(move |(slot, _)| its(slot)).map(|(slot, tag)| (slot.fd, *tag))
    }

    /// The slot, as the classifier sees it.
    fn classified(&self, files: u64, fd: u32) -> Tag {
        self.read(files, fd).filter(|file| file.kind().is_some()).unwrap_or(Tag::EMPTY)
    }

    /// A slot as it is recorded, and as it is.
    fn slot(&self, files: u64, fd: u32) -> (Tag, Tag) {
        let was = self.recorded(files).find(|(at, _)| *at == fd).map_or(Tag::EMPTY, |(_, tag)| tag);
        (was, self.classified(files, fd))
    }

    /// `resync::COMPARE_SLOT`
    pub(super) fn differs(&mut self, files: u64, fd: u32) -> bool {
        self.tick();
        let (was, now) = self.slot(files, fd);
        was != now
    }

    pub(super) fn sync_slot(&mut self, files: u64, fd: u32, by: By) -> u32 {
        let (was, now) = self.slot(files, fd);
        if now == was {
            return 0;
        }
        let table = self.entry(files, by);
        if !by.audit {
            table.tgid = by.tgid;
        }
        record(table, was, now);
        table.slots = table.slots.wrapping_add(slot_sum(fd, now)).wrapping_sub(slot_sum(fd, was));
        let slot = Slot { files, generation: table.generation, fd, pad: 0 };
        if now == Tag::EMPTY {
            self.slots.remove(&slot)
        } else {
            self.slots.insert(slot, now)
        };
        1
    }

    pub(super) fn scan(&mut self, files: u64, by: By) -> u32 {
        let open = self.files.get(&files).into_iter().flatten().map(|(fd, _)| *fd);
        let fds: BTreeSet<u32> = open.chain(self.recorded(files).map(|(fd, _)| fd)).collect();
        let mut changes = 0;
        for fd in fds.range(..MAX_SCANNED_FDS) {
            changes += if self.counts_deltas {
                let now = self.classified(files, *fd);
                if now != Tag::EMPTY {
                    record(self.entry(files, by), Tag::EMPTY, now);
                }
                u32::from(now != Tag::EMPTY)
            } else {
                self.sync_slot(files, *fd, by)
            };
        }
        let room = self.files.get(&files).is_some_and(|held| held.range(MAX_SCANNED_FDS..).next().is_some());
        if room
            && !by.audit
            && let Some(table) = self.tables.get_mut(&files)
        {
            table.flags |= TABLE_STALE;
        }
        changes
    }

    fn filled(&mut self, files: u64, file: Tag, task: usize) {
        if file.kind().is_some() {
            let by = self.by(task);
            let table = self.entry(files, by);
            table.tgid = by.tgid;
            record(table, Tag::EMPTY, file);
        }
    }

    fn emptied(&mut self, files: u64, file: Tag, task: usize) {
        if file.kind().is_some() {
            let (by, adopted) = (self.by(task), self.adopted);
            let table = self.entry(files, by);
            record(table, file, Tag::EMPTY);
            if table.n[file.kind_index()] < 0 && adopted {
                table.flags |= TABLE_STALE;
            }
        }
    }

    /// `dup_fd`, and for a fork `wake_up_new_task`
    fn count_birth(&mut self, new: u64, copied: u64, by: By) {
        let has = self.tables.contains_key(&copied);
        self.tables.remove(&new);
        if has || !self.adopted {
            self.scan(new, by);
        }
    }

    /// `sched_process_fork`, and after `unshare`
    fn born(&mut self, files: u64, by: By) {
        if self.sharers(files) < 2 {
            if self.tables.get(&files).is_some_and(|table| table.tgid != by.tgid) {
                self.tables.remove(&files);
            }
            self.scan(files, by);
        }
    }

    /// `sched_process_exit`
    fn exiting(&mut self, files: u64, tgid: u32) {
        let last = self.live_threads(tgid) == 0;
        let alone = self.sharers(files) < 2;
        let Some(table) = self.tables.get_mut(&files) else { return };
        if !alone {
            if !self.counts_deltas && last {
                table.flags |= TABLE_STALE;
            }
            return;
        }
        let (generation, held) = (table.generation, &self.files[&files]);
        self.slots.retain(|s, _| (s.files, s.generation) != (files, generation) || !held.contains_key(&s.fd));
        self.tables.remove(&files);
    }

    /// `cgroup_attach_task`, which is told of the first thread only
    fn attach_task(&mut self, tgid: u32) {
        let Some(leader) = self.tasks.iter().find(|task| task.tgid == tgid) else { return };
        let (Some(files), cgroup) = (leader.files, leader.cgroup) else { return };
        if let Some(table) = self.tables.get_mut(&files).filter(|table| table.cgroup_id != cgroup) {
            table.cgroup_id = cgroup;
            table.seq += 1;
        }
    }
}

fn record(table: &mut Table, was: Tag, now: Tag) {
    if was.kind().is_some() {
        table.n[was.kind_index()] -= 1;
    }
    if now.kind().is_some() {
        table.n[now.kind_index()] += 1;
    }
    table.seq += 1;
}
