//! Reads what decides of which kind an open file is, and lets the library decide ([`classify`]).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_log_ebpf::debug;
use tracker_ebpf::{Fop, Kind, classify};

use crate::{
    kernel::{
        Access, Ptr,
        layout::{
            File, OFF_DENTRY_NAME, OFF_FILE_DENTRY, OFF_FILE_INODE, OFF_FILE_OP, OFF_FILE_PRIVATE,
            OFF_INODE_MODE, OFF_INODE_RDEV, OFF_INODE_SB, OFF_SB_MAGIC, OFF_SK_FAMILY, OFF_SK_PROTOCOL,
            OFF_SOCKET_SK, OFF_SOCKET_TYPE, Sock, Socket,
        },
    },
    maps::{ANON_NAMES, FOPS},
    value::Find as _,
};

/// The index of a file's kind, or [`NOT_COUNTED`].
pub(crate) type KindIndex = u64;

/// A file of no kind that is counted.
pub(crate) const NOT_COUNTED: KindIndex = u64::MAX;

/// Classifies an open file.
#[inline(always)]
pub(crate) fn kind_of<R: Access>(file: Ptr<File, R>) -> KindIndex {
    let inode = file.follow(&OFF_FILE_INODE);
    if inode.is_null() {
        return NOT_COUNTED;
    }
    let magic = || inode.follow(&OFF_INODE_SB).read(&OFF_SB_MAGIC);
    match classify::file(inode.read(&OFF_INODE_MODE).into(), magic) {
        classify::File::CharDevice => char_device(inode.read(&OFF_INODE_RDEV)),
        classify::File::AnonymousInode => anon_inode(file.probed()),
        classify::File::Socket => socket(file.probed()),
        classify::File::Counted(kind) => kind.index() as u64,
        classify::File::NotCounted => NOT_COUNTED,
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

/// Classifies a character device.
#[inline(always)]
fn char_device(rdev: u32) -> KindIndex {
    // The kernel's own dev_t (include/linux/kdev_t.h), not user space's.
    index(classify::char_device(rdev >> 20, rdev & 0xf_ffff).counted())
}

/// Classifies a socket.
#[inline(always)]
fn socket(file: Ptr<File>) -> KindIndex {
    let (socket, sk) = socket_of(file);
    if sk.is_null() {
        return NOT_COUNTED;
    }
    let family = sk.read(&OFF_SK_FAMILY);
    let (kind, protocol) = if classify::is_inet(family) {
        (socket.read(&OFF_SOCKET_TYPE), sk.read(&OFF_SK_PROTOCOL))
    } else {
        (0, 0)
    };
    index(classify::socket(family, kind, protocol).counted())
}

/// The `struct socket` and the `struct sock` of a file that is a socket.
///
/// By probe reads: `private_data` is a `void *`, through which the verifier allows no plain load.
#[inline(always)]
pub(crate) fn socket_of(file: Ptr<File>) -> (Ptr<Socket>, Ptr<Sock>) {
    let socket = file.follow(&OFF_FILE_PRIVATE).cast::<Socket>();
    (socket, socket.follow(&OFF_SOCKET_SK))
}

/// Classifies an anonymous inode by the file's operations. Which name they stand for is read once.
///
/// By probe reads: what they give is a number to the verifier, as `learn`'s arguments must be.
#[inline(always)]
fn anon_inode(file: Ptr<File>) -> KindIndex {
    let operations = file.follow(&OFF_FILE_OP).address();
    // An entry is never changed once it is there.
    if let Some(known) = FOPS.find(operations) {
        return known.kind().get();
    }
    let name = file.follow(&OFF_FILE_DENTRY).follow(&OFF_DENTRY_NAME);
    learn(operations, name.address())
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
    if let Some(kind) = ANON_NAMES.find(&fop.name) {
        fop.kind = kind.get();
    } else if fop.name[..4] == *b"kvm-" {
        // kvm-vm, kvm-vcpu:N, and a name for each kind of device
        fop.kind = Kind::Kvm.index() as u64;
    }
    let _ = FOPS.insert(f_op, &*fop, 0);
    fop.kind
}
