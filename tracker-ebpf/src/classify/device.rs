//! Character devices, by their number.

use crate::{FileKind, Kind};

/// A character device, as CRIU tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharDevice {
    /// `/dev/null`, `/dev/zero`, …: dumped as a path.
    Memory,
    /// `/dev/autofs`: dumped as a path.
    Autofs,
    /// A terminal, for which CRIU has a driver.
    Terminal(Terminal),
    /// One of which no CRIU dumps all.
    Counted(Kind),
}

/// CRIU's driver for a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// The master of a pseudoterminal.
    Ptmx,
    /// `/dev/console`.
    Console,
    /// `/dev/tty`: the terminal of the session.
    Current,
    /// A virtual terminal, `/dev/tty1` to `/dev/tty63`.
    Virtual,
    /// A serial port of the majors that CRIU knows.
    Serial,
    /// The slave of a pseudoterminal.
    Pts,
}

/// Classifies a character device.
///
/// # Source
/// CRIU 3.17.1 to 4.2.1, which are the same here: `files.c:dump_chrdev`, `get_mem_dev_ops`,
/// `get_misc_dev_ops`; `tty.c:get_tty_driver`. The majors of GPUs are those of plugins.
#[must_use]
#[inline(always)]
pub const fn char_device(major: u32, minor: u32) -> CharDevice {
    match (major, minor) {
        (1, _) => CharDevice::Memory,
        (4, 1..=63) => CharDevice::Terminal(Terminal::Virtual),
        (5, 0) => CharDevice::Terminal(Terminal::Current),
        (5, 1) => CharDevice::Terminal(Terminal::Console),
        (5, 2) | (128..=135, _) => CharDevice::Terminal(Terminal::Ptmx),
        (10, 235) => CharDevice::Autofs,
        (136, _) => CharDevice::Terminal(Terminal::Pts),
        (188 | 204, _) => CharDevice::Terminal(Terminal::Serial),
        _ => match Kind::of_device(major, minor) {
            Some(kind) => CharDevice::Counted(kind),
            None => CharDevice::Counted(Kind::CharDevice),
        },
    }
}

impl CharDevice {
    /// The kind as which it is counted, if it is.
    #[must_use]
    #[inline(always)]
    pub const fn counted(self) -> Option<Kind> {
        match self {
            Self::Counted(kind) => Some(kind),
            Self::Memory | Self::Autofs | Self::Terminal(_) => None,
        }
    }
}

impl Terminal {
    /// CRIU's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ptmx => "ptmx",
            Self::Console => "console",
            Self::Current => "ctty",
            Self::Virtual => "vt",
            Self::Serial => "serial",
            Self::Pts => "pts",
        }
    }
}

impl From<CharDevice> for FileKind {
    fn from(device: CharDevice) -> Self {
        match device {
            CharDevice::Memory => Self::MemDevice,
            CharDevice::Autofs => Self::Autofs,
            CharDevice::Terminal(_) => Self::Tty,
            CharDevice::Counted(kind) => kind.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CRIU's sources say of each number: the cases of `get_tty_driver` in their order, with
    /// the constants of `linux/major.h` (TTYAUX_MAJOR 5, TTY_MAJOR 4, UNIX98_PTY_MASTER_MAJOR 128,
    /// UNIX98_PTY_MAJOR_COUNT 8, UNIX98_PTY_SLAVE_MAJOR 136, MEM_MAJOR 1, MISC_MAJOR 10),
    /// `linux/vt.h` (consoles 1 to 63), `tty.h` (188, 204) and `tun.h`.
    fn of_criu(major: u32, minor: u32) -> &'static str {
        if major == 1 {
            return "regfile";
        }
        if major == 10 {
            match minor {
                200 => return "tunfile",
                235 => return "regfile",
                _ => {}
            }
        }
        let driver = match major {
            5 if minor == 2 => "ptmx",
            5 if minor == 1 => "console",
            5 if minor == 0 => "ctty",
            4 if (1..=63).contains(&minor) => "vt",
            188 | 204 => "serial",
            _ if (128..128 + 8).contains(&major) => "ptmx",
            136 => "pts",
            _ => "",
        };
        if driver.is_empty() { "unsupported" } else { driver }
    }

    #[test]
    fn each_number_is_what_criu_makes_of_it() {
        for major in 0..=0xfff {
            for minor in (0..=300).chain([0xff_fff]) {
                let ours = match char_device(major, minor) {
                    CharDevice::Memory | CharDevice::Autofs => "regfile",
                    CharDevice::Terminal(terminal) => terminal.name(),
                    CharDevice::Counted(Kind::Tun) => "tunfile",
                    CharDevice::Counted(_) => "unsupported",
                };
                assert_eq!(ours, of_criu(major, minor), "{major}:{minor}");
            }
        }
    }

    #[test]
    fn gpus_have_kinds_of_their_own() {
        assert_eq!(char_device(195, 255).counted(), Some(Kind::Nvidia));
        assert_eq!(char_device(226, 128).counted(), Some(Kind::Dri));
        assert_eq!(char_device(5, 64).counted(), Some(Kind::CharDevice));
        assert_eq!(char_device(137, 0).counted(), Some(Kind::CharDevice));
        assert_eq!(char_device(136, 0).counted(), None);
    }
}
