//! Numbers of files for each kind.

use std::collections::BTreeMap;

use tracker_ebpf::{Flow, Kind};

use crate::verdict::{Judge, Verdict};

/// How many files there are of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    n: [i64; Kind::COUNT],
    /// Those counted as [`Kind::FdInFlight`], by the kind of the file itself: CRIU treats each as
    /// if it were open.
    in_flight: [i64; Kind::COUNT],
}

impl Default for Counts {
    fn default() -> Self {
        Self { n: [0; Kind::COUNT], in_flight: [0; Kind::COUNT] }
    }
}

impl Counts {
    /// Returns how many there are of a kind.
    #[must_use]
    pub fn get(&self, kind: Kind) -> i64 {
        self.n.get(kind.index()).copied().unwrap_or(0)
    }

    /// Returns the kinds that exist, and how many there are of each.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, i64)> + '_ {
        Kind::ALL.iter().map(|kind| (*kind, self.get(*kind))).filter(|(_, n)| *n > 0)
    }

    /// Returns the kinds that exist, with the verdicts on them, and how many there are of each.
    pub fn judged(&self, judge: &Judge) -> impl Iterator<Item = (Kind, Verdict, i64)> {
        let mut judged = BTreeMap::new();
        let itself =
            self.iter().filter(|(kind, _)| *kind != Kind::FdInFlight).map(|(kind, n)| (kind, kind, n));
        let in_flight = Kind::ALL.iter().zip(self.in_flight).map(|(of, n)| (Kind::FdInFlight, *of, n));
        for (kind, of, n) in itself.chain(in_flight).filter(|(.., n)| *n > 0) {
            *judged.entry((kind, judge.kind(of))).or_insert(0) += n;
        }
        judged.into_iter().map(|((kind, verdict), n)| (kind, verdict, n))
    }

    /// Returns the total of all kinds.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.iter().map(|(_, n)| n).sum()
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Self) {
        self.add(&other.n);
        add(&mut self.in_flight, &other.in_flight);
    }

    /// Subtracts other counts, which are part of these.
    pub fn subtract(&mut self, other: &Self) {
        add(&mut self.n, &other.n.map(i64::wrapping_neg));
        add(&mut self.in_flight, &other.in_flight.map(i64::wrapping_neg));
    }

    /// Adds numbers for each kind.
    pub fn add<N: Copy + TryInto<i64>>(&mut self, other: &[N; Kind::COUNT]) {
        add(&mut self.n, other);
    }

    /// Adds hidden files.
    pub fn add_hidden(&mut self, hidden: &Hidden) {
        let Hidden { kind, of, n, .. } = hidden;
        let mut counts = [0; Kind::COUNT];
        if let Some(to) = counts.get_mut(kind.index()) {
            *to = *n;
        }
        self.add(&counts);
        if *kind == Kind::FdInFlight
            && let Some(to) = self.in_flight.get_mut(of.index())
        {
            *to = to.saturating_add(*n);
        }
    }
}

fn add<N: Copy + TryInto<i64>>(to: &mut [i64; Kind::COUNT], numbers: &[N; Kind::COUNT]) {
    for (sum, n) in to.iter_mut().zip(numbers) {
        *sum = sum.saturating_add((*n).try_into().unwrap_or(i64::MAX));
    }
}

/// Hidden files of one kind and process, as the last hidden scan found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The cgroup that they are charged to.
    pub cgroup_id: u64,
    /// The process that they are charged to.
    pub tgid: u32,
    /// The kind that they are counted as ([`Kind::is_hidden`]).
    pub kind: Kind,
    /// The kind of each file itself.
    pub of: Kind,
    /// How many there are.
    pub n: i64,
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
