//! Numbers per kind.

use tracker_ebpf::{Flow, Kind};

/// How many of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([i64; Kind::COUNT]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Kind::COUNT])
    }
}

impl Counts {
    /// How many of a kind.
    #[must_use]
    pub fn get(&self, kind: Kind) -> i64 {
        self.0.get(kind.index()).copied().unwrap_or(0)
    }

    /// The kinds that there are any of, with how many.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, i64)> + '_ {
        Kind::ALL.iter().map(|kind| (*kind, self.get(*kind))).filter(|(_, n)| *n > 0)
    }

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.iter().map(|(_, n)| n).sum()
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Self) {
        self.add(&other.0);
    }

    /// Adds numbers, kind by kind.
    pub fn add<N: Copy + TryInto<i64>>(&mut self, other: &[N; Kind::COUNT]) {
        for (sum, n) in self.0.iter_mut().zip(other) {
            *sum = sum.saturating_add((*n).try_into().unwrap_or(i64::MAX));
        }
    }
}

impl<N: Copy + TryInto<i64>> From<&[N; Kind::COUNT]> for Counts {
    fn from(numbers: &[N; Kind::COUNT]) -> Self {
        let mut counts = Self::default();
        counts.add(numbers);
        counts
    }
}

/// Slots filled and emptied since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Filled: opened, duplicated, received, inherited.
    pub opened: Counts,
    /// Emptied: closed, replaced, lost by exec or exit.
    pub closed: Counts,
}

impl Totals {
    /// Adds what the kernel counted for a cgroup.
    pub fn add(&mut self, flow: &Flow) {
        self.opened.add(&flow.opened);
        self.closed.add(&flow.closed);
    }

    /// Adds other totals.
    pub fn merge(&mut self, other: &Self) {
        self.opened.merge(&other.opened);
        self.closed.merge(&other.closed);
    }
}
