//! The agent's state, and the thread that owns it.
//!
//! Others send work to that thread ([`Handle::with`]), which does it piece by piece, or read a
//! [`Snapshot`], which never changes. Nobody else has a reference to the state.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use thiserror::Error;
use tokio::sync::{Mutex, oneshot, watch};
use tracker_ebpf::Loss;

use super::{
    hidden::HiddenScans,
    snapshot::{AuditStats, Reloads, Snapshot},
};
use crate::{
    bpf::{Audit, Auditing, BpfError, Choice, HiddenScan, Kernel, Program, Rings, Sizes},
    host,
    inventory::{Detail, Inventory, Ledger},
    runtime::{Cached, Container, Directory, Hierarchy, HierarchyError, Owner, Owners, Resolver},
    verdict::{Assessment, Judge, history::Histories},
};

/// Why the agent can't start, or its state can't be read.
#[derive(Debug, Error)]
pub enum StateError {
    /// An error of the kernel side.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Containers can't be told apart.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The state's thread can't be started.
    #[error("start a thread for the agent's state")]
    Thread(#[source] io::Error),
    /// The work has panicked, which is logged, or the agent is ending.
    #[error("the agent's state can't be asked: see its log")]
    Gone,
}

/// Everything that the agent knows.
pub struct State {
    kernel: Kernel,
    owners: Arc<Owners>,
    directory: Arc<Directory>,
    /// Counts of containers' cgroups that have gone.
    ledger: Ledger,
    hidden: HiddenScans,
    audits: AuditStats,
    reloads: Reloads,
    /// The histories of containers; `None` if containers aren't inspected.
    histories: Option<Histories>,
    judge: watch::Sender<Arc<Judge>>,
    ready: watch::Sender<bool>,
}

/// A piece of work for the state's thread.
type Work = Box<dyn FnOnce(&mut State) + Send>;

/// Sends work to the thread that owns the state. When all handles are gone, the thread ends, and
/// the programs are detached.
#[derive(Clone)]
pub struct Handle {
    /// `None` ends the thread. Whoever sends work waits for its result, so that little is queued.
    work: mpsc::Sender<Option<Work>>,
    judge: watch::Receiver<Arc<Judge>>,
    ready: watch::Receiver<bool>,
    owners: Arc<Owners>,
    live: bool,
    /// The snapshot that was made last.
    latest: Arc<Mutex<Option<Arc<Snapshot>>>>,
}

/// The thread that owns the state. Dropping it ends the thread and waits for that: what is attached
/// must be detached before the process ends, because the kernel keeps the events of kprobes.
pub(super) struct StateThread {
    work: mpsc::Sender<Option<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for StateThread {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.work.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The programs, loaded and attached, and a state that nobody owns yet.
pub struct Attached {
    state: State,
    pub(super) rings: Rings,
}

/// Loads the programs and attaches a feeder. Counts are those of the last audit; with a feeder they
/// are live from then on. Containers have the names that the directory knows.
///
/// Starts no thread, so that this thread can still give up privileges for the whole process.
///
/// # Errors
/// When the machine lacks a prerequisite.
pub fn attach(
    judge: Judge,
    sizes: Sizes,
    choice: Choice,
    directory: Arc<Directory>,
) -> Result<Attached, StateError> {
    let hierarchy = Hierarchy::find()?;
    let (kernel, rings) = Kernel::start(&hierarchy, sizes, choice)?;
    let resolver = Resolver::new(hierarchy.clone(), Arc::clone(&directory));
    let owners = Arc::new(Owners::new(hierarchy, resolver));
    let state = State {
        hidden: HiddenScans::new(kernel.unscannable_places().to_vec()),
        kernel,
        owners,
        directory,
        ledger: Ledger::default(),
        audits: AuditStats::default(),
        reloads: Reloads { successful: true, succeeded_at: SystemTime::now() },
        histories: None,
        judge: watch::Sender::new(Arc::new(judge)),
        ready: watch::Sender::new(false),
    };
    Ok(Attached { state, rings })
}

impl Attached {
    /// Returns the directory of names that the state reads.
    pub(super) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.state.directory)
    }

    /// Starts the thread, and gives the state to it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(self) -> Result<(Handle, StateThread, Rings), StateError> {
        let (handle, thread) = Handle::spawn(self.state)?;
        Ok((handle, thread, self.rings))
    }
}

impl Handle {
    fn spawn(state: State) -> Result<(Self, StateThread), StateError> {
        let (work, queue) = mpsc::channel();
        let owners = Arc::clone(&state.owners);
        let (judge, ready) = (state.judge.subscribe(), state.ready.subscribe());
        let live = state.kernel.feeder().is_live();
        let thread = std::thread::Builder::new().name("state".into());
        let thread = thread.spawn(move || run(state, &queue)).map_err(StateError::Thread)?;
        let thread = StateThread { work: work.clone(), thread: Some(thread) };
        Ok((Self { work, judge, ready, owners, live, latest: Arc::default() }, thread))
    }

    /// Lets the thread do something with the state, and waits for the result.
    ///
    /// # Errors
    /// Those of the work; and when the work panics, or the thread has ended.
    pub async fn with<T: Send + 'static, E: Into<StateError> + Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, E> + Send + 'static,
    ) -> Result<T, StateError> {
        let (sender, result) = oneshot::channel();
        let work: Work = Box::new(move |state| {
            // An error means that nobody waits any more.
            let _ = sender.send(work(state).map_err(Into::into));
        });
        self.work.send(Some(work)).map_err(|_| StateError::Gone)?;
        result.await.unwrap_or(Err(StateError::Gone))
    }

    /// Does the same for work that can't fail.
    ///
    /// # Errors
    /// When the work panics, or the thread has ended.
    pub async fn tell<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, StateError> {
        self.with(|state| Ok::<_, StateError>(work(state))).await
    }

    /// Returns a snapshot of a moment after this call. Callers who wait at the same time share one.
    ///
    /// # Errors
    /// When the kernel's maps can't be read.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, StateError> {
        let asked = Instant::now();
        let mut latest = self.latest.lock().await;
        if let Some(latest) = latest.as_ref().filter(|latest| latest.begun >= asked) {
            return Ok(Arc::clone(latest));
        }
        let snapshot = Arc::new(self.with(State::snapshot).await?);
        *latest = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Whether counts are current at every moment, and not only at audits.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Whether adoption is done.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Returns the judge that gives verdicts.
    #[must_use]
    pub fn judge(&self) -> Arc<Judge> {
        Arc::clone(&self.judge.borrow())
    }

    /// Returns a receiver that sees every new judge.
    #[must_use]
    pub fn judges(&self) -> watch::Receiver<Arc<Judge>> {
        self.judge.clone()
    }

    /// Returns the owners of cgroups.
    #[must_use]
    pub fn owners(&self) -> &Arc<Owners> {
        &self.owners
    }
}

/// Does the work that is sent, until it is told to end, or nobody is left who could send any.
fn run(mut state: State, queue: &mpsc::Receiver<Option<Work>>) {
    host::give_way();
    while let Ok(Some(work)) = queue.recv() {
        // After a panic, the sender of the work sees that its channel is closed. No state that
        // matters is left half changed: counts are in the kernel, and the rest is replaced as a
        // whole.
        let _ = catch_unwind(AssertUnwindSafe(|| work(&mut state)));
    }
}

impl State {
    /// Replaces the judge. Returns whether the new one is different. If so, results of inspections
    /// are forgotten.
    pub fn replace_judge(&mut self, judge: Judge) -> bool {
        if **self.judge.borrow() == judge {
            return false;
        }
        self.judge.send_replace(Arc::new(judge));
        if let Some(histories) = &mut self.histories {
            histories.forget_inspections();
        }
        true
    }

    /// Records the result of a reload of the configuration.
    pub fn note_reload(&mut self, successful: bool) {
        self.reloads.successful = successful;
        if successful {
            self.reloads.succeeded_at = SystemTime::now();
        }
    }

    /// Declares that containers will be inspected. Until then their verdicts are unknown.
    pub fn expect_inspections(&mut self) {
        self.histories.get_or_insert_default();
    }

    /// Declares that adoption is done.
    pub fn become_ready(&mut self) {
        self.ready.send_replace(true);
    }

    /// Begins an audit. While it waits, others can use the state.
    ///
    /// # Errors
    /// When the kernel's lists or maps can't be read.
    pub fn begin_audit(&mut self) -> Result<Auditing, BpfError> {
        self.kernel.begin_audit()
    }

    /// Checks again what seemed to be wrong.
    ///
    /// # Errors
    /// When the kernel's lists or maps can't be read.
    pub fn continue_audit(&mut self, mut audit: Auditing) -> Result<Auditing, BpfError> {
        self.kernel.recheck(&mut audit)?;
        Ok(audit)
    }

    /// Ends an audit.
    ///
    /// # Errors
    /// When the kernel's maps can't be read or written.
    pub fn finish_audit(&mut self, audit: Auditing) -> Result<Audit, BpfError> {
        self.kernel.finish_audit(audit)
    }

    /// Attaches the probes that are needed only when certain files are open. Returns whether it
    /// attached any: if so, changes may have been missed before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_on_demand(&mut self) -> Result<bool, BpfError> {
        self.kernel.attach_on_demand()
    }

    /// Records the result of an audit; `None` if it failed.
    pub fn note_audit(&mut self, audit: Option<&Audit>) {
        let live = self.kernel.feeder().is_live();
        self.audits.note(audit, live);
    }

    /// Moves the flows of cgroups that have gone from the kernel's map into the ledger. So the map
    /// stays small, and counters never decrease.
    ///
    /// # Errors
    /// When the kernel's maps can't be read or written.
    pub fn retire_flows(&mut self) -> Result<(), BpfError> {
        let containers = self.owners.refresh();
        for (cgroup, flow) in self.kernel.flows()? {
            let resolver = self.owners.resolver();
            if resolver.is_gone(cgroup) {
                let owner = resolver.last_owner(cgroup);
                drop(resolver);
                self.ledger.retire(&owner, &flow);
                self.kernel.forget_flow(cgroup)?;
            }
        }
        self.owners.resolver().forget_gone();
        self.ledger.retain_containers(|cgroup| containers.iter().any(|c| c.cgroup == cgroup));
        Ok(())
    }

    /// Opens the iterators of a hidden scan.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_hidden_scan(&mut self) -> Result<HiddenScan, BpfError> {
        self.kernel.open_hidden_scan()
    }

    /// Returns the results of hidden scans, to be changed.
    pub fn hidden_mut(&mut self) -> &mut HiddenScans {
        &mut self.hidden
    }

    /// Returns all containers, and drops the histories of those that have gone.
    pub fn containers(&mut self) -> Vec<Arc<Container>> {
        let containers = self.owners.refresh();
        if let Some(histories) = &mut self.histories {
            histories.retain(containers.iter().map(|container| container.cgroup.as_str()));
        }
        containers
    }

    /// Records the result of an inspection made with `judge`. Returns whether the container can be
    /// dumped, if that has changed.
    pub fn learn(
        &mut self,
        container: &Container,
        assessment: &Arc<Assessment>,
        judge: &Arc<Judge>,
    ) -> Option<bool> {
        if !Arc::ptr_eq(judge, &self.judge.borrow()) {
            return None;
        }
        let now = (Instant::now(), SystemTime::now());
        self.histories.as_mut()?.learn(&container.cgroup, Arc::clone(assessment), now)
    }

    /// Forgets the result of a container's last inspection.
    pub fn forget_inspection(&mut self, container: &Container) {
        if let Some(histories) = &mut self.histories {
            histories.forget_inspection(&container.cgroup);
        }
    }

    /// Returns the container with the name that it has now.
    #[must_use]
    pub fn current(&self, container: Arc<Container>) -> Arc<Container> {
        self.owners.current(container)
    }

    /// Returns how often something was lost, at all stages in the kernel.
    ///
    /// # Errors
    /// When the kernel's statistics of a program can't be read.
    pub fn losses(&mut self) -> Result<u64, BpfError> {
        let lost: u64 = Loss::ALL.iter().map(|loss| self.kernel.lost(*loss)).sum();
        Ok(lost + self.kernel.missed()?)
    }

    /// Records each container's verdict in its history.
    ///
    /// # Errors
    /// When the kernel's maps can't be read.
    pub fn note_verdicts(&mut self) -> Result<(), BpfError> {
        // The containers in the cache are enough: there was no event of others. This saves a walk
        // of the cgroup file system every second.
        let cache = self.owners.cache();
        let owner = |cgroup| match cache.get(cgroup, false) {
            Cached::Current(owner) | Cached::Old(owner) => owner,
            Cached::Missing => self.owners.look_up(cgroup, false),
        };
        let (inventory, _) = self.inventory(cache.containers(), owner)?;
        let Some(histories) = &mut self.histories else { return Ok(()) };
        let now = (Instant::now(), SystemTime::now());
        for (container, entry) in &inventory.containers {
            histories.note(&container.cgroup, entry.known_verdict(), now);
        }
        Ok(())
    }

    /// Returns who holds what now, with verdicts, and the statistics of the programs, which are
    /// read once for both. `containers` must have been listed before: a table's cgroup that wasn't
    /// known then is looked up on its own.
    fn inventory(
        &self,
        containers: Vec<Arc<Container>>,
        owner: impl FnMut(u64) -> Owner,
    ) -> Result<(Inventory, Vec<Program>), BpfError> {
        let kernel = &self.kernel;
        let (tables, flows, programs) = (kernel.tables()?, kernel.flows()?, kernel.programs()?);
        let mut uncounted = kernel.uncounted(&programs);
        uncounted.any |= !self.hidden.succeeded();
        let hidden = &self.hidden.found;
        let mut inventory =
            Inventory::take(&tables, &flows, hidden, &self.ledger, containers, &uncounted, owner);
        if let Some(histories) = &self.histories {
            for (container, entry) in &mut inventory.containers {
                let assessment = histories.assessment(&container.cgroup);
                entry.detail = assessment.map_or(Detail::Pending, Detail::Known);
            }
        }
        inventory.judge(&self.judge.borrow());
        if let Some(histories) = &self.histories {
            let now = (Instant::now(), SystemTime::now());
            for (container, entry) in &mut inventory.containers {
                entry.history = histories.summary(&container.cgroup, entry.known_verdict(), now);
            }
        }
        Ok((inventory, programs))
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// When the kernel's maps can't be read.
    pub fn snapshot(&mut self) -> Result<Snapshot, BpfError> {
        let begun = Instant::now();
        let kernel = &self.kernel;
        let lost = Loss::ALL.iter().map(|loss| (loss.stage(), kernel.lost(*loss))).collect();
        let ready = *self.ready.borrow();
        // Until adoption is done, counts would be too small.
        let owner = |cgroup| self.owners.look_up(cgroup, false);
        let inventory = || self.inventory(self.owners.refresh(), owner);
        let (inventory, programs) = match ready.then(inventory).transpose()? {
            Some((inventory, programs)) => (Some(inventory), programs),
            None => (None, kernel.programs()?),
        };
        let fills = match &inventory {
            Some(inventory) => kernel.fills(inventory.tables.total(), inventory.flows)?,
            None => Vec::new(),
        };
        Ok(Snapshot {
            begun,
            inventory,
            judge: Arc::clone(&self.judge.borrow()),
            feeder: kernel.feeder(),
            lost,
            programs,
            fills,
            ring: kernel.ring(),
            audits: self.audits,
            hidden: self.hidden.clone(),
            runtime_lookups: self.directory.counts(),
            ready,
            reloads: self.reloads,
        })
    }
}
