//! System calls and files, as fixtures need them.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsRawFd as _, IntoRawFd},
    path::{Path, PathBuf},
    process::Command,
};

use fdtracker_tests::{
    kinds,
    sys::{address, call},
};

/// Makes the directory for the fixture's files. Removes what an earlier fixture left there.
pub(crate) fn fresh_directory() -> io::Result<()> {
    let base = base();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(&base))
        .collect();
    for at in below.into_iter().rev() {
        umount(Path::new(at))?;
    }
    if base.exists() {
        fs::remove_dir_all(&base)?;
    }
    fs::create_dir_all(&base)
}

fn base() -> PathBuf {
    std::env::temp_dir().join("fdfixture")
}

/// Returns the path of a file of the fixture.
pub(crate) fn path(name: &str) -> PathBuf {
    base().join(name)
}

/// Makes a directory.
pub(crate) fn directory(name: &str) -> io::Result<PathBuf> {
    let path = path(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Makes a file of this size.
pub(crate) fn file(name: &str, size: usize) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path(name))?;
    (&file).write_all(&vec![b'x'; size])?;
    Ok(file)
}

/// Leaves a file open for good.
pub(crate) fn keep(file: impl IntoRawFd) -> i64 {
    file.into_raw_fd().into()
}

/// Opens a path, and leaves it open.
pub(crate) fn open(path: &CStr, flags: i32) -> io::Result<i64> {
    call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, flags.into(), 0])
}

/// Opens a path as [`open`] does.
pub(crate) fn open_at(path: impl AsRef<Path>, flags: i32) -> io::Result<i64> {
    open(&c(path)?, flags)
}

/// Converts a path for the kernel.
pub(crate) fn c(path: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(path.as_ref().as_os_str().as_encoded_bytes()).map_err(io::Error::other)
}

/// Makes a pipe. Returns the end for reading and the end for writing.
pub(crate) fn pipe(flags: i32) -> io::Result<(i64, i64)> {
    let mut ends = [0_i32; 2];
    call(libc::SYS_pipe2, &[ends.as_mut_ptr() as i64, flags.into()])?;
    let [read, write] = ends;
    Ok((read.into(), write.into()))
}

/// Makes two connected unix sockets of a type.
pub(crate) fn pair(ty: i32) -> io::Result<(i64, i64)> {
    let mut ends = [0_i32; 2];
    call(libc::SYS_socketpair, &[libc::AF_UNIX.into(), ty.into(), 0, ends.as_mut_ptr() as i64])?;
    let [one, other] = ends;
    Ok((one.into(), other.into()))
}

/// Makes another fd for the same file.
pub(crate) fn dup(fd: i64) -> io::Result<i64> {
    call(libc::SYS_dup, &[fd])
}

/// Writes bytes, which must all fit.
pub(crate) fn write(fd: i64, bytes: &[u8]) -> io::Result<()> {
    let written = call(libc::SYS_write, &[fd, address(bytes), bytes.len() as i64])?;
    if written == bytes.len() as i64 { Ok(()) } else { Err(io::Error::other("not all was written")) }
}

pub(crate) fn fcntl(fd: i64, command: i32, argument: i64) -> io::Result<i64> {
    call(libc::SYS_fcntl, &[fd, command.into(), argument])
}

pub(crate) fn ioctl(fd: i64, request: i64, argument: i64) -> io::Result<i64> {
    call(libc::SYS_ioctl, &[fd, request, argument])
}

/// Sets an option by `setsockopt`.
pub(crate) fn set<T>(socket: i64, level: i32, option: i32, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as i64;
    call(libc::SYS_setsockopt, &[socket, level.into(), option.into(), address(value), size]).map(drop)
}

pub(crate) fn bind(socket: i64, to: &[u8]) -> io::Result<()> {
    call(libc::SYS_bind, &[socket, address(to), to.len() as i64]).map(drop)
}

pub(crate) fn connect(socket: i64, to: &[u8]) -> io::Result<()> {
    call(libc::SYS_connect, &[socket, address(to), to.len() as i64]).map(drop)
}

pub(crate) fn listen(socket: i64, backlog: i64) -> io::Result<()> {
    call(libc::SYS_listen, &[socket, backlog]).map(drop)
}

pub(crate) fn shutdown(socket: i64, how: i32) -> io::Result<()> {
    call(libc::SYS_shutdown, &[socket, how.into()]).map(drop)
}

/// Returns the address of a unix socket.
pub(crate) fn unix_address(name: &[u8]) -> Vec<u8> {
    let family = libc::AF_UNIX as u16;
    [&family.to_ne_bytes(), name].concat()
}

/// Returns this machine's own address with a port; 0 is any free port.
pub(crate) fn local(port: u16) -> Vec<u8> {
    let family = libc::AF_INET as u16;
    [&family.to_ne_bytes()[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

/// Returns the port that a socket is bound to.
pub(crate) fn port_of(socket: i64) -> io::Result<u16> {
    let (mut name, mut len) = ([0_u8; 28], 28_u32);
    call(libc::SYS_getsockname, &[socket, name.as_mut_ptr() as i64, &raw mut len as i64])?;
    let [_, _, high, low, ..] = name;
    Ok(u16::from_be_bytes([high, low]))
}

/// Mounts a file system.
pub(crate) fn mount(kind: &CStr, at: &Path, data: &str) -> io::Result<()> {
    let data = CString::new(data).map_err(io::Error::other)?;
    let at = c(at)?;
    let kind = kind.as_ptr() as i64;
    call(libc::SYS_mount, &[kind, at.as_ptr() as i64, kind, 0, data.as_ptr() as i64]).map(drop)
}

/// Mounts a file or directory at another place.
pub(crate) fn bind_mount(from: &Path, at: &Path) -> io::Result<()> {
    let (from, at) = (c(from)?, c(at)?);
    let flags = libc::MS_BIND as i64;
    call(libc::SYS_mount, &[from.as_ptr() as i64, at.as_ptr() as i64, 0, flags, 0]).map(drop)
}

/// Unmounts. What is open there stays open.
pub(crate) fn umount(at: &Path) -> io::Result<()> {
    call(libc::SYS_umount2, &[c(at)?.as_ptr() as i64, libc::MNT_DETACH.into()]).map(drop)
}

/// Mounts a new tmpfs.
pub(crate) fn tmpfs(name: &str) -> io::Result<PathBuf> {
    let at = directory(name)?;
    mount(c"tmpfs", &at, "")?;
    Ok(at)
}

/// Mounts an overlay with one file, `lower`, in its lower layer.
pub(crate) fn overlay() -> io::Result<PathBuf> {
    let [lower, upper, work, merged] =
        ["layers/lower", "layers/upper", "layers/work", "merged"].map(directory);
    let (lower, upper, work, merged) = (lower?, upper?, work?, merged?);
    fs::write(lower.join("lower"), "lower")?;
    let data =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(c"overlay", &merged, &data)?;
    Ok(merged)
}

/// Mounts a file system of the kind that disks have, on a loop device, because there may be no
/// disk. The program that set up the machine has left an empty image.
pub(crate) fn disk() -> io::Result<PathBuf> {
    const EMPTY: &str = "/disk.img";
    let (image, at) = (path("disk"), directory("disk.mounted")?);
    fs::copy(EMPTY, &image).map_err(|error| io::Error::other(format!("{EMPTY}: {error}")))?;
    let output = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output()?;
    if output.status.success() {
        Ok(at)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")))
    }
}

/// Opens a file of a kind that the zoo has too, and leaves it open.
pub(crate) fn zoo(kind: &str) -> io::Result<()> {
    kinds::open(kind).map(drop)
}

/// Returns the fd of a file that something else keeps open.
pub(crate) fn number(file: &File) -> i64 {
    file.as_raw_fd().into()
}

/// Raises the limit to some thousand open files.
pub(crate) fn raise_limit() -> io::Result<()> {
    let limit = [4096_u64, 4096];
    call(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE.into(), address(&limit), 0]).map(drop)
}
