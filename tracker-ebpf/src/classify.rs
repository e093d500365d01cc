//! What kind of file is this: by the superblock's magic first, then by what that kind of filesystem tells.
//!
//! Never by the type bits of `i_mode` alone: the in-kernel inodes of pidfs (and, from 6.16, of anonymous files)
//! carry `S_IFREG` though `fstat` shows none.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_log_ebpf::debug;
use tracker_ebpf::{Fop, Kind};

use crate::{
    kernel::{
        OFF_DENTRY_NAME, OFF_FILE_DENTRY, OFF_FILE_INODE, OFF_FILE_OP, OFF_FILE_PRIVATE, OFF_INODE_MODE,
        OFF_INODE_RDEV, OFF_INODE_SB, OFF_SB_MAGIC, OFF_SK_FAMILY, OFF_SK_PROTOCOL, OFF_SOCKET_SK,
        OFF_SOCKET_TYPE, Probe, Read,
    },
    maps::{ANON_NAMES, FOPS},
};

/// The index of a file's kind, or [`NOT_COUNTED`].
pub(crate) type KindIndex = u64;

/// A file of no kind that is counted.
pub(crate) const NOT_COUNTED: KindIndex = u64::MAX;

// include/uapi/linux/stat.h
pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFLNK: u16 = 0o120_000;

// include/uapi/linux/magic.h; MQUEUE_MAGIC in ipc/mqueue.c; GUEST_MEMFD_MAGIC in virt/kvm/guest_memfd.c.
const ANON_INODE_FS: u64 = 0x0904_1934;
const PID_FS: u64 = 0x5049_4446;
const SOCKFS: u64 = 0x534f_434b;
const SECRETMEM: u64 = 0x5345_434d;
const DMA_BUF: u64 = 0x444d_4142;
const MQUEUE: u64 = 0x1980_0202;
const GUEST_MEMFD: u64 = 0x474d_454d;

/// Classifies an open file.
///
/// # Safety
/// `file` is a `struct file *` that `R` can read.
#[inline(always)]
pub(crate) unsafe fn classify<R: Read>(file: *const u8) -> KindIndex {
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let inode = R::pointer(file, &OFF_FILE_INODE);
        if inode.is_null() {
            return NOT_COUNTED;
        }
        let mode = R::read::<u16>(inode, &OFF_INODE_MODE) & S_IFMT;
        match mode {
            S_IFCHR => return char_device(R::read(inode, &OFF_INODE_RDEV)),
            S_IFBLK => return Kind::BlockDevice.index() as u64,
            S_IFDIR | S_IFIFO | S_IFLNK => return NOT_COUNTED,
            _ => {}
        }
        match R::read::<u64>(R::pointer(inode, &OFF_INODE_SB), &OFF_SB_MAGIC) {
            ANON_INODE_FS => anon_inode(file),
            PID_FS => Kind::Pidfd.index() as u64,
            SOCKFS => socket(file),
            SECRETMEM => Kind::MemfdSecret.index() as u64,
            DMA_BUF => Kind::DmaBuf.index() as u64,
            MQUEUE => Kind::Mqueue.index() as u64,
            GUEST_MEMFD => Kind::Kvm.index() as u64,
            _ => NOT_COUNTED,
        }
    }
}

/// By device number, as CRIU decides (`files.c:dump_chrdev`, `tty.c:get_tty_driver`).
#[inline(always)]
fn char_device(rdev: u32) -> KindIndex {
    // The kernel's own dev_t (include/linux/kdev_t.h), not user space's.
    let (major, minor) = (rdev >> 20, rdev & 0xf_ffff);
    let kind = match (major, minor) {
        // mem; ptys, consoles and serial ports with a driver in CRIU; autofs.
        (1 | 5 | 128..=143 | 188 | 204, _) | (4, 1..=63) | (10, 235) => return NOT_COUNTED,
        (10, 200) => Kind::Tun,
        (195, _) => Kind::Nvidia,
        (226, _) => Kind::Dri,
        _ => Kind::CharDevice,
    };
    kind.index() as u64
}

/// By family, type and protocol, as CRIU decides (`sockets.c:dump_socket`, `sk-inet.c:can_dump_ipproto`).
///
/// # Safety
/// As [`classify`].
#[inline(always)]
unsafe fn socket(file: *const u8) -> KindIndex {
    const SOCK_RAW: u16 = 3;
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let (socket, sk) = sock(file);
        if sk.is_null() {
            return NOT_COUNTED;
        }
        let kind = match Probe::read::<u16>(sk, &OFF_SK_FAMILY) {
            // unix, netlink
            1 | 16 => return NOT_COUNTED,
            // inet, inet6
            2 | 10 => {
                if Probe::read::<u16>(socket, &OFF_SOCKET_TYPE) == SOCK_RAW {
                    return NOT_COUNTED;
                }
                match Probe::read::<u16>(sk, &OFF_SK_PROTOCOL) {
                    // tcp, udp, udplite; 0 while the socket is being made
                    0 | 6 | 17 | 136 => return NOT_COUNTED,
                    1 | 58 => Kind::Ping,
                    132 => Kind::Sctp,
                    262 => Kind::Mptcp,
                    _ => Kind::SocketOther,
                }
            }
            17 => Kind::Packet,
            29 => Kind::Can,
            31 => Kind::Bluetooth,
            38 => Kind::Alg,
            40 => Kind::Vsock,
            44 => Kind::Xdp,
            _ => Kind::SocketOther,
        };
        kind.index() as u64
    }
}

/// A socket's `struct socket` and `struct sock`.
///
/// # Safety
/// As [`classify`], of a socket.
#[inline(always)]
pub(crate) unsafe fn sock(file: *const u8) -> (*const u8, *const u8) {
    // `private_data` is a `void *`: nothing that the verifier would let a plain load follow.
    // SAFETY: pointers are plain data; a null pointer leads to another.
    unsafe {
        let socket = Probe::pointer(file, &OFF_FILE_PRIVATE);
        (socket, Probe::pointer(socket, &OFF_SOCKET_SK))
    }
}

/// By the file's operations, which stand for the inode's name once that was read.
///
/// # Safety
/// As [`classify`].
#[inline(always)]
unsafe fn anon_inode(file: *const u8) -> KindIndex {
    // Probe reads also in iterators: what they give is a number to the verifier, as `learn`'s arguments must be.
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let f_op: u64 = Probe::read(file, &OFF_FILE_OP);
        // An entry is never changed once it is there.
        if let Some(fop) = FOPS.get(f_op) {
            return fop.kind;
        }
        let name = Probe::pointer(Probe::pointer(file, &OFF_FILE_DENTRY), &OFF_DENTRY_NAME);
        learn(f_op, name as u64)
    }
}

/// Learns what a `file_operations` stands for. `alloc_file_pseudo` names the dentry on every kernel.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn learn(f_op: u64, name: u64) -> u64 {
    let mut fop = MaybeUninit::<Fop>::uninit();
    // SAFETY: every word of the value is written. Word by word: a call of `memset` would be one function too deep.
    let fop = unsafe {
        let words = fop.as_mut_ptr().cast::<u64>();
        for word in 0..size_of::<Fop>() / 8 {
            words.add(word).write_volatile(0);
        }
        fop.assume_init_mut()
    };
    fop.kind = Kind::AnonOther.index() as u64;
    // SAFETY: the helper checks the address and writes at most the buffer.
    let Ok(read) = (unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut fop.name) }) else {
        return fop.kind;
    };
    debug!((), "learnt an anonymous inode, {} bytes of name", read.len());
    // SAFETY: user space fills the map before it attaches anything, and never changes it.
    if let Some(kind) = unsafe { ANON_NAMES.get(&fop.name) } {
        fop.kind = *kind;
    } else if fop.name[..4] == *b"kvm-" {
        // kvm-vm, kvm-vcpu:N, and a name for each kind of device
        fop.kind = Kind::Kvm.index() as u64;
    }
    let _ = FOPS.insert(f_op, &*fop, 0);
    fop.kind
}
