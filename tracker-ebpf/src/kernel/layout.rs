//! Where members are in the running kernel: `tracker-user/src/bpf/offsets.rs` finds each in the
//! kernel's BTF and writes it here before it loads the programs.
//!
//! The values are then frozen, so the verifier knows them: `pointer + offset` keeps its BTF type.

use super::pointer::{Member, Pointer};

/// Defines an empty type for each struct of the kernel.
macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident)+) => { $($(#[$doc])* pub(crate) enum $name {})+ };
}

structs! {
    /// `task_struct`
    Task
    /// `signal_struct`
    Signal
    /// `css_set`
    CssSet
    /// `cgroup_subsys_state`
    CgroupState
    /// `cgroup`
    Cgroup
    /// `kernfs_node`
    KernfsNode
    /// `files_struct`
    Files
    /// `fdtable`
    FdTable
    /// `file`
    File
    /// `file_operations`
    FileOperations
    /// What a file's maker points to from it.
    PrivateData
    /// `dentry`
    Dentry
    /// `inode`
    Inode
    /// `super_block`
    SuperBlock
    /// `socket`
    Socket
    /// `sock`
    Sock
    /// A kernel stack.
    Stack
    /// `pt_regs`
    Registers
    /// `vm_area_struct`
    Mapping
    /// `mm_struct`
    Memory
    /// `io_uring_task`
    UringTask
    /// `io_ring_ctx`
    Ring
    /// `io_rsrc_node`
    RingNode
    /// `sk_buff_head`
    MessageQueue
    /// `sk_buff`
    Message
    /// `unix_skb_parms`
    MessageControl
    /// `scm_fp_list`
    MessageFiles
}

macro_rules! members {
    ($($name:ident: $of:ty => $type:ty,)+) => {
        $(#[unsafe(no_mangle)] pub(crate) static $name: Member<$of, $type> = Member::new();)+
    };
}

// One for each entry of `OFFSETS` in offsets.rs.
members! {
    // A table is known by its address.
    OFF_TASK_FILES: Task => u64,
    OFF_TASK_FLAGS: Task => u32,
    OFF_TASK_STATE: Task => u32,
    OFF_TASK_LEADER: Task => Pointer<Task>,
    OFF_TASK_TGID: Task => u32,
    OFF_TASK_SIGNAL: Task => Pointer<Signal>,
    OFF_SIGNAL_LIVE: Signal => u32,
    OFF_SIGNAL_THREADS: Signal => u32,
    OFF_TASK_CGROUPS: Task => Pointer<CssSet>,
    // Or to a `CgroupState`.
    OFF_CSET_CGROUP: CssSet => Pointer<Cgroup>,
    OFF_CSS_CGROUP: CgroupState => Pointer<Cgroup>,
    OFF_CGROUP_KN: Cgroup => Pointer<KernfsNode>,
    OFF_KN_ID: KernfsNode => u64,
    OFF_FILES_COUNT: Files => u32,
    OFF_FILES_FDT: Files => Pointer<FdTable>,
    OFF_FDT_MAX_FDS: FdTable => u32,
    OFF_FDT_FD: FdTable => Pointer<Pointer<File>>,
    OFF_FDT_OPEN_FDS: FdTable => Pointer<u64>,
    OFF_FILE_INODE: File => Pointer<Inode>,
    OFF_FILE_OP: File => Pointer<FileOperations>,
    OFF_FILE_DENTRY: File => Pointer<Dentry>,
    OFF_FILE_PRIVATE: File => Pointer<PrivateData>,
    OFF_DENTRY_NAME: Dentry => Pointer<u8>,
    OFF_INODE_MODE: Inode => u16,
    OFF_INODE_SB: Inode => Pointer<SuperBlock>,
    OFF_INODE_RDEV: Inode => u32,
    OFF_SB_MAGIC: SuperBlock => u64,
    OFF_SOCKET_TYPE: Socket => u16,
    OFF_SOCKET_SK: Socket => Pointer<Sock>,
    OFF_SK_FAMILY: Sock => u16,
    OFF_SK_PROTOCOL: Sock => u16,
    OFF_TASK_STACK: Task => Pointer<Stack>,
    OFF_STACK_REGS: Stack => Registers,
    OFF_REGS_ARG0: Registers => u64,
    OFF_REGS_ARG1: Registers => u64,
    OFF_REGS_ARG2: Registers => u64,
    OFF_REGS_ARG3: Registers => u64,
    OFF_REGS_SYSCALL: Registers => u64,
}

// One for each entry of the tables for hidden files in offsets.rs. Some kernels lack some of these.
members! {
    OFF_VMA_FILE: Mapping => Pointer<File>,
    OFF_VMA_MM: Mapping => Pointer<Memory>,
    OFF_TASK_IO_URING: Task => Pointer<UringTask>,
    // The first of an array.
    OFF_URING_RINGS: UringTask => Pointer<File>,
    OFF_SK_STATE: Sock => u8,
    OFF_SK_QUEUE: Sock => MessageQueue,
    OFF_QUEUE_LEN: MessageQueue => u32,
    OFF_SKB_NEXT: Message => Pointer<Message>,
    OFF_SKB_SK: Message => Pointer<Sock>,
    OFF_SKB_CB: Message => MessageControl,
    OFF_CB_FP: MessageControl => Pointer<MessageFiles>,
    OFF_FP_COUNT: MessageFiles => u16,
    // The first of an array.
    OFF_FP_FILES: MessageFiles => Pointer<File>,
    OFF_RING_FILES_LEN: Ring => u32,
    // An array: of pointers to files, or to nodes.
    OFF_RING_FILES: Ring => u64,
    OFF_NODE_FILE: RingNode => Pointer<File>,
}
