//! Operations on single slots of the caller's own table. They may fail: a refusal by the kernel is
//! part of the mixture. Nothing here allocates, because it also runs in children that libc doesn't
//! know.

use std::{io, sync::atomic::Ordering::SeqCst};

use fdtracker_tests::sys::{call, message};

use crate::shared::{LINK, Rng, Shared, pid};

type Result = io::Result<i64>;

/// Does one of the operations.
pub fn play(shared: &Shared, rng: &mut Rng) {
    let _ = match rng.below(100) {
        0..20 => open(shared, rng),
        20..25 => call(libc::SYS_dup, &[rng.fd(), 0, 0, 0, 0]),
        25..35 => call(libc::SYS_dup2, &[rng.fd(), rng.fd(), 0, 0, 0]),
        35..45 => call(libc::SYS_dup3, &[rng.fd(), rng.fd(), cloexec(rng), 0, 0]),
        45..50 => {
            let command = if rng.percent(50) { libc::F_DUPFD } else { libc::F_DUPFD_CLOEXEC };
            call(libc::SYS_fcntl, &[rng.fd(), command.into(), rng.fd(), 0, 0])
        }
        50..83 => call(libc::SYS_close, &[rng.fd(), 0, 0, 0, 0]),
        83..87 => close_range(rng, 0),
        87..89 => call(libc::SYS_fcntl, &[rng.fd(), libc::F_SETFD.into(), libc::FD_CLOEXEC.into(), 0, 0]),
        89..93 => send(rng),
        93..97 => receive(rng),
        _ => steal(shared, rng),
    };
}

/// Closes some slots in a row.
pub fn close_range(rng: &mut Rng, flags: i64) -> Result {
    let first = rng.fd();
    call(libc::SYS_close_range, &[first, first + rng.below(16) as i64, flags, 0, 0])
}

fn cloexec(rng: &mut Rng) -> i64 {
    if rng.percent(25) { libc::O_CLOEXEC.into() } else { 0 }
}

fn open(shared: &Shared, rng: &mut Rng) -> Result {
    match rng.below(64) {
        0..18 => call(libc::SYS_eventfd2, &[0, cloexec(rng), 0, 0, 0]),
        18..32 => call(libc::SYS_pidfd_open, &[somebody(shared, rng), 0, 0, 0, 0]),
        32..38 => call(libc::SYS_epoll_create1, &[cloexec(rng), 0, 0, 0, 0]),
        38..46 => call(libc::SYS_timerfd_create, &[libc::CLOCK_MONOTONIC.into(), cloexec(rng), 0, 0, 0]),
        46 => call(libc::SYS_inotify_init1, &[cloexec(rng), 0, 0, 0, 0]),
        47 | 48 => {
            // struct io_uring_params, which the kernel fills.
            let mut params = [0_u64; 16];
            call(libc::SYS_io_uring_setup, &[1, params.as_mut_ptr() as i64, 0, 0, 0])
        }
        // Files that aren't counted: other files replace them by dup2, and they replace others.
        49..60 => {
            let null = c"/dev/null".as_ptr() as i64;
            call(libc::SYS_openat, &[libc::AT_FDCWD.into(), null, cloexec(rng), 0, 0])
        }
        _ => {
            let mut fds = [0_u32; 2];
            call(libc::SYS_pipe2, &[fds.as_mut_ptr() as i64, cloexec(rng), 0, 0, 0])
        }
    }
}

/// Returns this process, or a worker, which may have ended.
fn somebody(shared: &Shared, rng: &mut Rng) -> i64 {
    let worker = &shared.workers[rng.below(8) as usize];
    match worker.load(SeqCst) {
        0 => pid().into(),
        worker => worker.into(),
    }
}

/// Takes a file from another process's table by `pidfd_getfd`.
fn steal(shared: &Shared, rng: &mut Rng) -> Result {
    let pidfd = call(libc::SYS_pidfd_open, &[somebody(shared, rng), 0, 0, 0, 0])?;
    let got = call(libc::SYS_pidfd_getfd, &[pidfd, rng.fd(), 0, 0, 0]);
    if rng.percent(75) {
        call(libc::SYS_close, &[pidfd, 0, 0, 0, 0])?;
    }
    got
}

/// Sends up to three fds. Whichever task receives next gets them.
fn send(rng: &mut Rng) -> Result {
    let count = 1 + rng.below(3);
    let mut control = [0_u32; 16];
    // struct cmsghdr: length, level SOL_SOCKET, type SCM_RIGHTS; then the fds.
    control[0] = 16 + 4 * count as u32;
    control[2] = 1;
    control[3] = 1;
    for slot in control.iter_mut().skip(4).take(count as usize) {
        *slot = rng.fd() as u32;
    }
    let space = 16 + (4 * count).next_multiple_of(8);
    message(libc::SYS_sendmsg, LINK[0].into(), &mut control, space as usize, libc::MSG_DONTWAIT.into())
}

/// Receives what a task sent. Sometimes leaves it in the queue.
fn receive(rng: &mut Rng) -> Result {
    let mut flags = libc::MSG_DONTWAIT;
    if rng.percent(25) {
        flags |= libc::MSG_CMSG_CLOEXEC;
    }
    if rng.percent(10) {
        flags |= libc::MSG_PEEK;
    }
    message(libc::SYS_recvmsg, LINK[1].into(), &mut [0_u32; 16], 64, flags.into())
}
