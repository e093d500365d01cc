//! What a file is, as far as numbers tell: its type, the magic of its filesystem, a device's
//! number, a socket's family, type and protocol.
//!
//! Pure, so that all who ask get the same answer: the programs, inspections, tests. What depends on
//! more (an anonymous inode's name, a path, another file) is decided by whoever can read that.

mod device;
pub mod magic;
pub(crate) mod socket;

pub use device::{CharDevice, Terminal, char_device};
pub use socket::{Socket, is_inet, socket};

use crate::Kind;

/// Mask of the type in a mode (`include/uapi/linux/stat.h`).
pub const S_IFMT: u32 = 0o170_000;
/// The type of a socket.
pub const S_IFSOCK: u32 = 0o140_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFLNK: u32 = 0o120_000;

/// What type and filesystem say of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// A character device: [`char_device`] says which.
    CharDevice,
    /// An anonymous inode: its name says which ([`ANON_INODES`](crate::ANON_INODES)).
    AnonymousInode,
    /// A socket: [`socket`] says which.
    Socket,
    /// A file of this kind.
    Counted(Kind),
    /// A file of no kind that is counted.
    NotCounted,
}

/// Classifies a file by its mode and, where that doesn't decide, by the magic of its filesystem.
///
/// # Source
/// The order is that of CRIU (`files.c:dump_one_file`). Never by the type alone: inodes of pidfs
/// and, since Linux 6.16, of anonymous files have the type of a regular file in the kernel, though
/// `fstat` shows none.
#[inline(always)]
pub fn file(mode: u32, magic: impl FnOnce() -> u64) -> File {
    match mode & S_IFMT {
        S_IFCHR => return File::CharDevice,
        S_IFBLK => return File::Counted(Kind::BlockDevice),
        S_IFDIR | S_IFIFO | S_IFLNK => return File::NotCounted,
        _ => {}
    }
    match magic() {
        magic::ANON_INODE_FS => File::AnonymousInode,
        magic::SOCKFS => File::Socket,
        magic => match Kind::of_magic(magic) {
            Some(kind) => File::Counted(kind),
            None => File::NotCounted,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_decides_where_it_can() {
        let of = |mode, magic| file(mode, || magic);
        assert_eq!(of(0o020_620, magic::ANON_INODE_FS), File::CharDevice);
        assert_eq!(of(0o060_660, 0xef53), File::Counted(Kind::BlockDevice));
        // The directory of message queues isn't one, nor is a symbolic link there.
        assert_eq!(of(0o041_777, magic::MQUEUE), File::NotCounted);
        assert_eq!(of(0o100_600, magic::MQUEUE), File::Counted(Kind::Mqueue));
        // Before Linux 6.16, since 6.16.
        assert_eq!(of(0o600, magic::ANON_INODE_FS), File::AnonymousInode);
        assert_eq!(of(0o100_600, magic::ANON_INODE_FS), File::AnonymousInode);
        assert_eq!(of(0o100_700, magic::PID_FS), File::Counted(Kind::Pidfd));
        // A socket, and the name of one, opened with O_PATH.
        assert_eq!(of(0o140_777, magic::SOCKFS), File::Socket);
        assert_eq!(of(0o140_755, 0x0102_1994), File::NotCounted);
        assert_eq!(of(0o100_644, 0xef53), File::NotCounted);
    }

    #[test]
    fn the_type_is_asked_first() {
        file(S_IFCHR | 0o600, || unreachable!("the magic decides nothing"));
    }
}
