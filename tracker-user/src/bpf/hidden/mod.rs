//! Files that no slot holds, and that stop a dump all the same: mapped with their fds closed, registered with io_uring, or on
//! their way through a unix socket.
//!
//! No probe sees them; iterators find them now and then (tracker-ebpf/src/programs/hidden.rs). What these walk moves under
//! their eyes, so only what two looks agree on is believed.

mod compare;

use std::{fmt, fs::File};

pub use compare::{Sight, confirmed};
use tracker_ebpf::Sighting;

use super::{BpfError, Kernel, attach_error, call, iterator, program, sys};

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

/// The iterators' programs, with what each walks.
const MAPPED: (&str, &str) = ("mapped", "task_vma");
const REGISTERED: (&str, &str) = ("registered", "task");
const IN_FLIGHT: (&str, &str) = ("in_flight", "task_file");
const HELD: (&str, &str) = ("held", "task_file");

/// The program that a look is taken by, but for [`HELD`], which all need.
const PROGRAMS: [(Look, (&str, &str)); 3] =
    [(Look::Mapped, MAPPED), (Look::Registered, REGISTERED), (Look::InFlight, IN_FLIGHT)];

/// Loads the programs of those looks that are possible so far, and adds those that the kernel refuses.
pub(super) fn load(
    ebpf: &mut aya::Ebpf,
    btf: &aya::Btf,
    impossible: &mut Vec<Impossible>,
) -> Result<(), BpfError> {
    let mut try_load = |(name, walks): (&str, &str)| {
        let iter: &mut aya::programs::Iter = program(ebpf, name)?;
        iter.load(walks, btf).map_err(|e| attach_error(name, e))
    };
    try_load(HELD)?;
    for (look, program) in PROGRAMS {
        if is_possible(look, impossible)
            && let Err(error) = try_load(program)
        {
            impossible.push((look, super::choice::why(error)));
        }
    }
    Ok(())
}

fn is_possible(look: Look, impossible: &[Impossible]) -> bool {
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

    /// Opens the iterators of one look for files that no slot holds. They are read without the kernel side.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_look(&mut self) -> Result<Iterators, BpfError> {
        // What is open is looked at last: what isn't open then, and was mapped before and after, is hidden indeed.
        let mut names = Vec::from([HELD.0]);
        for (look, (name, _)) in PROGRAMS {
            if is_possible(look, &self.impossible) {
                names.insert(0, name);
            }
        }
        let open = |name| Ok((name, iterator(&mut self.ebpf, name)?));
        Ok(Iterators { files: names.into_iter().map(open).collect::<Result<_, BpfError>>()? })
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
