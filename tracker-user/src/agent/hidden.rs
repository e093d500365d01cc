//! Runs hidden scans, at the same intervals as audits. They take longer than an audit, and no probe
//! requests one.

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

/// After a scan, the task rests at least this many times as long as the scan took.
const REST_FACTOR: u32 = 20;

/// A scan that found something is repeated after this time: by then, a file that was only in
/// transit has arrived.
const REPEAT: Duration = Duration::from_millis(50);

/// Hidden files, as the last scan found them.
#[derive(Clone, Debug)]
pub struct HiddenScans {
    /// What the scan found; empty if it failed.
    pub found: Vec<Hidden>,
    /// Places that can't be scanned on this kernel.
    pub impossible: Vec<UnscannablePlace>,
    /// How long the scan took.
    pub took: Duration,
    /// How many scans have finished.
    pub finished: u64,
    /// How many scans have failed.
    pub failed: u64,
    /// Whether the last scan succeeded; `None` before the first.
    succeeded: Option<bool>,
}

impl HiddenScans {
    /// Returns the state before the first scan.
    #[must_use]
    pub fn new(impossible: Vec<UnscannablePlace>) -> Self {
        Self { found: Vec::new(), impossible, took: Duration::ZERO, finished: 0, failed: 0, succeeded: None }
    }

    /// Whether the last scan succeeded.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.succeeded == Some(true)
    }

    /// Whether the last scan covered this place.
    #[must_use]
    pub fn covers(&self, place: HiddenPlace) -> bool {
        self.succeeded() && can_scan(place, &self.impossible)
    }

    /// Records a scan; `found` is `None` if it failed.
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

/// Can be scanned: the agent's state, or a fake in tests.
pub(super) trait Scanner: Send + Sync + 'static {
    /// Whether probes keep counts current.
    fn is_live(&self) -> bool;

    /// Makes a hidden scan, and returns how long it took.
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

/// Makes a hidden scan with iterators that are already open. If the kernel's lists can't be read,
/// the error is logged, no file is known to be hidden, and no container is reported as clean.
pub(super) async fn scan_from(state: &Handle, first: Result<HiddenScan, StateError>) -> Duration {
    let start = Instant::now();
    let result = match first {
        Ok(first) => scan_twice(state, first).await,
        Err(error) => Err(error),
    };
    let (found, waited) = match result {
        Ok((found, waited)) => (Some(found), waited),
        Err(error) => {
            tracing::error!(error = %chain(error), "scan for hidden files");
            (None, Duration::ZERO)
        }
    };
    let took = start.elapsed().saturating_sub(waited);
    if let Err(error) = state.tell(move |state| state.hidden_mut().note(found, took)).await {
        tracing::error!(error = %chain(error), "record a hidden scan");
    }
    took
}

/// Returns the hidden files, and how much of the time was only waiting.
async fn scan_twice(state: &Handle, first: HiddenScan) -> Result<(Vec<Hidden>, Duration), StateError> {
    let first = walk(first).await?;
    if first.is_clear() {
        return Ok((Vec::new(), Duration::ZERO));
    }
    sleep(REPEAT).await;
    let second = walk(state.with(State::open_hidden_scan).await?).await?;
    Ok((confirmed_hidden(&first, &second), REPEAT))
}

/// Reads the iterators on a thread of its own, because that takes milliseconds.
async fn walk(iterators: HiddenScan) -> Result<Sightings, StateError> {
    let walked = spawn_blocking(move || iterators.read()).await;
    Ok(walked.map_err(|_| StateError::Gone)??)
}

/// Scans for as long as it is polled. Notifies `scanned` after each scan. `last` is how long the
/// last one took.
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

    /// Takes as long as it is told to take, and remembers when it was asked.
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
