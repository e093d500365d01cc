//! The processes of a fixture: the one that CRIU dumps, those that it dumps with it, and helpers
//! that it doesn't.
//!
//! A process "inside" is a child of the process that makes it. One "outside" is made as its
//! sibling, so that no dump includes it. While a fixture is made, processes talk over fds that are
//! closed before the fixture is ready.

use std::{convert::Infallible, io, ptr};

use fdtracker_tests::{
    kinds::close,
    sys::{address, call, check},
};

use crate::os;

/// From this fd on, no fd is part of a fixture.
const PRIVATE: i64 = 900;

/// The fd to which a process writes that it has done its part.
const REPORT: i64 = 999;

/// Makes a descendant that does this and then waits to be killed.
pub(crate) fn inside(part: impl FnOnce() -> io::Result<()>) -> io::Result<i64> {
    branch(0, part)
}

/// Makes a sibling of this process, outside the dump, that does this and then waits to be killed.
pub(crate) fn outside(part: impl FnOnce() -> io::Result<()>) -> io::Result<i64> {
    branch(libc::CLONE_PARENT, part)
}

/// Makes a child that ends, and waits for its end.
pub(crate) fn ended() -> io::Result<i64> {
    let pid = branch(0, || Ok(()))?;
    call(libc::SYS_kill, &[pid, libc::SIGKILL.into()])?;
    // This waits for the end of the child, and doesn't reap it.
    const WNOWAIT: i64 = 0x0100_0000;
    let flags = i64::from(libc::WEXITED) | WNOWAIT;
    call(libc::SYS_waitid, &[libc::P_PID.into(), pid, 0, flags, 0])?;
    Ok(pid)
}

/// Reaps a child that ends.
pub(crate) fn reap(pid: i64) -> io::Result<()> {
    call(libc::SYS_wait4, &[pid, 0, 0, 0]).map(drop)
}

fn branch(flags: i32, part: impl FnOnce() -> io::Result<()>) -> io::Result<i64> {
    let (said, say) = os::pipe(0)?;
    let (said, say) = (private(said)?, private(say)?);
    let pid = call(libc::SYS_clone, &[i64::from(flags | libc::SIGCHLD), 0, 0, 0, 0])?;
    if pid == 0 {
        close_private_but(say)?;
        report(&part().map_or_else(|error| format!("no {error}"), |()| "ok".into()));
        wait_to_be_killed();
    }
    close(say);
    let answer = read(said)?;
    close(said);
    match answer.as_str() {
        "ok" => Ok(pid),
        "" => Err(io::Error::other("a process of the fixture has ended")),
        reason => Err(io::Error::other(reason.trim_start_matches("no ").to_owned())),
    }
}

/// Makes the process that is to be dumped. It takes over nothing from this one: no fd, no session.
/// Only it writes to `ready`.
pub(crate) fn dumped(ready: i64, part: impl FnOnce() -> io::Result<i64>) -> io::Result<Infallible> {
    let pid = call(libc::SYS_clone, &[libc::SIGCHLD.into(), 0, 0, 0, 0])?;
    let ready = private(ready)?;
    close_private_but(ready)?;
    let null = os::open(c"/dev/null", libc::O_RDWR)?;
    for standard in (0..3).filter(|standard| *standard != null) {
        call(libc::SYS_dup3, &[null, standard, 0])?;
    }
    call(libc::SYS_close_range, &[3, PRIVATE - 1, 0])?;
    if pid == 0 {
        call(libc::SYS_setsid, &[])?;
        report(&part().map_or_else(|error| format!("no {error}\n"), |pid| format!("ready {pid}\n")));
    } else {
        // The other side waits for the report. It must see the end of the pipe if no process is
        // left that could write.
        close(REPORT);
    }
    wait_to_be_killed()
}

/// Moves a file to an fd that no fixture uses.
fn private(fd: i64) -> io::Result<i64> {
    let moved = os::fcntl(fd, libc::F_DUPFD, PRIVATE)?;
    close(fd);
    Ok(moved)
}

/// Closes all private fds but this one, to which the report is written.
fn close_private_but(fd: i64) -> io::Result<()> {
    call(libc::SYS_dup3, &[fd, REPORT, 0])?;
    call(libc::SYS_close_range, &[PRIVATE, REPORT - 1, 0])?;
    call(libc::SYS_close_range, &[REPORT + 1, u32::MAX.into(), 0]).map(drop)
}

/// Writes a report. If that fails nothing can be done: the other side sees that nobody writes any
/// more.
fn report(text: &str) {
    let _ = call(libc::SYS_write, &[REPORT, address(text), text.len() as i64]);
    close(REPORT);
}

fn read(fd: i64) -> io::Result<String> {
    let mut text = [0_u8; 256];
    // A report is smaller than PIPE_BUF, so that it comes in one piece.
    let len = call(libc::SYS_read, &[fd, text.as_mut_ptr() as i64, text.len() as i64])?;
    Ok(String::from_utf8_lossy(text.get(..len as usize).unwrap_or_default()).into_owned())
}

fn wait_to_be_killed() -> ! {
    loop {
        // SAFETY: the call has no precondition.
        unsafe { libc::pause() };
    }
}

/// Makes a child that shares the fd table and waits to be killed.
pub(crate) fn sharing_files() -> io::Result<i64> {
    extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
        wait_to_be_killed()
    }
    let stack = vec![0_u8; 64 * 1024].leak();
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is leaked, so the child has it for good.
    let pid = unsafe { libc::clone(wait, top.cast(), libc::CLONE_FILES | libc::SIGCHLD, ptr::null_mut()) };
    check(pid.into())
}
