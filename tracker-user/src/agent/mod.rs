//! The agent's tasks. This is how information flows from the kernel to those who ask:
//!
//! - events: `ring` reads them, `unresolved` keeps those whose owner isn't known yet, `delivery`
//!   gives them to the [`Feed`];
//! - counts: `state` owns what is known, and makes a `snapshot` of it; `audits` and `hidden` scans
//!   keep it correct;
//! - verdicts: `inspections` inspect containers in detail, `judging` records verdicts in histories;
//! - `liveness`: whether all these tasks do their work.
//!
//! Each loop is tested with a fake that stands for the kernel, and with a clock that the test
//! moves.

mod audits;
mod delivery;
mod hidden;
mod inspections;
mod judging;
pub mod liveness;
mod ring;
mod snapshot;
mod state;
mod unresolved;

use std::{
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
pub use hidden::HiddenScans;
pub use snapshot::{AuditStats, Reloads, Snapshot};
pub use state::{Attached, Handle, State, StateError, attach};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, watch},
    task::{JoinHandle, spawn_blocking},
};
use tracing_log::LogTracer;

use self::{
    audits::Auditor as _,
    delivery::Delivery,
    inspections::{Changed, Inspections},
    liveness::{Liveness, TaskLiveness},
    ring::{EventReader, Ring},
    state::StateThread,
    unresolved::Unresolved,
};
use crate::{
    api::Feed,
    bpf::{Audit, BpfError, Choice, Sizes},
    error::SyscallError,
    host,
    runtime::{Directory, Owners, Settings, follow_names},
    verdict::Judge,
};

/// How often counts are read again where there are no probes.
const POLL: Duration = Duration::from_secs(5);

/// How often the tasks work when nothing requests it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The interval of audits and of hidden scans.
    pub audit: Duration,
    /// The interval of each container's inspections.
    pub inspect: Duration,
}

impl Pace {
    /// Returns the interval of audits. Without probes, nothing else keeps counts current.
    fn audits(self, live: bool) -> Duration {
        if live { self.audit } else { self.audit.min(POLL) }
    }
}

/// The agent's tasks. Dropping it ends them, and detaches the probes.
pub struct Agent {
    /// Gives access to what the agent knows.
    pub state: Handle,
    /// Distributes events to subscribers.
    pub feed: Feed,
    /// Tells whether its tasks are at work.
    pub liveness: Arc<Liveness>,
    audit_requests: Arc<Notify>,
    changed: Arc<Changed>,
    /// Notified when a verdict may have changed.
    verdicts: Arc<Notify>,
    /// `None` until adoption is done.
    pace: Option<watch::Sender<Pace>>,
    tasks: Vec<JoinHandle<()>>,
    /// Ends when this is dropped, after the tasks.
    _state_thread: StateThread,
}

impl Agent {
    /// Starts to read events, and to ask runtimes for the names of containers.
    ///
    /// # Errors
    /// When the event loop can't watch the rings, or no thread can be started.
    pub fn start(attached: Attached, runtimes: Settings) -> Result<Self, StateError> {
        let directory = attached.directory();
        let (state, thread, rings) = attached.start()?;
        let (feed, liveness) = (Feed::default(), Arc::<Liveness>::default());
        let (audit_requests, verdicts) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let changed = Arc::<Changed>::default();
        let delivery = Delivery {
            feed: feed.clone(),
            judge: state.judges(),
            changed: Arc::clone(&changed),
            verdicts: Arc::clone(&verdicts),
        };
        let (unresolved, lookups) = Unresolved::new(feed.clone());
        let owners = Arc::clone(state.owners());
        let lookups = lookups.run(Arc::clone(&owners), delivery.clone(), liveness.begin("owners"));
        let ring = Ring { records: register(rings.events)?, losses: rings.losses };
        let cache = state.owners().cache();
        let reader = EventReader {
            cached: Box::new(move |cgroup, may_be_told| cache.get(cgroup, may_be_told)),
            delivery,
            unresolved,
            audit_requests: audit_requests.clone(),
        };
        let names = ask_for_names(directory.clone(), runtimes, liveness.begin("names"));
        let mut tasks = vec![
            tokio::spawn(reader.run(ring, liveness.begin("ring"))),
            tokio::spawn(lookups),
            tokio::spawn(names),
            tokio::spawn(learn_names(directory, owners, liveness.begin("renaming"))),
        ];
        if let Some(log) = rings.log {
            tasks.push(tokio::spawn(forward_log(register(log)?)));
        }
        Ok(Self {
            state,
            feed,
            liveness,
            audit_requests,
            changed,
            verdicts,
            pace: None,
            tasks,
            _state_thread: thread,
        })
    }

    /// Adopts what is already open. From then on counts are exact, and live if there is a feeder.
    ///
    /// # Errors
    /// When the first audit fails.
    pub async fn adopt(&mut self, pace: Pace) -> Result<(), StateError> {
        let (first, scanned) = adopt(&self.state).await?;
        host::give_memory_back();
        tracing::info!(adopted = first.changes, took = ?first.took, "what was open already is counted");
        if !self.state.is_live() {
            tracing::warn!("no probes: counts are those of the last audit, at most {POLL:?} old");
        }
        let pace = self.pace.insert(watch::Sender::new(pace));
        let begin = |name| self.liveness.begin(name);
        let (state, requests, verdicts) = (&self.state, &self.audit_requests, &self.verdicts);
        let audits =
            audits::run(state.clone(), requests.clone(), verdicts.clone(), pace.subscribe(), begin("audits"));
        let scans =
            hidden::run(state.clone(), verdicts.clone(), pace.subscribe(), scanned, begin("hidden scans"));
        let inspections = Inspections::new(
            state.clone(),
            Arc::clone(&self.changed),
            self.feed.clone(),
            verdicts.clone(),
            begin("inspections"),
        );
        let losses = audits::watch_losses(state.clone(), requests.clone(), begin("losses"));
        let judging = judging::run(state.clone(), verdicts.clone(), begin("verdicts"));
        self.tasks.extend([
            tokio::spawn(audits),
            tokio::spawn(scans),
            tokio::spawn(inspections.run(pace.subscribe())),
            tokio::spawn(losses),
            tokio::spawn(judging),
        ]);
        Ok(())
    }

    /// Changes the pace and the judge. The pace only matters after adoption.
    ///
    /// # Errors
    /// When the agent's state can't be asked.
    pub async fn change(&self, pace: Pace, judge: Judge) -> Result<(), StateError> {
        let is_other = self.state.tell(|state| state.replace_judge(judge)).await?;
        self.verdicts.notify_one();
        if let Some(sender) = &self.pace {
            // The inspections' task takes a change as a reason to inspect all containers again.
            sender.send_if_modified(|current| std::mem::replace(current, pace) != pace || is_other);
        }
        Ok(())
    }

    /// Whether all tasks are at work.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.liveness.dead(Instant::now()).is_empty()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Adopts what is already open, and scans for hidden files at the same time. Then the state is
/// ready. Returns also how long the scan took.
async fn adopt(state: &Handle) -> Result<(Audit, Duration), StateError> {
    state.tell(State::expect_inspections).await?;
    // The scan's iterators must be opened first, because the audit keeps the state busy.
    let first = state.with(State::open_hidden_scan).await;
    let (audit, scanned) = tokio::join!(state.audit(), hidden::scan_from(state, first));
    let audit = audit?;
    state.tell(State::become_ready).await?;
    Ok((audit, scanned))
}

/// Returns a snapshot without an agent's tasks: counts what is open, and inspects every container
/// once.
///
/// # Errors
/// When the machine lacks a prerequisite.
pub async fn snapshot_once(
    judge: Judge,
    sizes: Sizes,
    directory: Arc<Directory>,
) -> Result<Arc<Snapshot>, StateError> {
    let (state, _thread, _rings) = attach(judge, sizes, Choice::Audit, directory)?.start()?;
    adopt(&state).await?;
    inspections::once(&state).await;
    state.snapshot().await
}

/// Asks runtimes for names. This task may rest for any time, but must not end.
async fn ask_for_names(directory: Arc<Directory>, runtimes: Settings, liveness: TaskLiveness) {
    liveness.within(Duration::MAX);
    follow_names(directory, runtimes).await;
}

/// Renames containers as soon as new names are known.
async fn learn_names(directory: Arc<Directory>, owners: Arc<Owners>, liveness: TaskLiveness) {
    liveness.within(Duration::MAX);
    let mut changes = directory.changes();
    while changes.changed().await.is_ok() {
        let owners = Arc::clone(&owners);
        liveness.within(Duration::ZERO);
        // An error means a panic, which is logged.
        let _ = spawn_blocking(move || owners.learn_names()).await;
        liveness.within(Duration::MAX);
    }
}

/// Registers a ring with the event loop.
fn register<R: AsRawFd>(ring: R) -> Result<AsyncFd<R>, BpfError> {
    // SAFETY: a ring owns its fd, which stays open and the same for as long as the ring is
    // registered.
    let registered = unsafe { AsyncFd::register(ring) };
    registered.map_err(|error| SyscallError::on("wait for", "a ring")(error.into()).into())
}

/// Forwards what the programs log to the agent's log.
async fn forward_log(mut log: AsyncFd<EbpfLogger<LogTracer>>) {
    while let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}
