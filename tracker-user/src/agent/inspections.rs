//! Inspects containers: soon after something has changed in one, and all of them at intervals,
//! because some facts change without an event: a TCP state, a queue, a lock, the end of a pidfd's
//! target.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    Pace,
    liveness::TaskLiveness,
    state::{Handle, State},
};
use crate::{
    api::{Feed, Notice},
    error::chain,
    inspect::{self, InspectError},
    runtime::{Container, Owner},
    target::{TargetError, TargetTree},
    verdict::{Assessment, Judge},
};

/// How long the task waits after a change before it inspects the container.
const SETTLE: Duration = Duration::from_millis(100);

/// After an inspection, the task rests this many times as long as the inspection took.
const REST_FACTOR: u32 = 10;

/// The longest rest after an inspection.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// An inspection that takes longer is waiting for something that doesn't answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most inspections that may wait for something that doesn't answer; each has a thread. With
/// more, no container is inspected, and verdicts are unknown.
const MAX_STUCK: usize = 8;

/// Containers that have changed since they were inspected, the longest waiting first.
#[derive(Default)]
pub(super) struct Changed {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    cgroups: HashSet<String>,
    containers: VecDeque<Arc<Container>>,
}

impl Changed {
    pub(super) fn add(&self, container: &Arc<Container>) {
        let mut waiting = self.lock();
        if !waiting.cgroups.contains(&container.cgroup) {
            waiting.cgroups.insert(container.cgroup.clone());
            waiting.containers.push_back(Arc::clone(container));
            self.some.notify_one();
        }
    }

    fn take(&self) -> Option<Arc<Container>> {
        let mut waiting = self.lock();
        let container = waiting.containers.pop_front()?;
        waiting.cgroups.remove(&container.cgroup);
        Some(container)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a container can't be inspected.
#[derive(Debug, Error)]
enum InspectionError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
}

/// The result of an inspection, and the judge that it was made with.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    assessment: Arc<Assessment>,
    judge: Arc<Judge>,
}

/// Can inspect containers: the agent's state, or a fake in tests.
pub(super) trait Inspector: Send + Sync + 'static {
    /// Returns all containers.
    fn containers(&self) -> impl Future<Output = Vec<Arc<Container>>> + Send;

    /// Inspects a container on a thread of its own. The result is `None` if that isn't possible.
    /// The thread may never end.
    fn inspect(&self, container: Arc<Container>) -> JoinHandle<Option<Inspected>>;

    /// Records the result of an inspection. Returns a notice if the verdict has changed.
    fn learn(
        &self,
        container: Arc<Container>,
        inspected: Inspected,
    ) -> impl Future<Output = Option<Notice>> + Send;

    /// Forgets the result of the last inspection.
    fn forget(&self, container: Arc<Container>) -> impl Future<Output = ()> + Send;
}

impl Inspector for Handle {
    async fn containers(&self) -> Vec<Arc<Container>> {
        self.tell(State::containers).await.unwrap_or_else(|error| {
            tracing::error!(error = %chain(error), "list containers");
            Vec::new()
        })
    }

    fn inspect(&self, container: Arc<Container>) -> JoinHandle<Option<Inspected>> {
        let (judge, cgroups) = (self.judge(), self.owners().hierarchy().root().to_owned());
        spawn_blocking(move || {
            let failed = |error| {
                tracing::debug!(error = %chain(error), container = container.id, "inspect a container");
            };
            inspect(&container, judge, &cgroups).map_err(failed).ok()
        })
    }

    async fn learn(&self, container: Arc<Container>, inspected: Inspected) -> Option<Notice> {
        let (assessment, of) = (Arc::clone(&inspected.assessment), Arc::clone(&container));
        let learnt = self.tell(move |state| {
            let change = state.learn(&of, &inspected.assessment, &inspected.judge)?;
            // The container may have been queued before its name was known.
            Some((change, state.current(of)))
        });
        match learnt.await {
            Ok(change) => {
                let (can_be_dumped, container) = change?;
                let blocker = assessment.first_reason().filter(|_| !can_be_dumped);
                Some(Notice::verdict_changed(&Owner::Container(container), blocker))
            }
            Err(error) => {
                tracing::error!(error = %chain(error), "record an inspection");
                None
            }
        }
    }

    async fn forget(&self, container: Arc<Container>) {
        let forgotten = self.tell(move |state| state.forget_inspection(&container)).await;
        if let Err(error) = forgotten {
            tracing::error!(error = %chain(error), "forget an inspection");
        }
    }
}

fn inspect(container: &Container, judge: Arc<Judge>, cgroups: &Path) -> Result<Inspected, InspectionError> {
    let target = TargetTree::in_cgroup(cgroups, &container.cgroup, None)?;
    let tree = inspect::tree(target.root, &judge.profile().irmap_paths())?;
    let assessment = Arc::new(Assessment::new(&judge, &tree, &target.pids));
    Ok(Inspected { assessment, judge })
}

/// Inspects all containers once, one after another: for a command that lists them.
pub(super) async fn once(state: &Handle) {
    for container in state.containers().await {
        if let Ok(Some(inspected)) = state.inspect(Arc::clone(&container)).await {
            // This is the first inspection, so no verdict has changed.
            let _ = state.learn(container, inspected).await;
        }
    }
}

/// The task that inspects containers.
pub(super) struct Inspections<I> {
    inspector: I,
    changed: Arc<Changed>,
    feed: Feed,
    /// Notified when a verdict may have changed.
    verdicts: Arc<Notify>,
    /// Inspections that don't end, by the container's cgroup: for example, a file system doesn't
    /// answer.
    stuck: HashMap<String, JoinHandle<Option<Inspected>>>,
    liveness: TaskLiveness,
}

impl<I: Inspector> Inspections<I> {
    pub(super) fn new(
        inspector: I,
        changed: Arc<Changed>,
        feed: Feed,
        verdicts: Arc<Notify>,
        liveness: TaskLiveness,
    ) -> Self {
        Self { inspector, changed, feed, verdicts, stuck: HashMap::new(), liveness }
    }

    pub(super) async fn run(mut self, mut pace: watch::Receiver<Pace>) {
        let (mut round, mut started) = (VecDeque::new(), None::<Instant>);
        let mut by_turns = false;
        loop {
            // An inspection takes no longer than this, and neither does any rest but the last.
            self.liveness.within(PATIENCE);
            if pace.has_changed().unwrap_or(false) {
                started = None;
            }
            let every = pace.borrow_and_update().inspect;
            if round.is_empty() && started.is_none_or(|at| at.elapsed() >= every) {
                started = Some(Instant::now());
                round.extend(self.inspector.containers().await);
            }
            // A container that changes all the time must not keep the agent from inspecting the
            // others.
            by_turns = !by_turns;
            let next = if by_turns {
                self.changed.take().or_else(|| round.pop_front())
            } else {
                round.pop_front().or_else(|| self.changed.take())
            };
            if let Some(container) = next {
                self.inspect(container).await;
                continue;
            }
            self.liveness.within(every);
            let rest = started.map_or(every, |at| every.saturating_sub(at.elapsed()));
            tokio::select! {
                () = sleep(rest) => {}
                () = self.changed.some.notified() => sleep(SETTLE).await,
                Ok(()) = pace.changed() => started = None,
            }
        }
    }

    async fn forget(&self, container: Arc<Container>) {
        self.inspector.forget(container).await;
        self.verdicts.notify_one();
    }

    async fn inspect(&mut self, container: Arc<Container>) {
        self.stuck.retain(|_, inspection| !inspection.is_finished());
        if self.stuck.contains_key(&container.cgroup) || self.stuck.len() >= MAX_STUCK {
            return self.forget(container).await;
        }
        let start = Instant::now();
        let mut inspection = self.inspector.inspect(Arc::clone(&container));
        match timeout(PATIENCE, &mut inspection).await {
            Ok(Ok(Some(inspected))) => {
                if let Some(news) = self.inspector.learn(container, inspected).await {
                    self.feed.publish(news);
                }
            }
            // The container can't be inspected, or there was a panic, which is logged.
            Ok(Ok(None) | Err(_)) => self.forget(container).await,
            Err(_) => {
                tracing::warn!(
                    container = container.id,
                    "the inspection of this container doesn't end: its verdict is unknown"
                );
                self.stuck.insert(container.cgroup.clone(), inspection);
                self.forget(container).await;
            }
        }
        sleep((start.elapsed() * REST_FACTOR).min(LONGEST_REST)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep_until;

    use super::*;
    use crate::{
        agent::liveness::Liveness,
        host::KernelVersion,
        runtime::{Identity, Runtime},
        verdict::{Profile, Rules},
    };

    fn container(name: &str) -> Arc<Container> {
        let (id, cgroup) = (name.into(), format!("/{name}"));
        Arc::new(Container::new(Identity { id, runtime: Runtime::Runc, pod_uid: None, cgroup }))
    }

    /// Inspects immediately, unless a container is called `stuck…`.
    struct Fake {
        begun: Instant,
        judge: Arc<Judge>,
        containers: Vec<Arc<Container>>,
        /// What was done, to which container, and when.
        log: Mutex<Vec<(&'static str, String, u64)>>,
    }

    impl Fake {
        fn note(&self, what: &'static str, container: &Container) {
            let at = self.begun.elapsed().as_secs();
            self.log.lock().unwrap().push((what, container.name.clone(), at));
        }

        fn times(&self, what: &str, name: &str) -> Vec<u64> {
            let log = self.log.lock().unwrap();
            log.iter().filter(|(w, n, _)| *w == what && n == name).map(|(.., at)| *at).collect()
        }
    }

    impl Inspector for Arc<Fake> {
        async fn containers(&self) -> Vec<Arc<Container>> {
            self.containers.clone()
        }

        fn inspect(&self, container: Arc<Container>) -> JoinHandle<Option<Inspected>> {
            self.note("inspect", &container);
            let inspected = Inspected { assessment: Arc::default(), judge: Arc::clone(&self.judge) };
            tokio::spawn(async move {
                if container.name.starts_with("stuck") {
                    std::future::pending::<()>().await;
                }
                Some(inspected)
            })
        }

        async fn learn(&self, container: Arc<Container>, _: Inspected) -> Option<Notice> {
            self.note("learn", &container);
            Some(Notice::lost(1))
        }

        async fn forget(&self, container: Arc<Container>) {
            self.note("forget", &container);
        }
    }

    struct Running {
        fake: Arc<Fake>,
        changed: Arc<Changed>,
        feed: Feed,
        verdicts: Arc<Notify>,
        _pace: watch::Sender<Pace>,
    }

    fn start(names: &[&str]) -> Running {
        let kernel = KernelVersion { major: 6, minor: 1 };
        let judge = Arc::new(Judge::new(Rules::embedded().unwrap(), Profile::new(None, None, kernel)));
        let containers = names.iter().map(|name| container(name)).collect();
        let fake = Arc::new(Fake { begun: Instant::now(), judge, containers, log: Mutex::default() });
        let (changed, feed) = (Arc::<Changed>::default(), Feed::default());
        let every = Duration::from_mins(1);
        let pace = watch::Sender::new(Pace { audit: every, inspect: every });
        let task = Arc::new(Liveness::default()).begin("inspections");
        let verdicts = Arc::<Notify>::default();
        let (inspector, waiting) = (Arc::clone(&fake), Arc::clone(&changed));
        let inspections = Inspections::new(inspector, waiting, feed.clone(), Arc::clone(&verdicts), task);
        tokio::spawn(inspections.run(pace.subscribe()));
        Running { fake, changed, feed, verdicts, _pace: pace }
    }

    impl Running {
        async fn at(&self, seconds: u64) {
            sleep_until(self.fake.begun + Duration::from_secs(seconds)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_now_and_then_and_one_soon_after_a_change() {
        let running = start(&["web", "db"]);
        let mut followed = running.feed.subscribe();
        running.at(10).await;
        running.changed.add(&container("db"));
        running.changed.add(&container("db"));
        running.at(100).await;
        assert_eq!(running.fake.times("learn", "web"), [0, 60]);
        assert_eq!(running.fake.times("learn", "db"), [0, 10, 60]);
        assert!(followed.next().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_keeps_nobody_else_waiting_for_long() {
        let running = start(&["stuck", "web"]);
        running.at(50).await;
        assert_eq!(running.fake.times("forget", "stuck"), [30]);
        // Its history is told that nothing is known now.
        timeout(Duration::from_secs(1), running.verdicts.notified()).await.unwrap();
        assert_eq!(running.fake.times("learn", "web"), [31]);
        // Its thread still waits, so it gets no other thread.
        running.changed.add(&container("stuck"));
        running.at(59).await;
        assert_eq!(running.fake.times("inspect", "stuck"), [0]);
        assert_eq!(running.fake.times("forget", "stuck"), [30, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_never_keeps_still_leaves_others_their_turn() {
        let running = start(&["web"]);
        for _ in 0..700 {
            running.changed.add(&container("busy"));
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(running.fake.times("learn", "web"), [0, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_that_hang_leave_verdicts_unknown() {
        let names: Vec<String> = (0..=MAX_STUCK).map(|n| format!("stuck-{n}")).collect();
        let running = start(&names.iter().map(String::as_str).chain(["web"]).collect::<Vec<_>>());
        running.at(300).await;
        assert!(running.fake.times("learn", "web").is_empty());
        assert!(!running.fake.times("forget", "web").is_empty());
    }
}
