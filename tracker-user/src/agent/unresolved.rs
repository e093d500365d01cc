//! Events whose owner isn't known yet, or of which something must be read: they wait here for the file
//! system, so that others don't.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{delivery::Delivery, delivery::has_link, liveness::TaskLiveness};
use crate::{
    api::{Details, Feed},
    bpf::{Change, Event},
    host,
    runtime::{Owner, Owners},
};

/// Events that wait, at the most. More are dropped, which is counted, and subscribers are told.
const QUEUE: usize = 8_192;

/// What is looked up at a time.
const BATCH: usize = 256;

/// What is to be looked up.
#[derive(Debug)]
enum Question {
    /// Whose cgroup an event is about, and what else must be known of it.
    Event(Box<Event>),
    /// Whose a cgroup is by now.
    Refresh(u64),
}

/// Takes what has to be looked up.
#[derive(Clone)]
pub(super) struct Unresolved {
    queue: mpsc::Sender<Question>,
    waiting: Arc<Waiting>,
    feed: Feed,
}

/// Looks owners up, on a thread of its own.
pub(super) struct Lookups {
    queue: mpsc::Receiver<Question>,
    waiting: Arc<Waiting>,
}

/// What waits, by cgroup.
#[derive(Debug, Default)]
struct Waiting(Mutex<Cgroups>);

#[derive(Debug, Default)]
struct Cgroups {
    /// How many events of each.
    events: HashMap<u64, usize>,
    refreshed: HashSet<u64>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Cgroups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unresolved {
    /// A queue, and its other end.
    pub(super) fn new(feed: Feed) -> (Self, Lookups) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::<Waiting>::default();
        (Self { queue: sender, waiting: Arc::clone(&waiting), feed }, Lookups { queue, waiting })
    }

    /// Whether events of this cgroup wait.
    pub(super) fn has(&self, cgroup: u64) -> bool {
        self.waiting.lock().events.contains_key(&cgroup)
    }

    /// Has an event wait until its owner is known.
    pub(super) fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock();
        let cgroup = event.cgroup_id;
        match self.queue.try_send(Question::Event(Box::new(event))) {
            Ok(()) => *waiting.events.entry(cgroup).or_default() += 1,
            Err(_) => self.feed.count_dropped(1),
        }
    }

    /// Has it looked up whose a cgroup is by now.
    pub(super) fn refresh(&self, cgroup: u64) {
        let mut waiting = self.waiting.lock();
        // Without room it is asked for again with the next event.
        if !waiting.refreshed.contains(&cgroup) && self.queue.try_send(Question::Refresh(cgroup)).is_ok() {
            waiting.refreshed.insert(cgroup);
        }
    }
}

/// Who knows.
pub(super) trait Registry: Send + Sync + 'static {
    /// The owner of a cgroup. May wait for the file system. `may_be_told` says that the cgroup's runtime may
    /// have told whose it is just now.
    fn look_up(&self, cgroup: u64, may_be_told: bool) -> Owner;

    /// What an event doesn't say itself.
    fn details(&self, event: &Event) -> Details;
}

impl Registry for Owners {
    fn look_up(&self, cgroup: u64, may_be_told: bool) -> Owner {
        Self::look_up(self, cgroup, may_be_told)
    }

    fn details(&self, event: &Event) -> Details {
        Details {
            time: Some(host::wall_clock(event.time_ns)),
            comm: if event.comm.is_none() { host::comm(event.pid) } else { None },
            link: has_link(event).and_then(|fd| host::fd_link(event.pid, fd)),
        }
    }
}

impl Lookups {
    /// Looks up, and hands events on, for as long as it is polled.
    pub(super) async fn run(
        mut self,
        registry: Arc<impl Registry>,
        delivery: Delivery,
        liveness: TaskLiveness,
    ) {
        let mut questions = Vec::new();
        loop {
            // There may be nothing to look up for as long as it likes.
            liveness.within(Duration::MAX);
            if self.queue.recv_many(&mut questions, BATCH).await == 0 {
                return;
            }
            liveness.within(Duration::ZERO);
            let cgroups: Vec<_> = questions.iter().map(Question::cgroup).collect();
            let (registry, asked) = (Arc::clone(&registry), std::mem::take(&mut questions));
            let answers = spawn_blocking(move || {
                asked.into_iter().filter_map(|question| answer(&*registry, question)).collect::<Vec<_>>()
            });
            match answers.await {
                Ok(answers) => {
                    for (event, owner, details) in answers {
                        delivery.deliver(&event, &owner, details);
                    }
                }
                // A panic, which is logged.
                Err(_) => delivery.feed.count_dropped(cgroups.len() as u64),
            }
            self.forget(&cgroups);
        }
    }

    /// Only now, so that no event of such a cgroup overtakes these.
    fn forget(&self, cgroups: &[(u64, bool)]) {
        let mut waiting = self.waiting.lock();
        for (cgroup, is_event) in cgroups {
            if !is_event {
                waiting.refreshed.remove(cgroup);
            } else if let Some(events) = waiting.events.get_mut(cgroup) {
                *events -= 1;
                if *events == 0 {
                    waiting.events.remove(cgroup);
                }
            }
        }
    }
}

impl Question {
    /// The cgroup, and whether it is asked for because of an event.
    fn cgroup(&self) -> (u64, bool) {
        match self {
            Self::Event(event) => (event.cgroup_id, true),
            Self::Refresh(cgroup) => (*cgroup, false),
        }
    }
}

fn answer(registry: &impl Registry, question: Question) -> Option<(Event, Owner, Details)> {
    match question {
        Question::Event(event) => {
            let may_be_told = matches!(event.change, Change::Execed(_) | Change::Moved(_));
            let owner = registry.look_up(event.cgroup_id, may_be_told);
            let details = registry.details(&event);
            Some((*event, owner, details))
        }
        Question::Refresh(cgroup) => {
            // The cache has it from now on.
            let _ = registry.look_up(cgroup, false);
            None
        }
    }
}
