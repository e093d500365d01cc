//! Anonymous inodes, and pidfds, which were anonymous inodes until Linux 6.9.

use std::io;

use fdtracker_tests::{
    kinds::{close, open},
    sys::{address, call, map},
};

use crate::{
    Fixture, here,
    os::{self, dup, ioctl, pair, pipe, zoo},
    process::{ended, inside, outside, reap},
};

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = counters();
    all.extend(epolls());
    all.extend(timers());
    all.extend(pidfds());
    all.extend(rings());
    all.extend(others());
    all
}

fn counters() -> Vec<Fixture> {
    vec![
        here("eventfd.plain", "a counter", || zoo("eventfd")),
        here("eventfd.semaphore", "a counter that reads count down", || {
            call(libc::SYS_eventfd2, &[3, libc::EFD_SEMAPHORE.into()]).map(drop)
        }),
        here("signalfd.plain", "signals as a file", || zoo("signalfd")),
    ]
}

/// Has `epoll` watch whether a file can be read, by `epoll_ctl`.
fn watch(epoll: i64, file: i64) -> io::Result<()> {
    const ADD: i64 = libc::EPOLL_CTL_ADD as i64;
    let event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: file as u64 };
    call(libc::SYS_epoll_ctl, &[epoll, ADD, file, address(&event)]).map(drop)
}

fn epolls() -> Vec<Fixture> {
    vec![
        here("epoll.empty", "an epoll that watches nothing", || zoo("epoll")),
        here("epoll.watching", "an epoll and the pipe that it watches", || {
            let (read, _) = pipe(0)?;
            watch(open("epoll")?, read)
        }),
        here("epoll.nested", "an epoll that watches another", || {
            let inner = open("epoll")?;
            watch(open("epoll")?, inner)
        }),
        here("epoll.duped", "the file that it watches is open only with another number", || {
            let (read, _) = pipe(0)?;
            watch(open("epoll")?, read)?;
            dup(read)?;
            close(read);
            Ok(())
        }),
        here("epoll.escaped", "the file that it watches is open only in a process outside", || {
            let (read, _) = pipe(0)?;
            watch(open("epoll")?, read)?;
            outside(|| Ok(()))?;
            close(read);
            Ok(())
        }),
        here("epoll.escaped_child", "the file that it watches is open only in a child", || {
            let (read, _) = pipe(0)?;
            watch(open("epoll")?, read)?;
            inside(|| Ok(()))?;
            close(read);
            Ok(())
        }),
        here("epoll.escaped_queue", "the file that it watches is only in the queue of a socket", || {
            let (read, _) = pipe(0)?;
            watch(open("epoll")?, read)?;
            let (a, _) = pair(libc::SOCK_STREAM)?;
            fdtracker_tests::kinds::send(a, read as i32)?;
            close(read);
            Ok(())
        }),
    ]
}

fn timer(clock: i32) -> io::Result<i64> {
    call(libc::SYS_timerfd_create, &[clock.into(), 0])
}

fn timers() -> Vec<Fixture> {
    vec![
        here("timerfd.monotonic", "a timer", || timer(libc::CLOCK_MONOTONIC).map(drop)),
        here("timerfd.realtime", "a timer of the time of day", || timer(libc::CLOCK_REALTIME).map(drop)),
        here("timerfd.boottime", "a timer that goes on in sleep", || timer(libc::CLOCK_BOOTTIME).map(drop)),
        here("timerfd.armed", "a timer that will expire", || {
            let timer = timer(libc::CLOCK_MONOTONIC)?;
            let every_hour = [3600_i64, 0, 3600, 0];
            call(libc::SYS_timerfd_settime, &[timer, 0, address(&every_hour), 0]).map(drop)
        }),
        here("timerfd.alarm", "a timer of the time of day that wakes the machine", || {
            timer(libc::CLOCK_REALTIME_ALARM).map(drop)
        }),
        here("timerfd.boottime_alarm", "a timer that wakes the machine", || {
            timer(libc::CLOCK_BOOTTIME_ALARM).map(drop)
        }),
    ]
}

fn pidfd(pid: i64) -> io::Result<i64> {
    call(libc::SYS_pidfd_open, &[pid, 0])
}

fn pidfds() -> Vec<Fixture> {
    const PIDFD_THREAD: i64 = libc::O_EXCL as i64;
    const INIT: i64 = 1;
    vec![
        here("pidfd.self", "of the process itself", || zoo("pidfd")),
        here("pidfd.child", "of a child", || pidfd(inside(|| Ok(()))?).map(drop)),
        here("pidfd.zombie", "of a child that has ended and isn't reaped", || pidfd(ended()?).map(drop)),
        here("pidfd.outside", "of a process outside", || pidfd(outside(|| Ok(()))?).map(drop)),
        here("pidfd.init", "of the machine's first process", || pidfd(INIT).map(drop)),
        here("pidfd.reaped", "of a child that is gone", || {
            let child = ended()?;
            pidfd(child)?;
            reap(child)
        }),
        here("pidfd.reaped_twice", "two of the same child that is gone", || {
            let child = ended()?;
            pidfd(child)?;
            pidfd(child)?;
            reap(child)
        }),
        here("pidfd.thread", "of a thread (Linux 6.9)", || {
            call(libc::SYS_pidfd_open, &[std::process::id().into(), PIDFD_THREAD]).map(drop)
        }),
        here("pidfd.nonblocking", "of the process itself, which doesn't block", || {
            call(libc::SYS_pidfd_open, &[std::process::id().into(), libc::O_NONBLOCK.into()]).map(drop)
        }),
    ]
}

fn rings() -> Vec<Fixture> {
    vec![
        here("io_uring.unmapped", "a ring of which nothing is mapped", || zoo("io_uring")),
        here("io_uring.mapped", "a ring that is mapped, as libraries do", || {
            map(open("io_uring")?, 0, 4096).map(drop)
        }),
        here("io_uring.mapped_only", "a mapped ring that no fd holds", || {
            let ring = open("io_uring")?;
            map(ring, 0, 4096)?;
            close(ring);
            Ok(())
        }),
        here("io_uring.unmapped_and_fuse", "a ring, and after it a device that CRIU doesn't dump", || {
            zoo("io_uring")?;
            zoo("char_device")
        }),
        here("perf_event.plain", "a performance counter", || zoo("perf_event")),
        here("perf_event.mapped", "a performance counter whose buffer is mapped", || {
            map(open("perf_event")?, 0, 2 * 4096).map(drop)
        }),
    ]
}

/// Starts a userfaultfd by `UFFDIO_API`: before that it can do nothing.
fn start_faults(faults: i64) -> io::Result<()> {
    const UFFDIO_API: i64 = 0xc018_aa3f;
    let mut api = [0xaa_u64, 0, 0];
    ioctl(faults, UFFDIO_API, api.as_mut_ptr() as i64).map(drop)
}

fn others() -> Vec<Fixture> {
    vec![
        here("userfaultfd.plain", "page faults as a file", || zoo("userfaultfd")),
        here("userfaultfd.registered", "page faults of a page", || {
            const UFFDIO_REGISTER: i64 = 0xc020_aa00;
            const MISSING: u64 = 1;
            let faults = open("userfaultfd")?;
            start_faults(faults)?;
            let (access, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let page = call(libc::SYS_mmap, &[0, 4096, access.into(), flags.into(), -1, 0])?;
            let mut range = [page as u64, 4096, MISSING, 0];
            ioctl(faults, UFFDIO_REGISTER, range.as_mut_ptr() as i64).map(drop)
        }),
        here("userfaultfd.device", "page faults as a file, by /dev/userfaultfd (Linux 6.1)", || {
            const USERFAULTFD_IOC_NEW: i64 = 0xaa00;
            let device = os::open(c"/dev/userfaultfd", libc::O_RDWR)?;
            let made = ioctl(device, USERFAULTFD_IOC_NEW, libc::O_NONBLOCK.into());
            close(device);
            made.map(drop)
        }),
        here("landlock.ruleset", "rules for a sandbox", || zoo("landlock")),
        here("fscontext.fsopen", "a file system that is being set up", || zoo("fscontext")),
        here("fscontext.fspick", "a file system that is being set up anew", || {
            let root = c"/tmp".as_ptr() as i64;
            call(libc::SYS_fspick, &[libc::AT_FDCWD.into(), root, 0]).map(drop)
        }),
        here("seccomp.notify", "where a filter's questions arrive", || zoo("seccomp_notify")),
        here("kvm.vm", "a virtual machine", || zoo("kvm")),
        here("kvm.device", "a device of a virtual machine", || zoo("kvm_device")),
    ]
}
