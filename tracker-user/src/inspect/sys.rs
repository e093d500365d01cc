//! System calls that the standard library has no words for. None changes anything of the processes that are looked at.
//!
//! rustix makes them. It has none for file handles and `kcmp`, and it has too few socket options.

use std::{
    cmp::Ordering,
    ffi::{c_int, c_long},
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, ResolveFlags, StatxFlags},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
    },
    path::Arg,
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};

use crate::file_handle;

/// What `statx` says of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) mode: u32,
    pub(super) inode: u64,
    /// Major and minor number of its filesystem's device.
    pub(super) device: (u32, u32),
    /// Major and minor number of the device that it is.
    pub(super) is_device: (u32, u32),
    pub(super) links: u32,
    pub(super) size: u64,
    /// Of 512 bytes.
    pub(super) blocks: u64,
    /// The mount that it was opened on (Linux 5.8).
    pub(super) mount: Option<u64>,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `statx`, which opens nothing, mounts nothing, and asks nobody: a filesystem that a process serves (FUSE) could be silent.
pub(super) fn status(dir: BorrowedFd<'_>, path: impl Arg, flags: AtFlags) -> io::Result<Status> {
    let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    Ok(Status {
        mode: found.stx_mode.into(),
        inode: found.stx_ino,
        device: (found.stx_dev_major, found.stx_dev_minor),
        is_device: (found.stx_rdev_major, found.stx_rdev_minor),
        links: found.stx_nlink,
        size: found.stx_size,
        blocks: found.stx_blocks,
        mount: (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id),
    })
}

/// Of an open file.
pub(super) fn status_of(file: BorrowedFd<'_>) -> io::Result<Status> {
    status(file, c"", AtFlags::EMPTY_PATH)
}

/// The magic number of the filesystem that a path leads to.
pub(super) fn filesystem(path: &str) -> io::Result<u64> {
    Ok(rustix::fs::statfs(path)?.f_type as u64)
}

/// Where a link leads, as text. None in `/proc` is longer than a page (fs/proc/base.c:do_proc_readlink).
pub(super) fn read_link(dir: BorrowedFd<'_>, path: impl Arg) -> io::Result<String> {
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    let length = rustix::fs::readlinkat_raw(dir, path, &mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// Opens a file of `/proc`, or a directory.
pub(super) fn open(dir: BorrowedFd<'_>, path: impl Arg, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Opens a path as if `root` were `/`, for [`status_of`] or to list a directory: symbolic links don't lead out of it. If it is to
/// be only by what the kernel has cached (Linux 5.12), nobody is asked, and the error may be `EAGAIN`.
pub(super) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    cached: bool,
) -> io::Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT;
    resolve.set(ResolveFlags::CACHED, cached);
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The root directory of the thread that asks.
pub(super) fn open_root() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, c"/", flags, Mode::empty())?)
}

/// Opens a file by its handle, without reading or writing it (`O_PATH`).
pub(super) fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> io::Result<OwnedFd> {
    file_handle::open(mount, kind, bytes, OFlags::PATH)
}

/// What `kcmp` compares.
#[derive(Clone, Copy, Debug)]
pub(super) enum Compare {
    /// Fd tables.
    Tables,
    /// A file of the first process with a target of an epoll of the second: the epoll's fd, the target's, and how many targets of
    /// that fd come before it.
    EpollTarget { file: u32, epoll: u32, target: u32, offset: u32 },
}

/// How two things are ordered in the kernel: `Equal` if they are one.
pub(super) fn compare(first: u32, second: u32, what: Compare) -> io::Result<Ordering> {
    // enum kcmp_type, include/uapi/linux/kcmp.h
    const KCMP_FILES: c_int = 2;
    const KCMP_EPOLL_TFD: c_int = 7;
    let slot;
    let (kind, a, b) = match what {
        Compare::Tables => (KCMP_FILES, 0, 0),
        Compare::EpollTarget { file, epoll, target, offset } => {
            // struct kcmp_epoll_slot
            slot = [epoll, target, offset];
            (KCMP_EPOLL_TFD, u64::from(file), (&raw const slot) as u64)
        }
    };
    // SAFETY: integers, and for the second kind the address of a structure that lives through the call.
    match check(unsafe { libc::syscall(libc::SYS_kcmp, first, second, kind, a, b) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::other("the kernel doesn't order them")),
    }
}

pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// A duplicate of a process's fd. For sockets only: to close the duplicate of another file can do something.
pub(super) fn duplicate_socket(process: BorrowedFd<'_>, fd: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_getfd(process, fd as c_int, PidfdGetfdFlags::empty())?)
}

/// A socket's option that is a number.
pub(super) fn socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<i32> {
    socket_option_words::<1>(socket, level, name).map(|([word], _)| word.cast_signed())
}

/// A socket's option, and how many bytes the kernel says that it has.
pub(super) fn socket_option_words<const N: usize>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<([u32; N], usize)> {
    let mut words = [0; N];
    let mut length = size_of_val(&words) as libc::socklen_t;
    let value = words.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes, which is what the words have. Any bytes are words.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value, &raw mut length) }.into())?;
    Ok((words, length as usize))
}

/// Of how many instructions a socket's filter is. `EACCES` if it is none of instructions, but a BPF program (net/core/filter.c:sk_get_filter).
pub(super) fn socket_filter(socket: BorrowedFd<'_>) -> io::Result<usize> {
    // A length of 0 asks only for the number of instructions.
    socket_option_words::<0>(socket, libc::SOL_SOCKET, libc::SO_GET_FILTER).map(|(_, count)| count)
}

/// The number of a socket's network namespace.
pub(super) fn socket_namespace(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // include/uapi/linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the request has no argument.
    let fd = check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into())?;
    // SAFETY: the kernel has just made this fd for this call, so nobody else owns it.
    let namespace = unsafe { OwnedFd::from_raw_fd(fd as c_int) };
    Ok(status_of(namespace.as_fd())?.inode)
}

/// The address that a netlink socket is bound to: its port.
pub(super) fn netlink_port(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(SocketAddrNetlink::try_from(rustix::net::getsockname(socket)?)?.pid())
}

/// Which of these is so now.
pub(super) fn poll(file: BorrowedFd<'_>, events: PollFlags) -> io::Result<PollFlags> {
    let mut polled = [PollFd::from_borrowed_fd(file, events)];
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [polled] = polled;
    Ok(polled.revents() & events)
}

/// How many bytes wait to be read; of datagrams, how many the first has.
pub(super) fn unread(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// A netlink socket for questions about sockets, of the network namespace that this thread is in.
pub(super) fn diagnostics() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::DGRAM);
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?)
}

pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, bytes, SendFlags::empty())?;
    Ok(())
}

/// Receives into a buffer; how many bytes.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (length, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(length)
}

/// Runs this in a thread of its own that is in another namespace of this kind. The thread ends with it.
pub(super) fn in_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    kind: LinkNameSpaceType,
    run: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let enter = || {
        // A mount namespace is entered with a root and a working directory that no other thread has (fs/namespace.c:mntns_install).
        // SAFETY: fd tables stay shared: only `CLONE_FILES` would part this thread from fds that others use.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::thread::move_into_link_name_space(namespace, Some(kind))?;
        run()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inspect".into()).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    })
}

/// A memory file of this process's own: on the filesystem that all are on.
pub(super) fn memory_file() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(c"fdtracker", MemfdFlags::CLOEXEC)?)
}
