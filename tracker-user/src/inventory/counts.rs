//! Numbers per kind.

use std::collections::BTreeMap;

use tracker_ebpf::{Flow, Kind};

use crate::verdict::{Judge, Verdict};

/// How many of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    n: [i64; Kind::COUNT],
    /// Those that are [`Kind::FdInFlight`], by what they are: CRIU makes of each what it would if it were open.
    in_flight: [i64; Kind::COUNT],
}

impl Default for Counts {
    fn default() -> Self {
        Self { n: [0; Kind::COUNT], in_flight: [0; Kind::COUNT] }
    }
}

impl Counts {
    /// How many of a kind.
    #[must_use]
    pub fn get(&self, kind: Kind) -> i64 {
        self.n.get(kind.index()).copied().unwrap_or(0)
    }

    /// The kinds that there are any of, with how many.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, i64)> + '_ {
        Kind::ALL.iter().map(|kind| (*kind, self.get(*kind))).filter(|(_, n)| *n > 0)
    }

    /// The kinds that there are any of, with how many CRIU would make this of.
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

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.iter().map(|(_, n)| n).sum()
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Self) {
        self.add(&other.n);
        add(&mut self.in_flight, &other.in_flight);
    }

    /// Takes off other counts, which are part of these.
    pub fn subtract(&mut self, other: &Self) {
        add(&mut self.n, &other.n.map(i64::wrapping_neg));
        add(&mut self.in_flight, &other.in_flight.map(i64::wrapping_neg));
    }

    /// Adds numbers, kind by kind.
    pub fn add<N: Copy + TryInto<i64>>(&mut self, other: &[N; Kind::COUNT]) {
        add(&mut self.n, other);
    }

    /// Adds what no slot holds.
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

/// Files that no slot holds, as the last look for such found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The cgroup that they are charged to.
    pub cgroup_id: u64,
    /// The process that they are charged to.
    pub tgid: u32,
    /// What they are counted as ([`Kind::is_hidden`]).
    pub kind: Kind,
    /// What each file is.
    pub of: Kind,
    /// How many.
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
