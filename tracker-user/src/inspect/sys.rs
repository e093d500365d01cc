//! System calls that the standard library has no words for. None changes anything of the processes that are looked at.

use std::{
    ffi::{CStr, CString, c_int, c_long, c_void},
    fs::File,
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

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

/// A result that is a new fd.
fn owned(result: c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// A path as the kernel takes it.
pub(super) fn c_path(path: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `statx`, which opens nothing, mounts nothing, and asks nobody: a filesystem that a process serves (FUSE) could be silent.
pub(super) fn status(dir: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<Status> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = flags | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let wanted = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: the path ends with NUL, and the structure lives through the call.
    check(unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, wanted, found.as_mut_ptr()) }.into())?;
    // SAFETY: all zeros are a value, and the kernel has filled it.
    let found = unsafe { found.assume_init() };
    Ok(Status {
        mode: found.stx_mode.into(),
        inode: found.stx_ino,
        device: (found.stx_dev_major, found.stx_dev_minor),
        is_device: (found.stx_rdev_major, found.stx_rdev_minor),
        links: found.stx_nlink,
        size: found.stx_size,
        blocks: found.stx_blocks,
        mount: (found.stx_mask & libc::STATX_MNT_ID != 0).then_some(found.stx_mnt_id),
    })
}

/// Of an open file.
pub(super) fn status_of(file: BorrowedFd<'_>) -> io::Result<Status> {
    status(file, c"", libc::AT_EMPTY_PATH)
}

/// The magic number of the filesystem that a path leads to.
pub(super) fn filesystem(path: &str) -> io::Result<u64> {
    let path = c_path(path)?;
    let mut found = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path ends with NUL, and the structure lives through the call.
    check(unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) }.into())?;
    // SAFETY: all zeros are a value, and the kernel has filled it.
    Ok(unsafe { found.assume_init() }.f_type as u64)
}

/// Where a link leads, as text. None in `/proc` is longer than a page (fs/proc/base.c:do_proc_readlink).
pub(super) fn read_link(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<String> {
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    let (at, room) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the path ends with NUL, and the buffer has that room.
    let length = check(unsafe { libc::readlinkat(dir.as_raw_fd(), path.as_ptr(), at, room) } as c_long)?;
    Ok(String::from_utf8_lossy(buffer.get(..length as usize).unwrap_or_default()).into_owned())
}

/// Opens a file of `/proc`, or a directory.
pub(super) fn open(dir: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<File> {
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) };
    owned(fd.into()).map(File::from)
}

/// Opens a path as if `root` were `/`, for [`status_of`] or to list a directory: symbolic links don't lead out of it. If it is to
/// be only by what the kernel has cached (Linux 5.12), nobody is asked, and the error may be `EAGAIN`.
pub(super) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &str,
    flags: c_int,
    cached: bool,
) -> io::Result<OwnedFd> {
    // include/uapi/linux/openat2.h
    const RESOLVE_CACHED: u64 = 0x20;
    // SAFETY: all zeros are a value.
    let mut how: libc::open_how = unsafe { mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | if cached { RESOLVE_CACHED } else { 0 };
    let path = c_path(path)?;
    let size = size_of::<libc::open_how>();
    // SAFETY: the path ends with NUL, and the structure lives through the call.
    owned(unsafe { libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size) })
}

/// The root directory of the thread that asks.
pub(super) fn open_root() -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path ends with NUL.
    owned(unsafe { libc::open(c"/".as_ptr(), flags) }.into())
}

/// Opens a file by its handle, without reading or writing it (`O_PATH`).
pub(super) fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> io::Result<OwnedFd> {
    const MAX_HANDLE: usize = 128;
    /// include/linux/fs.h: struct file_handle
    #[repr(C)]
    struct Handle {
        length: u32,
        kind: i32,
        bytes: [u8; MAX_HANDLE],
    }
    let mut handle = Handle { length: bytes.len() as u32, kind, bytes: [0; MAX_HANDLE] };
    handle.bytes.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads the structure, which is as long as it says.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags) })
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
pub(super) fn compare(first: u32, second: u32, what: Compare) -> io::Result<std::cmp::Ordering> {
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
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        2 => Ok(std::cmp::Ordering::Greater),
        _ => Err(io::Error::other("the kernel doesn't order them")),
    }
}

pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A duplicate of a process's fd. For sockets only: to close the duplicate of another file can do something.
pub(super) fn duplicate_socket(process: BorrowedFd<'_>, fd: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// A socket's option, and how many bytes the kernel says that it has.
pub(super) fn socket_option<T: Copy + Default>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<(T, usize)> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, of integers.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    check(result.into())?;
    Ok((value, length as usize))
}

/// Of how many instructions a socket's filter is. `EACCES` if it is none of instructions, but a BPF program (net/core/filter.c:sk_get_filter).
pub(super) fn socket_filter(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut length: libc::socklen_t = 0;
    // SAFETY: a length of 0 asks only for the number of instructions.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut length,
        )
    };
    check(result.into())?;
    Ok(length)
}

/// The number of a socket's network namespace.
pub(super) fn socket_namespace(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // include/uapi/linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the request has no argument.
    let namespace = owned(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into())?;
    Ok(status_of(namespace.as_fd())?.inode)
}

/// The address that a netlink socket is bound to: its port.
pub(super) fn netlink_port(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut address = MaybeUninit::<libc::sockaddr_nl>::zeroed();
    let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes.
    let result =
        unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    check(result.into())?;
    // SAFETY: all zeros are a value.
    Ok(unsafe { address.assume_init() }.nl_pid)
}

/// Which of these is so now (`POLLIN`, `POLLRDHUP`).
pub(super) fn poll(file: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
    // SAFETY: one structure, which lives through the call; it doesn't wait.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) }.into())?;
    Ok(poll.revents & events)
}

/// How many bytes wait to be read; of datagrams, how many the first has.
pub(super) fn unread(socket: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one integer, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }.into())?;
    Ok(bytes)
}

/// A netlink socket for questions about sockets, of the network namespace that this thread is in.
pub(super) fn diagnostics() -> io::Result<OwnedFd> {
    const NETLINK_SOCK_DIAG: c_int = 4;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes integers.
    owned(unsafe { libc::socket(libc::AF_NETLINK, kind, NETLINK_SOCK_DIAG) }.into())
}

pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let (at, length) = (bytes.as_ptr().cast::<c_void>(), bytes.len());
    // SAFETY: the buffer is as long as it says.
    check(unsafe { libc::send(socket.as_raw_fd(), at, length, 0) } as c_long)?;
    Ok(())
}

/// Receives into a buffer; how many bytes.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (at, room) = (buffer.as_mut_ptr().cast::<c_void>(), buffer.len());
    // SAFETY: the buffer has that room.
    check(unsafe { libc::recv(socket.as_raw_fd(), at, room, 0) } as c_long).map(|length| length as usize)
}

/// Runs this in a thread of its own that is in another namespace, whose kind is one of `CLONE_NEW*`. The thread ends with it.
pub(super) fn in_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    kind: c_int,
    run: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let enter = || {
        // A mount namespace is entered with a root and a working directory that no other thread has (fs/namespace.c:mntns_install).
        // SAFETY: the call takes an integer.
        check(unsafe { libc::unshare(libc::CLONE_FS) }.into())?;
        // SAFETY: the calls take integers, and change this thread only.
        check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }.into())?;
        run()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inspect".into()).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    })
}

/// A memory file of this process's own: on the filesystem that all are on.
pub(super) fn memory_file() -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL.
    owned(unsafe { libc::memfd_create(c"fdtracker".as_ptr(), libc::MFD_CLOEXEC) }.into())
}
