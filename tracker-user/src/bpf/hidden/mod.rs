//! Files that no slot holds, and that stop a dump all the same: mapped with their fds closed,
//! registered with io_uring, or on their way through a unix socket.
//!
//! No probe sees them; iterators find them now and then (tracker-ebpf/src/programs/hidden.rs). What
//! these walk moves under their eyes, so only what two looks agree on is believed.

mod compare;

use std::{fmt, fs::File};

pub use compare::{Sight, confirmed};
use tracker_ebpf::Sighting;

use super::{BpfError, Kernel, call, iterator, sys};

/// A place where files are that no slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Mappings.
    Mapped,
    /// Rings that threads have registered with themselves.
    Registered,
    /// Files that are registered with rings.
    Direct,
    /// Queues of unix sockets.
    InFlight,
}

impl Look {
    /// Every look.
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

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A look that can't be taken on this kernel, and why.
pub type Impossible = (Look, String);

/// The program that all looks need: it tells what slots hold.
const HELD: &str = "held";

/// The program that a look is taken by.
const PROGRAMS: [(Look, &str); 3] =
    [(Look::Mapped, "mapped"), (Look::Registered, "registered"), (Look::InFlight, "in_flight")];

/// The programs of those looks that are possible, in the order in which they walk. What is open is
/// looked at last: what isn't open then, and was mapped before and after, is hidden indeed.
pub(super) fn programs(impossible: &[Impossible]) -> Vec<&'static str> {
    let possible = PROGRAMS.into_iter().rev().filter(|(look, _)| is_possible(*look, impossible));
    possible.map(|(_, name)| name).chain([HELD]).collect()
}

/// The look that is taken by a program, and that isn't possible without.
pub(super) fn look_of(program: &str) -> Option<Look> {
    PROGRAMS.into_iter().find(|(_, name)| *name == program).map(|(look, _)| look)
}

/// Whether a look can be taken on this kernel.
pub(crate) fn is_possible(look: Look, impossible: &[Impossible]) -> bool {
    impossible.iter().all(|(other, _)| *other != look)
}

/// The iterators of one look, which walk when they are read.
pub struct Iterators {
    files: Vec<(&'static str, File)>,
}

impl Kernel {
    /// What this kernel can't be asked for.
    #[must_use]
    pub fn impossible_looks(&self) -> &[Impossible] {
        &self.impossible
    }

    /// Opens the iterators of one look for files that no slot holds. They are read without the
    /// kernel side.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_look(&mut self) -> Result<Iterators, BpfError> {
        let open = |name| Ok((name, iterator(&mut self.ebpf, name)?));
        let files = programs(&self.impossible).into_iter().map(open).collect::<Result<_, BpfError>>()?;
        Ok(Iterators { files })
    }
}

impl Iterators {
    /// Walks. Only one look may be taken at a time.
    ///
    /// # Errors
    /// When an iterator can't be read.
    pub fn read(self) -> Result<Sight, BpfError> {
        let mut sight = Sight::default();
        for (name, file) in self.files {
            sys::read_records(file, |sighting: Sighting| sight.note(&sighting))
                .map_err(|source| call("read the iterator", name, source))?;
        }
        Ok(sight)
    }
}
