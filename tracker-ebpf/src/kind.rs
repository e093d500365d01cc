//! What a file is, as far as a checkpoint is concerned.

/// Defines [`Kind`] with its stable name and, for anonymous inodes, the names that the kernel gives the inode.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal $([$($anon:literal),+])?,)+) => {
        /// A closed list of file kinds; [`Kind::AnonOther`] takes the anonymous inodes not known by name yet.
        ///
        /// The discriminant indexes [`Table::n`](crate::Table::n) and [`Flow`](crate::Flow).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $variant,)+ }

        impl Kind {
            /// Every kind, in the order of the discriminants.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable name used in metrics, JSON and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        /// Names of anonymous inodes (`dentry.d_name`, set by `alloc_file_pseudo`) and the kind each stands for.
        pub const ANON_INODES: &[(&str, Kind)] = &[$($($((($anon), Kind::$variant),)+)?)+];
    };
}

kinds! {
    /// `eventfd2(2)`.
    Eventfd = "eventfd" ["[eventfd]"],
    /// `epoll_create1(2)`.
    Epoll = "epoll" ["[eventpoll]"],
    /// `signalfd4(2)`.
    Signalfd = "signalfd" ["[signalfd]"],
    /// `timerfd_create(2)`.
    Timerfd = "timerfd" ["[timerfd]"],
    /// `inotify_init1(2)`; the kernel's name for it has no brackets.
    Inotify = "inotify" ["inotify"],
    /// `fanotify_init(2)`.
    Fanotify = "fanotify" ["[fanotify]"],
    /// A pidfd of any maker: an anonymous inode before Linux 6.9, on pidfs since.
    Pidfd = "pidfd" ["[pidfd]"],
    /// `io_uring_setup(2)`.
    IoUring = "io_uring" ["[io_uring]"],
    /// `perf_event_open(2)`.
    PerfEvent = "perf_event" ["[perf_event]"],
    /// A BPF map.
    BpfMap = "bpf_map" ["bpf-map"],
    /// A BPF program.
    BpfProg = "bpf_prog" ["bpf-prog"],
    /// A BPF link.
    BpfLink = "bpf_link" ["bpf_link", "bpf-link"],
    /// A BTF object.
    Btf = "btf" ["btf"],
    /// A BPF iterator.
    BpfIter = "bpf_iter" ["bpf_iter"],
    /// `userfaultfd(2)` or `/dev/userfaultfd`.
    Userfaultfd = "userfaultfd" ["[userfaultfd]"],
    /// `fsopen(2)`, `fspick(2)`.
    Fscontext = "fscontext" ["[fscontext]"],
    /// The listener of `seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)`.
    SeccompNotify = "seccomp_notify" ["seccomp notify"],
    /// `landlock_create_ruleset(2)`.
    Landlock = "landlock" ["[landlock-ruleset]"],
    /// A KVM virtual machine, vcpu or device: every anonymous inode named `kvm-*`, and guest memory.
    Kvm = "kvm" ["[kvm-gmem]"],
    /// A VFIO device.
    Vfio = "vfio" ["[vfio-device]"],
    /// A DMA fence container.
    SyncFile = "sync_file" ["sync_file"],
    /// An anonymous inode of a name that is not in this list.
    AnonOther = "anon_other",
    /// `memfd_secret(2)`.
    MemfdSecret = "memfd_secret",
    /// A POSIX message queue descriptor.
    Mqueue = "mqueue",
    /// A dma-buf.
    DmaBuf = "dma_buf",
    /// `AF_VSOCK`.
    Vsock = "vsock",
    /// `AF_ALG`.
    Alg = "alg",
    /// `AF_XDP`.
    Xdp = "xdp",
    /// `AF_PACKET`.
    Packet = "packet",
    /// `AF_BLUETOOTH`.
    Bluetooth = "bluetooth",
    /// `AF_CAN`.
    Can = "can",
    /// Multipath TCP (protocol 262), Go's default for listeners since 1.24.
    Mptcp = "mptcp",
    /// SCTP (protocol 132).
    Sctp = "sctp",
    /// An unprivileged ICMP ("ping") socket.
    Ping = "ping",
    /// A socket of any other family or inet protocol that CRIU doesn't know.
    SocketOther = "socket_other",
    /// `/dev/net/tun`: a tun or tap device.
    Tun = "tun",
    /// An NVIDIA device (major 195).
    Nvidia = "nvidia",
    /// A DRI device: GPU card or render node (major 226).
    Dri = "dri",
    /// Any other character device that CRIU doesn't restore. Terminals and `mem` devices are not counted:
    /// whether they can be dumped depends on context, not on the device number.
    CharDevice = "char_device",
    /// A block device.
    BlockDevice = "block_device",
    // From here on what is in no slot ([`Kind::is_hidden`]).
    /// An io_uring that is mapped, and open nowhere in its process.
    IoUringMapped = "io_uring_mapped",
    /// A perf event that is mapped, and open nowhere in its process.
    PerfEventMapped = "perf_event_mapped",
    /// Memory of `memfd_secret(2)` that is mapped, and open nowhere in its process.
    MemfdSecretMapped = "memfd_secret_mapped",
    /// A GPU that is mapped ([`Kind::Nvidia`], [`Kind::Dri`]), and open nowhere in its process.
    GpuMapped = "gpu_mapped",
    /// Any other file of a kind that is counted, mapped, and open nowhere in its process: a BPF map, a vcpu, a device, …
    OtherMapped = "other_mapped",
    /// An io_uring that a thread has registered, and that is neither open nor mapped in its process.
    IoUringRegistered = "io_uring_registered",
    /// A file of a kind that is counted among those that are registered with an io_uring (direct descriptors).
    IoUringDirect = "io_uring_direct",
    /// A file of a kind that is counted, sent over a unix socket and not received yet.
    FdInFlight = "fd_in_flight",
}

impl Kind {
    /// How many kinds there are: the length of every per-kind array.
    pub const COUNT: usize = Self::ALL.len();

    /// The kind with this discriminant.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// The kind with this stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Whether it is of what no slot holds: only an audit finds it, and no [`Table`](crate::Table) or [`Flow`](crate::Flow) has any.
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        self as usize >= Self::IoUringMapped as usize
    }

    /// What a file of this kind counts as that is mapped, and open nowhere in its process.
    #[must_use]
    pub const fn mapped(self) -> Self {
        match self {
            Self::IoUring => Self::IoUringMapped,
            Self::PerfEvent => Self::PerfEventMapped,
            Self::MemfdSecret => Self::MemfdSecretMapped,
            Self::Nvidia | Self::Dri => Self::GpuMapped,
            _ => Self::OtherMapped,
        }
    }

    /// The index of this kind in every per-kind array.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
