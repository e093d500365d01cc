//! The words that some facts can be: each an enum, whose names rules use.

/// An enum of words.
pub trait Word: Copy {
    /// The words, as rules have them, in the order of the enum.
    const NAMES: &'static [&'static str];

    /// Returns the place of the word.
    fn index(self) -> u8;

    /// Returns the word in this place.
    fn from_index(index: u8) -> Option<Self>;
}

/// Defines enums of words with the names that rules use.
macro_rules! words {
    ($(
        $(#[$doc:meta])+
        $word:ident { $($(#[$variant_doc:meta])+ $variant:ident = $name:literal,)+ }
    )+) => { $(
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $word { $($(#[$variant_doc])+ $variant,)+ }

        impl Word for $word {
            const NAMES: &'static [&'static str] = &[$($name,)+];

            fn index(self) -> u8 {
                self as u8
            }

            fn from_index(index: u8) -> Option<Self> {
                [$(Self::$variant,)+].get(usize::from(index)).copied()
            }
        }
    )+ };
}

words! {
    /// Whether something is in the tree, or shared with CRIU.
    Place {
        /// It is.
        Inside = "inside",
        /// It isn't.
        Outside = "outside",
    }

    /// What CRIU knows of a file's mount.
    MountState {
        /// It is among those of the tree's mount namespaces.
        Known = "known",
        /// It isn't.
        Unknown = "unknown",
        /// It is, and something else is mounted over it.
        Overmounted = "overmounted",
    }

    /// Who holds a lock through a descriptor.
    LockHolder {
        /// Nobody.
        None = "none",
        /// A process of the tree, or the open file itself.
        Held = "held",
        /// A process outside of the tree.
        Outside = "outside",
    }

    /// Where a file's path leads now.
    Leads {
        /// To the same file.
        Same = "same",
        /// To another.
        Other = "other",
        /// Nowhere.
        Nowhere = "nowhere",
    }

    /// A filesystem, where it matters.
    Filesystem {
        /// Overlayfs.
        Overlay = "overlay",
        /// NFS.
        Nfs = "nfs",
        /// Procfs.
        Proc = "proc",
        /// Devpts.
        Devpts = "devpts",
        /// Any other.
        Other = "other",
    }

    /// Whether a memory file is of huge pages.
    HugePages {
        /// It isn't.
        NotUsed = "not_used",
        /// It is, and the kernel has some left.
        Free = "free",
        /// It is, and the kernel has none left.
        NoneFree = "none_free",
    }

    /// Where the target of a pidfd is.
    Target {
        /// It has been reaped.
        Reaped = "reaped",
        /// In the tree.
        Inside = "inside",
        /// Outside of the tree, or not visible.
        Outside = "outside",
    }

    /// What becomes of the targets of an epoll.
    Targets {
        /// All are open in its own process.
        Found = "found",
        /// One isn't.
        Escaped = "escaped",
    }

    /// Whether CRIU finds again what is watched.
    Watches {
        /// It does.
        Found = "found",
        /// A handle can't be opened.
        NoHandle = "no_handle",
        /// A file has no path.
        NoPath = "no_path",
        /// A mount isn't known.
        NoMount = "no_mount",
    }

    /// A socket's filter.
    Filter {
        /// None.
        None = "none",
        /// Classic BPF.
        Classic = "classic",
        /// eBPF.
        Ebpf = "ebpf",
    }

    /// State of a TCP socket, or of a unix socket.
    SocketState {
        /// Neither connected nor listening.
        Close = "close",
        /// It listens.
        Listen = "listen",
        /// It is connected, or the connection is being closed.
        Connected = "connected",
        /// A connection was asked for and is not there yet.
        SynRecv = "syn_recv",
        /// It asks for a connection.
        Connecting = "connecting",
        /// The connection was closed a moment ago.
        TimeWait = "time_wait",
    }

    /// The peer of a unix socket.
    Peer {
        /// There is none.
        None = "none",
        /// It is in the tree.
        Inside = "inside",
        /// It is outside of the tree.
        Outside = "outside",
        /// It isn't to be found.
        Missing = "missing",
        /// It is a listening socket, on which the connection waits to be accepted.
        Pending = "pending",
    }

    /// Which end of a terminal a file is.
    End {
        /// The master of a pseudo terminal.
        Master = "master",
        /// The slave of a pseudo terminal.
        Slave = "slave",
        /// The terminal that controls whoever uses it (`/dev/tty`).
        Control = "control",
        /// None of these.
        None = "none",
    }

    /// Where the leader of a session is.
    Leader {
        /// In the tree.
        Inside = "inside",
        /// Outside of the tree.
        Outside = "outside",
        /// Nowhere: there is no session.
        None = "none",
    }

    /// A terminal's driver, as CRIU calls it.
    Driver {
        /// The master of a pseudo terminal.
        Ptmx = "ptmx",
        /// `/dev/console`.
        Console = "console",
        /// `/dev/tty`.
        Current = "ctty",
        /// A virtual terminal.
        Virtual = "vt",
        /// A serial port.
        Serial = "serial",
        /// The slave of a pseudo terminal.
        Pts = "pts",
    }

    /// A namespace that only a process has, of a kind that CRIU dumps of the tree's root only.
    Nested {
        /// The process has none.
        None = "none",
        /// Of pids.
        Pid = "pid",
        /// Of System V IPC and message queues.
        Ipc = "ipc",
        /// Of the host's name.
        Uts = "uts",
        /// Of cgroups.
        Cgroup = "cgroup",
        /// Of clocks.
        Time = "time",
        /// Of users.
        User = "user",
    }

    /// A layer of an overlay.
    Layer {
        /// A lower one.
        Lower = "lower",
        /// The upper one.
        Upper = "upper",
    }
}

impl From<bool> for Place {
    fn from(is_inside: bool) -> Self {
        if is_inside { Self::Inside } else { Self::Outside }
    }
}

impl From<tracker_ebpf::classify::Terminal> for Driver {
    fn from(terminal: tracker_ebpf::classify::Terminal) -> Self {
        use tracker_ebpf::classify::Terminal;
        match terminal {
            Terminal::Ptmx => Self::Ptmx,
            Terminal::Console => Self::Console,
            Terminal::Current => Self::Current,
            Terminal::Virtual => Self::Virtual,
            Terminal::Serial => Self::Serial,
            Terminal::Pts => Self::Pts,
        }
    }
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::classify::Terminal::{Console, Current, Ptmx, Pts, Serial, Virtual};

    use super::*;

    #[test]
    fn a_terminals_driver_is_called_as_criu_calls_it() {
        for terminal in [Ptmx, Console, Current, Virtual, Serial, Pts] {
            let driver = Driver::from(terminal);
            assert_eq!(Driver::NAMES[usize::from(driver.index())], terminal.name());
        }
    }

    #[test]
    fn a_word_has_a_place() {
        for index in 0..Nested::NAMES.len() as u8 {
            assert_eq!(Nested::from_index(index).map(Word::index), Some(index));
        }
        assert_eq!(Nested::from_index(Nested::NAMES.len() as u8), None);
    }
}
