//! Terminals. CRIU needs both ends of a pseudo-terminal, and the leader of its session.

use std::{fs, io};

use fdtracker_tests::{
    kinds::{close, send},
    sys::call,
};

use crate::{
    Fixture, here,
    os::{self, ioctl, open, open_at, pair},
    process::{inside, outside},
    there,
};

const QUIET: i32 = libc::O_RDWR | libc::O_NOCTTY;

/// Makes a pseudo-terminal, and returns both ends.
fn pty() -> io::Result<(i64, i64)> {
    let master = open(c"/dev/ptmx", QUIET)?;
    let unlocked = 0_i32;
    ioctl(master, libc::TIOCSPTLCK as i64, fdtracker_tests::sys::address(&unlocked))?;
    Ok((master, open_at(slave_of(master)?, QUIET)?))
}

/// Returns the path of a master's other end.
fn slave_of(master: i64) -> io::Result<String> {
    let mut number = 0_u32;
    ioctl(master, libc::TIOCGPTN as i64, &raw mut number as i64)?;
    Ok(format!("/dev/pts/{number}"))
}

/// Becomes the leader of a session with this terminal.
fn lead(slave: i64) -> io::Result<()> {
    // This fails if the process leads a session already.
    let _ = call(libc::SYS_setsid, &[]);
    ioctl(slave, libc::TIOCSCTTY as i64, 0).map(drop)
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = pairs();
    all.extend(sessions());
    all.extend(consoles());
    all
}

/// Opens a slave whose master is open only in a process outside.
fn slave_alone() -> io::Result<i64> {
    let (master, slave) = pty()?;
    outside(|| {
        close(slave);
        Ok(())
    })?;
    close(master);
    Ok(slave)
}

fn pairs() -> Vec<Fixture> {
    const SHELL_JOB: &[crate::Options] = &[&["--shell-job"]];
    vec![
        here("tty.pair", "both ends of a pseudo-terminal", || pty().map(drop)),
        here("tty.master_alone", "a master whose slave nobody has open", || {
            let (_, slave) = pty()?;
            close(slave);
            Ok(())
        }),
        here("tty.master_slave_outside", "a master whose slave is open in a process outside", || {
            let (master, slave) = pty()?;
            outside(|| {
                close(master);
                Ok(())
            })?;
            close(slave);
            Ok(())
        }),
        here("tty.slave_alone", "a slave whose master is open in a process outside", || {
            slave_alone().map(drop)
        })
        .with(SHELL_JOB),
        here("tty.two_slaves_alone", "two of these", || {
            slave_alone()?;
            slave_alone().map(drop)
        })
        .with(SHELL_JOB),
        here("tty.slave_hung_up", "a slave whose master nobody has open", || {
            let (master, _) = pty()?;
            close(master);
            Ok(())
        })
        .with(SHELL_JOB),
        here(
            "tty.master_detached_mount",
            "a master on a devpts of its own that was taken out of the tree",
            || {
                let at = os::directory("pts")?;
                os::mount(c"devpts", &at, "ptmxmode=0666,mode=0600")?;
                open_at(at.join("ptmx"), QUIET)?;
                os::umount(&at)
            },
        )
        .with(SHELL_JOB),
        here("tty.queue", "a slave on its way through a socket", || {
            let (_, slave) = pty()?;
            let (a, _) = pair(libc::SOCK_STREAM)?;
            send(a, slave as i32)?;
            close(slave);
            Ok(())
        }),
        here("tty.pair_in_child", "a master, and its slave in a child", || {
            let (master, slave) = pty()?;
            inside(|| {
                close(master);
                Ok(())
            })?;
            close(slave);
            Ok(())
        }),
    ]
}

fn sessions() -> Vec<Fixture> {
    const SHELL_JOB: &[crate::Options] = &[&["--shell-job"]];
    vec![
        here("tty.controlling_pair", "a pair that is the session's terminal", || lead(pty()?.1))
            .with(SHELL_JOB),
        here("tty.controlling_slave_alone", "the session's terminal, with its master outside", || {
            lead(slave_alone()?)
        })
        .with(SHELL_JOB),
        here("tty.controlling_unopened", "a session's terminal that is open nowhere inside", || {
            let slave = slave_alone()?;
            lead(slave)?;
            close(slave);
            Ok(())
        })
        .with(SHELL_JOB),
        there("tty.leader_outside", "a slave, the session's leader and the master being outside", || {
            let slave = slave_alone()?;
            lead(slave)?;
            inside(|| Ok(()))
        })
        .with(SHELL_JOB),
        there("tty.leader_outside_pair", "a pair, the session's leader being outside", || {
            let (_, slave) = pty()?;
            lead(slave)?;
            inside(|| Ok(()))
        })
        .with(SHELL_JOB),
        there("tty.leader_outside_no_tty", "no terminal, the session's leader being outside", || {
            inside(|| Ok(()))
        })
        .with(SHELL_JOB),
        here("tty.dev_tty", "/dev/tty of a session whose terminal is a pair", || {
            lead(pty()?.1)?;
            open(c"/dev/tty", libc::O_RDWR).map(drop)
        }),
        here("tty.dev_tty_alone", "/dev/tty alone", || {
            let slave = slave_alone()?;
            lead(slave)?;
            open(c"/dev/tty", libc::O_RDWR)?;
            close(slave);
            Ok(())
        })
        .with(SHELL_JOB),
    ]
}

fn consoles() -> Vec<Fixture> {
    const SHELL_JOB: &[crate::Options] = &[&["--shell-job"]];
    vec![
        here("tty.console", "the system's console", || open(c"/dev/console", QUIET).map(drop))
            .with(SHELL_JOB),
        here("tty.tty0", "the virtual terminal that is shown", || open(c"/dev/tty0", QUIET).map(drop))
            .with(SHELL_JOB),
        here("tty.tty1", "a virtual terminal", || open(c"/dev/tty1", QUIET).map(drop)).with(SHELL_JOB),
        here("tty.serial", "a serial port", || open(c"/dev/ttyS2", QUIET | libc::O_NONBLOCK).map(drop))
            .with(SHELL_JOB),
        here("tty.vcs", "a virtual terminal's screen", || fs::File::open("/dev/vcs").map(os::keep).map(drop)),
        here("tty.high_number", "a slave with a number above 1000", || {
            os::raise_limit()?;
            // A new devpts counts from 0, so masters are opened until one has a number that is high
            // enough.
            let mut masters = (0..1002).map(|_| open(c"/dev/ptmx", QUIET)).collect::<io::Result<Vec<_>>>()?;
            let last = masters.pop().ok_or_else(|| io::Error::other("no master"))?;
            masters.into_iter().for_each(close);
            let unlocked = 0_i32;
            ioctl(last, libc::TIOCSPTLCK as i64, fdtracker_tests::sys::address(&unlocked))?;
            open_at(slave_of(last)?, QUIET).map(drop)
        }),
    ]
}
