//! Finds what is hidden in what a scan saw. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use tracker_ebpf::{Kind, Sighting, sighting};

use crate::inventory::Hidden;

/// A task: thread group, and cgroup.
type TaskId = (u32, u64);

/// Something hidden, as a second scan recognises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HiddenItem {
    /// What it is counted as.
    kind: Kind,
    /// The file's own kind.
    of: Kind,
    holder: u64,
    file: u64,
    cgroup_id: u64,
}

/// What one scan saw. What is open must be noted last.
#[derive(Debug, Default)]
pub struct Sightings {
    /// mm and file → kind, and who has that mm.
    mapped: HashMap<(u64, u64), (Kind, HashSet<TaskId>)>,
    /// Thread group and ring → cgroup.
    registered: HashMap<(u32, u64), u64>,
    /// Files that are mapped or registered.
    suspects: HashSet<u64>,
    /// Thread groups that have a suspect open.
    open: HashSet<(u32, u64)>,
    /// What a ring or a socket has → the lowest thread group that holds it there, and how many.
    held: BTreeMap<HiddenItem, (u32, u64)>,
}

impl Sightings {
    /// Notes a record.
    pub(super) fn note(&mut self, sighting: &Sighting) {
        let Sighting { what, holder, file, kind, cgroup_id, tgid, .. } = *sighting;
        let tgid = tgid as u32;
        let Some(of) = Kind::from_index(kind as usize) else { return };
        match what {
            sighting::MAPPED => {
                self.suspects.insert(file);
                let (_, tasks) =
                    self.mapped.entry((holder, file)).or_insert_with(|| (of, HashSet::default()));
                tasks.insert((tgid, cgroup_id));
            }
            sighting::REGISTERED => {
                self.suspects.insert(file);
                self.registered.insert((tgid, file), cgroup_id);
            }
            sighting::OPEN if self.suspects.contains(&file) => {
                self.open.insert((tgid, file));
            }
            sighting::DIRECT => self.note_held(Kind::IoUringDirect, of, sighting),
            sighting::IN_FLIGHT => self.note_held(Kind::FdInFlight, of, sighting),
            _ => {}
        }
    }

    /// A ring or a socket may be seen several times: by several fds, in several processes, and
    /// mapped. What it has is counted once in each cgroup.
    fn note_held(&mut self, kind: Kind, of: Kind, sighting: &Sighting) {
        let Sighting { holder, cgroup_id, n, .. } = *sighting;
        let tgid = sighting.tgid as u32;
        let (lowest, most) =
            self.held.entry(HiddenItem { kind, of, holder, file: 0, cgroup_id }).or_insert((tgid, n));
        *lowest = tgid.min(*lowest);
        *most = n.max(*most);
    }

    /// Whether nothing seems to be hidden.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.hidden().is_empty()
    }

    /// What seems to be hidden: to whom it is charged, and how many.
    fn hidden(&self) -> BTreeMap<HiddenItem, (u32, u64)> {
        let mut hidden = self.held.clone();
        let mut mapped_by = HashSet::new();
        for ((mm, file), (of, tasks)) in &self.mapped {
            mapped_by.extend(tasks.iter().map(|(tgid, _)| (*tgid, *file)));
            // Processes that share their memory (`CLONE_VM`) are one.
            let open = tasks.iter().any(|(tgid, _)| self.open.contains(&(*tgid, *file)));
            if let Some((tgid, cgroup_id)) = tasks.iter().min().filter(|_| !open) {
                let item = HiddenItem {
                    kind: of.mapped(),
                    of: *of,
                    holder: *mm,
                    file: *file,
                    cgroup_id: *cgroup_id,
                };
                hidden.insert(item, (*tgid, 1));
            }
        }
        for ((tgid, file), cgroup_id) in &self.registered {
            let known = [&self.open, &mapped_by].iter().any(|known| known.contains(&(*tgid, *file)));
            if !known {
                let (kind, of) = (Kind::IoUringRegistered, Kind::IoUring);
                let item =
                    HiddenItem { kind, of, holder: u64::from(*tgid), file: *file, cgroup_id: *cgroup_id };
                hidden.insert(item, (*tgid, 1));
            }
        }
        hidden
    }
}

/// What two scans agree on.
#[must_use]
pub fn confirmed_hidden(first: &Sightings, second: &Sightings) -> Vec<Hidden> {
    let (first, second) = (first.hidden(), second.hidden());
    let mut sums: BTreeMap<(u64, u32, Kind, Kind), u64> = BTreeMap::new();
    for (item, (tgid, n)) in second {
        if let Some((_, before)) = first.get(&item) {
            *sums.entry((item.cgroup_id, tgid, item.kind, item.of)).or_default() += n.min(*before);
        }
    }
    sums.into_iter()
        .map(|((cgroup_id, tgid, kind, of), n)| Hidden {
            cgroup_id,
            tgid,
            kind,
            of,
            n: i64::try_from(n).unwrap_or(i64::MAX),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 0xf11e;
    const MM: u64 = 0x3333;

    fn sighting(what: u64, kind: Kind, tgid: u64) -> Sighting {
        Sighting { what, holder: MM, file: RING, kind: kind.index() as u64, cgroup_id: 100, n: 1, tgid }
    }

    fn noted(sightings: &[Sighting]) -> Sightings {
        let mut result = Sightings::default();
        for sighting in sightings {
            result.note(sighting);
        }
        result
    }

    /// Kind, process and number of what stays hidden.
    fn found(sightings: &[Sighting]) -> Vec<(Kind, u32, i64)> {
        let found = confirmed_hidden(&noted(sightings), &noted(sightings));
        found.iter().map(|hidden| (hidden.kind, hidden.tgid, hidden.n)).collect()
    }

    #[test]
    fn a_mapping_is_hidden_if_no_slot_of_its_process_has_the_file() {
        let mapped = sighting(sighting::MAPPED, Kind::IoUring, 7);
        // Two mappings of one ring.
        assert_eq!(found(&[mapped, mapped]), [(Kind::IoUringMapped, 7, 1)]);
        assert!(found(&[mapped, sighting(sighting::OPEN, Kind::IoUring, 7)]).is_empty());
        let elsewhere = sighting(sighting::OPEN, Kind::IoUring, 8);
        assert_eq!(found(&[mapped, elsewhere]), [(Kind::IoUringMapped, 7, 1)]);
    }

    #[test]
    fn processes_that_share_their_memory_are_one() {
        let both =
            [sighting(sighting::MAPPED, Kind::PerfEvent, 9), sighting(sighting::MAPPED, Kind::PerfEvent, 7)];
        assert_eq!(found(&both), [(Kind::PerfEventMapped, 7, 1)]);
        let open = sighting(sighting::OPEN, Kind::PerfEvent, 9);
        assert!(found(&[both[0], both[1], open]).is_empty());
    }

    #[test]
    fn a_fork_has_mappings_of_its_own() {
        let child = Sighting { holder: MM + 1, ..sighting(sighting::MAPPED, Kind::IoUring, 8) };
        let both = found(&[sighting(sighting::MAPPED, Kind::IoUring, 7), child]);
        assert_eq!(both, [(Kind::IoUringMapped, 7, 1), (Kind::IoUringMapped, 8, 1)]);
    }

    #[test]
    fn a_registered_ring_is_hidden_if_it_is_neither_mapped_nor_open() {
        let registered = sighting(sighting::REGISTERED, Kind::IoUring, 7);
        // By two threads.
        assert_eq!(found(&[registered, registered]), [(Kind::IoUringRegistered, 7, 1)]);
        assert!(found(&[registered, sighting(sighting::OPEN, Kind::IoUring, 7)]).is_empty());
        let mapped = sighting(sighting::MAPPED, Kind::IoUring, 7);
        assert_eq!(found(&[mapped, registered]), [(Kind::IoUringMapped, 7, 1)]);
    }

    #[test]
    fn what_a_socket_has_is_counted_once_in_a_cgroup() {
        let pidfds = Sighting { n: 3, ..sighting(sighting::IN_FLIGHT, Kind::Pidfd, 9) };
        let inherited = Sighting { tgid: 7, ..pidfds };
        let elsewhere = Sighting { cgroup_id: 200, ..pidfds };
        assert_eq!(
            found(&[pidfds, inherited, elsewhere]),
            [(Kind::FdInFlight, 7, 3), (Kind::FdInFlight, 9, 3)]
        );
    }

    #[test]
    fn what_comes_or_goes_between_two_scans_isnt_believed() {
        let three = noted(&[Sighting { n: 3, ..sighting(sighting::IN_FLIGHT, Kind::Pidfd, 7) }]);
        let one = noted(&[sighting(sighting::IN_FLIGHT, Kind::Pidfd, 7)]);
        assert_eq!(confirmed_hidden(&three, &one)[0].n, 1);
        let ring = noted(&[sighting(sighting::MAPPED, Kind::IoUring, 7)]);
        assert!(confirmed_hidden(&ring, &one).is_empty() && confirmed_hidden(&one, &ring).is_empty());
        assert!(!ring.is_clear() && Sightings::default().is_clear());
    }
}
