//! The hidden scan: iterators that find files that no slot holds, because they are mapped,
//! registered with io_uring, or on their way through a unix socket.
//!
//! No probe sees any of this, so user space runs the scan now and then. What the iterators walk may
//! change meanwhile, and an address that is no longer valid reads as anything: user space believes
//! only what two scans agree on.

use aya_ebpf::Global;
use tracker_ebpf::{
    Kind, Sighting,
    classify::{S_IFMT, S_IFSOCK},
    sighting,
};

use crate::{
    file_kind::{KindIndex, NOT_COUNTED, kind_of, socket_of},
    iterator::{Meta, Output, TaskFile},
    kernel::{
        Direct, Pointer, Ptr, cgroup_id, is_own,
        layout::{
            File, Mapping, Message, MessageQueue, OFF_CB_FP, OFF_FILE_INODE, OFF_FILE_PRIVATE, OFF_FP_COUNT,
            OFF_FP_FILES, OFF_INODE_MODE, OFF_NODE_FILE, OFF_QUEUE_LEN, OFF_RING_FILES, OFF_RING_FILES_LEN,
            OFF_SK_FAMILY, OFF_SK_QUEUE, OFF_SK_STATE, OFF_SKB_CB, OFF_SKB_NEXT, OFF_SKB_SK,
            OFF_TASK_IO_URING, OFF_TASK_TGID, OFF_URING_RINGS, OFF_VMA_FILE, OFF_VMA_MM, Ring, RingNode,
            Sock, Task,
        },
    },
    maps::{HIDDEN_COUNTERS, HIDDEN_COUNTS},
    value::{Find as _, ValueRef},
};

/// Whether files that are registered with a ring are counted.
#[unsafe(no_mangle)]
static SCAN_DIRECT: Global<u8> = Global::new(0);

/// A ring's table holds pointers to nodes (Linux 6.13), not the files themselves.
#[unsafe(no_mangle)]
static DIRECT_NODES: Global<u8> = Global::new(0);

/// The index of the kind of rings.
const RING: KindIndex = Kind::IoUring.index() as u64;

/// Context of `iter/task_vma` (kernel: `struct bpf_iter__task_vma`). Task and mapping are null at
/// the end of the walk.
#[repr(C)]
struct TaskMapping {
    meta: &'static Meta,
    task: Ptr<Task, Direct>,
    mapping: Ptr<Mapping, Direct>,
}

/// Context of `iter/task` (kernel: `struct bpf_iter__task`). The task is null at the end of the
/// walk.
#[repr(C)]
struct TaskItem {
    meta: &'static Meta,
    task: Ptr<Task, Direct>,
}

/// Writes every mapping of a file that is counted.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
extern "C" fn mapped(item: &TaskMapping) -> i32 {
    let (task, mapping) = (item.task, item.mapping);
    if task.is_null() || mapping.is_null() {
        return 0;
    }
    let file = mapping.follow(&OFF_VMA_FILE);
    if file.is_null() {
        return 0;
    }
    let kind = kind_of(file);
    if kind == NOT_COUNTED {
        return 0;
    }
    let Some(writer) = SightingWriter::of(item.meta, task) else { return 0 };
    let memory = mapping.probed().follow(&OFF_VMA_MM).address();
    writer.write(sighting::MAPPED, memory, file.address(), kind, 1);
    if kind == RING {
        writer.write_direct(file.probed());
    }
    0
}

/// Writes every ring that a thread has registered with itself (`io_uring_register`,
/// `IORING_REGISTER_RING_FDS`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn registered(item: &TaskItem) -> i32 {
    /// `IO_RINGFD_REG_MAX`
    const RINGS: u64 = 16;
    let task = item.task;
    if task.is_null() {
        return 0;
    }
    let context = task.probed().follow(&OFF_TASK_IO_URING);
    if context.is_null() {
        return 0;
    }
    let Some(writer) = SightingWriter::of(item.meta, task) else { return 0 };
    for i in 0..RINGS {
        let file = context.member(&OFF_URING_RINGS).element(i).target();
        if !file.is_null() {
            writer.write(sighting::REGISTERED, 0, file.address(), RING, 1);
            writer.write_direct(file);
        }
    }
    0
}

/// Writes every slot that holds a file that is counted; and what is registered with the ring that a
/// slot holds.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn held(slot: &TaskFile) -> i32 {
    let (task, file) = (slot.task, slot.file);
    if task.is_null() || file.is_null() {
        return 0;
    }
    let kind = kind_of(file);
    if kind == NOT_COUNTED {
        return 0;
    }
    let Some(writer) = SightingWriter::of(slot.meta, task) else { return 0 };
    writer.write(sighting::OPEN, 0, file.address(), kind, 1);
    if kind == RING {
        writer.write_direct(file.probed());
    }
    0
}

/// Writes what is in the queue of each socket that a slot holds. A program of its own, because the
/// verifier of old kernels would walk it once for each outcome of the classifier.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn in_flight(slot: &TaskFile) -> i32 {
    let (task, file) = (slot.task, slot.file);
    if task.is_null() || file.is_null() {
        return 0;
    }
    let inode = file.follow(&OFF_FILE_INODE);
    if inode.is_null() || u32::from(inode.read(&OFF_INODE_MODE)) & S_IFMT != S_IFSOCK {
        return 0;
    }
    let Some(writer) = SightingWriter::of(slot.meta, task) else { return 0 };
    writer.write_in_flight(file.probed());
    0
}

/// Writes what is found at a task.
struct SightingWriter {
    output: Output,
    tgid: u32,
    cgroup_id: u64,
}

impl SightingWriter {
    /// `None` for the agent's own tasks.
    #[inline(always)]
    fn of(meta: &Meta, task: Ptr<Task, Direct>) -> Option<Self> {
        let tgid = task.read(&OFF_TASK_TGID);
        if is_own(tgid) {
            return None;
        }
        Some(Self { output: meta.output, tgid, cgroup_id: cgroup_id(task) })
    }

    #[inline(always)]
    fn write(&self, what: u64, holder: u64, file: u64, kind: KindIndex, n: u64) {
        let (tgid, cgroup_id) = (self.tgid.into(), self.cgroup_id);
        self.output.write(&Sighting { what, holder, file, kind, cgroup_id, n, tgid });
    }

    /// Writes how many files are registered with a ring.
    #[inline(always)]
    fn write_direct(&self, file: Ptr<File>) {
        if SCAN_DIRECT.load() == 0 {
            return;
        }
        let ring = file.follow(&OFF_FILE_PRIVATE).address();
        if ring == 0 {
            return;
        }
        // Of what kinds they are doesn't matter: nothing of a ring can be dumped.
        let n = direct_files(ring);
        if n != 0 {
            self.write(sighting::DIRECT, ring, 0, RING, n.into());
        }
    }

    /// Writes what is in the queue of a socket, and in those of connections that it hasn't
    /// accepted.
    #[inline(always)]
    fn write_in_flight(&self, file: Ptr<File>) {
        const AF_UNIX: u16 = 1;
        let (_, sk) = socket_of(file);
        if sk.is_null() || sk.read(&OFF_SK_FAMILY) != AF_UNIX {
            return;
        }
        if sk.member(&OFF_SK_QUEUE).read(&OFF_QUEUE_LEN) == 0 {
            return;
        }
        reset_counts();
        socket_files(sk.address());
        self.write_counts(sk.address());
    }

    /// Writes what was counted since [`reset_counts`] in the queue of a socket.
    #[inline(always)]
    fn write_counts(&self, sk: u64) {
        let Some(counts) = HIDDEN_COUNTS.find(0) else { return };
        let (what, tgid, cgroup_id) = (sighting::IN_FLIGHT, self.tgid.into(), self.cgroup_id);
        let mut record = Sighting { what, holder: sk, file: 0, kind: 0, cgroup_id, n: 0, tgid };
        let mut kind = 0;
        for _ in 0..Kind::COUNT {
            kind = next_counted(kind);
            if kind >= Kind::COUNT as u64 {
                return;
            }
            record.n = counter(counts, &mut { kind }).get_volatile();
            record.kind = kind;
            self.output.write(&record);
            kind += 1;
        }
    }
}

/// The first kind of which a file was counted, from this one on. In a function of its own, because
/// the verifier of old kernels walks every sequence of branches in a loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn next_counted(first: u64) -> u64 {
    let Some(counts) = HIDDEN_COUNTS.find(0) else { return u64::MAX };
    for more in 0..Kind::COUNT as u64 {
        if first + more >= Kind::COUNT as u64 {
            break;
        }
        let mut kind = first + more;
        if counter(counts, &mut kind).get_volatile() != 0 {
            return kind;
        }
    }
    u64::MAX
}

/// The counter of a kind, or of any other number. In assembly, because the compiler would otherwise
/// check another number than it uses, which the verifier doesn't follow.
#[inline(always)]
fn counter(counts: ValueRef<[u64; HIDDEN_COUNTERS]>, number: &mut u64) -> ValueRef<u64> {
    const { assert!(HIDDEN_COUNTERS == 64) };
    // SAFETY: the instruction changes one register, which is below the length then.
    unsafe {
        core::arch::asm!("{0} &= 63", inout(reg) * number);
        counts.element_unchecked(*number as usize)
    }
}

/// Sets all counts to 0.
#[inline(always)]
fn reset_counts() {
    let Some(counts) = HIDDEN_COUNTS.find(0) else { return };
    for count in counts.elements().take(Kind::COUNT) {
        count.set_volatile(0);
    }
}

/// Counts the file that `*at` points to.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_file(at: u64) -> u32 {
    /// What `FFS_MASK` leaves out: flags in the lowest bits of the address of a ring's file.
    const FLAGS: u64 = 7;
    let file = Ptr::<u64>::new(at).load() & !FLAGS;
    let kind = kind_of(Ptr::<File>::new(file));
    if let Some(n) = HIDDEN_COUNTS.find(0).and_then(|counts| counts.element(kind as usize)) {
        n.set(n.get() + 1);
    }
    0
}

/// How many files were counted since [`reset_counts`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn total_counted() -> u32 {
    let Some(counts) = HIDDEN_COUNTS.find(0) else { return 0 };
    counts.elements().take(Kind::COUNT).fold(0, |sum, n| sum + n.get_volatile() as u32)
}

// The verifier walks a loop turn by turn, so long ones are loops of loops: a function is walked
// once. None returns how much was counted, because the verifier of old kernels takes each sum for a
// state of its own.

/// Files of a ring that are counted at the most: blocks of blocks.
const BLOCK: u64 = 256;
const BLOCKS: u64 = 256;

/// How many files that are counted are registered with a ring (`io_ring_ctx`).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_files(ring: u64) -> u32 {
    let ring = Ptr::<Ring>::new(ring);
    let (len, table) = (ring.read(&OFF_RING_FILES_LEN), ring.read(&OFF_RING_FILES));
    reset_counts();
    for block in 0..BLOCKS {
        if block * BLOCK >= u64::from(len) || table == 0 {
            break;
        }
        direct_block(table, block * BLOCK, len);
    }
    total_counted()
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_block(table: u64, first: u64, len: u32) -> u32 {
    for i in 0..BLOCK {
        if first + i >= u64::from(len) {
            break;
        }
        direct_file(table.wrapping_add((first + i) * 8));
    }
    0
}

/// Counts the file of an entry of a ring's table, which is at this address.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_file(mut at: u64) -> u32 {
    if DIRECT_NODES.load() != 0 {
        let node = Ptr::<Pointer<RingNode>>::new(at).target();
        if node.is_null() {
            return 0;
        }
        at = node.member(&OFF_NODE_FILE).address();
    }
    count_file(at)
}

/// Counts the files that are on their way to a unix socket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn socket_files(sk: u64) -> u32 {
    const TCP_LISTEN: u8 = 10;
    if Ptr::<Sock>::new(sk).read(&OFF_SK_STATE) != TCP_LISTEN {
        return queue_files(sk);
    }
    let head = queue(sk).address();
    let mut at = head;
    for _ in 0..BLOCKS_OF_MESSAGES {
        if at == 0 {
            break;
        }
        at = connections(head, at);
    }
    0
}

/// Messages of a queue that are visited at the most: blocks of blocks.
const MESSAGES: u32 = 32;
const BLOCKS_OF_MESSAGES: u32 = 32;

#[inline(always)]
fn queue(sk: u64) -> Ptr<MessageQueue> {
    Ptr::<Sock>::new(sk).member(&OFF_SK_QUEUE)
}

/// The message after one, or after the head of a queue, which has its pointer where messages have
/// theirs (`struct sk_buff_list`). 0 at the end: the queue is a ring of which its head is a part.
#[inline(always)]
fn next_message(head: u64, at: u64) -> u64 {
    let next = Ptr::<Message>::new(at).follow(&OFF_SKB_NEXT).address();
    if next == head { 0 } else { next }
}

/// Counts the files of connections that a socket hasn't accepted: each is a message of its own
/// (`unix_stream_connect`). Returns the last message that it visited.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connections(head: u64, mut at: u64) -> u64 {
    for _ in 0..MESSAGES {
        at = next_message(head, at);
        if at == 0 {
            break;
        }
        queue_files(Ptr::<Message>::new(at).follow(&OFF_SKB_SK).address());
    }
    at
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn queue_files(sk: u64) -> u32 {
    let head = queue(sk).address();
    let mut at = head;
    for _ in 0..BLOCKS_OF_MESSAGES {
        if at == 0 {
            break;
        }
        at = messages(head, at);
    }
    0
}

/// Counts the files of some messages. Returns the last message that it visited.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn messages(head: u64, mut at: u64) -> u64 {
    for _ in 0..MESSAGES {
        at = next_message(head, at);
        if at == 0 {
            break;
        }
        message_files(at);
    }
    at
}

/// Counts the files of a message: `UNIXCB(skb).fp`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn message_files(message: u64) -> u32 {
    /// net/core/scm.c
    const SCM_MAX_FD: u16 = 253;
    let list = Ptr::<Message>::new(message).member(&OFF_SKB_CB).follow(&OFF_CB_FP);
    if list.is_null() {
        return 0;
    }
    let count = list.read(&OFF_FP_COUNT);
    let files = list.member(&OFF_FP_FILES);
    for i in 0..SCM_MAX_FD {
        if i >= count {
            break;
        }
        count_file(files.element(i.into()).address());
    }
    0
}
