//! Looks for files that no slot holds: mapped, registered with io_uring, or on their way through a unix socket.
//!
//! Iterators, which user space reads now and then; no probe sees any of this. What they meet may change under their eyes: an
//! address that is no longer valid reads as anything, so user space believes only what two looks agree on.

use aya_ebpf::{
    Global,
    bindings::seq_file,
    helpers::{bpf_probe_read_kernel, generated::bpf_seq_write},
};
use tracker_ebpf::{
    Kind, Sighting,
    classify::{S_IFMT, S_IFSOCK},
    sighting,
};

use crate::{
    file_kind::{NOT_COUNTED, kind_of, sock},
    kernel::{
        Direct, OFF_CB_FP, OFF_FILE_INODE, OFF_FILE_PRIVATE, OFF_FP_COUNT, OFF_FP_FILES, OFF_INODE_MODE,
        OFF_NODE_FILE, OFF_QUEUE_LEN, OFF_RING_FILES, OFF_RING_FILES_LEN, OFF_SK_FAMILY, OFF_SK_QUEUE,
        OFF_SK_STATE, OFF_SKB_CB, OFF_SKB_NEXT, OFF_SKB_SK, OFF_TASK_IO_URING, OFF_TASK_TGID,
        OFF_URING_RINGS, OFF_VMA_FILE, OFF_VMA_MM, Probe, Read as _, cgroup_id, is_own,
    },
    maps::{MET, MET_PLACES},
    programs::audit::{Meta, TaskFile},
};

/// Whether files that are registered with a ring are looked at.
#[unsafe(no_mangle)]
static LOOK_DIRECT: Global<u8> = Global::new(0);

/// A ring's table holds pointers to nodes (Linux 6.13), not the files themselves.
#[unsafe(no_mangle)]
static DIRECT_NODES: Global<u8> = Global::new(0);

/// Context of `iter/task_vma` (kernel: `struct bpf_iter__task_vma`).
#[repr(C)]
struct TaskVma {
    meta: *const Meta,
    task: *const u8,
    vma: *const u8,
}

/// Context of `iter/task` (kernel: `struct bpf_iter__task`).
#[repr(C)]
struct Task {
    meta: *const Meta,
    task: *const u8,
}

/// Every mapping of a file that is counted.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
extern "C" fn mapped(ctx: *const TaskVma) -> i32 {
    // SAFETY: the context is the kernel's; `task` and `vma` may be null at the end of the walk, and are then not used. The
    // rest are loads that the verifier checks.
    unsafe {
        let (task, vma) = ((*ctx).task, (*ctx).vma);
        if task.is_null() || vma.is_null() {
            return 0;
        }
        let file = Direct::pointer(vma, &OFF_VMA_FILE);
        if file.is_null() {
            return 0;
        }
        let kind = kind_of::<Direct>(file);
        if kind == NOT_COUNTED {
            return 0;
        }
        let Some(place) = Place::of((*ctx).meta, task) else { return 0 };
        let mm: u64 = Probe::read(vma, &OFF_VMA_MM);
        place.write(sighting::MAPPED, mm, file as u64, kind, 1);
        if kind == Kind::IoUring.index() as u64 {
            place.write_direct(file);
        }
    }
    0
}

/// Every ring that a thread has registered with itself (`io_uring_register`, `IORING_REGISTER_RING_FDS`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn registered(ctx: *const Task) -> i32 {
    /// `IO_RINGFD_REG_MAX`
    const RINGS: usize = 16;
    // SAFETY: as above.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() {
            return 0;
        }
        let context = Probe::pointer(task, &OFF_TASK_IO_URING);
        if context.is_null() {
            return 0;
        }
        let Some(place) = Place::of((*ctx).meta, task) else { return 0 };
        for i in 0..RINGS {
            let file = Probe::pointer(context.wrapping_add(i * 8), &OFF_URING_RINGS);
            if !file.is_null() {
                place.write(sighting::REGISTERED, 0, file as u64, Kind::IoUring.index() as u64, 1);
                place.write_direct(file);
            }
        }
    }
    0
}

/// Every slot that holds a file that is counted; and what is registered with the ring that a slot holds.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn held(ctx: *const TaskFile) -> i32 {
    // SAFETY: as above.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let kind = kind_of::<Direct>(file);
        if kind == NOT_COUNTED {
            return 0;
        }
        let Some(place) = Place::of((*ctx).meta, task) else { return 0 };
        place.write(sighting::OPEN, 0, file as u64, kind, 1);
        if kind == Kind::IoUring.index() as u64 {
            place.write_direct(file);
        }
    }
    0
}

/// What is in the queue of each socket that a slot holds. A program of its own, because the verifier of old kernels would walk it once
/// for each outcome of the classifier.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn in_flight(ctx: *const TaskFile) -> i32 {
    // SAFETY: as above.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let inode = Direct::pointer(file, &OFF_FILE_INODE);
        if inode.is_null() || u32::from(Direct::read::<u16>(inode, &OFF_INODE_MODE)) & S_IFMT != S_IFSOCK {
            return 0;
        }
        let Some(place) = Place::of((*ctx).meta, task) else { return 0 };
        place.write_in_flight(file);
    }
    0
}

/// Where an iterator is, and where it writes to.
struct Place {
    seq: *mut seq_file,
    tgid: u32,
    cgroup_id: u64,
}

impl Place {
    /// `None` for the agent's own tasks.
    ///
    /// # Safety
    /// The arguments are an iterator's.
    #[inline(always)]
    unsafe fn of(meta: *const Meta, task: *const u8) -> Option<Self> {
        // SAFETY: the verifier checks the loads.
        unsafe {
            let tgid = Direct::read(task, &OFF_TASK_TGID);
            if is_own(tgid) {
                return None;
            }
            Some(Self { seq: (*meta).seq, tgid, cgroup_id: cgroup_id::<Direct>(task) })
        }
    }

    #[inline(always)]
    fn write(&self, what: u64, holder: u64, file: u64, kind: u64, n: u64) {
        let (tgid, cgroup_id) = (self.tgid.into(), self.cgroup_id);
        self.write_record(&Sighting { what, holder, file, kind, cgroup_id, n, tgid });
    }

    #[inline(always)]
    fn write_record(&self, record: &Sighting) {
        // Room is made by the kernel, which runs the program again for the same object.
        // SAFETY: the record lives through the call.
        unsafe { bpf_seq_write(self.seq, (&raw const *record).cast(), size_of::<Sighting>() as u32) };
    }

    /// What is registered with a ring.
    #[inline(always)]
    fn write_direct(&self, file: *const u8) {
        if LOOK_DIRECT.load() == 0 {
            return;
        }
        // SAFETY: a `u64` is plain data.
        let ring: u64 = unsafe { Probe::read(file, &OFF_FILE_PRIVATE) };
        if ring == 0 {
            return;
        }
        // Of what kinds they are doesn't matter: nothing of a ring can be dumped.
        let n = direct_files(ring);
        if n != 0 {
            self.write(sighting::DIRECT, ring, 0, Kind::IoUring.index() as u64, n.into());
        }
    }

    /// What is in the queue of a socket, and in those of connections that it hasn't accepted.
    #[inline(always)]
    fn write_in_flight(&self, file: *const u8) {
        const AF_UNIX: u16 = 1;
        // SAFETY: pointers and integers are plain data.
        unsafe {
            let (_, sk) = sock(file);
            if sk.is_null() || Probe::read::<u16>(sk, &OFF_SK_FAMILY) != AF_UNIX {
                return;
            }
            let queue = sk.wrapping_add(OFF_SK_QUEUE.load() as usize);
            if Probe::read::<u32>(queue, &OFF_QUEUE_LEN) == 0 {
                return;
            }
            start();
            socket_files(sk as u64);
            self.write_met(sk as u64);
        }
    }

    /// Writes what was met since [`start`], in the queue of a socket.
    #[inline(always)]
    fn write_met(&self, sk: u64) {
        let Some(met) = MET.get_ptr(0) else { return };
        let (what, tgid, cgroup_id) = (sighting::IN_FLIGHT, self.tgid.into(), self.cgroup_id);
        let mut record = Sighting { what, holder: sk, file: 0, kind: 0, cgroup_id, n: 0, tgid };
        let mut kind = 0;
        for _ in 0..Kind::COUNT {
            kind = next_met(kind);
            if kind >= Kind::COUNT as u64 {
                return;
            }
            // SAFETY: the pointer comes from the map, and the verifier checks the access.
            record.n = unsafe { met.cast::<u64>().add(met_place(kind) as usize).read_volatile() };
            record.kind = kind;
            self.write_record(&record);
            kind += 1;
        }
    }
}

/// The first kind that was met, from this one on. In a function of its own, because the verifier of old kernels walks every sequence of
/// branches in a loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn next_met(first: u64) -> u64 {
    let Some(met) = MET.get_ptr(0) else { return u64::MAX };
    for more in 0..Kind::COUNT as u64 {
        if first + more >= Kind::COUNT as u64 {
            break;
        }
        let kind = met_place(first + more);
        // SAFETY: the pointer comes from the map, and the verifier checks the access.
        if unsafe { met.cast::<u64>().add(kind as usize).read_volatile() } != 0 {
            return kind;
        }
    }
    u64::MAX
}

/// A place in [`MET`], whatever the number. In assembly, because the compiler would otherwise check another number than it uses, which
/// the verifier doesn't follow.
#[inline(always)]
fn met_place(mut number: u64) -> u64 {
    const { assert!(MET_PLACES == 64) };
    // SAFETY: the instruction changes one register.
    unsafe { core::arch::asm!("{0} &= 63", inout(reg) number) };
    number
}

/// Nothing is met so far.
#[inline(always)]
fn start() {
    let Some(met) = MET.get_ptr_mut(0) else { return };
    for kind in 0..Kind::COUNT {
        // SAFETY: the pointer comes from the map.
        unsafe { core::ptr::write_volatile(&raw mut (*met)[kind], 0) };
    }
}

/// A file is met, of which this is the address's address.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meet(at: u64) -> u32 {
    /// What `FFS_MASK` leaves out: flags in the lowest bits of the address of a ring's file.
    const FLAGS: u64 = 7;
    // SAFETY: a pointer that is no longer valid reads as anything.
    let kind = unsafe {
        let file = bpf_probe_read_kernel(at as *const u64).unwrap_or(0) & !FLAGS;
        kind_of::<Probe>(file as *const u8)
    };
    // SAFETY: the pointer comes from the map, and the verifier checks the access.
    if let Some(n) = MET.get_ptr_mut(0).and_then(|met| unsafe { (*met).get_mut(kind as usize) }) {
        *n += 1;
    }
    0
}

/// How many files were met since [`start`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn total_met() -> u32 {
    let Some(met) = MET.get_ptr(0) else { return 0 };
    // SAFETY: the pointer comes from the map.
    (0..Kind::COUNT)
        .fold(0, |sum, kind| sum + unsafe { core::ptr::read_volatile(&raw const (*met)[kind]) } as u32)
}

// The verifier walks a loop turn by turn, so long ones are loops of loops: a function is walked once. None returns how much was met,
// because the verifier of old kernels takes each sum for a state of its own.

/// Files of a ring that are looked at: blocks of blocks.
const BLOCK: u64 = 256;
const BLOCKS: u64 = 256;

/// How many files that are counted are registered with a ring (`io_ring_ctx`).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_files(ring: u64) -> u32 {
    let ring = ring as *const u8;
    // SAFETY: integers are plain data.
    let (len, table): (u32, u64) =
        unsafe { (Probe::read(ring, &OFF_RING_FILES_LEN), Probe::read(ring, &OFF_RING_FILES)) };
    start();
    for block in 0..BLOCKS {
        if block * BLOCK >= u64::from(len) || table == 0 {
            break;
        }
        direct_block(table, block * BLOCK, len);
    }
    total_met()
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

/// An entry of a ring's table.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_file(mut at: u64) -> u32 {
    if DIRECT_NODES.load() != 0 {
        // SAFETY: an integer is plain data.
        let node = unsafe { bpf_probe_read_kernel(at as *const u64) }.unwrap_or(0);
        if node == 0 {
            return 0;
        }
        at = node.wrapping_add(OFF_NODE_FILE.load());
    }
    meet(at)
}

/// Meets the files that are on their way to a unix socket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn socket_files(sk: u64) -> u32 {
    const TCP_LISTEN: u8 = 10;
    // SAFETY: a `u8` is plain data.
    if unsafe { Probe::read::<u8>(sk as *const u8, &OFF_SK_STATE) } != TCP_LISTEN {
        return queue_files(sk);
    }
    let head = sk.wrapping_add(OFF_SK_QUEUE.load());
    let mut at = head;
    for _ in 0..BLOCKS_OF_MESSAGES {
        if at == 0 {
            break;
        }
        at = connections(head, at);
    }
    0
}

/// Messages of a queue that are looked at: blocks of blocks.
const MESSAGES: u32 = 32;
const BLOCKS_OF_MESSAGES: u32 = 32;

/// The message after one, or after the head of a queue, which has its pointer where messages have theirs (`struct sk_buff_list`). 0 at
/// the end: the queue is a ring of which its head is a part.
#[inline(always)]
fn next_message(head: u64, at: u64) -> u64 {
    // SAFETY: an integer is plain data.
    let next: u64 = unsafe { Probe::read(at as *const u8, &OFF_SKB_NEXT) };
    if next == head { 0 } else { next }
}

/// Meets the files of connections that a socket hasn't accepted: each is a message of its own (`unix_stream_connect`). Returns where it
/// came to.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connections(head: u64, mut at: u64) -> u64 {
    for _ in 0..MESSAGES {
        at = next_message(head, at);
        if at == 0 {
            break;
        }
        // SAFETY: an integer is plain data.
        queue_files(unsafe { Probe::read(at as *const u8, &OFF_SKB_SK) });
    }
    at
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn queue_files(sk: u64) -> u32 {
    let head = sk.wrapping_add(OFF_SK_QUEUE.load());
    let mut at = head;
    for _ in 0..BLOCKS_OF_MESSAGES {
        if at == 0 {
            break;
        }
        at = messages(head, at);
    }
    0
}

/// Meets the files of some messages. Returns where it came to.
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

/// Meets the files of a message: `UNIXCB(skb).fp`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn message_files(message: u64) -> u32 {
    /// net/core/scm.c
    const SCM_MAX_FD: u16 = 253;
    let control = (message as *const u8).wrapping_add(OFF_SKB_CB.load() as usize);
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let list = Probe::pointer(control, &OFF_CB_FP);
        if list.is_null() {
            return 0;
        }
        let count: u16 = Probe::read(list, &OFF_FP_COUNT);
        let files = (list as u64).wrapping_add(OFF_FP_FILES.load());
        for i in 0..SCM_MAX_FD {
            if i >= count {
                break;
            }
            meet(files.wrapping_add(u64::from(i) * 8));
        }
    }
    0
}
