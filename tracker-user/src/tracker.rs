//! Puts the kernel side, the runtimes and the rules together: the one owner of the agent's state.
//!
//! Two locks, never held at once in the other order: `kernel` (maps, audits), then `names` (cgroups, containers). Events take
//! only `names`, so an audit doesn't hold them up. `judge` may be taken with any other, but none while it is held. A look for hidden files holds `found` only to leave there what it found.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use thiserror::Error;
use tracker_ebpf::Loss;

use crate::{
    bpf::{
        Audit, BpfError, Change, Choice, Event, Feeder, Fill, Impossible, Iterators, Kernel, Look, Program,
        RingFill, Rings, Sizes, confirmed, is_possible,
    },
    error::chain,
    inspect::{self, InspectError},
    inventory::{Detail, Hidden, Inventory, Ledger},
    report::{self, ContainerReport, Listing, Notice},
    runtime::{Container, Directory, Hierarchy, HierarchyError, LookupCounts, Owner, Resolver},
    standing::Standings,
    target::{self, Found as TreeFound, TargetError},
    verdict::{Assessment, Judge, Verdict},
};

/// Why a container can't be looked at in detail.
#[derive(Debug, Error)]
enum LookError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
}

/// Why the tracker can't start or answer.
#[derive(Debug, Error)]
pub enum TrackerError {
    /// The kernel side.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Containers can't be told apart.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
}

/// Everything that the agent knows.
pub struct Tracker {
    kernel: Mutex<Kernel>,
    names: Mutex<Names>,
    directory: Arc<Directory>,
    judge: Mutex<Arc<Judge>>,
    live: bool,
    ready: AtomicBool,
    reloads: Mutex<Reloads>,
    audits: Mutex<AuditStats>,
    /// Held during a look: one at a time.
    looking: Mutex<()>,
    found: Mutex<Found>,
    /// How each container stands; `None` if they aren't looked at in detail.
    standings: Mutex<Option<Standings>>,
    /// The root of the cgroup hierarchy.
    cgroups: PathBuf,
    late_readers: AtomicU64,
}

struct Names {
    resolver: Resolver,
    ledger: Ledger,
}

/// What audits have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditStats {
    /// Audits that were finished.
    pub finished: u64,
    /// Of these, audits that had something to put right.
    pub corrected: u64,
    /// Audits that failed.
    pub failed: u64,
    /// Slots put right, adoption not included.
    pub corrections: u64,
    /// How long the last one took.
    pub last: Duration,
    /// When the last that succeeded ended.
    pub ended: Option<SystemTime>,
}

/// Files that no slot holds, as the last look found them.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it found; nothing if it failed.
    pub hidden: Vec<Hidden>,
    /// Where it couldn't look on this kernel.
    pub impossible: Vec<Impossible>,
    /// How long it took.
    pub took: Duration,
    /// Looks that were finished.
    pub finished: u64,
    /// Looks that failed.
    pub failed: u64,
    /// `None` before the first; whether the last succeeded.
    succeeded: Option<bool>,
}

impl Found {
    /// Before the first look.
    #[must_use]
    pub fn new(impossible: Vec<Impossible>) -> Self {
        Self { hidden: Vec::new(), impossible, took: Duration::ZERO, finished: 0, failed: 0, succeeded: None }
    }

    /// Whether the last look was taken in this place.
    #[must_use]
    pub fn was_taken(&self, look: Look) -> bool {
        self.succeeded == Some(true) && is_possible(look, &self.impossible)
    }
}

/// What became of reading the configuration anew.
#[derive(Clone, Copy, Debug)]
pub struct Reloads {
    /// Whether the last succeeded. The start is the first.
    pub successful: bool,
    /// When one last succeeded.
    pub succeeded_at: SystemTime,
}

/// How long after a look that found something the second is taken: what is only on its way has arrived by then.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// All that `/metrics` is made from: one moment.
pub struct Snapshot {
    /// Who holds what; `None` until adoption is done.
    pub inventory: Option<Inventory>,
    /// Says what CRIU would make of it.
    pub judge: Arc<Judge>,
    /// The feeder.
    pub feeder: Feeder,
    /// Events lost, by stage.
    pub lost: Vec<(&'static str, u64)>,
    /// What the kernel tells of the programs.
    pub programs: Vec<Program>,
    /// How full maps are; nothing until adoption is done.
    pub fills: Vec<Fill>,
    /// How full the ring is.
    pub ring: RingFill,
    /// What audits have done.
    pub audits: AuditStats,
    /// Files that no slot holds.
    pub hidden: Found,
    /// How often runtimes were asked for names, by what came of it.
    pub runtime_lookups: LookupCounts,
    /// Adoption is done.
    pub ready: bool,
    /// What became of reading the configuration anew.
    pub reloads: Reloads,
}

impl Tracker {
    /// Loads the programs and attaches a feeder: counts are those of the last [`Tracker::audit`], and with a feeder live
    /// from then on. Containers are called as the directory says.
    ///
    /// # Errors
    /// When the machine lacks something.
    pub fn start(
        judge: Judge,
        sizes: Sizes,
        choice: Choice,
        directory: Arc<Directory>,
    ) -> Result<(Self, Rings), TrackerError> {
        let hierarchy = Hierarchy::find()?;
        let (kernel, rings) = Kernel::start(&hierarchy, sizes, choice)?;
        let live = kernel.feeder().is_live();
        let found = Found::new(kernel.impossible_looks().to_vec());
        let cgroups = hierarchy.root().to_owned();
        let names =
            Names { resolver: Resolver::new(hierarchy, Arc::clone(&directory)), ledger: Ledger::default() };
        let tracker = Self {
            kernel: Mutex::new(kernel),
            names: Mutex::new(names),
            directory,
            judge: Mutex::new(Arc::new(judge)),
            live,
            ready: AtomicBool::new(false),
            reloads: Mutex::new(Reloads { successful: true, succeeded_at: SystemTime::now() }),
            audits: Mutex::default(),
            looking: Mutex::default(),
            found: Mutex::new(found),
            standings: Mutex::new(None),
            cgroups,
            late_readers: AtomicU64::new(0),
        };
        Ok((tracker, rings))
    }

    /// Whether counts are current at every moment, and not only at audits.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Says what CRIU would make of files.
    #[must_use]
    pub fn judge(&self) -> Arc<Judge> {
        Arc::clone(&lock(&self.judge))
    }

    /// From now on this judge says so. Returns whether it is another: then what looks in detail have found is known no more.
    pub fn replace_judge(&self, judge: Judge) -> bool {
        // Held throughout, so that nothing that the judge before has found is learnt after this.
        let mut standings = lock(&self.standings);
        let mut current = lock(&self.judge);
        if **current == judge {
            return false;
        }
        *current = Arc::new(judge);
        if let Some(standings) = &mut *standings {
            standings.forget_looks();
        }
        true
    }

    /// Takes note of what became of reading the configuration anew.
    pub fn note_reload(&self, successful: bool) {
        let mut reloads = lock(&self.reloads);
        reloads.successful = successful;
        if successful {
            reloads.succeeded_at = SystemTime::now();
        }
    }

    /// Whether what was open before the start has been adopted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Counts what is open already, and looks for what no slot holds, both at once: then the tracker is ready. Blocks for some
    /// milliseconds. Returns also how long the look took; none if it failed, which is logged.
    ///
    /// # Errors
    /// When the kernel's lists or maps can't be read.
    pub fn adopt(&self) -> Result<(Audit, Duration), TrackerError> {
        let _one = lock(&self.looking);
        // An audit keeps the kernel side for itself.
        let first = self.open_look();
        let (audit, looked) = std::thread::scope(|scope| {
            let look = scope.spawn(|| self.finish_look(first));
            (self.audit(), look.join())
        });
        let audit = audit?;
        self.ready.store(true, Ordering::Release);
        Ok((audit, looked.unwrap_or_default()))
    }

    /// Compares all counts with the truth, and puts them right. Blocks for some milliseconds; for a second or two where something seems
    /// to be wrong.
    ///
    /// # Errors
    /// When the kernel's lists or maps can't be read.
    pub fn audit(&self) -> Result<Audit, TrackerError> {
        let result = self.audit_and_tidy();
        let mut stats = lock(&self.audits);
        match &result {
            Ok(audit) => {
                stats.finished += 1;
                stats.last = audit.took;
                stats.ended = Some(SystemTime::now());
                // Adoption corrects nothing, and without probes neither does any other audit: all that it finds is news.
                if stats.finished > 1 && self.live && audit.changes > 0 {
                    stats.corrections += audit.changes;
                    stats.corrected += 1;
                }
            }
            Err(_) => stats.failed += 1,
        }
        result
    }

    fn audit_and_tidy(&self) -> Result<Audit, TrackerError> {
        let mut audit = self.audit_once()?;
        let attached = lock(&self.kernel).attach_on_demand()?;
        if attached {
            audit.changes += self.audit_once()?.changes;
        }
        let mut kernel = lock(&self.kernel);
        lock(&self.names).retire_flows(&mut kernel)?;
        Ok(audit)
    }

    /// Between its looks, the kernel's state is free for others.
    fn audit_once(&self) -> Result<Audit, BpfError> {
        let mut audit = lock(&self.kernel).begin_audit()?;
        while let Some(wait) = audit.wait() {
            std::thread::sleep(wait);
            lock(&self.kernel).look_again(&mut audit)?;
        }
        lock(&self.kernel).finish_audit(audit)
    }

    /// Looks for files that no slot holds. Blocks for some milliseconds, without holding anything else up. Returns how long it took.
    ///
    /// If the kernel's lists can't be read, which is logged, nothing is known to be hidden, and no container is called clean.
    pub fn look_for_hidden(&self) -> Duration {
        let _one = lock(&self.looking);
        self.finish_look(self.open_look())
    }

    fn open_look(&self) -> Result<Iterators, BpfError> {
        lock(&self.kernel).open_look()
    }

    fn finish_look(&self, first: Result<Iterators, BpfError>) -> Duration {
        let start = Instant::now();
        let result = first.and_then(|iterators| self.look_twice(iterators));
        let mut found = lock(&self.found);
        found.succeeded = Some(result.is_ok());
        let waited = match result {
            Ok((hidden, waited)) => {
                found.finished += 1;
                found.hidden = hidden;
                waited
            }
            Err(error) => {
                tracing::error!(error = %chain(error), "look for files that no slot holds");
                found.failed += 1;
                found.hidden.clear();
                Duration::ZERO
            }
        };
        found.took = start.elapsed().saturating_sub(waited);
        found.took
    }

    /// What is hidden, and how long it was only waited.
    fn look_twice(&self, first: Iterators) -> Result<(Vec<Hidden>, Duration), BpfError> {
        let first = first.read()?;
        if first.is_clear() {
            return Ok((Vec::new(), Duration::ZERO));
        }
        std::thread::sleep(SECOND_LOOK);
        Ok((confirmed(&first, &self.open_look()?.read()?), SECOND_LOOK))
    }

    /// Who holds what, now.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn inventory(&self) -> Result<Inventory, TrackerError> {
        let kernel = lock(&self.kernel);
        self.inventory_of(&kernel).map(|(inventory, _)| inventory)
    }

    /// With the state of the programs, which are asked once.
    fn inventory_of(&self, kernel: &Kernel) -> Result<(Inventory, Vec<Program>), TrackerError> {
        let mut names = lock(&self.names);
        // Containers before tables: a table's cgroup that isn't known by then is looked up by itself.
        let containers = names.resolver.refresh();
        let (tables, flows, programs) = (kernel.tables()?, kernel.flows()?, kernel.programs()?);
        let mut uncounted = kernel.uncounted(&programs);
        let found = lock(&self.found);
        uncounted.any |= found.succeeded != Some(true);
        let Names { resolver, ledger } = &mut *names;
        let owner = |cgroup| resolver.owner(cgroup);
        let hidden = &found.hidden;
        let mut inventory = Inventory::take(&tables, &flows, hidden, ledger, containers, &uncounted, owner);
        if let Some(standings) = &mut *lock(&self.standings) {
            self.add_details(&mut inventory, standings);
        }
        Ok((inventory, programs))
    }

    /// Adds what looks in detail have found, and takes note of what that comes to now.
    fn add_details(&self, inventory: &mut Inventory, standings: &mut Standings) {
        let now = (Instant::now(), SystemTime::now());
        let judge = self.judge();
        for (container, entry) in &mut inventory.containers {
            entry.detail = standings.assessment(&container.cgroup).map_or(Detail::Pending, Detail::Known);
            let verdict = if entry.stale { Verdict::Unknown } else { entry.verdict(&judge) };
            let standing = standings.note(&container.cgroup, verdict, now);
            (entry.last_ok, entry.blocked) = (standing.last_ok, standing.blocked);
        }
        standings.retain(inventory.containers.iter().map(|(container, _)| container.cgroup.as_str()));
    }

    /// From now on containers are looked at in detail: what wasn't yet is unknown.
    pub fn look_in_detail(&self) {
        lock(&self.standings).get_or_insert_default();
    }

    /// All containers. Of others it isn't remembered any more how they stand.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let containers = lock(&self.names).resolver.refresh();
        if let Some(standings) = &mut *lock(&self.standings) {
            standings.retain(containers.iter().map(|container| container.cgroup.as_str()));
        }
        containers
    }

    /// Looks at a container in detail. Blocks for some milliseconds, without holding anything up. Returns whether it can be dumped, if
    /// that is news: with what stands in the way first. What took longer than one waits for it is nobody's any more.
    #[must_use]
    pub fn assess(&self, container: &Arc<Container>, patience: Duration) -> Option<Notice> {
        let (judge, begun) = (self.judge(), Instant::now());
        let assessment = match self.look_at(container, &judge) {
            Ok(assessment) => Arc::new(assessment),
            Err(error) => {
                tracing::debug!(error = %chain(error), container = container.id, "look at a container in detail");
                self.forget_look(container);
                return None;
            }
        };
        let now = (Instant::now(), SystemTime::now());
        let mut standings = lock(&self.standings);
        if !Arc::ptr_eq(&judge, &self.judge()) || begun.elapsed() >= patience {
            return None;
        }
        let change = standings.as_mut()?.learn(&container.cgroup, Arc::clone(&assessment), now)?;
        drop(standings);
        let blocker = assessment.first_reason().filter(|_| !change);
        // It may have waited since before its name was known.
        let container = lock(&self.names).resolver.current(Arc::clone(container));
        Some(Notice::standing(&Owner::Container(container), blocker))
    }

    /// What the last look at a container found is known no more.
    pub fn forget_look(&self, container: &Container) {
        if let Some(standings) = &mut *lock(&self.standings) {
            standings.forget_look(&container.cgroup);
        }
    }

    fn look_at(&self, container: &Container, judge: &Judge) -> Result<Assessment, LookError> {
        let found = TreeFound::in_cgroup(&self.cgroups, &container.cgroup, None)?;
        let tree = inspect::tree(found.root, &judge.profile().irmap_paths())?;
        Ok(Assessment::new(judge, &tree, &found.pids))
    }

    /// Who holds what, as users are shown it.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn listing(&self, processes: bool) -> Result<Listing, TrackerError> {
        Ok(Listing::new(&self.inventory()?, &self.judge(), processes))
    }

    /// What stands in the way of one container, or what the host holds.
    ///
    /// # Errors
    /// When the maps can't be read; and within, when there is no such container, or several.
    pub fn report(&self, name: &str) -> Result<Result<ContainerReport, TargetError>, TrackerError> {
        let inventory = self.inventory()?;
        let judge = self.judge();
        let of = |owner: &Owner, entry| ContainerReport::new(owner, entry, &judge);
        if name == report::HOST {
            return Ok(Ok(of(&Owner::Host, &inventory.host)));
        }
        let containers: Vec<_> = inventory.containers.iter().map(|(c, _)| Arc::clone(c)).collect();
        let found = target::by_name(&containers, name).and_then(|found| {
            let entry = inventory.containers.iter().find(|(container, _)| Arc::ptr_eq(container, &found));
            let (_, entry) = entry.ok_or_else(|| TargetError::Empty(found.cgroup.clone()))?;
            Ok(of(&Owner::Container(Arc::clone(&found)), entry))
        });
        Ok(found)
    }

    /// Everything that is exported.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn snapshot(&self) -> Result<Snapshot, TrackerError> {
        let kernel = lock(&self.kernel);
        let stage = |loss: &Loss| (loss.stage(), kernel.lost(*loss));
        let mut lost = Loss::ALL.iter().map(stage).collect::<Vec<_>>();
        lost.push(("reader", self.late_readers.load(Ordering::Relaxed)));
        let ready = self.is_ready();
        // Until adoption is done, counts would be too small.
        let (inventory, programs) = match ready.then(|| self.inventory_of(&kernel)).transpose()? {
            Some((inventory, programs)) => (Some(inventory), programs),
            None => (None, kernel.programs()?),
        };
        let fills = match &inventory {
            Some(inventory) => kernel.fills(inventory.tables.total(), inventory.flows)?,
            None => Vec::new(),
        };
        Ok(Snapshot {
            inventory,
            judge: self.judge(),
            feeder: kernel.feeder(),
            lost,
            programs,
            fills,
            ring: kernel.ring(),
            audits: *lock(&self.audits),
            hidden: lock(&self.found).clone(),
            runtime_lookups: self.directory.counts(),
            ready,
            reloads: *lock(&self.reloads),
        })
    }

    /// Whose table an event is about.
    #[must_use]
    pub fn owner(&self, event: &Event) -> Owner {
        let mut names = lock(&self.names);
        // By the time a container's program runs, its runtime has written down whose cgroup it is.
        if matches!(event.change, Change::Execed(_) | Change::Moved(_)) {
            names.resolver.reconsider(event.cgroup_id);
        }
        names.resolver.owner(event.cgroup_id)
    }

    /// How many events the ring had no room for so far; `None` while an audit has the kernel side.
    #[must_use]
    pub fn lost_in_ring(&self) -> Option<u64> {
        Some(self.kernel.try_lock().ok()?.lost(Loss::Ring))
    }

    /// How often something was lost, at any stage in the kernel; `None` while an audit has the kernel side.
    #[must_use]
    pub fn losses(&self) -> Option<u64> {
        let kernel = self.kernel.try_lock().ok()?;
        let lost: u64 = Loss::ALL.iter().map(|loss| kernel.lost(*loss)).sum();
        Some(lost + kernel.missed().ok()?)
    }

    /// Counts events that a reader was too slow for.
    pub fn count_late_reader(&self, events: u64) {
        self.late_readers.fetch_add(events, Ordering::Relaxed);
    }
}

impl Names {
    /// Takes over what cgroups that have gone had counted, so that the kernel's map stays small and counters never fall.
    fn retire_flows(&mut self, kernel: &mut Kernel) -> Result<(), BpfError> {
        let containers = self.resolver.refresh();
        for (cgroup, flow) in kernel.flows()? {
            if self.resolver.is_gone(cgroup) {
                let owner = self.resolver.last_owner(cgroup);
                self.ledger.retire(&owner, &flow);
                kernel.forget_flow(cgroup)?;
            }
        }
        self.resolver.forget_gone();
        self.ledger.retain_containers(|cgroup| containers.iter().any(|c| c.cgroup == cgroup));
        Ok(())
    }
}

/// A panic while the lock was held left nothing half done: every value is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
