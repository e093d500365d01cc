//! Which terminal a file is, and whose (tty.c).

use super::{
    files::{Looker, Open},
    kinds,
    surroundings::Session,
};
use crate::verdict::{
    fact,
    tree::{File, Relation},
    word::{Driver, End},
};

/// The major number of the slaves of pseudo terminals (include/uapi/linux/major.h).
const SLAVES: u32 = 136;

pub(super) fn look(looker: &mut Looker<'_>, open: &Open, file: &mut File) {
    let Some(driver) = kinds::tty_driver(open.status.is_device) else { return };
    file.facts.set(fact::DRIVER, driver);
    let session = match driver {
        Driver::Ptmx => {
            // Linux 4.20 tells the number (drivers/tty/tty_io.c:tty_show_fdinfo).
            let Some(index) = looker.fdinfo_or_why(open.fd, file).and_then(|info| info.terminal) else {
                return;
            };
            file.relations.push(Relation::Terminal { index, master: true });
            let slave = u32::try_from(index).map(|index| packed(SLAVES, index)).unwrap_or_default();
            Some(looker.around.session(slave).unwrap_or_default())
        }
        Driver::Pts => {
            let (major, minor) = open.status.is_device;
            file.relations.push(Relation::Terminal { index: minor.into(), master: false });
            Some(own_session(looker, packed(major, minor)))
        }
        Driver::Console | Driver::Current | Driver::Virtual | Driver::Serial => {
            let end = if driver == Driver::Current { End::Control } else { End::None };
            file.facts.set(fact::END, end);
            other_session(looker, open)
        }
    };
    if let Some(session) = session {
        file.relations.push(Relation::Session(session.session.into()));
        file.facts.set(fact::FOREGROUND, session.foreground);
    }
}

/// The kernel says it only to a process that the terminal controls (drivers/tty/tty_jobctrl.c:tiocgsid), and so to CRIU's parasite.
fn own_session(looker: &Looker<'_>, device: u64) -> Session {
    let stat = &looker.seen.stat;
    if stat.terminal == device {
        Session { session: stat.session, foreground: stat.foreground }
    } else {
        Session::default()
    }
}

/// Of `/dev/tty`, which is whatever terminal controls the process; of the console, which may be any; of others, themselves.
fn other_session(looker: &Looker<'_>, open: &Open) -> Option<Session> {
    let own = looker.seen.stat.terminal;
    match open.status.is_device {
        _ if own == 0 => Some(Session::default()),
        (5, 0) => Some(own_session(looker, own)),
        (5, 1) => None,
        (major, minor) => Some(own_session(looker, packed(major, minor))),
    }
}

/// A device as `/proc/PID/stat` has it (include/linux/kdev_t.h:new_encode_dev).
fn packed(major: u32, minor: u32) -> u64 {
    u64::from(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_packed_as_the_kernel_does() {
        assert_eq!(packed(136, 0), 34816);
        assert_eq!(packed(136, 300), 0x0010_882c);
        assert_eq!(packed(4, 1), 1025);
    }
}
