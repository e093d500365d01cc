//! Pipes and fifos.

use std::{fs, io};

use fdtracker_tests::{kinds::close, sys::call};

use crate::{
    Fixture, here,
    os::{self, fcntl, path, pipe, write},
    process::{inside, outside},
};

/// Makes a fifo with the name `fifo`.
pub(crate) fn make_fifo() -> io::Result<()> {
    let at = os::c(path("fifo"))?;
    let mode = (libc::S_IFIFO | 0o600).into();
    call(libc::SYS_mknodat, &[libc::AT_FDCWD.into(), at.as_ptr() as i64, mode, 0]).map(drop)
}

fn fifo() -> io::Result<()> {
    make_fifo()?;
    os::open_at(path("fifo"), libc::O_RDWR).map(drop)
}

/// Makes this many of something. Its fds may go beyond the private fds of `process`: the fd for the
/// report is in use there, so the kernel skips it.
fn many(count: usize, mut make: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    os::raise_limit()?;
    (0..count).try_for_each(|_| make())
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = pipes();
    all.extend(fifos());
    all
}

fn pipes() -> Vec<Fixture> {
    vec![
        here("pipe.pair", "both ends", || pipe(0).map(drop)),
        here("pipe.data", "both ends, with bytes that nobody has read", || write(pipe(0)?.1, b"data")),
        here("pipe.full", "both ends, with as many bytes as go into it", || write(pipe(0)?.1, &[0; 65536])),
        here("pipe.big", "both ends of a pipe that takes 1 MiB, full", || {
            let (_, end) = pipe(0)?;
            fcntl(end, libc::F_SETPIPE_SZ, 1 << 20)?;
            write(end, &vec![0; 1 << 20])
        }),
        here("pipe.read_alone", "one end, the other being closed", || {
            let (_, end) = pipe(0)?;
            close(end);
            Ok(())
        }),
        here("pipe.write_alone", "one end, to which nobody listens any more", || {
            let (end, _) = pipe(0)?;
            close(end);
            Ok(())
        }),
        here("pipe.read_of_outside", "where to read what a process outside writes", || {
            let (_, end) = pipe(0)?;
            outside(|| Ok(()))?;
            close(end);
            Ok(())
        }),
        here("pipe.write_to_outside", "where to write what a process outside reads", || {
            let (end, _) = pipe(0)?;
            outside(|| Ok(()))?;
            close(end);
            Ok(())
        }),
        here("pipe.to_child", "a pipe to a child", || {
            let (read, write) = pipe(0)?;
            inside(|| {
                close(write);
                Ok(())
            })?;
            close(read);
            Ok(())
        }),
        here("pipe.packet", "one that keeps writes apart", || pipe(libc::O_DIRECT).map(drop)),
        here("pipe.packet_data", "one that keeps writes apart, with bytes", || {
            write(pipe(libc::O_DIRECT)?.1, b"data")
        }),
        here("pipe.notification", "one for the kernel's messages", || pipe(libc::O_EXCL).map(drop)),
        here("pipe.many", "eleven hundred", || many(1100, || pipe(0).map(drop))),
        here("pipe.not_too_many", "a thousand", || many(1000, || pipe(0).map(drop))),
    ]
}

fn fifos() -> Vec<Fixture> {
    vec![
        here("fifo.named", "a fifo", fifo),
        here("fifo.data", "a fifo with bytes", || {
            make_fifo()?;
            write(os::open_at(path("fifo"), libc::O_RDWR)?, b"data")
        }),
        here("fifo.unlinked", "a fifo without a name", || {
            fifo()?;
            fs::remove_file(path("fifo"))
        }),
    ]
}
