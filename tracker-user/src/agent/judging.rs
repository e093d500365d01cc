//! Records each container's verdict in its history, whenever something has changed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    liveness::TaskLiveness,
    state::{Handle, State, StateError},
};
use crate::error::chain;

/// Recording takes no more than this part of the time, however much changes.
const REST_FACTOR: u32 = 50;

/// The shortest and the longest rest after a record. If a container was blocked for a shorter time
/// than the rest, its history may not show that.
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(1);

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
        liveness.within(LONGEST_REST);
        let start = Instant::now();
        if let Err(error) = verdicts.note().await {
            tracing::error!(error = %chain(error), "record verdicts");
        }
        sleep((start.elapsed() * REST_FACTOR).clamp(SHORTEST_REST, LONGEST_REST)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::sleep_until;

    use super::*;
    use crate::agent::liveness::Liveness;

    struct Fake {
        begun: Instant,
        /// How long a record takes.
        takes: Duration,
        /// When verdicts were recorded, in tenths of a second.
        notes: Mutex<Vec<u128>>,
    }

    impl Verdicts for Arc<Fake> {
        async fn note(&self) -> Result<(), StateError> {
            self.notes.lock().unwrap().push(self.begun.elapsed().as_millis() / 100);
            sleep(self.takes).await;
            Ok(())
        }
    }

    /// When verdicts are recorded that change every 50 ms, for a second from the fifth on.
    async fn notes(takes: Duration) -> Vec<u128> {
        let fake = Arc::new(Fake { begun: Instant::now(), takes, notes: Mutex::default() });
        let changes = Arc::new(Notify::new());
        let task = Arc::new(Liveness::default()).begin("verdicts");
        let running = tokio::spawn(run(Arc::clone(&fake), Arc::clone(&changes), task));
        let at = |millis: u64| sleep_until(fake.begun + Duration::from_millis(millis));
        for step in 0..20 {
            at(5_010 + step * 50).await;
            changes.notify_one();
        }
        at(100_000).await;
        running.abort();
        fake.notes.lock().unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn often_while_things_change_and_seldom_else() {
        // The last change comes while it rests, and isn't forgotten. Then it is quiet for a minute.
        let often = vec![50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 661];
        assert_eq!(notes(Duration::ZERO).await, often);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_it_takes_the_less_often() {
        assert_eq!(notes(Duration::from_millis(10)).await, [50, 55, 60, 665]);
        assert_eq!(notes(Duration::from_secs(1)).await, [50, 70, 690]);
    }
}
