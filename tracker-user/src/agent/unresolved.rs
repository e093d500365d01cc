//! Keeps events whose owner isn't known yet, or that need something to be read. They wait for the
//! file system here, so that other events don't.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

use super::{
    delivery::{Delivery, has_link},
    liveness::TaskLiveness,
};
use crate::{
    api::{Details, Feed},
    bpf::Event,
    host,
    runtime::{Owner, Owners},
};

/// The most events that may wait. More are dropped and counted, and subscribers are told.
const QUEUE: usize = 8_192;

/// The most answers that may wait to be delivered.
const ANSWERS: usize = 256;

/// How often the task shows that it is alive while there is nothing to do.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// A request to look something up.
#[derive(Debug)]
enum LookupRequest {
    /// Finds the owner of the event's cgroup, and what else must be known of the event.
    Event(Box<Event>),
    /// Finds again whose a cgroup is.
    Refresh(u64),
}

/// Accepts requests.
pub(super) struct Unresolved {
    queue: mpsc::Sender<LookupRequest>,
    waiting: Arc<Waiting>,
    feed: Feed,
}

/// Answers requests, on a thread of its own.
pub(super) struct Lookups {
    queue: mpsc::Receiver<LookupRequest>,
    waiting: Arc<Waiting>,
}

/// The requests that wait, by cgroup.
#[derive(Debug, Default)]
struct Waiting(Mutex<Cgroups>);

#[derive(Debug, Default)]
struct Cgroups {
    /// How many events of each cgroup wait.
    events: HashMap<u64, usize>,
    refreshed: HashSet<u64>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Cgroups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.events.is_empty() && waiting.refreshed.is_empty()
    }

    /// Forgets a request that was answered. This is done after delivery, so that no later event of
    /// the same cgroup overtakes this one.
    fn forget(&self, cgroup: u64, is_event: bool) {
        let mut waiting = self.lock();
        if !is_event {
            waiting.refreshed.remove(&cgroup);
        } else if let Some(events) = waiting.events.get_mut(&cgroup) {
            *events -= 1;
            if *events == 0 {
                waiting.events.remove(&cgroup);
            }
        }
    }
}

impl Unresolved {
    /// Returns the queue, and the task at its other end.
    pub(super) fn new(feed: Feed) -> (Self, Lookups) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::<Waiting>::default();
        (Self { queue: sender, waiting: Arc::clone(&waiting), feed }, Lookups { queue, waiting })
    }

    /// Whether events of this cgroup are waiting.
    pub(super) fn has(&self, cgroup: u64) -> bool {
        self.waiting.lock().events.contains_key(&cgroup)
    }

    /// Queues an event until its owner is known.
    pub(super) fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock();
        let cgroup = event.cgroup_id;
        match self.queue.try_send(LookupRequest::Event(Box::new(event))) {
            Ok(()) => *waiting.events.entry(cgroup).or_default() += 1,
            Err(_) => self.feed.count_dropped(1),
        }
    }

    /// Requests that the owner of a cgroup be looked up again.
    pub(super) fn refresh(&self, cgroup: u64) {
        let mut waiting = self.waiting.lock();
        // If the queue is full, the next event requests it again.
        if !waiting.refreshed.contains(&cgroup) && self.queue.try_send(LookupRequest::Refresh(cgroup)).is_ok()
        {
            waiting.refreshed.insert(cgroup);
        }
    }
}

/// Can look up owners: [`Owners`], or a fake in tests.
pub(super) trait OwnerLookup: Send + Sync + 'static {
    /// Returns the owner of a cgroup. May wait for the file system. `may_be_told` says that the
    /// runtime may have just written down whose the cgroup is.
    fn look_up(&self, cgroup: u64, may_be_told: bool) -> Owner;

    /// Returns what the event itself doesn't contain.
    fn details(&self, event: &Event) -> Details;
}

impl OwnerLookup for Owners {
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

/// An answered request: the cgroup that it was about, and what is to be delivered.
struct Answer {
    cgroup: u64,
    /// Whether the request was for an event.
    is_event: bool,
    found: Option<(Event, Owner, Details)>,
}

impl Lookups {
    /// Delivers events as their requests are answered, for as long as it is polled.
    pub(super) async fn run(self, owners: Arc<impl OwnerLookup>, delivery: Delivery, liveness: TaskLiveness) {
        let Self { queue, waiting } = self;
        let (sender, mut answers) = mpsc::channel(ANSWERS);
        // A thread of its own, at full priority: a cgroup may go before its owner is found.
        let thread = std::thread::Builder::new().name("owners".into());
        if let Err(error) = thread.spawn(move || answer_all(&*owners, queue, &sender)) {
            tracing::error!(%error, "start the thread that finds owners");
            return;
        }
        loop {
            match timeout(SIGN_OF_LIFE, answers.recv()).await {
                Ok(Some(Answer { cgroup, is_event, found })) => {
                    match found {
                        Some((event, owner, details)) => delivery.deliver(&event, &owner, details),
                        // A panic, which is logged.
                        None if is_event => delivery.feed.count_dropped(1),
                        None => {}
                    }
                    waiting.forget(cgroup, is_event);
                }
                Ok(None) => return,
                // Requests wait, and none is answered: this is no sign of life.
                Err(_) if !waiting.is_empty() => continue,
                Err(_) => {}
            }
            liveness.within(SIGN_OF_LIFE);
        }
    }
}

/// Answers requests one by one until nobody is left who makes any, or who wants the answers.
fn answer_all(
    owners: &impl OwnerLookup,
    mut queue: mpsc::Receiver<LookupRequest>,
    answers: &mpsc::Sender<Answer>,
) {
    while let Some(request) = queue.blocking_recv() {
        let (cgroup, is_event) = request.cgroup();
        // A panic leaves nothing half changed here; what it has left of the owners is replaced as a
        // whole.
        let found = catch_unwind(AssertUnwindSafe(|| answer(owners, request))).ok().flatten();
        if answers.blocking_send(Answer { cgroup, is_event, found }).is_err() {
            return;
        }
    }
}

impl LookupRequest {
    /// Returns the cgroup, and whether the request is for an event.
    fn cgroup(&self) -> (u64, bool) {
        match self {
            Self::Event(event) => (event.cgroup_id, true),
            Self::Refresh(cgroup) => (*cgroup, false),
        }
    }
}

fn answer(owners: &impl OwnerLookup, request: LookupRequest) -> Option<(Event, Owner, Details)> {
    match request {
        LookupRequest::Event(event) => {
            let owner = owners.look_up(event.cgroup_id, event.may_tell_owner());
            let details = owners.details(&event);
            Some((*event, owner, details))
        }
        LookupRequest::Refresh(cgroup) => {
            // The answer goes into the cache.
            let _ = owners.look_up(cgroup, false);
            None
        }
    }
}
