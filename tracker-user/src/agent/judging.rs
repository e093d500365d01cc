//! Records each container's verdict in its history, whenever something has changed.

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

/// The shortest time between two records, however much changes.
const EVERY: Duration = Duration::from_secs(1);

/// The longest time between two records, also if nothing seems to change.
const QUIET: Duration = Duration::from_mins(1);

/// Can record verdicts: the agent's state, or a fake in tests.
pub(super) trait Verdicts: Send + Sync + 'static {
    /// Records each container's verdict in its history.
    ///
    /// # Errors
    /// When the kernel's maps can't be read.
    fn note(&self) -> impl Future<Output = Result<(), StateError>> + Send;
}

impl Verdicts for Handle {
    async fn note(&self) -> Result<(), StateError> {
        self.with(State::note_verdicts).await
    }
}

/// Records verdicts for as long as it is polled. `changes` is notified when a verdict may have
/// changed.
pub(super) async fn run(verdicts: impl Verdicts, changes: Arc<Notify>, liveness: TaskLiveness) {
    loop {
        liveness.within(QUIET);
        // It is no error if nothing has changed for long.
        let _ = timeout(QUIET, changes.notified()).await;
        liveness.within(EVERY);
        if let Err(error) = verdicts.note().await {
            tracing::error!(error = %chain(error), "record verdicts");
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
        // The last change comes while the task rests, and isn't forgotten.
        assert_eq!(*fake.notes.lock().unwrap(), [5, 6, 7, 8, 69]);
    }
}
