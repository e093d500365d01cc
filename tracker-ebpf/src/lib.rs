//! The contract between the BPF programs and user space: kinds, map keys and values, events.
//!
//! Both sides compile this library, so a layout can't drift apart. It is `no_std`, needs no
//! dependency, and does nothing: the programs are in the bin target (`main.rs`), their loader in
//! `tracker-user/src/bpf`.
//!
//! The truth that users read is [`Table::n`], in the map `TABLES`. Events are notifications: a full
//! ring loses events, never counts.
#![no_std]

mod abi;
pub mod classify;
mod kind;

pub use abi::{
    anon_inode::{ANON_NAME_LEN, Fop},
    audit::{
        Control, FileRecord, REMOVALS_BEGUN, REMOVALS_DONE, SEEN_IN_CGROUP, SEEN_IN_TGID, Sums, kind_sum,
        mode, resync, slot_sum, walk,
    },
    event::{self, COMM_LEN, Header, NO_FD, SlotEvent, TableEvent},
    hidden::{Sighting, sighting},
    loss::Loss,
    table::{Flow, MAX_SCANNED_FDS, Slot, TABLE_STALE, TABLE_URING, TABLE_URING_CLOSES, Table},
    tag::Tag,
};
pub use kind::{ANON_INODES, Class, FileKind, Kind};

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    /// A pad byte would reach the verifier as uninitialised stack, and user space as garbage.
    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Table>(), 8 * Kind::COUNT + 3 * 8 + 4 * 4 + 6 * 8);
        assert_eq!(size_of::<Slot>(), 24);
        assert_eq!(size_of::<Flow>(), 2 * 8 * Kind::COUNT);
        assert_eq!(size_of::<Fop>(), 8 + ANON_NAME_LEN);
        assert_eq!(size_of::<Header>(), 4 * 4 + 3 * 8 + COMM_LEN);
        assert_eq!(size_of::<SlotEvent>(), size_of::<Header>() + 8);
        assert_eq!(size_of::<TableEvent>(), size_of::<Header>() + 4 * Kind::COUNT);
        assert_eq!(size_of::<FileRecord>(), 48);
        assert_eq!(size_of::<Sighting>(), 7 * 8);
    }

    #[test]
    fn a_table_event_has_whole_words() {
        assert_eq!(Kind::COUNT % 2, 0, "an odd number of kinds pads TableEvent");
    }

    #[test]
    fn kinds_round_trip() {
        for (index, kind) in Kind::ALL.iter().copied().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(Kind::from_index(index), Some(kind));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_index(Kind::COUNT), None);
        assert_eq!(Kind::from_name("pidfds"), None);
    }

    #[test]
    fn hidden_kinds_are_the_last() {
        let first = Kind::ALL.iter().position(|kind| kind.is_hidden()).unwrap();
        assert_eq!(first, Kind::IoUringMapped.index());
        assert!(Kind::ALL[first..].iter().all(|kind| kind.is_hidden()));
        assert!(ANON_INODES.iter().all(|(_, kind)| !kind.is_hidden()));
        assert!(Kind::ALL.iter().all(|kind| kind.mapped().is_hidden()));
    }

    #[test]
    fn kind_names_are_distinct_and_safe_in_labels() {
        let names: BTreeSet<_> = FileKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), FileKind::ALL.len());
        let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(names.iter().all(|name| name.bytes().all(safe)));
    }

    /// Numbers are part of the contract with the programs, and files of kinds keep theirs.
    #[test]
    fn a_file_of_a_counted_kind_has_its_number() {
        for kind in Kind::ALL.iter().copied() {
            let file = FileKind::from(kind);
            assert_eq!((file as usize, file.name(), file.counted()), (kind.index(), kind.name(), Some(kind)));
            assert_eq!(FileKind::from_name(kind.name()), Some(file));
        }
        let uncounted = &FileKind::ALL[Kind::COUNT..];
        assert!(!uncounted.is_empty() && uncounted.iter().all(|kind| kind.counted().is_none()));
    }

    #[test]
    fn anonymous_inodes_are_told_by_their_names() {
        assert_eq!(Kind::of_anon_inode("[pidfd]"), Kind::Pidfd);
        assert_eq!(Kind::of_anon_inode("kvm-vcpu:0"), Kind::Kvm);
        // Not the name of an inotify.
        assert_eq!(Kind::of_anon_inode("[inotify]"), Kind::AnonOther);
    }

    #[test]
    fn anon_inode_names_fit_and_are_distinct() {
        let names: BTreeSet<_> = ANON_INODES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), ANON_INODES.len());
        assert!(ANON_INODES.iter().all(|(name, _)| name.len() < ANON_NAME_LEN));
    }

    #[test]
    fn sums_tell_slots_apart() {
        let tag = |file| Tag::new(Kind::Pidfd.index() as u64, file);
        let sum = |slots: &[(u32, u64)]| {
            slots.iter().fold(0_u64, |sum, (fd, file)| sum.wrapping_add(slot_sum(*fd, tag(*file))))
        };
        assert_eq!(sum(&[(3, 0x1000), (4, 0x2000)]), sum(&[(4, 0x2000), (3, 0x1000)]));
        assert_ne!(sum(&[(3, 0x1000), (4, 0x2000)]), sum(&[(3, 0x2000), (4, 0x1000)]));
        assert_ne!(sum(&[(3, 0x1000)]), sum(&[(4, 0x1000)]));
        assert_eq!(slot_sum(3, Tag::EMPTY), 0);
        let kinds: BTreeSet<u64> = (0..Kind::COUNT as u64).map(kind_sum).collect();
        assert_eq!(kinds.len(), Kind::COUNT);
    }

    #[test]
    fn a_tag_keeps_kind_and_file() {
        let file = 0xffff_8881_0a2b_3c40;
        let tag = Tag::new(Kind::Pidfd.index() as u64, file);
        assert_eq!(tag.kind(), Some(Kind::Pidfd));
        assert_eq!(tag.file(), file & 0x00ff_ffff_ffff_ffff);
        assert_eq!(Tag::EMPTY.kind(), None);
    }

    #[test]
    fn losses_index_their_array() {
        for (index, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(*loss as usize, index);
        }
    }
}
