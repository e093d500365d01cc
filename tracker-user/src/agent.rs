//! The agent's tasks: it reads events from the ring, sends them on to whoever follows, and audits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, broadcast, watch},
    task::JoinHandle,
    time::timeout,
};
use tracing_log::LogTracer;
use tracker_ebpf::Kind;

use crate::{
    bpf::{BpfError, Change, Choice, Event, Sizes, decode},
    error::chain,
    host,
    http::{BACKLOG, Line, Lines},
    pulse::{Pulse, Pulses},
    report::Notice,
    runtime::{Container, Directory, Owner, Settings, follow_names},
    tracker::{Tracker, TrackerError},
    verdict::Judge,
};

/// Events that are handled before other tasks have their turn.
const BATCH: usize = 256;

/// Audits that are asked for at once are made one. At the least this long, and so long that audits in doubt take no more than
/// a twentieth of the time.
const COALESCE: Duration = Duration::from_millis(50);
const COALESCE_FACTOR: u32 = 20;

/// Looks for files that no slot holds take no more than this part of the time.
const LOOK_FACTOR: u32 = 20;

/// After an audit that had something to put right the next one follows soon: what it put right may have been on its way out.
const AFTER_CORRECTION: Duration = Duration::from_secs(1);

/// How long a container that moves is left alone before it is looked at in detail.
const SETTLE: Duration = Duration::from_millis(100);

/// Looks at containers in detail take no more than this part of the time.
const JUDGE_FACTOR: u32 = 10;

/// However long the last look took, the next isn't put off for longer.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// No look takes as long, unless it waits for something that doesn't answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the reader of events shows that it is there while nothing happens.
const QUIET: Duration = Duration::from_secs(10);

/// Looks that wait for what doesn't answer, at the most: each has a thread. With more, no look is taken, and verdicts are unknown.
const MAX_STUCK: usize = 8;

/// How often counts are read anew where there are no probes.
const POLL: Duration = Duration::from_secs(5);

/// How often it is looked whether something was lost that only an audit can find.
const WATCH: Duration = Duration::from_secs(1);

/// How often the tasks do what nothing asks them to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Audits, and looks for files that no slot holds.
    pub audit: Duration,
    /// Looks at each container in detail.
    pub judge: Duration,
}

impl Pace {
    /// How often counts are compared with the truth: without probes nothing else keeps them current.
    fn audit(self, tracker: &Tracker) -> Duration {
        if tracker.is_live() { self.audit } else { self.audit.min(POLL) }
    }
}

/// A tracker at work. Dropping it detaches the probes.
pub struct Engine {
    /// What it knows.
    pub tracker: Arc<Tracker>,
    /// What it sees.
    pub lines: Lines,
    /// Whether its tasks are at work.
    pub pulses: Arc<Pulses>,
    doubt: Arc<Notify>,
    moved: Arc<Moved>,
    /// `None` until what was open before is adopted.
    pace: Option<watch::Sender<Pace>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Loads and attaches the probes, reads events from now on, and asks runtimes for the names of containers.
    ///
    /// # Errors
    /// When the machine lacks something.
    pub fn start(
        judge: Judge,
        sizes: Sizes,
        choice: Choice,
        runtimes: Settings,
    ) -> Result<Self, TrackerError> {
        let directory = Arc::new(Directory::default());
        let (tracker, rings) = Tracker::start(judge, sizes, choice, Arc::clone(&directory))?;
        let tracker = Arc::new(tracker);
        let (lines, _) = broadcast::channel(BACKLOG);
        let (doubt, moved) = (Arc::new(Notify::new()), Arc::new(Moved::default()));
        let pulses = Arc::new(Pulses::default());
        let reader = Reader {
            tracker: Arc::clone(&tracker),
            lines: lines.clone(),
            doubt: Arc::clone(&doubt),
            moved: Arc::clone(&moved),
        };
        let mut tasks = vec![
            tokio::spawn(reader.run(register(rings.events)?, pulses.begin("reader"))),
            tokio::spawn(name(directory, runtimes, pulses.begin("namer"))),
        ];
        if let Some(log) = rings.log {
            tasks.push(tokio::spawn(forward_log(register(log)?)));
        }
        Ok(Self { tracker, lines, pulses, doubt, moved, pace: None, tasks })
    }

    /// Counts what is open already. From then on counts are exact, and live if there is a feeder.
    ///
    /// # Errors
    /// When the first audit fails.
    pub async fn adopt(&mut self, pace: Pace) -> Result<(), TrackerError> {
        self.tracker.look_in_detail();
        let (first, looked) = blocking(&self.tracker, Tracker::adopt).await?;
        host::give_memory_back();
        tracing::info!(adopted = first.changes, took = ?first.took, "what was open already is counted");
        if !self.tracker.is_live() {
            tracing::warn!("no probes: counts are those of the last audit, at most {POLL:?} old");
        }
        let begin = |name| self.pulses.begin(name);
        let (sender, pace) = watch::channel(pace);
        self.pace = Some(sender);
        let (tracker, doubt) = (Arc::clone(&self.tracker), Arc::clone(&self.doubt));
        self.tasks.push(tokio::spawn(audit_forever(tracker, doubt, pace.clone(), begin("auditor"))));
        let tracker = Arc::clone(&self.tracker);
        self.tasks.push(tokio::spawn(look_forever(tracker, pace.clone(), looked, begin("looker"))));
        let judging = Judging {
            tracker: Arc::clone(&self.tracker),
            moved: Arc::clone(&self.moved),
            lines: self.lines.clone(),
            stuck: HashMap::new(),
            pulse: begin("judge"),
        };
        self.tasks.push(tokio::spawn(judging.run(pace)));
        let (tracker, doubt) = (Arc::clone(&self.tracker), Arc::clone(&self.doubt));
        self.tasks.push(tokio::spawn(watch_losses(tracker, doubt, begin("watcher"))));
        Ok(())
    }

    /// Goes on at this pace, with this judge, once what was open before is adopted.
    pub fn change(&self, pace: Pace, judge: Judge) {
        let judges_anew = self.tracker.replace_judge(judge);
        if let Some(sender) = &self.pace {
            // Who waits for a change looks at all containers again.
            sender.send_if_modified(|current| std::mem::replace(current, pace) != pace || judges_anew);
        }
    }

    /// Whether all tasks are at work.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.pulses.dead(Instant::now()).is_empty()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Asks runtimes for names. It rests for as long as it likes, but mustn't end.
async fn name(directory: Arc<Directory>, runtimes: Settings, pulse: Pulse) {
    pulse.within(Duration::MAX);
    follow_names(directory, runtimes).await;
}

/// Registers a ring with the event loop.
fn register<R: AsRawFd>(ring: R) -> Result<AsyncFd<R>, BpfError> {
    // SAFETY: a ring owns its fd, which stays open and the same for as long as the ring is registered.
    unsafe { AsyncFd::register(ring) }.map_err(|error| BpfError::Call {
        call: "wait for",
        object: "a ring".into(),
        source: error.into(),
    })
}

/// Passes on what the programs log.
async fn forward_log(mut log: AsyncFd<EbpfLogger<LogTracer>>) {
    while let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

/// Runs what takes milliseconds on a thread of its own, so that events and requests go on meanwhile.
async fn blocking<T: Send + 'static>(
    tracker: &Arc<Tracker>,
    work: fn(&Tracker) -> Result<T, TrackerError>,
) -> Result<T, TrackerError> {
    let tracker = Arc::clone(tracker);
    tokio::task::spawn_blocking(move || work(&tracker)).await.unwrap_or_else(|panic| {
        let source = std::io::Error::other(panic);
        Err(BpfError::Call { call: "run", object: "a task of the tracker".into(), source }.into())
    })
}

async fn audit_forever(
    tracker: Arc<Tracker>,
    doubt: Arc<Notify>,
    mut pace: watch::Receiver<Pace>,
    pulse: Pulse,
) {
    let every = |pace: &mut watch::Receiver<Pace>| pace.borrow_and_update().audit(&tracker);
    // What was adopted may have been on its way to another cgroup.
    let mut wait = every(&mut pace).min(AFTER_CORRECTION);
    let mut last = Duration::ZERO;
    loop {
        pulse.within(wait);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = doubt.notified() => tokio::time::sleep((last * COALESCE_FACTOR).clamp(COALESCE, AFTER_CORRECTION)).await,
            Ok(()) = pace.changed() => {
                wait = every(&mut pace);
                continue;
            }
        }
        wait = every(&mut pace);
        pulse.within(Duration::ZERO);
        match blocking(&tracker, Tracker::audit).await {
            Ok(audit) => {
                tracing::debug!(?audit, "audited");
                last = audit.took;
                if audit.unsettled || audit.changes > 0 && tracker.is_live() {
                    wait = wait.min(AFTER_CORRECTION);
                }
            }
            Err(error) => tracing::error!(error = %chain(error), "audit"),
        }
    }
}

/// Looks for files that no slot holds, on a clock of its own: it takes longer than an audit, and no probe asks for it.
async fn look_forever(
    tracker: Arc<Tracker>,
    mut pace: watch::Receiver<Pace>,
    mut last: Duration,
    pulse: Pulse,
) {
    loop {
        let rest = pace.borrow_and_update().audit(&tracker).max(last * LOOK_FACTOR);
        pulse.within(rest);
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            Ok(()) = pace.changed() => continue,
        }
        pulse.within(Duration::ZERO);
        // An error is a panic, which is logged.
        last = blocking(&tracker, |tracker| Ok(tracker.look_for_hidden())).await.unwrap_or_default();
    }
}

/// Asks for an audit when something was lost: whatever it was, the kernel's own list of files tells.
async fn watch_losses(tracker: Arc<Tracker>, doubt: Arc<Notify>, pulse: Pulse) {
    let mut known = 0;
    loop {
        pulse.within(WATCH);
        // Nothing is told while an audit has the kernel side.
        if let Some(losses) = tracker.losses()
            && losses != std::mem::replace(&mut known, losses)
        {
            tracing::debug!(losses, "something was lost: an audit must look");
            doubt.notify_one();
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Containers in which something has moved since they were looked at in detail, the longest waiting first.
#[derive(Default)]
struct Moved {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    cgroups: HashSet<String>,
    containers: VecDeque<Arc<Container>>,
}

impl Moved {
    fn add(&self, container: &Arc<Container>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.cgroups.contains(&container.cgroup) {
            waiting.cgroups.insert(container.cgroup.clone());
            waiting.containers.push_back(Arc::clone(container));
            self.some.notify_one();
        }
    }

    fn take(&self) -> Option<Arc<Container>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let container = waiting.containers.pop_front()?;
        waiting.cgroups.remove(&container.cgroup);
        Some(container)
    }
}

/// Looks at containers in detail: soon after something has moved in one, and at all of them now and then, because of what moves
/// without any fd: a TCP state, a queue, a lock, the end of a pidfd's target.
struct Judging {
    tracker: Arc<Tracker>,
    moved: Arc<Moved>,
    lines: Lines,
    /// Looks that don't come to an end, by the container's cgroup: a file system that doesn't answer.
    stuck: HashMap<String, JoinHandle<Option<Notice>>>,
    pulse: Pulse,
}

impl Judging {
    async fn run(mut self, mut pace: watch::Receiver<Pace>) {
        let (mut rest, mut started) = (VecDeque::new(), None::<Instant>);
        let mut by_turns = false;
        loop {
            // A look takes no longer than this, and no rest does but the last.
            self.pulse.within(PATIENCE);
            if pace.has_changed().unwrap_or(false) {
                started = None;
            }
            let every = pace.borrow_and_update().judge;
            if rest.is_empty() && started.is_none_or(|at| at.elapsed() >= every) {
                started = Some(Instant::now());
                rest.extend(self.containers().await);
            }
            // A container that never keeps still must not keep the agent from others.
            by_turns = !by_turns;
            let next = match by_turns {
                true => self.moved.take().or_else(|| rest.pop_front()),
                false => rest.pop_front().or_else(|| self.moved.take()),
            };
            match next {
                Some(container) => self.look(container).await,
                None => {
                    self.pulse.within(every);
                    tokio::select! {
                    () = tokio::time::sleep(started.map_or(every, |at| every.saturating_sub(at.elapsed()))) => {}
                    () = self.moved.some.notified() => tokio::time::sleep(SETTLE).await,
                        Ok(()) = pace.changed() => started = None,
                    }
                }
            }
        }
    }

    async fn containers(&self) -> Vec<Arc<Container>> {
        // An error is a panic, which is logged.
        blocking(&self.tracker, |tracker| Ok(tracker.containers())).await.unwrap_or_default()
    }

    async fn look(&mut self, container: Arc<Container>) {
        self.stuck.retain(|_, look| !look.is_finished());
        if self.stuck.contains_key(&container.cgroup) || self.stuck.len() >= MAX_STUCK {
            self.tracker.forget_look(&container);
            return;
        }
        let start = Instant::now();
        let (tracker, of) = (Arc::clone(&self.tracker), Arc::clone(&container));
        let mut look = tokio::task::spawn_blocking(move || tracker.assess(&of, PATIENCE));
        match timeout(PATIENCE, &mut look).await {
            Ok(Ok(Some(notice))) => {
                // An error means that nobody follows.
                let _ = self.lines.send(Line::new(notice));
            }
            Ok(_) => {}
            Err(_) => {
                tracing::warn!(
                    container = container.id,
                    "a look at it doesn't come to an end: its verdict is unknown"
                );
                self.tracker.forget_look(&container);
                self.stuck.insert(container.cgroup.clone(), look);
            }
        }
        tokio::time::sleep((start.elapsed() * JUDGE_FACTOR).min(LONGEST_REST)).await;
    }
}

/// Reads the ring.
struct Reader {
    tracker: Arc<Tracker>,
    lines: Lines,
    doubt: Arc<Notify>,
    moved: Arc<Moved>,
}

impl Reader {
    async fn run(self, mut ring: AsyncFd<RingBuf<MapData>>, pulse: Pulse) {
        let mut lost = Lost { known: 0, checked: Instant::now() };
        loop {
            pulse.within(QUIET);
            let mut guard = match timeout(QUIET, ring.readable_mut()).await {
                // Nothing happens.
                Err(_) => continue,
                Ok(Ok(guard)) => guard,
                Ok(Err(error)) => {
                    tracing::error!(%error, "wait for the ring; events are not shown any more");
                    return;
                }
            };
            let mut taken = 0;
            while taken < BATCH
                && let Some(record) = guard.get_inner_mut().next()
            {
                taken += 1;
                if let Some(event) = decode(&record) {
                    self.handle(&event);
                }
            }
            if let Some(more) = lost.since(&self.tracker) {
                // An error means that nobody follows.
                let _ = self.lines.send(Line::new(Notice::lost(more)));
            }
            // The registration is edge-triggered: the ring must be empty before it is waited for again.
            if taken < BATCH {
                guard.clear_ready();
            } else {
                // Whoever makes events faster than they can be handled must not keep the agent from all else.
                tokio::task::yield_now().await;
            }
        }
    }

    fn handle(&self, event: &Event) {
        if event.change == Change::Uncertain {
            self.doubt.notify_one();
            return;
        }
        if let Change::Opened { tag, .. } = event.change
            && tag.kind() == Some(Kind::Fanotify)
        {
            // Its reads will fill slots, which must be followed from now on.
            self.doubt.notify_one();
        }
        // Also when nobody follows: a cgroup's owner is found out while the cgroup is there.
        let owner = self.tracker.owner(event);
        if let Owner::Container(container) = &owner {
            self.moved.add(container);
        }
        if self.lines.receiver_count() == 0 {
            return;
        }
        if let Some(notice) = Notice::new(event, &owner, &self.tracker.judge()) {
            // An error means that the last reader has just gone.
            let _ = self.lines.send(Line::new(notice));
        }
    }
}

/// What readers were told of events that the ring had no room for.
struct Lost {
    known: u64,
    checked: Instant,
}

impl Lost {
    /// How often the ring's losses are looked at, at the most.
    const EVERY: Duration = Duration::from_millis(100);

    /// How many were lost that readers weren't told of.
    fn since(&mut self, tracker: &Tracker) -> Option<u64> {
        if self.checked.elapsed() < Self::EVERY {
            return None;
        }
        self.checked = Instant::now();
        let lost = tracker.lost_in_ring()?;
        let more = lost - std::mem::replace(&mut self.known, lost);
        (more > 0).then_some(more)
    }
}
