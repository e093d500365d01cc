//! What a file is, by what user space sees of it, in CRIU's order (files.c:dump_one_file). Pure.

use tracker_ebpf::{
    Kind,
    classify::{self, CharDevice, magic::MQUEUE},
};

use super::{parse, sys::Status};
use crate::verdict::{
    FileKind,
    word::{Driver, Filesystem},
};

// include/uapi/linux/magic.h
pub(super) const OVERLAY: u64 = 0x794c_7630;
pub(super) const HUGETLB_FS: u64 = 0x9584_58f6;
const PIPE_FS: u64 = 0x5049_5045;
const NS_FS: u64 = 0x6e73_6673;
const PROC: u64 = 0x9fa0;
const NFS: u64 = 0x6969;
const DEVPTS: u64 = 0x1cd1;

/// Says what a file is that isn't a socket of the kernel's socket filesystem. `memory` is the
/// device of memory files. `None`: nothing that CRIU or this list has a name for.
pub(super) fn of_file(
    status: &Status,
    magic: u64,
    link: &str,
    memory: Option<(u32, u32)>,
) -> Option<FileKind> {
    // A socket's name, opened with O_PATH.
    if status.mode & libc::S_IFMT == libc::S_IFSOCK {
        return Some(FileKind::Unix);
    }
    match classify::file(status.mode, || magic) {
        classify::File::CharDevice => Some(char_device(status.is_device).into()),
        classify::File::AnonymousInode => Some(anonymous(link)),
        classify::File::Counted(kind) => Some(kind.into()),
        classify::File::Socket | classify::File::NotCounted => not_counted(status, magic, link, memory),
    }
}

/// Says what a file is that no probe counts.
fn not_counted(status: &Status, magic: u64, link: &str, memory: Option<(u32, u32)>) -> Option<FileKind> {
    Some(match (magic, status.mode & libc::S_IFMT) {
        (NS_FS, _) if parse::namespace(link).is_some() => FileKind::Namespace,
        (PIPE_FS, _) => FileKind::Pipe,
        (HUGETLB_FS, _) if link.starts_with("/memfd:") => FileKind::Memfd,
        (_, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK) if memory == Some(status.device) => {
            FileKind::Memfd
        }
        (_, libc::S_IFREG) if link.starts_with('/') => FileKind::File,
        (_, libc::S_IFDIR) if link.starts_with('/') => FileKind::Directory,
        (_, libc::S_IFLNK) if link.starts_with('/') => FileKind::Symlink,
        (_, libc::S_IFIFO) => FileKind::Fifo,
        _ => return None,
    })
}

const fn char_device((major, minor): (u32, u32)) -> CharDevice {
    classify::char_device(major, minor)
}

/// Finds CRIU's driver for a terminal.
pub(super) fn tty_driver(device: (u32, u32)) -> Option<Driver> {
    match char_device(device) {
        CharDevice::Terminal(terminal) => Some(terminal.into()),
        CharDevice::Memory | CharDevice::Autofs | CharDevice::Counted(_) => None,
    }
}

/// Says what an anonymous inode is, by its name, which CRIU compares as a whole.
///
/// # Source
/// CRIU: `util.c:is_anon_link_type`.
pub(super) fn anonymous(link: &str) -> FileKind {
    let name = link.strip_prefix("anon_inode:").unwrap_or(link);
    Kind::of_anon_inode(name).into()
}

/// Says what a socket is, by family, type and protocol, as `SO_DOMAIN`, `SO_TYPE` and `SO_PROTOCOL`
/// tell them.
pub(super) fn of_socket(family: i32, kind: i32, protocol: i32) -> FileKind {
    // What is too large for the kernel's own fields is no socket of this kernel's.
    let number = |number: i32| u16::try_from(number).unwrap_or(u16::MAX);
    classify::socket(number(family), number(kind), number(protocol)).into()
}

/// Finds the magic number of a filesystem by the name that mountinfo has for it, where it matters;
/// else 0. To ask the filesystem itself could take as long as its server likes.
pub(super) fn magic(filesystem: &str) -> u64 {
    match filesystem {
        "overlay" => OVERLAY,
        "nfs" | "nfs4" => NFS,
        "proc" => PROC,
        "devpts" => DEVPTS,
        "mqueue" => MQUEUE,
        "nsfs" => NS_FS,
        "hugetlbfs" => HUGETLB_FS,
        _ => 0,
    }
}

/// Says which filesystem has a magic number, where it matters.
pub(super) const fn filesystem(magic: u64) -> Filesystem {
    match magic {
        OVERLAY => Filesystem::Overlay,
        NFS => Filesystem::Nfs,
        PROC => Filesystem::Proc,
        DEVPTS => Filesystem::Devpts,
        _ => Filesystem::Other,
    }
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::classify::magic::{ANON_INODE_FS, DMA_BUF, PID_FS, SECRET_MEMORY};

    use super::*;

    fn kind(mode: u32, magic: u64, link: &str) -> Option<&'static str> {
        let status = Status { mode, device: (0, 9), ..Status::default() };
        of_file(&status, magic, link, Some((0, 1))).map(FileKind::name)
    }

    #[test]
    fn filesystems_of_the_kernels_own() {
        // Before Linux 6.9, since 6.9.
        assert_eq!(kind(0o600, ANON_INODE_FS, "anon_inode:[pidfd]"), Some("pidfd"));
        assert_eq!(kind(0o700, PID_FS, "anon_inode:[pidfd]"), Some("pidfd"));
        assert_eq!(kind(0o100_700, PID_FS, "anon_inode:[pidfd]"), Some("pidfd"));
        assert_eq!(kind(0o600, ANON_INODE_FS, "anon_inode:inotify"), Some("inotify"));
        // Not the name of an inotify.
        assert_eq!(kind(0o600, ANON_INODE_FS, "anon_inode:[inotify]"), Some("anon_other"));
        assert_eq!(kind(0o600, ANON_INODE_FS, "anon_inode:kvm-vcpu:0"), Some("kvm"));
        assert_eq!(kind(0o10_600, PIPE_FS, "pipe:[7]"), Some("pipe"));
        assert_eq!(kind(0o10_644, 0xef53, "/run/fifo"), Some("fifo"));
        assert_eq!(kind(0o100_444, NS_FS, "net:[4026531840]"), Some("namespace"));
        assert_eq!(kind(0o100_600, SECRET_MEMORY, "/secretmem (deleted)"), Some("memfd_secret"));
        assert_eq!(kind(0o600, DMA_BUF, "/dmabuf:x"), Some("dma_buf"));
        assert_eq!(kind(0o100_600, MQUEUE, "/queue"), Some("mqueue"));
        assert_eq!(kind(0o41_777, MQUEUE, "/dev/mqueue"), Some("directory"));
    }

    #[test]
    fn files_by_type() {
        assert_eq!(kind(0o100_644, 0xef53, "/etc/passwd"), Some("file"));
        assert_eq!(kind(0o40_755, 0xef53, "/"), Some("directory"));
        assert_eq!(kind(0o120_777, 0xef53, "/bin"), Some("symlink"));
        assert_eq!(kind(0o60_660, 0x0102_1994, "/dev/sda"), Some("block_device"));
        assert_eq!(kind(0o140_755, 0x0102_1994, "/run/x.sock"), Some("unix"));
        let memory = Status { mode: 0o100_777, device: (0, 1), ..Status::default() };
        let kind_of = |memory_device| of_file(&memory, 0x0102_1994, "/memfd:x (deleted)", memory_device);
        assert_eq!(kind_of(Some((0, 1))).map(FileKind::name), Some("memfd"));
        assert_eq!(kind_of(None).map(FileKind::name), Some("file"));
        assert_eq!(kind(0o100_644, 0x1234, "strange:[1]"), None);
        assert_eq!(kind(0o644, 0x1234, "strange:[1]"), None);
    }

    #[test]
    fn filesystems_by_name() {
        let named = |name| filesystem(magic(name));
        assert_eq!((named("nfs4"), named("ext4")), (Filesystem::Nfs, Filesystem::Other));
        assert_eq!((named("overlay"), named("devpts")), (Filesystem::Overlay, Filesystem::Devpts));
    }

    #[test]
    fn devices() {
        let name = |major, minor| FileKind::from(char_device((major, minor))).name();
        assert_eq!((name(1, 3), name(10, 200), name(10, 235)), ("mem_device", "tun", "autofs"));
        assert_eq!((name(10, 229), name(195, 255), name(226, 128)), ("char_device", "nvidia", "dri"));
        assert_eq!((name(5, 2), name(5, 3), name(136, 4)), ("tty", "char_device", "tty"));
        assert_eq!(
            (name(4, 0), name(4, 1), name(4, 64), name(204, 64)),
            ("char_device", "tty", "char_device", "tty")
        );
    }

    #[test]
    fn sockets() {
        let name = |family, kind, protocol| of_socket(family, kind, protocol).name();
        assert_eq!((name(1, 1, 0), name(16, 3, 15), name(17, 3, 0)), ("unix", "netlink", "packet"));
        assert_eq!((name(2, 1, 6), name(10, 1, 262), name(2, 5, 132)), ("tcp", "mptcp", "sctp"));
        assert_eq!((name(2, 2, 17), name(2, 2, 136), name(2, 2, 1)), ("udp", "udp", "ping"));
        assert_eq!((name(2, 3, 1), name(2, 6, 33), name(15, 3, 2)), ("raw", "socket_other", "socket_other"));
        assert_eq!((name(40, 1, 0), name(38, 5, 0)), ("vsock", "alg"));
    }
}
