//! Reads events from the ring. This task waits for nothing but the ring: not for the file system,
//! and not for anybody who reads a snapshot. Events whose owner isn't known yet go to
//! [`super::unresolved`].

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use tokio::{io::unix::AsyncFd, sync::Notify, time::timeout};
use tracker_ebpf::{Kind, Loss};

use super::{delivery::Delivery, liveness::TaskLiveness, unresolved::Unresolved};
use crate::{
    api::{Details, Notice},
    bpf::{Change, Event, Losses, decode},
    host,
    runtime::Cached,
};

/// The most events that are taken before other tasks have their turn.
const BATCH: usize = 256;

/// How often the task reports to [`TaskLiveness`] while nothing happens.
const QUIET: Duration = Duration::from_secs(10);

/// Gives events: the ring, or a fake in tests.
pub(super) trait EventSource: Send + 'static {
    /// Waits until there are events, and takes at most [`BATCH`]. The future may be dropped before
    /// it has taken any.
    ///
    /// # Errors
    /// When the source can't be waited for.
    fn batch(&mut self) -> impl Future<Output = io::Result<Vec<Event>>> + Send;

    /// Returns how many events were lost so far, because there was no room for them.
    fn lost(&self) -> u64;
}

/// The ring that the BPF programs write to.
pub(super) struct Ring {
    pub(super) records: AsyncFd<RingBuf<MapData>>,
    pub(super) losses: Losses,
}

impl EventSource for Ring {
    async fn batch(&mut self) -> io::Result<Vec<Event>> {
        let mut guard = self.records.readable_mut().await?;
        let (mut events, mut taken) = (Vec::new(), 0);
        while taken < BATCH
            && let Some(record) = guard.get_inner_mut().next()
        {
            taken += 1;
            events.extend(decode(&record));
        }
        // The registration is edge-triggered: the ring must be empty before the task waits for it
        // again.
        if taken < BATCH {
            guard.clear_ready();
        }
        Ok(events)
    }

    fn lost(&self) -> u64 {
        self.losses.of(Loss::Ring)
    }
}

/// Takes events from a source, and delivers them.
pub(super) struct EventReader {
    /// Returns the owner of a cgroup, as far as it is known. Waits for nothing.
    pub(super) cached: Box<dyn Fn(u64, bool) -> Cached + Send>,
    pub(super) delivery: Delivery,
    pub(super) unresolved: Unresolved,
    pub(super) audit_requests: Arc<Notify>,
}

impl EventReader {
    /// Reads for as long as it is polled. Ends only when the source can't be read.
    pub(super) async fn run(self, mut source: impl EventSource, liveness: TaskLiveness) {
        let mut lost = Lost { known: 0, checked: Instant::now() };
        loop {
            liveness.within(QUIET);
            match timeout(QUIET, source.batch()).await {
                // No event came in this time.
                Err(_) => continue,
                Ok(Ok(events)) => events.into_iter().for_each(|event| self.handle(event)),
                Ok(Err(error)) => {
                    tracing::error!(%error, "wait for the ring; events are not shown any more");
                    return;
                }
            }
            let sum = || source.lost() + self.delivery.feed.dropped();
            if let Some(more) = lost.since(sum) {
                self.delivery.feed.publish(Notice::lost(more));
            }
            // Events may come faster than they can be handled. Other tasks must still have their
            // turn.
            tokio::task::yield_now().await;
        }
    }

    fn handle(&self, event: Event) {
        match event.change {
            Change::AuditRequested => {
                self.audit_requests.notify_one();
                return;
            }
            // Reading from it will fill slots, and the probes for that are attached after an audit.
            Change::Opened { tag, .. } if tag.kind() == Some(Kind::Fanotify) => {
                self.audit_requests.notify_one();
            }
            _ => {}
        }
        let cgroup = event.cgroup_id;
        let owner = match (self.cached)(cgroup, event.may_tell_owner()) {
            Cached::Current(owner) => owner,
            Cached::Old(owner) => {
                self.unresolved.refresh(cgroup);
                owner
            }
            Cached::Missing => return self.unresolved.push(event),
        };
        if self.delivery.needs_details(&event) || self.unresolved.has(cgroup) {
            // Events of a cgroup keep their order.
            return self.unresolved.push(event);
        }
        let details = Details { time: Some(host::wall_clock(event.time_ns)), ..Details::default() };
        self.delivery.deliver(&event, &owner, details);
    }
}

/// Counts the lost events that subscribers were told of.
struct Lost {
    known: u64,
    checked: Instant,
}

impl Lost {
    /// The shortest time between two reads of the losses.
    const EVERY: Duration = Duration::from_millis(100);

    /// Returns how many more were lost than subscribers were told of.
    fn since(&mut self, sum: impl FnOnce() -> u64) -> Option<u64> {
        if self.checked.elapsed() < Self::EVERY {
            return None;
        }
        self.checked = Instant::now();
        let sum = sum();
        let more = sum - std::mem::replace(&mut self.known, sum);
        (more > 0).then_some(more)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use tokio::{
        sync::{mpsc, watch},
        time::sleep,
    };
    use tracker_ebpf::Tag;

    use super::*;
    use crate::{
        agent::{
            inspections::Changed,
            liveness::Liveness,
            unresolved::{Lookups, OwnerLookup},
        },
        api::{Feed, Subscription},
        host::KernelVersion,
        inventory::Counts,
        runtime::Owner,
        verdict::{Judge, Profile, Rules},
    };

    /// The host, which is known; a cgroup that isn't; and one whose owner takes long to find.
    const HOST: u64 = 1;
    const NEW: u64 = 2;
    const SLOW: u64 = 3;

    /// How long it takes to find the owner of [`SLOW`].
    const TAKES: Duration = Duration::from_millis(200);

    #[derive(Default)]
    struct Slow {
        /// How often each cgroup was looked up.
        asked: Mutex<HashMap<u64, usize>>,
        /// While this is set, lookups of the host wait.
        closed: AtomicBool,
    }

    impl OwnerLookup for Slow {
        fn look_up(&self, cgroup: u64, _: bool) -> Owner {
            *self.asked.lock().unwrap().entry(cgroup).or_default() += 1;
            if cgroup == SLOW {
                std::thread::sleep(TAKES);
            }
            while cgroup == HOST && self.closed.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Owner::Unknown
        }

        fn details(&self, _: &Event) -> Details {
            Details { comm: Some("looked up".into()), ..Details::default() }
        }
    }

    struct Fake(mpsc::UnboundedReceiver<Event>, Arc<Mutex<u64>>);

    impl EventSource for Fake {
        async fn batch(&mut self) -> io::Result<Vec<Event>> {
            let event = self.0.recv().await;
            Ok(vec![event.ok_or(io::ErrorKind::UnexpectedEof)?])
        }

        fn lost(&self) -> u64 {
            *self.1.lock().unwrap()
        }
    }

    struct Running {
        events: mpsc::UnboundedSender<Event>,
        lost: Arc<Mutex<u64>>,
        owners: Arc<Slow>,
        subscription: Subscription,
        audits: Arc<Notify>,
        _judge: watch::Sender<Arc<Judge>>,
    }

    fn start(host: Cached) -> Running {
        let kernel = KernelVersion { major: 6, minor: 1 };
        let judge = Judge::new(Rules::embedded().unwrap(), Profile::new(None, None, kernel));
        let judge = watch::Sender::new(Arc::new(judge));
        let feed = Feed::default();
        let delivery = Delivery {
            feed: feed.clone(),
            judge: judge.subscribe(),
            changed: Arc::<Changed>::default(),
            verdicts: Arc::default(),
        };
        let subscription = feed.subscribe();
        let (unresolved, lookups): (_, Lookups) = Unresolved::new(feed);
        let (owners, audits) = (Arc::<Slow>::default(), Arc::<Notify>::default());
        let liveness = Arc::new(Liveness::default());
        tokio::spawn(lookups.run(Arc::clone(&owners), delivery.clone(), liveness.begin("owners")));
        let cached = Box::new(move |cgroup, _| if cgroup == HOST { host.clone() } else { Cached::Missing });
        let reader = EventReader { cached, delivery, unresolved, audit_requests: Arc::clone(&audits) };
        let (events, source) = mpsc::unbounded_channel();
        let lost = Arc::<Mutex<u64>>::default();
        tokio::spawn(reader.run(Fake(source, Arc::clone(&lost)), liveness.begin("ring")));
        Running { events, lost, owners, subscription, audits, _judge: judge }
    }

    fn event(cgroup_id: u64, pid: u32, change: Change) -> Event {
        Event { pid, tid: pid, comm: Some("zoo".into()), time_ns: 1, cgroup_id, change }
    }

    fn opened(cgroup: u64, pid: u32, kind: Kind) -> Event {
        event(cgroup, pid, Change::Opened { fd: 3, tag: Tag::new(kind.index() as u64, 0) })
    }

    impl Running {
        async fn next(&mut self) -> (String, u32, String) {
            let notice = self.subscription.next().await.unwrap().notice;
            (notice.container.clone(), notice.pid, notice.comm.clone())
        }
    }

    #[tokio::test]
    async fn a_slow_lookup_holds_up_no_cgroup_whose_owner_is_known() {
        let mut running = start(Cached::Current(Owner::Host));
        for (cgroup, pid) in [(SLOW, 10), (SLOW, 11), (HOST, 12), (HOST, 13)] {
            running.events.send(opened(cgroup, pid, Kind::Pidfd)).unwrap();
        }
        let host = |pid| ("host".to_owned(), pid, "zoo".to_owned());
        let slow = |pid| ("unknown".to_owned(), pid, "zoo".to_owned());
        assert_eq!([running.next().await, running.next().await], [host(12), host(13)]);
        assert_eq!([running.next().await, running.next().await], [slow(10), slow(11)]);
    }

    #[tokio::test]
    async fn what_the_event_doesnt_say_is_looked_up_in_order() {
        let mut running = start(Cached::Current(Owner::Host));
        let mut nameless = opened(HOST, 10, Kind::Pidfd);
        nameless.comm = None;
        running.events.send(nameless).unwrap();
        running.events.send(opened(HOST, 11, Kind::Pidfd)).unwrap();
        assert_eq!(running.next().await.2, "looked up");
        assert_eq!(running.next().await.1, 11);
    }

    #[tokio::test]
    async fn an_old_owner_serves_while_it_is_looked_up_again() {
        let mut running = start(Cached::Old(Owner::Host));
        running.owners.closed.store(true, Ordering::Relaxed);
        for pid in 10..20 {
            running.events.send(opened(HOST, pid, Kind::Pidfd)).unwrap();
        }
        for pid in 10..20 {
            assert_eq!(running.next().await, ("host".into(), pid, "zoo".into()));
        }
        running.owners.closed.store(false, Ordering::Relaxed);
        running.events.send(opened(NEW, 20, Kind::Pidfd)).unwrap();
        assert_eq!(running.next().await.1, 20);
        // Once, although several events requested it meanwhile.
        assert_eq!(running.owners.asked.lock().unwrap().get(&HOST), Some(&1));
    }

    #[tokio::test]
    async fn what_probes_cant_be_sure_of_requests_an_audit() {
        let running = start(Cached::Current(Owner::Host));
        for event in [event(0, 0, Change::AuditRequested), opened(HOST, 10, Kind::Fanotify)] {
            running.events.send(event).unwrap();
            timeout(Duration::from_secs(10), running.audits.notified()).await.unwrap();
        }
        running.events.send(event(HOST, 10, Change::Exited(Counts::default()))).unwrap();
        assert!(timeout(TAKES, running.audits.notified()).await.is_err());
    }

    #[tokio::test]
    async fn subscribers_are_told_what_was_lost() {
        let mut running = start(Cached::Current(Owner::Host));
        *running.lost.lock().unwrap() = 7;
        sleep(Lost::EVERY).await;
        running.events.send(opened(HOST, 10, Kind::Pidfd)).unwrap();
        assert_eq!(running.next().await.1, 10);
        assert_eq!(running.subscription.next().await.unwrap().notice.lost, Some(7));
    }
}
