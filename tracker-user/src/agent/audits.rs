//! Runs audits: at intervals, when a probe requests one, and when something was lost.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    Pace,
    liveness::TaskLiveness,
    state::{Handle, State, StateError},
};
use crate::{bpf::Audit, error::chain};

/// Requests that come close together are answered by one audit. It waits at least this long, and
/// longer if the last audit took long: requested audits take no more than a twentieth of the time.
const COALESCE: Duration = Duration::from_millis(50);
const COALESCE_FACTOR: u32 = 20;

/// After an audit that corrected something, the next one follows soon: the corrected file may have
/// been about to close.
const AFTER_CORRECTION: Duration = Duration::from_secs(1);

/// How often losses are read.
const LOSS_CHECK: Duration = Duration::from_secs(1);

/// Can be audited: the agent's state, or a fake in tests.
pub(super) trait Auditor: Send + Sync + 'static {
    /// Whether probes keep counts current.
    fn is_live(&self) -> bool;

    /// Compares all counts with the kernel's list of open files, and corrects them.
    ///
    /// # Errors
    /// When the kernel's lists or maps can't be read.
    fn audit(&self) -> impl Future<Output = Result<Audit, StateError>> + Send;

    /// Returns how often something was lost so far.
    ///
    /// # Errors
    /// When the kernel's counters can't be read.
    fn losses(&self) -> impl Future<Output = Result<u64, StateError>> + Send;
}

impl Auditor for Handle {
    fn is_live(&self) -> bool {
        Self::is_live(self)
    }

    async fn audit(&self) -> Result<Audit, StateError> {
        let result = audit_and_tidy_up(self).await;
        let audit = result.as_ref().ok().copied();
        self.tell(move |state| state.note_audit(audit.as_ref())).await?;
        result
    }

    async fn losses(&self) -> Result<u64, StateError> {
        self.with(State::losses).await
    }
}

/// Audits, attaches what has become necessary, and clears what belongs to cgroups that have gone.
async fn audit_and_tidy_up(state: &Handle) -> Result<Audit, StateError> {
    let mut audit = audit_once(state).await?;
    if state.with(State::attach_on_demand).await? {
        audit.changes += audit_once(state).await?.changes;
    }
    state.with(State::retire_flows).await?;
    Ok(audit)
}

/// Makes one audit. While it waits, others can use the state.
async fn audit_once(state: &Handle) -> Result<Audit, StateError> {
    let mut audit = state.with(State::begin_audit).await?;
    while let Some(wait) = audit.wait() {
        sleep(wait).await;
        audit = state.with(|state| state.continue_audit(audit)).await?;
    }
    state.with(|state| state.finish_audit(audit)).await
}

/// Audits for as long as it is polled. Notifies `audited` after each audit.
pub(super) async fn run(
    auditor: impl Auditor,
    requests: Arc<Notify>,
    audited: Arc<Notify>,
    mut pace: watch::Receiver<Pace>,
    liveness: TaskLiveness,
) {
    // A file that adoption counted may have been on its way to another cgroup.
    let mut wait = pace.borrow_and_update().audits(auditor.is_live()).min(AFTER_CORRECTION);
    let mut last = Duration::ZERO;
    loop {
        liveness.within(wait);
        tokio::select! {
            () = sleep(wait) => {}
            () = requests.notified() => {
                sleep((last * COALESCE_FACTOR).clamp(COALESCE, AFTER_CORRECTION)).await;
                // The audit also answers the requests that have come meanwhile.
                let _ = timeout(Duration::ZERO, requests.notified()).await;
            }
            Ok(()) = pace.changed() => {
                wait = pace.borrow_and_update().audits(auditor.is_live());
                continue;
            }
        }
        wait = pace.borrow_and_update().audits(auditor.is_live());
        liveness.within(Duration::ZERO);
        match auditor.audit().await {
            Ok(audit) => {
                tracing::debug!(?audit, "audited");
                last = audit.took;
                if audit.unsettled || audit.changes > 0 && auditor.is_live() {
                    wait = wait.min(AFTER_CORRECTION);
                }
            }
            Err(error) => tracing::error!(error = %chain(error), "audit"),
        }
        audited.notify_one();
    }
}

/// Requests an audit when something was lost. The kernel's own list of files repairs any loss.
pub(super) async fn watch_losses(auditor: impl Auditor, requests: Arc<Notify>, liveness: TaskLiveness) {
    let mut known = 0;
    loop {
        liveness.within(LOSS_CHECK);
        match auditor.losses().await {
            Ok(losses) if losses != std::mem::replace(&mut known, losses) => {
                tracing::debug!(losses, "something was lost: requesting an audit");
                requests.notify_one();
            }
            Ok(_) => {}
            Err(error) => tracing::error!(error = %chain(error), "read losses"),
        }
        sleep(LOSS_CHECK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::time::Instant;

    use super::*;
    use crate::agent::liveness::Liveness;

    /// Finds what it is told to find, and remembers when it was asked.
    struct Fake {
        live: bool,
        begun: Instant,
        audits: Mutex<Vec<Duration>>,
        finds: Mutex<Vec<Audit>>,
        lost: AtomicU64,
    }

    impl Auditor for Arc<Fake> {
        fn is_live(&self) -> bool {
            self.live
        }

        async fn audit(&self) -> Result<Audit, StateError> {
            self.audits.lock().unwrap().push(self.begun.elapsed());
            Ok(self.finds.lock().unwrap().pop().unwrap_or_default())
        }

        async fn losses(&self) -> Result<u64, StateError> {
            Ok(self.lost.load(Ordering::Relaxed))
        }
    }

    struct Running {
        fake: Arc<Fake>,
        requests: Arc<Notify>,
        pace: watch::Sender<Pace>,
    }

    fn start(live: bool, finds: Vec<Audit>) -> Running {
        let (begun, lost) = (Instant::now(), AtomicU64::new(0));
        let fake = Arc::new(Fake { live, begun, audits: Mutex::default(), finds: Mutex::new(finds), lost });
        let (requests, pace) = (Arc::new(Notify::new()), watch::Sender::new(every(30)));
        let liveness = Arc::new(Liveness::default());
        let task = liveness.begin("audits");
        tokio::spawn(run(Arc::clone(&fake), Arc::clone(&requests), Arc::default(), pace.subscribe(), task));
        let task = liveness.begin("losses");
        tokio::spawn(watch_losses(Arc::clone(&fake), Arc::clone(&requests), task));
        Running { fake, requests, pace }
    }

    fn every(seconds: u64) -> Pace {
        Pace { audit: Duration::from_secs(seconds), inspect: Duration::from_secs(30) }
    }

    impl Running {
        /// Returns when audits were made so far, in whole seconds.
        async fn audits_after(&self, seconds: u64) -> Vec<u64> {
            tokio::time::sleep_until(self.fake.begun + Duration::from_millis(seconds * 1000 + 500)).await;
            self.fake.audits.lock().unwrap().iter().map(Duration::as_secs).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn they_come_at_the_pace_that_is_set() {
        let running = start(true, vec![]);
        assert_eq!(running.audits_after(62).await, [1, 31, 61]);
        running.pace.send_replace(every(10));
        assert_eq!(running.audits_after(75).await, [1, 31, 61, 72]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_probes_nothing_else_keeps_counts_current() {
        let changed = Audit { changes: 1, ..Audit::default() };
        let running = start(false, vec![changed; 3]);
        assert_eq!(running.audits_after(12).await, [1, 6, 11]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_correction_another_follows_soon() {
        let running = start(true, vec![Audit { changes: 1, ..Audit::default() }]);
        assert_eq!(running.audits_after(20).await, [1, 2]);
        let running = start(true, vec![Audit { unsettled: true, ..Audit::default() }]);
        assert_eq!(running.audits_after(20).await, [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_at_once_are_one_audit() {
        let slow = Audit { took: Duration::from_millis(40), ..Audit::default() };
        let running = start(true, vec![slow]);
        assert_eq!(running.audits_after(5).await, [1]);
        for _ in 0..10 {
            running.requests.notify_one();
            sleep(Duration::from_millis(10)).await;
        }
        // The last audit took 40 ms, so this one waits for 800.
        assert_eq!(running.audits_after(6).await, [1, 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_lost_asks_for_an_audit() {
        let running = start(true, vec![]);
        assert_eq!(running.audits_after(10).await, [1]);
        running.fake.lost.store(7, Ordering::Relaxed);
        assert_eq!(running.audits_after(20).await, [1, 11]);
    }
}
