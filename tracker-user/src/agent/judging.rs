//! The clock by which histories move: whenever something has changed, each container's verdict is noted.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    liveness::TaskLiveness,
    state::{Handle, State, StateError},
};
use crate::error::chain;

/// However much changes, verdicts are noted no more often.
const EVERY: Duration = Duration::from_secs(1);

/// They are noted as often also while nothing is told to have changed.
const QUIET: Duration = Duration::from_mins(1);

/// Whose verdicts are noted.
pub(super) trait Verdicts: Send + Sync + 'static {
    /// Notes what each container comes to now.
    fn note(&self) -> impl Future<Output = Result<(), StateError>> + Send;
}

impl Verdicts for Handle {
    async fn note(&self) -> Result<(), StateError> {
        self.with(State::note_verdicts).await
    }
}

/// Notes verdicts for as long as it is polled. `changes` is told when one may be another.
pub(super) async fn run(verdicts: impl Verdicts, changes: Arc<Notify>, liveness: TaskLiveness) {
    loop {
        liveness.within(QUIET);
        // That nothing has changed for long is no error.
        let _ = timeout(QUIET, changes.notified()).await;
        liveness.within(EVERY);
        if let Err(error) = verdicts.note().await {
            tracing::error!(error = %chain(error), "note verdicts");
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{Instant, sleep_until};

    use super::*;
    use crate::agent::liveness::Liveness;

    struct Fake {
        begun: Instant,
        notes: Mutex<Vec<u64>>,
    }

    impl Verdicts for Arc<Fake> {
        async fn note(&self) -> Result<(), StateError> {
            self.notes.lock().unwrap().push(self.begun.elapsed().as_secs());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn once_a_second_while_things_change_and_seldom_else() {
        let fake = Arc::new(Fake { begun: Instant::now(), notes: Mutex::default() });
        let changes = Arc::new(Notify::new());
        let task = Arc::new(Liveness::default()).begin("verdicts");
        tokio::spawn(run(Arc::clone(&fake), Arc::clone(&changes), task));
        let at = |millis: u64| sleep_until(fake.begun + Duration::from_millis(millis));
        at(5_500).await;
        for step in 0..25 {
            changes.notify_one();
            at(5_500 + step * 100).await;
        }
        at(100_000).await;
        // The last change comes while it rests, and isn't forgotten.
        assert_eq!(*fake.notes.lock().unwrap(), [5, 6, 7, 8, 69]);
    }
}
