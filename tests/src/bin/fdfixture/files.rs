//! Regular files, directories and other files with a path; files without one; locks.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
};

use fdtracker_tests::{
    kinds::close,
    sys::{address, call},
};

use crate::{
    Fixture, here,
    os::{self, fcntl, file, ioctl, keep, number, path, zoo},
    process::{ended, inside, outside, reap},
};

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = named();
    all.extend(unnamed());
    all.extend(memory());
    all.extend(locks());
    all.extend(paths_only());
    all
}

/// Opens a path for reading.
fn read(name: &str) -> io::Result<()> {
    keep(File::open(name)?);
    Ok(())
}

fn named() -> Vec<Fixture> {
    vec![
        here("file.regular", "a file", || file("file", 10).map(keep).map(drop)),
        here("file.append", "a file that is appended to", || {
            let options = File::options().append(true).create(true).custom_flags(libc::O_NOATIME).to_owned();
            options.open(path("file")).map(keep).map(drop)
        }),
        here("file.directory", "a directory", || read("/")),
        here("file.proc", "a file of the kernel's", || read("/proc/version")),
        here("file.proc_self", "a file about the process itself", || read("/proc/self/status")),
        here("file.proc_outside", "a file about a process outside", || {
            read(&format!("/proc/{}/status", outside(|| Ok(()))?))
        }),
        here("file.proc_child", "a file about a child", || {
            read(&format!("/proc/{}/status", inside(|| Ok(()))?))
        }),
        here("file.proc_dead", "a file about a process that is gone", || {
            let child = ended()?;
            read(&format!("/proc/{child}/status"))?;
            reap(child)
        }),
        here("file.proc_dead_directory", "the directory in /proc of a process that is gone", || {
            let child = ended()?;
            read(&format!("/proc/{child}"))?;
            reap(child)
        }),
        here("file.proc_fd_directory", "the directory of its own open files", || read("/proc/self/fd")),
        here("file.sysfs", "a file of sysfs", || read("/sys/kernel/uevent_seqnum")),
        here("file.cgroup", "a file of a cgroup", || read("/sys/fs/cgroup/cgroup.controllers")),
        here("file.tracefs", "a file of tracefs", || read("/sys/kernel/tracing/README")),
        here("file.owner", "a pipe that sends its owner a signal", || {
            const F_SETSIG: i32 = 10;
            let (read, _) = os::pipe(0)?;
            fcntl(read, F_SETSIG, libc::SIGUSR1.into())?;
            fcntl(read, libc::F_SETOWN, std::process::id().into()).map(drop)
        }),
        here("file.renamed", "a file that has another name now", || {
            keep(file("file", 10)?);
            fs::rename(path("file"), path("renamed"))
        }),
        here("file.many", "two thousand files", || {
            os::raise_limit()?;
            (0..2000).try_for_each(|_| read("/proc/version"))
        }),
    ]
}

/// Opens a file and removes its only name.
fn ghost(size: usize) -> io::Result<()> {
    keep(file("ghost", size)?);
    fs::remove_file(path("ghost"))
}

fn unnamed() -> Vec<Fixture> {
    vec![
        here("file.ghost_small", "a file without a name", || ghost(10)),
        here("file.ghost_limit", "a file without a name, of 1 MiB", || ghost(1 << 20)),
        here("file.ghost_big", "a file without a name, of 2 MiB", || ghost(2 << 20))
            .with(&[&["--ghost-limit", "4M"]]),
        here("file.ghost_sparse", "a file without a name, of 16 MiB that is nearly all hole", || {
            let file = file("ghost", 10)?;
            file.set_len(16 << 20)?;
            keep(file);
            fs::remove_file(path("ghost"))
        })
        .with(&[&["--ghost-limit", "32M"]]),
        here("file.ghost_directory", "a directory that was removed", || {
            let at = os::directory("ghost")?;
            keep(File::open(&at)?);
            fs::remove_dir(at)
        }),
        here("file.ghost_replaced", "a file without a name, while another has the name", || {
            ghost(10)?;
            file("ghost", 10).map(drop)
        }),
        here("file.unnamed", "a file that never had a name", || {
            let flags = libc::O_TMPFILE | libc::O_RDWR;
            call(libc::SYS_openat, &[libc::AT_FDCWD.into(), c"/tmp".as_ptr() as i64, flags.into(), 0o600])
                .map(drop)
        }),
        here(
            "file.linked_elsewhere",
            "a file that was opened by a name that is gone, and has another",
            || {
                keep(file("file", 10)?);
                fs::hard_link(path("file"), path("other"))?;
                fs::remove_file(path("file"))
            },
        )
        .with(&[&["--link-remap"]]),
        here("file.parent_removed", "a file whose directory is gone too", || {
            let at = os::directory("gone")?;
            keep(file("gone/file", 10)?);
            fs::remove_dir_all(at)
        }),
        here("file.ghost_in_queue", "a file without a name, on its way through a socket", || {
            let (a, _) = os::pair(libc::SOCK_STREAM)?;
            let file = file("ghost", 2 << 20)?;
            fdtracker_tests::kinds::send(a, number(&file) as i32)?;
            drop(file);
            fs::remove_file(path("ghost"))
        })
        .with(&[&["--ghost-limit", "4M"]]),
        here("file.immutable", "a file that can't be changed", || {
            const FS_IOC_SETFLAGS: i64 = 0x4008_6602;
            const IMMUTABLE: u64 = 0x10;
            let at = os::disk()?.join("file");
            let file = File::create(&at)?;
            ioctl(number(&file), FS_IOC_SETFLAGS, address(&IMMUTABLE))?;
            read(&at.to_string_lossy())
        }),
    ]
}

fn memfd(flags: u32) -> io::Result<i64> {
    call(libc::SYS_memfd_create, &[c"fixture".as_ptr() as i64, flags.into()])
}

fn memory() -> Vec<Fixture> {
    vec![
        here("memfd.plain", "memory as a file", || memfd(0).map(drop)),
        here("memfd.sealed", "memory as a file, which can't be changed any more", || {
            let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
            fcntl(memfd(libc::MFD_ALLOW_SEALING)?, libc::F_ADD_SEALS, seals.into()).map(drop)
        }),
        here("memfd.big", "16 MiB of memory as a file", || {
            call(libc::SYS_ftruncate, &[memfd(0)?, 16 << 20]).map(drop)
        }),
        here("memfd.hugetlb", "huge pages as a file", || memfd(libc::MFD_HUGETLB).map(drop)),
        here("memfd.secret", "memory that not even the kernel sees", || zoo("memfd_secret")),
        here("memfd.map_files", "shared memory, opened by /proc/self/map_files", || {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let at = call(libc::SYS_mmap, &[0, 4096, libc::PROT_READ.into(), flags.into(), -1, 0])?;
            read(&format!("/proc/self/map_files/{at:x}-{:x}", at + 4096))
        }),
        here("mqueue.plain", "a message queue", || zoo("mqueue")),
        here("mqueue.mounted", "a message queue, opened by its path", || {
            let at = os::directory("mqueue")?;
            os::mount(c"mqueue", &at, "")?;
            File::create(at.join("fixture")).map(keep)?;
            fs::remove_file(at.join("fixture"))
        }),
    ]
}

/// Returns a `struct flock` for the whole file.
fn whole(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

fn lock(command: i32, kind: i32) -> io::Result<()> {
    let file = file("locked", 10)?;
    fcntl(keep(file), command, address(&whole(kind))).map(drop)
}

fn flock(file: &File) -> io::Result<()> {
    call(libc::SYS_flock, &[number(file), libc::LOCK_EX.into()]).map(drop)
}

fn locks() -> Vec<Fixture> {
    const FILE_LOCKS: &[crate::Options] = &[&["--file-locks"]];
    vec![
        here("lock.posix", "a file locked by fcntl", || lock(libc::F_SETLK, libc::F_WRLCK)).with(FILE_LOCKS),
        here("lock.posix_read", "a file locked by fcntl, for reading", || lock(libc::F_SETLK, libc::F_RDLCK))
            .with(FILE_LOCKS),
        here("lock.ofd", "a file whose open description is locked by fcntl", || {
            lock(libc::F_OFD_SETLK, libc::F_WRLCK)
        })
        .with(FILE_LOCKS),
        here("lock.flock", "a file locked by flock", || {
            let file = file("locked", 10)?;
            flock(&file)?;
            keep(file);
            Ok(())
        })
        .with(FILE_LOCKS),
        here("lock.lease", "a file with a lease", || {
            let name = path("locked");
            drop(file("locked", 10)?);
            let file = keep(File::open(name)?);
            fcntl(file, libc::F_SETLEASE, libc::F_RDLCK.into()).map(drop)
        })
        .with(FILE_LOCKS),
        here("lock.flock_shared_outside", "a file locked by flock, open in a process outside too", || {
            let file = file("locked", 10)?;
            flock(&file)?;
            keep(file);
            outside(|| Ok(())).map(drop)
        })
        .with(FILE_LOCKS),
        here("lock.posix_of_outside", "a file that a process outside has locked", || {
            let file = file("locked", 10)?;
            let locked = number(&file);
            outside(|| fcntl(locked, libc::F_SETLK, address(&whole(libc::F_WRLCK))).map(drop))?;
            keep(file);
            Ok(())
        })
        .with(FILE_LOCKS),
        here("lock.posix_in_child", "a file that a child has locked", || {
            inside(|| lock(libc::F_SETLK, libc::F_WRLCK)).map(drop)
        })
        .with(FILE_LOCKS),
        here("lock.ghost", "a locked file without a name", || {
            lock(libc::F_SETLK, libc::F_WRLCK)?;
            fs::remove_file(path("locked"))
        })
        .with(FILE_LOCKS),
    ]
}

/// Opens a path with `O_PATH`, which gives a place and not a file.
fn place(name: &str) -> io::Result<i64> {
    os::open_at(name, libc::O_PATH | libc::O_NOFOLLOW)
}

fn paths_only() -> Vec<Fixture> {
    vec![
        here("opath.file", "a file's place", || {
            drop(file("file", 10)?);
            os::open_at(path("file"), libc::O_PATH).map(drop)
        }),
        here("opath.dir", "a directory's place", || place("/tmp").map(drop)),
        here("opath.symlink", "a symbolic link's place", || {
            std::os::unix::fs::symlink("/tmp", path("link"))?;
            os::open_at(path("link"), libc::O_PATH | libc::O_NOFOLLOW).map(drop)
        }),
        here("opath.device", "the place of /dev/null", || place("/dev/null").map(drop)),
        here("opath.fuse", "the place of /dev/fuse", || place("/dev/fuse").map(drop)),
        here("opath.tty", "a terminal's place", || place("/dev/ptmx").map(drop)),
        here("opath.socket", "a unix socket's place", || {
            let socket = std::os::unix::net::UnixListener::bind(path("socket"))?;
            drop(socket);
            os::open_at(path("socket"), libc::O_PATH).map(drop)
        }),
        here("opath.fifo", "a fifo's place", || {
            super::pipes::make_fifo()?;
            os::open_at(path("fifo"), libc::O_PATH).map(drop)
        }),
        here("opath.ghost", "the place of a file without a name", || {
            let ghost = file("ghost", 10)?;
            os::open_at(path("ghost"), libc::O_PATH)?;
            assert_name(&ghost)?;
            fs::remove_file(path("ghost"))
        }),
        here("opath.proc_self_fd", "a closed pipe's place", || {
            let (read, write) = os::pipe(0)?;
            os::open_at(format!("/proc/self/fd/{read}"), libc::O_PATH)?;
            close(read);
            close(write);
            Ok(())
        }),
    ]
}

/// Checks that a file has one name, so that it has none after that is removed.
fn assert_name(file: &File) -> io::Result<()> {
    if file.metadata()?.nlink() == 1 { Ok(()) } else { Err(io::Error::other("the file has other names")) }
}
