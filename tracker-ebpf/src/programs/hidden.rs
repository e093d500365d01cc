//! Looks for files that no slot holds: mapped, registered with io_uring, or on their way through a unix socket.
//!
//! Iterators, which user space reads now and then; no probe sees any of this. What they meet may change under their eyes: an
//! address that is no longer valid reads as anything, so user space believes only what two looks agree on.

use aya_ebpf::{
    Global,
    bindings::seq_file,
    helpers::{bpf_probe_read_kernel, generated::bpf_seq_write},
};
use tracker_ebpf::{Kind, Sighting, sighting};

use crate::{
    classify::{NOT_COUNTED, classify},
    kernel::{
        Direct, OFF_CB_FP, OFF_FILE_INODE, OFF_FILE_PRIVATE, OFF_FP_COUNT, OFF_FP_FILES, OFF_INODE_MODE,
        OFF_NODE_FILE, OFF_QUEUE_LEN, OFF_RING_FILES, OFF_RING_FILES_LEN, OFF_SK_FAMILY, OFF_SK_QUEUE,
        OFF_SK_STATE, OFF_SKB_CB, OFF_SKB_NEXT, OFF_SKB_SK, OFF_SOCKET_SK, OFF_TASK_IO_URING, OFF_TASK_TGID,
        OFF_URING_RINGS, OFF_VMA_FILE, OFF_VMA_MM, Probe, Read as _, cgroup_id, is_own,
    },
    maps::MET,
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
        let kind = classify::<Direct>(file);
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
        let Some(place) = Place::of((*ctx).meta, task) else { return 0 };
        let kind = classify::<Direct>(file);
        if kind != NOT_COUNTED {
            place.write(sighting::OPEN, 0, file as u64, kind, 1);
            if kind == Kind::IoUring.index() as u64 {
                place.write_direct(file);
            }
        }
    }
    0
}

/// What is in the queue of each socket that a slot holds. A program of its own, because the verifier of old kernels would walk it once
/// for each outcome of the classifier.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn in_flight(ctx: *const TaskFile) -> i32 {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    // SAFETY: as above.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let inode = Direct::pointer(file, &OFF_FILE_INODE);
        if inode.is_null() || Direct::read::<u16>(inode, &OFF_INODE_MODE) & S_IFMT != S_IFSOCK {
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
    task: *const u8,
    tgid: u32,
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
            Some(Self { seq: (*meta).seq, task, tgid })
        }
    }

    #[inline(always)]
    fn write(&self, what: u64, holder: u64, file: u64, kind: u64, n: u64) {
        let cgroup_id = cgroup_id::<Direct>(self.task);
        self.write_record(&Sighting { what, holder, file, kind, cgroup_id, n, tgid: self.tgid.into() });
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
            let socket = Probe::pointer(file, &OFF_FILE_PRIVATE);
            let sk = Probe::pointer(socket, &OFF_SOCKET_SK);
            if sk.is_null() || Probe::read::<u16>(sk, &OFF_SK_FAMILY) != AF_UNIX {
                return;
            }
            let queue = sk.wrapping_add(OFF_SK_QUEUE.load() as usize);
            if Probe::read::<u32>(queue, &OFF_QUEUE_LEN) == 0 {
                return;
            }
            start();
            if socket_files(sk as u64) != 0 {
                self.write_met(sk as u64);
            }
        }
    }

    /// Writes what was met since [`start`], in the queue of a socket.
    #[inline(always)]
    fn write_met(&self, sk: u64) {
        let Some(met) = MET.get_ptr(0) else { return };
        let cgroup_id = cgroup_id::<Direct>(self.task);
        let (what, tgid) = (sighting::IN_FLIGHT, self.tgid.into());
        let mut record = Sighting { what, holder: sk, file: 0, kind: 0, cgroup_id, n: 0, tgid };
        let mut kind = 0;
        for _ in 0..Kind::COUNT {
            kind = next_met(kind);
            // SAFETY: the pointer comes from the map, and only one iterator at a time runs.
            let Some(n) = (unsafe { (*met).get(kind as usize) }) else { return };
            (record.kind, record.n) = (kind.into(), *n);
            self.write_record(&record);
            kind += 1;
        }
    }
}

/// The first kind that was met, from this one on. In a function of its own, because the verifier of old kernels walks every sequence of
/// branches in a loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn next_met(first: u32) -> u32 {
    let Some(met) = MET.get_ptr(0) else { return u32::MAX };
    for kind in 0..Kind::COUNT {
        // SAFETY: the pointer comes from the map.
        let n = unsafe { core::ptr::read_volatile(&raw const (*met)[kind]) };
        if kind as u32 >= first && n != 0 {
            return kind as u32;
        }
    }
    u32::MAX
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

/// A file is met. Returns 1 if it is counted.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meet(file: u64) -> u32 {
    // SAFETY: a pointer that is no longer valid reads as anything.
    let kind = unsafe { classify::<Probe>(file as *const u8) };
    // SAFETY: the pointer comes from the map, and the verifier checks the access.
    match MET.get_ptr_mut(0).and_then(|met| unsafe { (*met).get_mut(kind as usize) }) {
        Some(n) => {
            *n += 1;
            1
        }
        None => 0,
    }
}

/// Files of a ring that are looked at, in blocks: the verifier walks a loop turn by turn.
const BLOCK: u64 = 256;
const BLOCKS: u64 = 256;

/// How many files were met since [`start`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn total_met() -> u32 {
    let Some(met) = MET.get_ptr(0) else { return 0 };
    // SAFETY: the pointer comes from the map.
    (0..Kind::COUNT)
        .fold(0, |sum, kind| sum + unsafe { core::ptr::read_volatile(&raw const (*met)[kind]) } as u32)
}

/// How many files that are counted are registered with a ring (`io_ring_ctx`).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_files(ring: u64) -> u32 {
    let ring = ring as *const u8;
    // SAFETY: integers are plain data.
    let (len, table): (u32, u64) =
        unsafe { (Probe::read(ring, &OFF_RING_FILES_LEN), Probe::read(ring, &OFF_RING_FILES)) };
    start();
    let mut met = 0;
    for block in 0..BLOCKS {
        if block * BLOCK >= u64::from(len) || table == 0 {
            break;
        }
        met |= direct_block(table, block * BLOCK, len);
    }
    if met == 0 { 0 } else { total_met() }
}

// What these return is whether anything was met, and not how much: the verifier of old kernels takes each sum for a state of its own.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn direct_block(table: u64, first: u64, len: u32) -> u32 {
    /// What `FFS_MASK` leaves out: flags in the lowest bits of the file's address.
    const FLAGS: u64 = 7;
    let mut met = 0;
    for i in 0..BLOCK {
        if first + i >= u64::from(len) {
            break;
        }
        let at = table.wrapping_add((first + i) * 8) as *const u8;
        // SAFETY: integers are plain data.
        let mut file = unsafe { bpf_probe_read_kernel(at.cast::<u64>()) }.unwrap_or(0);
        if DIRECT_NODES.load() != 0 && file != 0 {
            // SAFETY: a `u64` is plain data.
            file = unsafe { Probe::read(file as *const u8, &OFF_NODE_FILE) };
        }
        if file & !FLAGS != 0 {
            met |= meet(file & !FLAGS);
        }
    }
    met
}

/// Messages of a queue that are looked at.
const MESSAGES: u32 = 1024;

/// Meets the files that are on their way to a unix socket. Returns whether any is counted.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn socket_files(sk: u64) -> u32 {
    const TCP_LISTEN: u8 = 10;
    // SAFETY: a `u8` is plain data.
    if unsafe { Probe::read::<u8>(sk as *const u8, &OFF_SK_STATE) } != TCP_LISTEN {
        return queue_files(sk);
    }
    // A connection that isn't accepted yet is a message of its own (`unix_stream_connect`).
    let mut met = 0;
    let mut messages = Messages::of(sk);
    for _ in 0..MESSAGES {
        let Some(message) = messages.next() else { break };
        // SAFETY: a `u64` is plain data.
        met |= queue_files(unsafe { Probe::read(message as *const u8, &OFF_SKB_SK) });
    }
    met
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn queue_files(sk: u64) -> u32 {
    let mut met = 0;
    let mut messages = Messages::of(sk);
    for _ in 0..MESSAGES {
        let Some(message) = messages.next() else { break };
        met |= message_files(message);
    }
    met
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
        let mut met = 0;
        for i in 0..SCM_MAX_FD {
            if i >= count {
                break;
            }
            met |= meet(Probe::read(list.wrapping_add(usize::from(i) * 8), &OFF_FP_FILES));
        }
        met
    }
}

/// The messages of a socket's queue: a ring of which its head is a part.
struct Messages {
    head: u64,
    at: u64,
}

impl Messages {
    #[inline(always)]
    fn of(sk: u64) -> Self {
        let head = sk.wrapping_add(OFF_SK_QUEUE.load());
        Self { head, at: head }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<u64> {
        // The head has its pointer where messages have theirs (`struct sk_buff_list`).
        // SAFETY: a `u64` is plain data.
        self.at = unsafe { Probe::read(self.at as *const u8, &OFF_SKB_NEXT) };
        (self.at != 0 && self.at != self.head).then_some(self.at)
    }
}
