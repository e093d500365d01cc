//! The series of containers, limited in number.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use tracker_ebpf::Kind;

use super::{
    families::{Families, unix_seconds},
    registry::{
        BLOCKED_SECONDS, CHECKPOINTABLE, CONTAINERS, CONTAINERS_FOLDED, FDS_CLOSED, FDS_OPENED,
        LAST_CHECKPOINTABLE, OPEN_FDS, SERIES_DROPPED, STALE,
    },
};
use crate::{
    api::{HOST, OTHER, UNKNOWN},
    inventory::{Detail, Entry, Inventory, State, Totals},
    runtime::Container,
    verdict::{Judge, Verdict},
};

/// The labels that identify a container: namespace, pod, container.
type Name<'a> = [&'a str; 3];

/// Returns the labels of an entry that is no container: the host, an unknown owner, or a sum.
const fn nameless(name: &str) -> Name<'_> {
    ["", "", name]
}

/// The totals of containers with the same name, as they were last shown. Some of these containers
/// may go before the others, and the counter of the name must not decrease because of that.
#[derive(Debug, Default)]
pub struct Namesakes(BTreeMap<[String; 3], Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// Of containers that exist, by their cgroups, with the time that each was blocked.
    there: BTreeMap<String, (Totals, Duration)>,
    /// Of containers that have gone.
    gone: Totals,
    /// How long any of them was blocked. It is no sum, because it must not grow faster than time.
    blocked: Duration,
}

impl Namesakes {
    /// Takes over the current containers. A name is forgotten when no container has it any more. A
    /// name that only one container has ever had is not kept.
    fn update(&mut self, by_name: &BTreeMap<Name<'_>, Vec<(&str, &Entry)>>) {
        let mut before = std::mem::take(&mut self.0);
        for (name, members) in by_name {
            let name = name.map(str::to_owned);
            let known = before.remove(&name);
            if known.is_none() && members.len() == 1 {
                continue;
            }
            let mut counted = known.unwrap_or_default();
            let last = std::mem::take(&mut counted.there);
            let mut longest = Duration::ZERO;
            for (cgroup, entry) in members {
                let before = last.get(*cgroup).map_or(Duration::ZERO, |(_, blocked)| *blocked);
                longest = longest.max(entry.history.blocked.saturating_sub(before));
                counted.there.insert((*cgroup).to_owned(), (entry.totals, entry.history.blocked));
            }
            counted.blocked += longest;
            let gone = last.iter().filter(|(cgroup, _)| !counted.there.contains_key(*cgroup));
            gone.for_each(|(_, (totals, _))| counted.gone.merge(totals));
            self.0.insert(name, counted);
        }
    }

    fn get(&self, name: Name<'_>) -> Option<&Counted> {
        self.0.get(&name.map(str::to_owned))
    }
}

/// Adds the series of the host and of all containers. There are at most `room` of these, including
/// the sum of the rest.
pub(super) fn add(
    families: &mut Families,
    inventory: &Inventory,
    judge: &Judge,
    namesakes: &mut Namesakes,
    room: usize,
) {
    let before = families.len();
    entries(families, nameless(HOST), &[&inventory.host], None);
    zeroes(families, &inventory.host, judge);
    if inventory.unknown != Entry::default() {
        entries(families, nameless(UNKNOWN), &[&inventory.unknown], None);
    }
    states(families, inventory);
    let room = room.saturating_sub(families.len() - before + FOLDING);
    let groups = groups(inventory, namesakes);
    let fits = groups.iter().map(|group| group.series.len()).sum::<usize>() <= room;
    let mut left = if fits { room } else { room.saturating_sub(Kind::COUNT * VERDICTS) };
    let mut folded = Folded::default();
    for group in groups {
        if group.series.len() <= left {
            left -= group.series.len();
            families.append(group.series);
        } else {
            // Later containers are less important, and must not take the place of this one.
            left = 0;
            folded.take(&group);
        }
    }
    folded.add(families);
}

/// The number of series about folding.
const FOLDING: usize = 2;

/// The number of verdicts: open fds of a kind have at most one series for each.
const VERDICTS: usize = 4;

/// Containers with the same labels, which are added up because they can't be distinguished.
struct Group<'a> {
    entries: Vec<&'a Entry>,
    series: Families,
}

/// Groups all containers by name. Those that can't be dumped come first, because users want to know
/// about them.
fn groups<'a>(inventory: &'a Inventory, namesakes: &mut Namesakes) -> Vec<Group<'a>> {
    let mut by_name: BTreeMap<Name<'a>, Vec<(&'a str, &'a Entry)>> = BTreeMap::new();
    for (container, entry) in &inventory.containers {
        by_name.entry(name_of(container)).or_default().push((&container.cgroup, entry));
    }
    namesakes.update(&by_name);
    let group = |(name, members): (Name<'a>, Vec<(&'a str, &'a Entry)>)| {
        let members: Vec<_> = members.into_iter().map(|(_, entry)| entry).collect();
        let mut series = Families::default();
        entries(&mut series, name, &members, namesakes.get(name));
        let worst = members.iter().map(|entry| entry.judged.verdict).max();
        (worst, Group { entries: members, series })
    };
    let mut groups: Vec<_> = by_name.into_iter().map(group).collect();
    // Groups with the same verdict stay sorted by name, so that the order is the same at every
    // scrape.
    groups.sort_by_key(|(worst, _)| Reverse(*worst));
    groups.into_iter().map(|(_, group)| group).collect()
}

fn name_of(container: &Container) -> Name<'_> {
    let Container { namespace, pod, name, .. } = container;
    [namespace.as_deref().unwrap_or_default(), pod.as_deref().unwrap_or_default(), name]
}

/// The containers that have no series of their own.
#[derive(Default)]
struct Folded {
    containers: usize,
    series: usize,
    /// The open fds. Counters aren't added up, because the set of these containers changes, and a
    /// counter must not decrease.
    open: BTreeMap<(Kind, Verdict), i64>,
}

impl Folded {
    fn take(&mut self, group: &Group<'_>) {
        self.containers += group.entries.len();
        self.series += group.series.len();
        for (kind, verdict, n) in group.entries.iter().flat_map(|entry| &entry.judged.files) {
            *self.open.entry((*kind, *verdict)).or_default() += n;
        }
    }

    fn add(self, families: &mut Families) {
        add_open(families, nameless(OTHER), self.open);
        families.one(&CONTAINERS_FOLDED, self.containers as f64);
        families.one(&SERIES_DROPPED, self.series as f64);
    }
}

fn add_open(families: &mut Families, name: Name<'_>, open: BTreeMap<(Kind, Verdict), i64>) {
    let [namespace, pod, container] = name;
    for ((kind, verdict), n) in open {
        families.add(&OPEN_FDS, &[namespace, pod, container, kind.name(), verdict.name()], n as f64);
    }
}

/// Adds the series of containers with one name.
fn entries(families: &mut Families, name: Name<'_>, entries: &[&Entry], namesakes: Option<&Counted>) {
    counts(families, name, entries, namesakes.map(|all| &all.gone));
    if let Some(last) = entries.iter().filter_map(|entry| entry.history.last_ok).max() {
        families.add(&LAST_CHECKPOINTABLE, &name, unix_seconds(last));
    }
    // Containers that were inspected have the series even if it is 0.
    let judged = entries
        .iter()
        .filter(|entry| matches!(entry.detail, Detail::Known(_)) || !entry.history.blocked.is_zero());
    if let Some(blocked) = judged.map(|entry| entry.history.blocked).max() {
        let blocked = namesakes.map_or(blocked, |all| all.blocked);
        families.add(&BLOCKED_SECONDS, &name, blocked.as_secs_f64());
    }
    if entries.iter().any(|entry| entry.stale) {
        families.add(&STALE, &name, 1.0);
        return;
    }
    match entries.iter().map(|entry| entry.judged.verdict).max() {
        Some(Verdict::Ok) => families.add(&CHECKPOINTABLE, &name, 1.0),
        Some(Verdict::NeedsOption | Verdict::Blocked) => families.add(&CHECKPOINTABLE, &name, 0.0),
        Some(Verdict::Unknown) | None => {}
    }
}

fn counts(families: &mut Families, name: Name<'_>, entries: &[&Entry], gone: Option<&Totals>) {
    let (mut open, mut opened, mut closed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for entry in entries {
        for (kind, verdict, n) in &entry.judged.files {
            *open.entry((*kind, *verdict)).or_default() += n;
        }
    }
    for totals in entries.iter().map(|entry| &entry.totals).chain(gone) {
        totals.opened.iter().for_each(|(kind, n)| *opened.entry(kind).or_default() += n);
        totals.closed.iter().for_each(|(kind, n)| *closed.entry(kind).or_default() += n);
    }
    add_open(families, name, open);
    let [namespace, pod, container] = name;
    for (metric, totals) in [(&FDS_OPENED, opened), (&FDS_CLOSED, closed)] {
        for (kind, n) in totals {
            families.add(metric, &[namespace, pod, container, kind.name()], i64::unsigned_abs(n) as f64);
        }
    }
}

/// Adds a 0 for kinds that the host doesn't have. So every kind has a series on every machine, and
/// a sum over containers is 0 instead of absent.
fn zeroes(families: &mut Families, host: &Entry, judge: &Judge) {
    let nobody = Kind::ALL.iter().filter(|kind| host.counts.get(**kind) == 0);
    add_open(families, nameless(HOST), nobody.map(|kind| ((*kind, judge.kind(*kind)), 0)).collect());
}

/// Adds how many containers are in each state.
fn states(families: &mut Families, inventory: &Inventory) {
    for state in State::all() {
        let mut all = inventory.containers.iter();
        let n = all.by_ref().filter(|(_, entry)| entry.state() == state).count();
        families.add(&CONTAINERS, &[state.name()], n as f64);
    }
}
