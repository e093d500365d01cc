//! The agent's tasks: it reads events from the ring, sends them on to whoever follows, and audits.

use std::{sync::Arc, time::Duration};

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, broadcast},
    task::JoinHandle,
};

use crate::{
    bpf::{BpfError, Change, Event, Sizes, decode},
    http::{Line, Lines},
    report::Notice,
    tracker::{Tracker, TrackerError},
    verdict::Profile,
};

/// Events on their way to readers; a reader that falls further behind is told how many it missed.
const BACKLOG: usize = 8_192;

/// Audits that are asked for at once are made one.
const COALESCE: Duration = Duration::from_millis(50);

/// A tracker at work. Dropping it detaches the probes.
pub struct Engine {
    /// What it knows.
    pub tracker: Arc<Tracker>,
    /// What it sees.
    pub lines: Lines,
    tasks: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Attaches the probes, counts what is open already, and follows events from then on.
    ///
    /// # Errors
    /// When the machine lacks something, or the first audit fails.
    pub async fn start(profile: Profile, audit_every: Duration) -> Result<Self, TrackerError> {
        let (tracker, ring) = Tracker::load(profile, Sizes::default())?;
        tracker.attach_feeder()?;
        let tracker = Arc::new(tracker);
        let (lines, _) = broadcast::channel(BACKLOG);
        let doubt = Arc::new(Notify::new());
        let reader = Reader { tracker: Arc::clone(&tracker), lines: lines.clone(), doubt: Arc::clone(&doubt) };
        let ring = register(ring)?;
        let mut engine = Self { tracker: Arc::clone(&tracker), lines, tasks: vec![tokio::spawn(reader.run(ring))] };
        let first = audit(&tracker).await?;
        tracing::info!(
            feeder = "tracepoint",
            adopted = first.corrections,
            took = ?first.took,
            "attached; what was open already is counted"
        );
        engine.tasks.push(tokio::spawn(audit_forever(tracker, doubt, audit_every)));
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn register(ring: RingBuf<MapData>) -> Result<AsyncFd<RingBuf<MapData>>, BpfError> {
    // SAFETY: the ring owns its fd, which stays open and the same for as long as the ring is registered.
    unsafe { AsyncFd::register(ring) }.map_err(|error| BpfError::Call {
        call: "wait for",
        object: "the ring EVENTS".into(),
        source: error.into(),
    })
}

/// An audit on a thread of its own, so that events go on meanwhile.
async fn audit(tracker: &Arc<Tracker>) -> Result<crate::bpf::Audit, TrackerError> {
    let tracker = Arc::clone(tracker);
    tokio::task::spawn_blocking(move || tracker.audit()).await.unwrap_or_else(|panic| {
        Err(BpfError::Call {
            call: "run",
            object: "an audit".into(),
            source: std::io::Error::other(panic),
        }
        .into())
    })
}

async fn audit_forever(tracker: Arc<Tracker>, doubt: Arc<Notify>, every: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = doubt.notified() => tokio::time::sleep(COALESCE).await,
        }
        match audit(&tracker).await {
            Ok(audit) => tracing::debug!(?audit, "audited"),
            Err(error) => tracing::error!(error = %format!("{:#}", anyhow::Error::from(error)), "audit"),
        }
    }
}

/// Reads the ring.
struct Reader {
    tracker: Arc<Tracker>,
    lines: Lines,
    doubt: Arc<Notify>,
}

impl Reader {
    async fn run(self, mut ring: AsyncFd<RingBuf<MapData>>) {
        loop {
            let mut guard = match ring.readable_mut().await {
                Ok(guard) => guard,
                Err(error) => {
                    tracing::error!(%error, "wait for the ring; events are not shown any more");
                    return;
                }
            };
            // The registration is edge-triggered: the ring must be empty before it is waited for again.
            while let Some(record) = guard.get_inner_mut().next() {
                if let Some(event) = decode(&record) {
                    self.handle(&event);
                }
            }
            guard.clear_ready();
        }
    }

    fn handle(&self, event: &Event) {
        if event.change == Change::Uncertain {
            self.doubt.notify_one();
            return;
        }
        // Also when nobody follows: a cgroup's owner is found out while the cgroup is there.
        let owner = self.tracker.owner(event);
        if self.lines.receiver_count() == 0 {
            return;
        }
        if let Some(notice) = Notice::new(event, &owner, self.tracker.profile()) {
            // An error means that the last reader has just gone.
            let _ = self.lines.send(Line::new(notice));
        }
    }
}
