//! Inspections: soon after something has changed in a container, and of all containers now and then,
//! because of what changes without any fd: a TCP state, a queue, a lock, the end of a pidfd's target.

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
    target::{Found, TargetError},
    verdict::{Assessment, Judge},
};

/// How long a container that changes is left alone before it is inspected.
const SETTLE: Duration = Duration::from_millis(100);

/// Inspections take no more than this part of the time.
const REST_FACTOR: u32 = 10;

/// However long the last inspection took, the next isn't put off for longer.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// No inspection takes as long, unless it waits for something that doesn't answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Inspections that wait for what doesn't answer, at the most: each has a thread. With more, no container is
/// inspected, and verdicts are unknown.
const MAX_STUCK: usize = 8;

/// Containers in which something has changed since they were inspected, the longest waiting first.
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

/// What an inspection came to, and by whose judgement.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    assessment: Arc<Assessment>,
    judge: Arc<Judge>,
}

/// What inspects.
pub(super) trait Inspector: Send + Sync + 'static {
    /// All containers.
    fn containers(&self) -> impl Future<Output = Vec<Arc<Container>>> + Send;

    /// Inspects a container, on a thread of its own. `None` if that can't be done. May never end.
    fn inspect(&self, container: Arc<Container>) -> JoinHandle<Option<Inspected>>;

    /// Takes over what was found. Returns what is news.
    fn learn(
        &self,
        container: Arc<Container>,
        inspected: Inspected,
    ) -> impl Future<Output = Option<Notice>> + Send;

    /// What was found before isn't known any more.
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
            // It may have waited since before its name was known.
            Some((change, state.current(of)))
        });
        match learnt.await {
            Ok(change) => {
                let (can_be_dumped, container) = change?;
                let blocker = assessment.first_reason().filter(|_| !can_be_dumped);
                Some(Notice::verdict_changed(&Owner::Container(container), blocker))
            }
            Err(error) => {
                tracing::error!(error = %chain(error), "take over what an inspection has found");
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
    let found = Found::in_cgroup(cgroups, &container.cgroup, None)?;
    let tree = inspect::tree(found.root, &judge.profile().irmap_paths())?;
    let assessment = Arc::new(Assessment::new(&judge, &tree, &found.pids));
    Ok(Inspected { assessment, judge })
}

/// Inspects all containers once, one after another: for a command that lists them.
pub(super) async fn once(state: &Handle) {
    for container in state.containers().await {
        if let Ok(Some(inspected)) = state.inspect(Arc::clone(&container)).await {
            // There was no inspection before, so nothing is news.
            let _ = state.learn(container, inspected).await;
        }
    }
}

/// Inspects for as long as it is polled.
pub(super) struct Inspections<I> {
    inspector: I,
    changed: Arc<Changed>,
    feed: Feed,
    /// Inspections that don't come to an end, by the container's cgroup: a file system that doesn't answer.
    stuck: HashMap<String, JoinHandle<Option<Inspected>>>,
    liveness: TaskLiveness,
}

impl<I: Inspector> Inspections<I> {
    pub(super) fn new(inspector: I, changed: Arc<Changed>, feed: Feed, liveness: TaskLiveness) -> Self {
        Self { inspector, changed, feed, stuck: HashMap::new(), liveness }
    }

    pub(super) async fn run(mut self, mut pace: watch::Receiver<Pace>) {
        let (mut round, mut started) = (VecDeque::new(), None::<Instant>);
        let mut by_turns = false;
        loop {
            // An inspection takes no longer than this, and no rest does but the last.
            self.liveness.within(PATIENCE);
            if pace.has_changed().unwrap_or(false) {
                started = None;
            }
            let every = pace.borrow_and_update().inspect;
            if round.is_empty() && started.is_none_or(|at| at.elapsed() >= every) {
                started = Some(Instant::now());
                round.extend(self.inspector.containers().await);
            }
            // A container that never keeps still must not keep the agent from others.
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

    async fn inspect(&mut self, container: Arc<Container>) {
        self.stuck.retain(|_, inspection| !inspection.is_finished());
        if self.stuck.contains_key(&container.cgroup) || self.stuck.len() >= MAX_STUCK {
            return self.inspector.forget(container).await;
        }
        let start = Instant::now();
        let mut inspection = self.inspector.inspect(Arc::clone(&container));
        match timeout(PATIENCE, &mut inspection).await {
            Ok(Ok(Some(inspected))) => {
                if let Some(news) = self.inspector.learn(container, inspected).await {
                    self.feed.publish(news);
                }
            }
            // It can't be inspected; or there was a panic, which is logged.
            Ok(Ok(None) | Err(_)) => self.inspector.forget(container).await,
            Err(_) => {
                tracing::warn!(
                    container = container.id,
                    "its inspection doesn't come to an end: its verdict is unknown"
                );
                self.stuck.insert(container.cgroup.clone(), inspection);
                self.inspector.forget(container).await;
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

    /// Inspects in no time, unless a container is called `stuck…`.
    struct Fake {
        begun: Instant,
        judge: Arc<Judge>,
        containers: Vec<Arc<Container>>,
        /// What was done, with which container, and when.
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
        let inspections = Inspections::new(Arc::clone(&fake), Arc::clone(&changed), feed.clone(), task);
        tokio::spawn(inspections.run(pace.subscribe()));
        Running { fake, changed, feed, _pace: pace }
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
        assert_eq!(running.fake.times("learn", "web"), [31]);
        // Its thread still waits: no other is given to it.
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
