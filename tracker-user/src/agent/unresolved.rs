//! Keeps events whose owner isn't known yet, or that need something to be read. They wait for the
//! file system here, so that other events don't.

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

/// The most events that may wait. More are dropped and counted, and subscribers are told.
const QUEUE: usize = 8_192;

/// How many requests are handled at a time.
const BATCH: usize = 256;

/// A request to look something up.
#[derive(Debug)]
enum LookupRequest {
    /// Finds the owner of the event's cgroup, and what else must be known of the event.
    Event(Box<Event>),
    /// Finds again whose a cgroup is.
    Refresh(u64),
}

/// Accepts requests.
#[derive(Clone)]
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

impl Lookups {
    /// Answers requests and delivers events, for as long as it is polled.
    pub(super) async fn run(
        mut self,
        owners: Arc<impl OwnerLookup>,
        delivery: Delivery,
        liveness: TaskLiveness,
    ) {
        let mut requests = Vec::new();
        loop {
            // There may be no request for any length of time.
            liveness.within(Duration::MAX);
            if self.queue.recv_many(&mut requests, BATCH).await == 0 {
                return;
            }
            liveness.within(Duration::ZERO);
            let cgroups: Vec<_> = requests.iter().map(LookupRequest::cgroup).collect();
            let (owners, asked) = (Arc::clone(&owners), std::mem::take(&mut requests));
            let answers = spawn_blocking(move || {
                asked.into_iter().filter_map(|request| answer(&*owners, request)).collect::<Vec<_>>()
            });
            match answers.await {
                Ok(answers) => {
                    for (event, owner, details) in answers {
                        delivery.deliver(&event, &owner, details);
                    }
                }
                // An error means a panic, which is logged.
                Err(_) => delivery.feed.count_dropped(cgroups.len() as u64),
            }
            self.forget(&cgroups);
        }
    }

    /// Forgets requests that were answered. This is done after delivery, so that no later event of
    /// the same cgroup overtakes these.
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
            let may_be_told = matches!(event.change, Change::Execed(_) | Change::Moved(_));
            let owner = owners.look_up(event.cgroup_id, may_be_told);
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
