//! All state. User space sets the sizes of the bounded maps when it loads them.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use tracker_ebpf::{ANON_NAME_LEN, Control, Flow, Fop, Kind, Loss, Slot, Table, Tag};

/// `files_struct` → counts: the truth that users read.
#[map]
pub(crate) static TABLES: HashMap<u64, Table> = HashMap::with_max_entries(16_384, 0);

/// Slot → what is counted for it (tracepoint feeder).
#[map]
pub(crate) static SLOTS: HashMap<Slot, Tag> = HashMap::with_max_entries(131_072, 0);

/// Locks: slots that a CPU is about to change, and tables whose entries it may remove. An entry is
/// there only while one probe runs.
#[map]
pub(crate) static LOCKS: HashMap<LockKey, u8> = HashMap::with_max_entries(4_096, 0);

/// cgroup id → slots filled and emptied.
#[map]
pub(crate) static FLOWS: HashMap<u64, Flow> = HashMap::with_max_entries(4_096, 0);

/// `file_operations` → kind of anonymous inode.
#[map]
pub(crate) static FOPS: HashMap<u64, Fop> = HashMap::with_max_entries(1_024, 0);

/// Name of an anonymous inode → index of its kind. Filled by user space.
#[map]
pub(crate) static ANON_NAMES: HashMap<[u8; ANON_NAME_LEN], u64> = HashMap::with_max_entries(256, 0);

/// Events, on their way to user space.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// User space maps these arrays into its memory. Why it makes no system calls on maps is said in
/// `programs/dump.rs`.
const MMAPABLE: u32 = BPF_F_MMAPABLE;

/// How often something was lost, by [`Loss`].
#[map]
pub(crate) static LOSSES: Array<u64> = Array::with_max_entries(Loss::ALL.len() as u32, MMAPABLE);

/// What user space tells the programs.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

/// Counts the removals from `TABLES` that have begun, and those that are done.
#[map]
pub(crate) static REMOVALS: Array<u64> = Array::with_max_entries(2, MMAPABLE);

/// How many entries `SLOTS` has.
#[map]
pub(crate) static RECORDED: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// What [`resync::MEASURE`](tracker_ebpf::resync::MEASURE) found, and
/// [`ADJUST`](tracker_ebpf::resync::ADJUST) is to add.
#[map]
pub(crate) static MEASURED: Array<[i64; Kind::COUNT]> = Array::with_max_entries(1, MMAPABLE);

/// Files per kind that the hidden scan has counted in one place, until it writes them.
#[map]
pub(crate) static HIDDEN_COUNTS: Array<[u64; HIDDEN_COUNTERS]> = Array::with_max_entries(1, 0);

/// Kinds, rounded up to a power of two.
pub(crate) const HIDDEN_COUNTERS: usize = Kind::COUNT.next_power_of_two();

/// Where values are put together that are too large for the BPF stack. Programs that use it can't
/// be preempted.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Key of [`LOCKS`].
#[repr(C)]
pub(crate) struct LockKey {
    pub(crate) files: u64,
    pub(crate) fd: u64,
}

impl LockKey {
    /// The `fd` that stands for the whole table.
    pub(crate) const TABLE: u64 = u64::MAX;
}

/// Value of [`SCRATCH`].
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) table: Table,
    /// Stays zero.
    pub(crate) flow: Flow,
    /// The thread group on whose behalf a [`REMOTE`](tracker_ebpf::mode::REMOTE) scan runs.
    pub(crate) remote_tgid: u32,
    pub(crate) pad: u32,
    pub(crate) remote_cgroup_id: u64,
    /// The task that is in that cgroup; 0 if the table is charged to another.
    pub(crate) remote_task: u64,
}
