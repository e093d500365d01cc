//! Files that no slot holds, and that stop a dump all the same: mapped with their fds closed,
//! registered with io_uring, or on their way through a unix socket.
//!
//! No probe sees them. The iterators of a hidden scan find them
//! (tracker-ebpf/src/programs/hidden.rs). What these walk may change meanwhile, so only what two
//! scans agree on is believed.

mod compare;

use std::{fmt, fs::File};

pub use compare::{Sightings, confirmed_hidden};
use tracker_ebpf::Sighting;

use super::{BpfError, Kernel, call, iterator, sys};

/// A place where files are that no slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HiddenPlace {
    /// Mappings.
    Mapped,
    /// Rings that threads have registered with themselves.
    Registered,
    /// Files that are registered with rings.
    Direct,
    /// Queues of unix sockets.
    InFlight,
}

impl HiddenPlace {
    /// Every place.
    pub const ALL: [Self; 4] = [Self::Mapped, Self::Registered, Self::Direct, Self::InFlight];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Registered => "registered",
            Self::Direct => "direct",
            Self::InFlight => "in_flight",
        }
    }
}

impl fmt::Display for HiddenPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A place that can't be scanned on this kernel, and why.
pub type UnscannablePlace = (HiddenPlace, String);

/// The program that every scan needs: it tells what slots hold.
const HELD: &str = "held";

/// The programs that scan places. Files that are registered with rings are found by all of them.
const PROGRAMS: [(HiddenPlace, &str); 3] = [
    (HiddenPlace::Mapped, "mapped"),
    (HiddenPlace::Registered, "registered"),
    (HiddenPlace::InFlight, "in_flight"),
];

/// The programs for the places that can be scanned, in the order in which they walk. What is open
/// is read last: what isn't open then, and was mapped before and after, is certainly hidden.
pub(super) fn programs(unscannable: &[UnscannablePlace]) -> Vec<&'static str> {
    let possible = PROGRAMS.into_iter().rev().filter(|(place, _)| can_scan(*place, unscannable));
    possible.map(|(_, name)| name).chain([HELD]).collect()
}

/// The place that can't be scanned without this program.
pub(super) fn place_of(program: &str) -> Option<HiddenPlace> {
    PROGRAMS.into_iter().find(|(_, name)| *name == program).map(|(place, _)| place)
}

/// Whether a place can be scanned on this kernel.
pub(crate) fn can_scan(place: HiddenPlace, unscannable: &[UnscannablePlace]) -> bool {
    unscannable.iter().all(|(other, _)| *other != place)
}

/// The iterators of one scan, which walk when they are read.
pub struct HiddenScan {
    files: Vec<(&'static str, File)>,
}

impl Kernel {
    /// The places that can't be scanned on this kernel.
    #[must_use]
    pub fn unscannable_places(&self) -> &[UnscannablePlace] {
        &self.unscannable
    }

    /// Opens the iterators of one hidden scan. They are read without the kernel side.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_hidden_scan(&mut self) -> Result<HiddenScan, BpfError> {
        let open = |name| Ok((name, iterator(&mut self.ebpf, name)?));
        let files = programs(&self.unscannable).into_iter().map(open).collect::<Result<_, BpfError>>()?;
        Ok(HiddenScan { files })
    }
}

impl HiddenScan {
    /// Walks. Only one scan may be made at a time.
    ///
    /// # Errors
    /// When an iterator can't be read.
    pub fn read(self) -> Result<Sightings, BpfError> {
        let mut sightings = Sightings::default();
        for (name, file) in self.files {
            sys::read_records(file, |sighting: Sighting| sightings.note(&sighting))
                .map_err(|source| call("read the iterator", name, source))?;
        }
        Ok(sightings)
    }
}
