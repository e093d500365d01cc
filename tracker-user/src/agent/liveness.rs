//! Tells whether each of the agent's tasks still does its work. A task says when it will report
//! again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A task whose report is late by this much is stuck.
const GRACE: Duration = Duration::from_secs(30);

/// The liveness of all tasks, by name.
#[derive(Debug, Default)]
pub struct Liveness(Mutex<BTreeMap<&'static str, State>>);

#[derive(Clone, Copy, Debug)]
enum State {
    /// The task will report by then.
    Due(Instant),
    Ended,
}

impl Liveness {
    /// Registers a task that begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>, name: &'static str) -> TaskLiveness {
        let task = TaskLiveness { all: Arc::clone(self), name };
        task.within(Duration::ZERO);
        task
    }

    /// Describes the tasks that have ended or are stuck, one line each.
    #[must_use]
    pub fn dead(&self, now: Instant) -> Vec<String> {
        let tell = |(name, state): (&&str, &State)| match state {
            State::Ended => Some(format!("{name}: has ended")),
            State::Due(by) => {
                let late = now.saturating_duration_since(*by);
                (late >= GRACE).then(|| format!("{name}: has not been heard of for {} s", late.as_secs()))
            }
        };
        self.lock().iter().filter_map(tell).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The liveness of one task, owned by that task. When it is dropped, the task has ended, for
/// whatever reason.
#[derive(Debug)]
pub struct TaskLiveness {
    all: Arc<Liveness>,
    name: &'static str,
}

impl TaskLiveness {
    /// Reports that the task is at work, and that it will rest for no longer than this.
    pub fn within(&self, rest: Duration) {
        // A century is as good as forever, and no clock overflows.
        self.set(State::Due(Instant::now() + rest.min(Duration::from_secs(u32::MAX.into()))));
    }

    fn set(&self, state: State) {
        self.all.lock().insert(self.name, state);
    }
}

impl Drop for TaskLiveness {
    fn drop(&mut self) {
        self.set(State::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told() {
        let all = Arc::new(Liveness::default());
        let (reader, auditor) = (all.begin("reader"), all.begin("auditor"));
        auditor.within(Duration::from_mins(1));
        let after = |seconds| all.dead(Instant::now() + Duration::from_secs(seconds));
        assert!(after(20).is_empty());
        assert!(after(35)[0].starts_with("reader: has not been heard of"), "{:?}", after(35));
        assert_eq!(after(35).len(), 1);
        assert_eq!(after(100).len(), 2);
        reader.within(Duration::from_hours(1));
        drop(auditor);
        assert_eq!(after(0), ["auditor: has ended"]);
    }
}
