//! Tests files that aren't sockets, in many states.

use std::{
    fs,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::{Command, Stdio},
};

use fdtracker::verdict::{
    fact,
    tree::Relation,
    word::{Driver, Filesystem, Leads, LockHolder, Targets, Watches},
};
use fdtracker_tests::{
    Zoo, fdzoo,
    sys::{address, call, check},
};

use super::{fd, first, has, inspect, is_related, me, owned};

pub(super) fn regular_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a file\nof a strange (name)");
    let mut file = fs::File::create(&path).expect("make a file");
    file.write_all(b"hello").expect("write");
    let directory = fs::File::open(dir.path()).expect("open a directory");
    let namespace = fs::File::open("/proc/self/ns/net").expect("open a namespace");
    let proc = fs::File::open("/proc/self/status").expect("open a file of /proc");
    let tree = me();
    let found = fd(&tree, file.as_raw_fd());
    assert_eq!((found.kind.name(), found.link.as_str()), ("file", path.to_str().expect("a name")));
    has(found, fact::LEADS, Leads::Same);
    has(found, fact::LINKS, 1);
    has(found, fact::SIZE, 5);
    has(found, fact::LOCK, LockHolder::None);
    let Some(Relation::Mount(mount)) = found.relations.first() else { panic!("no mount: {found:#?}") };
    let mounts = &tree.mounts[&first(&tree).namespaces["mnt"]];
    assert_eq!(mounts.overmounted.get(mount), Some(&false));
    has(fd(&tree, directory.as_raw_fd()), fact::LEADS, Leads::Same);
    let found = fd(&tree, namespace.as_raw_fd());
    is_related(found, &Relation::Namespace("net".into(), tree.host["net"]));
    has(fd(&tree, proc.as_raw_fd()), fact::FILESYSTEM, Filesystem::Proc);
}

pub(super) fn deleted_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let make = |name: &str| fs::File::create(dir.path().join(name)).expect("make a file");
    let (gone, linked, replaced) = (make("gone"), make("linked"), make("replaced"));
    gone.set_len(1 << 21).expect("a hole");
    fs::hard_link(dir.path().join("linked"), dir.path().join("other")).expect("a link");
    for name in ["gone", "linked"] {
        fs::remove_file(dir.path().join(name)).expect("remove a file");
    }
    // Another file gets the name that a link shows for a deleted file: `replaced (deleted)`.
    fs::hard_link(dir.path().join("replaced"), dir.path().join("kept")).expect("a link");
    make("new");
    fs::rename(dir.path().join("new"), dir.path().join("replaced (deleted)")).expect("rename");
    fs::remove_file(dir.path().join("replaced")).expect("remove a file");
    let tree = me();
    let found = fd(&tree, gone.as_raw_fd());
    has(found, fact::LINKS, 0);
    has(found, fact::SIZE, 1 << 21);
    has(found, fact::ALLOCATED, 0);
    has(fd(&tree, linked.as_raw_fd()), fact::LEADS, Leads::Nowhere);
    let found = fd(&tree, replaced.as_raw_fd());
    has(found, fact::LEADS, Leads::Other);
    assert_ne!(found.facts.get(fact::LEADS_TO), found.facts.get(fact::IDENTITY));
}

pub(super) fn locks() {
    let file = || tempfile::tempfile().expect("a file");
    let (posix, whole, open, free) = (file(), file(), file(), file());
    // SAFETY: all zeros are a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: the structure lives through the calls.
    let results = unsafe {
        [
            libc::fcntl(posix.as_raw_fd(), libc::F_SETLK, &raw const lock),
            libc::flock(whole.as_raw_fd(), libc::LOCK_EX),
            libc::fcntl(open.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock),
        ]
    };
    assert_eq!(results, [0; 3]);
    let tree = me();
    let pid = i64::from(std::process::id());
    is_related(fd(&tree, posix.as_raw_fd()), &Relation::Lock(pid));
    is_related(fd(&tree, whole.as_raw_fd()), &Relation::Lock(pid));
    is_related(fd(&tree, open.as_raw_fd()), &Relation::Lock(-1));
    has(fd(&tree, free.as_raw_fd()), fact::LOCK, LockHolder::None);
}

pub(super) fn pipes() {
    let pipe = |flags| {
        let fds = [0_i32; 2];
        call(libc::SYS_pipe2, &[address(&fds), i64::from(flags)]).expect("a pipe");
        // SAFETY: the call has filled the array behind the compiler's back.
        let fds = unsafe { std::ptr::from_ref(&fds).read_volatile() };
        fds.map(|fd| owned(fd.into()))
    };
    // The end for reading has no such flag (kernel: `fs/pipe.c:create_pipe_files`).
    let ([reads, writes], [_end, packets]) = (pipe(0), pipe(libc::O_DIRECT));
    let dir = tempfile::tempdir().expect("a directory");
    let path = std::ffi::CString::new(dir.path().join("fifo").to_str().expect("a path")).expect("a path");
    call(libc::SYS_mknodat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, 0o10_600, 0]).expect("a fifo");
    let open =
        |flags| call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, i64::from(flags), 0]);
    let fifo = owned(open(libc::O_RDWR).expect("open the fifo"));
    let named = owned(open(libc::O_PATH).expect("open the fifo's name"));
    let tree = me();
    let found = fd(&tree, reads.as_raw_fd());
    assert_eq!(found.kind.name(), "pipe");
    has(found, fact::PACKETS, false);
    let inode = found.facts.get(fact::INODE).expect("an inode");
    is_related(found, &Relation::ReadablePipe(inode as u64));
    assert!(fd(&tree, writes.as_raw_fd()).relations.is_empty());
    has(fd(&tree, packets.as_raw_fd()), fact::PACKETS, true);
    assert_eq!(fd(&tree, fifo.as_raw_fd()).kind.name(), "fifo");
    has(fd(&tree, fifo.as_raw_fd()), fact::O_PATH, false);
    has(fd(&tree, named.as_raw_fd()), fact::O_PATH, true);
}

pub(super) fn epoll_targets() {
    let add = |epoll: &OwnedFd, target: &OwnedFd| {
        let event = [1_u32, 0, 0];
        let arguments = [epoll.as_raw_fd().into(), 1, target.as_raw_fd().into(), address(&event)];
        call(libc::SYS_epoll_ctl, &arguments).expect("add to an epoll");
    };
    let make = || owned(call(libc::SYS_epoll_create1, &[0]).expect("an epoll"));
    let eventfd = || owned(call(libc::SYS_eventfd2, &[0, 0]).expect("an eventfd"));
    let (plain, copied, escaped) = (make(), make(), make());
    let target = eventfd();
    add(&plain, &target);
    let original = eventfd();
    add(&copied, &original);
    let _copy = original.try_clone().expect("a copy");
    drop(original);
    // This file is open only in a message.
    let (a, b) = UnixDatagram::pair().expect("a pair");
    let gone = eventfd();
    add(&escaped, &gone);
    let control = [20_u64, 1 | 1 << 32, u64::from(gone.as_raw_fd() as u32)];
    let mut control = control;
    fdtracker_tests::sys::message(libc::SYS_sendmsg, a.as_raw_fd().into(), &mut control, 24, 0)
        .expect("send");
    drop(gone);
    let tree = me();
    has(fd(&tree, plain.as_raw_fd()), fact::TARGETS, Targets::Found);
    has(fd(&tree, copied.as_raw_fd()), fact::TARGETS, Targets::Found);
    has(fd(&tree, escaped.as_raw_fd()), fact::TARGETS, Targets::Escaped);
    drop(b);
}

pub(super) fn watches() {
    let watch = |path: &str| {
        let inotify = owned(call(libc::SYS_inotify_init1, &[0]).expect("an inotify"));
        let path = std::ffi::CString::new(path).expect("a path");
        let arguments = [inotify.as_raw_fd().into(), path.as_ptr() as i64, libc::IN_CREATE.into()];
        call(libc::SYS_inotify_add_watch, &arguments).expect("watch");
        inotify
    };
    let (etc, proc) = (watch("/etc"), watch("/proc/self"));
    let empty = owned(call(libc::SYS_inotify_init1, &[0]).expect("an inotify"));
    let tree = me();
    has(fd(&tree, empty.as_raw_fd()), fact::WATCHES, Watches::Found);
    has(fd(&tree, etc.as_raw_fd()), fact::WATCHES, Watches::Found);
    let found = fd(&tree, proc.as_raw_fd());
    has(found, fact::WATCHES, Watches::NoHandle);
    assert!(found.facts.get(fact::WATCH_INODE).is_some(), "{found:#?}");
    if fs::metadata("/dev/shm").is_ok() {
        let path = format!("/dev/shm/fdtracker-{}", std::process::id());
        fs::write(&path, "").expect("make a file");
        let shm = watch(&path);
        has(fd(&me(), shm.as_raw_fd()), fact::WATCHES, Watches::Found);
        let _open = fs::File::open(&path).expect("open the file");
        fs::remove_file(&path).expect("remove a file");
        let gone = me();
        has(fd(&gone, shm.as_raw_fd()), fact::WATCHES, Watches::NoPath);
    }
}

pub(super) fn pidfds() {
    let open =
        |pid: u32, flags: i64| owned(call(libc::SYS_pidfd_open, &[pid.into(), flags]).expect("a pidfd"));
    let parent = open(std::os::unix::process::parent_id(), 0);
    let mut child = Command::new("true").spawn().expect("start a process");
    let reaped = open(child.id(), 0);
    child.wait().expect("wait");
    let tree = me();
    is_related(fd(&tree, parent.as_raw_fd()), &Relation::Target(std::os::unix::process::parent_id().into()));
    has(fd(&tree, parent.as_raw_fd()), fact::OF_THREAD, false);
    is_related(fd(&tree, reaped.as_raw_fd()), &Relation::Target(-1));
    // Linux 6.9
    if let Ok(of_thread) = call(libc::SYS_pidfd_open, &[std::process::id().into(), libc::O_EXCL.into()]) {
        let of_thread = owned(of_thread);
        has(fd(&me(), of_thread.as_raw_fd()), fact::OF_THREAD, true);
    }
}

pub(super) fn terminals() {
    let path = std::ffi::CString::new("/dev/ptmx").expect("a path");
    let flags = i64::from(libc::O_RDWR | libc::O_NOCTTY);
    let master = owned(
        call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, flags, 0]).expect("a terminal"),
    );
    // TIOCGPTPEER, TIOCSPTLCK: the slave, without a path.
    let unlocked = 0_i32;
    call(libc::SYS_ioctl, &[master.as_raw_fd().into(), 0x4004_5431, address(&unlocked)]).expect("unlock");
    let slave = owned(call(libc::SYS_ioctl, &[master.as_raw_fd().into(), 0x5441, flags]).expect("the slave"));
    let tree = me();
    let found = fd(&tree, slave.as_raw_fd());
    assert_eq!(found.kind.name(), "tty");
    has(found, fact::DRIVER, Driver::Pts);
    is_related(found, &Relation::Session(0));
    let index = found.facts.get(fact::MINOR).expect("a minor number");
    is_related(found, &Relation::Terminal { index, master: false });
    let found = fd(&tree, master.as_raw_fd());
    has(found, fact::DRIVER, Driver::Ptmx);
    is_related(found, &Relation::Terminal { index, master: true });
    is_related(found, &Relation::Session(0));
    // A session with this terminal.
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::from(slave));
    // SAFETY: both are system calls.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            check(libc::setsid().into())?;
            check(libc::ioctl(0, libc::TIOCSCTTY, 0).into()).map(drop)
        });
    }
    let mut child = command.spawn().expect("start a process");
    let session = Relation::Session(child.id().into());
    is_related(fd(&me(), master.as_raw_fd()), &session);
    let tree = inspect(child.id()).expect("the child can be inspected");
    is_related(fd(&tree, 0), &session);
    has(fd(&tree, 0), fact::FOREGROUND, i64::from(child.id()));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

pub(super) fn mappings() -> Result<(), String> {
    let mut zoo = Zoo::start(Command::new(fdzoo()));
    let ring = zoo.ask("open io_uring").map_err(|reason| format!("no io_uring here: {reason}"))?[0];
    zoo.must(&format!("mmap {ring}"));
    zoo.must(&format!("close {ring}"));
    let memory = zoo.must("open memfd");
    zoo.must(&format!("mmap {memory}"));
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    let mapped: Vec<_> = first(&tree).files.iter().filter(|file| file.fd.is_none()).collect();
    assert!(mapped.iter().all(|file| file.facts.get(fact::ADDRESS).is_some_and(|at| at > 0)));
    let [ring] = &mapped[..] else { panic!("one mapping that can't be dumped: {mapped:#?}") };
    assert_eq!((ring.kind.name(), ring.link.as_str()), ("io_uring_mapped", "anon_inode:[io_uring]"));
    assert_eq!(ring.facts.get(fact::MODE).map(|mode| mode & 0o777), Some(0o600));
    Ok(())
}
