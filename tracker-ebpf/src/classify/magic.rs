//! Magic numbers of filesystems: `include/uapi/linux/magic.h`, and where it is said.

/// Anonymous inodes.
pub const ANON_INODE_FS: u64 = 0x0904_1934;
/// Pidfds, since Linux 6.9.
pub const PID_FS: u64 = 0x5049_4446;
/// Sockets.
pub const SOCKFS: u64 = 0x534f_434b;
/// `memfd_secret` (`mm/secretmem.c`).
pub const SECRET_MEMORY: u64 = 0x5345_434d;
/// dma-bufs (`drivers/dma-buf/dma-buf.c`).
pub const DMA_BUF: u64 = 0x444d_4142;
/// POSIX message queues (`ipc/mqueue.c`).
pub const MQUEUE: u64 = 0x1980_0202;
/// Memory of KVM guests (`virt/kvm/guest_memfd.c`).
pub const GUEST_MEMORY: u64 = 0x474d_454d;
