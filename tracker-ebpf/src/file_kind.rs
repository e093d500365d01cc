//! Reads what decides of which kind an open file is, and has the library decide ([`classify`]).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_log_ebpf::debug;
use tracker_ebpf::{Fop, Kind, classify};

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

/// Classifies an open file.
///
/// # Safety
/// `file` is a `struct file *` that `R` can read.
#[inline(always)]
pub(crate) unsafe fn kind_of<R: Read>(file: *const u8) -> KindIndex {
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let inode = R::pointer(file, &OFF_FILE_INODE);
        if inode.is_null() {
            return NOT_COUNTED;
        }
        let mode = R::read::<u16>(inode, &OFF_INODE_MODE);
        let magic = || R::read::<u64>(R::pointer(inode, &OFF_INODE_SB), &OFF_SB_MAGIC);
        match classify::file(mode.into(), magic) {
            classify::File::CharDevice => char_device(R::read(inode, &OFF_INODE_RDEV)),
            classify::File::AnonymousInode => anon_inode(file),
            classify::File::Socket => socket(file),
            classify::File::Counted(kind) => kind.index() as u64,
            classify::File::NotCounted => NOT_COUNTED,
        }
    }
}

/// The index of a kind, if there is one.
#[inline(always)]
fn index(kind: Option<Kind>) -> KindIndex {
    match kind {
        Some(kind) => kind.index() as u64,
        None => NOT_COUNTED,
    }
}

/// By device number.
#[inline(always)]
fn char_device(rdev: u32) -> KindIndex {
    // The kernel's own dev_t (include/linux/kdev_t.h), not user space's.
    index(classify::char_device(rdev >> 20, rdev & 0xf_ffff).counted())
}

/// By family, type and protocol.
///
/// # Safety
/// As [`kind_of`].
#[inline(always)]
unsafe fn socket(file: *const u8) -> KindIndex {
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let (socket, sk) = sock(file);
        if sk.is_null() {
            return NOT_COUNTED;
        }
        let family = Probe::read::<u16>(sk, &OFF_SK_FAMILY);
        let (kind, protocol) = if classify::is_inet(family) {
            (Probe::read(socket, &OFF_SOCKET_TYPE), Probe::read(sk, &OFF_SK_PROTOCOL))
        } else {
            (0, 0)
        };
        index(classify::socket(family, kind, protocol).counted())
    }
}

/// A socket's `struct socket` and `struct sock`.
///
/// # Safety
/// As [`kind_of`], of a socket.
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
/// As [`kind_of`].
#[inline(always)]
unsafe fn anon_inode(file: *const u8) -> KindIndex {
    // Probe reads also in iterators: what they give is a number to the verifier, as `learn`'s
    // arguments must be. SAFETY: pointers and integers are plain data.
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

/// Learns what a `file_operations` stands for. `alloc_file_pseudo` names the dentry on every
/// kernel.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn learn(f_op: u64, name: u64) -> u64 {
    let mut fop = MaybeUninit::<Fop>::uninit();
    // SAFETY: every word of the value is written. Word by word: a call of `memset` would be one
    // function too deep.
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
