//! Hidden scans, on the audits' clock: they take longer than an audit, and no probe asks for one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::{
    Pace,
    liveness::TaskLiveness,
    state::{Handle, State, StateError},
};
use crate::{
    bpf::{HiddenPlace, HiddenScan, Sightings, UnscannablePlace, can_scan, confirmed_hidden},
    error::chain,
    inventory::Hidden,
};

/// Scans take no more than this part of the time.
const REST_FACTOR: u32 = 20;

/// How long after a scan that found something it is repeated: what is only on its way has arrived by then.
const REPEAT: Duration = Duration::from_millis(50);

/// Hidden files, as the last scan found them.
#[derive(Clone, Debug)]
pub struct HiddenScans {
    /// What it found; nothing if it failed.
    pub found: Vec<Hidden>,
    /// Where it couldn't look on this kernel.
    pub impossible: Vec<UnscannablePlace>,
    /// How long it took.
    pub took: Duration,
    /// Scans that were finished.
    pub finished: u64,
    /// Scans that failed.
    pub failed: u64,
    /// `None` before the first; whether the last succeeded.
    succeeded: Option<bool>,
}

impl HiddenScans {
    /// Before the first scan.
    #[must_use]
    pub fn new(impossible: Vec<UnscannablePlace>) -> Self {
        Self { found: Vec::new(), impossible, took: Duration::ZERO, finished: 0, failed: 0, succeeded: None }
    }

    /// Whether the last scan succeeded.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.succeeded == Some(true)
    }

    /// Whether the last scan looked in this place.
    #[must_use]
    pub fn covers(&self, place: HiddenPlace) -> bool {
        self.succeeded() && can_scan(place, &self.impossible)
    }

    /// Takes note of a scan; `None` for one that failed.
    fn note(&mut self, found: Option<Vec<Hidden>>, took: Duration) {
        self.succeeded = Some(found.is_some());
        match found {
            Some(_) => self.finished += 1,
            None => self.failed += 1,
        }
        self.found = found.unwrap_or_default();
        self.took = took;
    }
}

/// What is scanned.
pub(super) trait Scanner: Send + Sync + 'static {
    /// Whether probes keep counts current.
    fn is_live(&self) -> bool;

    /// Scans. Returns how long it took.
    fn scan(&self) -> impl Future<Output = Duration> + Send;
}

impl Scanner for Handle {
    fn is_live(&self) -> bool {
        Self::is_live(self)
    }

    async fn scan(&self) -> Duration {
        let first = self.with(State::open_hidden_scan).await;
        scan_from(self, first).await
    }
}

/// Scans, by iterators that were opened already. If the kernel's lists can't be read, which is logged,
/// nothing is known to be hidden, and no container is called clean.
pub(super) async fn scan_from(state: &Handle, first: Result<HiddenScan, StateError>) -> Duration {
    let start = Instant::now();
    let result = match first {
        Ok(first) => scan_twice(state, first).await,
        Err(error) => Err(error),
    };
    let (found, waited) = match result {
        Ok((found, waited)) => (Some(found), waited),
        Err(error) => {
            tracing::error!(error = %chain(error), "scan for files that no slot holds");
            (None, Duration::ZERO)
        }
    };
    let took = start.elapsed().saturating_sub(waited);
    if let Err(error) = state.tell(move |state| state.hidden_mut().note(found, took)).await {
        tracing::error!(error = %chain(error), "note what a scan has found");
    }
    took
}

/// What is hidden, and how long it was only waited.
async fn scan_twice(state: &Handle, first: HiddenScan) -> Result<(Vec<Hidden>, Duration), StateError> {
    let first = walk(first).await?;
    if first.is_clear() {
        return Ok((Vec::new(), Duration::ZERO));
    }
    sleep(REPEAT).await;
    let second = walk(state.with(State::open_hidden_scan).await?).await?;
    Ok((confirmed_hidden(&first, &second), REPEAT))
}

/// Reads on a thread of its own: it takes milliseconds.
async fn walk(iterators: HiddenScan) -> Result<Sightings, StateError> {
    let walked = spawn_blocking(move || iterators.read()).await;
    Ok(walked.map_err(|_| StateError::Gone)??)
}

/// Scans for as long as it is polled. `scanned` is told of each. `last` is how long the last one took.
pub(super) async fn run(
    scanner: impl Scanner,
    scanned: Arc<Notify>,
    mut pace: watch::Receiver<Pace>,
    mut last: Duration,
    liveness: TaskLiveness,
) {
    loop {
        let rest = pace.borrow_and_update().audits(scanner.is_live()).max(last * REST_FACTOR);
        liveness.within(rest);
        tokio::select! {
            () = sleep(rest) => {}
            Ok(()) = pace.changed() => continue,
        }
        liveness.within(Duration::ZERO);
        last = scanner.scan().await;
        scanned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{Instant, sleep_until};

    use super::*;
    use crate::agent::liveness::Liveness;

    #[test]
    fn what_failed_covers_nothing() {
        let mut scans = HiddenScans::new(vec![(HiddenPlace::Mapped, "too old".into())]);
        assert!(!scans.succeeded() && !scans.covers(HiddenPlace::Direct));
        scans.note(Some(vec![]), Duration::ZERO);
        assert!(scans.covers(HiddenPlace::Direct) && !scans.covers(HiddenPlace::Mapped));
        scans.note(None, Duration::ZERO);
        assert!(!scans.covers(HiddenPlace::Direct));
        assert_eq!((scans.finished, scans.failed), (1, 1));
    }

    /// Takes as long as it is told, and remembers when it was asked.
    struct Fake {
        begun: Instant,
        takes: Duration,
        scans: Mutex<Vec<u64>>,
    }

    impl Scanner for Arc<Fake> {
        fn is_live(&self) -> bool {
            true
        }

        async fn scan(&self) -> Duration {
            self.scans.lock().unwrap().push(self.begun.elapsed().as_secs());
            self.takes
        }
    }

    #[tokio::test(start_paused = true)]
    async fn they_take_a_twentieth_of_the_time_at_the_most() {
        for (takes, expected) in [(0, vec![30, 60, 90]), (2, vec![30, 70]), (4, vec![30])] {
            let (begun, takes) = (Instant::now(), Duration::from_secs(takes));
            let fake = Arc::new(Fake { begun, takes, scans: Mutex::default() });
            let every = Duration::from_secs(30);
            let pace = watch::Sender::new(Pace { audit: every, inspect: every });
            let task = Arc::new(Liveness::default()).begin("hidden scans");
            let (scanner, scanned) = (Arc::clone(&fake), Arc::default());
            let running = tokio::spawn(run(scanner, scanned, pace.subscribe(), Duration::ZERO, task));
            sleep_until(begun + Duration::from_secs(101)).await;
            running.abort();
            assert_eq!(*fake.scans.lock().unwrap(), expected, "{takes:?}");
        }
    }
}
