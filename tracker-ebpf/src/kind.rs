//! The one table of kinds: what a file can be, and how that is told. All lists of kinds come from
//! it.

use crate::classify::{
    magic::{DMA_BUF, GUEST_MEMORY, MQUEUE, PID_FS, SECRET_MEMORY},
    socket::{
        AF_ALG, AF_BLUETOOTH, AF_CAN, AF_PACKET, AF_VSOCK, AF_XDP, IPPROTO_ICMP, IPPROTO_ICMPV6,
        IPPROTO_MPTCP, IPPROTO_SCTP,
    },
};

/// Defines [`Kind`] and [`FileKind`] from the table below, and whatever looks into it.
macro_rules! kinds {
    (
        counted { $(
            $(#[$doc:meta])+
            $kind:ident = $name:literal: $class:ident
            $(, inode [$($inode:literal),+])?
            $(, inode_prefix [$($prefix:literal),+])?
            $(, magic [$($magic:ident),+])?
            $(, family [$($family:ident),+])?
            $(, protocol [$($protocol:ident),+])?
            $(, device [$($device:pat),+])?
            $(, mapped $mapped:ident)?;
        )+ }
        uncounted { $(
            $(#[$context_doc:meta])+
            $context:ident = $context_name:literal;
        )+ }
    ) => {
        /// A closed list of file kinds. [`Kind::AnonOther`] takes anonymous inodes of unknown
        /// names.
        ///
        /// The discriminant indexes [`Table::n`](crate::Table::n) and [`Flow`](crate::Flow).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(u8)]
        pub enum Kind { $(
            $(#[$doc])+
            #[cfg_attr(feature = "serde", serde(rename = $name))]
            $kind,
        )+ }

        impl Kind {
            /// Every kind, in the order of the discriminants.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The stable name used in metrics, JSON and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// Says by what a file of this kind is told.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$kind => Class::$class,)+ }
            }

            /// Finds the kind of all files on a filesystem, by its magic.
            #[must_use]
            #[inline(always)]
            pub const fn of_magic(magic: u64) -> Option<Self> {
                match magic {
                    $($($($magic => Some(Self::$kind),)+)?)+
                    _ => None,
                }
            }

            /// Finds the kind of all sockets of a family.
            #[must_use]
            #[inline(always)]
            pub const fn of_family(family: u16) -> Option<Self> {
                match family {
                    $($($($family => Some(Self::$kind),)+)?)+
                    _ => None,
                }
            }

            /// Finds the kind of all sockets of a protocol of IPv4 and IPv6, but raw ones.
            #[must_use]
            #[inline(always)]
            pub const fn of_protocol(protocol: u16) -> Option<Self> {
                match protocol {
                    $($($($protocol => Some(Self::$kind),)+)?)+
                    _ => None,
                }
            }

            /// Finds the kind of a character device, by its number.
            #[must_use]
            #[inline(always)]
            pub const fn of_device(major: u32, minor: u32) -> Option<Self> {
                match (major, minor) {
                    $($($($device => Some(Self::$kind),)+)?)+
                    _ => None,
                }
            }

            /// Says what a file of this kind counts as that is mapped, and open nowhere in its
            /// process.
            #[must_use]
            pub const fn mapped(self) -> Self {
                match self {
                    $($(Self::$kind => Self::$mapped,)?)+
                    _ => Self::OtherMapped,
                }
            }
        }

        /// Names of anonymous inodes, and the kind that each stands for.
        ///
        /// # Source
        /// Linux: `dentry.d_name`, set by `alloc_file_pseudo`.
        pub const ANON_INODES: &[(&str, Kind)] = &[$($($((($inode), Kind::$kind),)+)?)+];

        /// Beginnings of such names that stand for a kind.
        const ANON_INODE_PREFIXES: &[(&str, Kind)] = &[$($($((($prefix), Kind::$kind),)+)?)+];

        /// What a file is: of a [`Kind`] that is counted, or of one that isn't, because what CRIU
        /// makes of it depends on context alone.
        ///
        /// Those that are counted come first, in the order of [`Kind`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(u8)]
        pub enum FileKind {
            $(
                $(#[$doc])+
                #[cfg_attr(feature = "serde", serde(rename = $name))]
                $kind,
            )+
            $(
                $(#[$context_doc])+
                #[cfg_attr(feature = "serde", serde(rename = $context_name))]
                $context,
            )+
        }

        impl FileKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)+ $(Self::$context,)+];

            /// The stable name used in JSON, in rules and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                    $(Self::$context => $context_name,)+
                }
            }

            /// Returns the kind as which it is counted, if it is.
            #[must_use]
            pub const fn counted(self) -> Option<Kind> {
                match self {
                    $(Self::$kind => Some(Kind::$kind),)+
                    $(Self::$context => None,)+
                }
            }
        }

        impl From<Kind> for FileKind {
            fn from(kind: Kind) -> Self {
                match kind { $(Kind::$kind => Self::$kind,)+ }
            }
        }
    };
}

// A row: variant = "stable name": class, then how it is told. Where nothing is said, it is what is
// left of its class (`anon_other`, `char_device`, `socket_other`, `other_mapped`), or found by what
// holds it. What is mapped, and open nowhere, counts as `mapped`, or as `OtherMapped`.
kinds! {
    counted {
        /// `eventfd2(2)`.
        Eventfd = "eventfd": AnonymousInode, inode ["[eventfd]"];
        /// `epoll_create1(2)`.
        Epoll = "epoll": AnonymousInode, inode ["[eventpoll]"];
        /// `signalfd4(2)`.
        Signalfd = "signalfd": AnonymousInode, inode ["[signalfd]"];
        /// `timerfd_create(2)`.
        Timerfd = "timerfd": AnonymousInode, inode ["[timerfd]"];
        /// `inotify_init1(2)`; the kernel's name for it has no brackets.
        Inotify = "inotify": AnonymousInode, inode ["inotify"];
        /// `fanotify_init(2)`.
        Fanotify = "fanotify": AnonymousInode, inode ["[fanotify]"];
        /// A pidfd of any maker: an anonymous inode before Linux 6.9, on pidfs since.
        Pidfd = "pidfd": AnonymousInode, inode ["[pidfd]"], magic [PID_FS];
        /// `io_uring_setup(2)`.
        IoUring = "io_uring": AnonymousInode, inode ["[io_uring]"], mapped IoUringMapped;
        /// `perf_event_open(2)`.
        PerfEvent = "perf_event": AnonymousInode, inode ["[perf_event]"], mapped PerfEventMapped;
        /// A BPF map.
        BpfMap = "bpf_map": AnonymousInode, inode ["bpf-map"];
        /// A BPF program.
        BpfProg = "bpf_prog": AnonymousInode, inode ["bpf-prog"];
        /// A BPF link.
        BpfLink = "bpf_link": AnonymousInode, inode ["bpf_link", "bpf-link"];
        /// A BTF object.
        Btf = "btf": AnonymousInode, inode ["btf"];
        /// A BPF iterator.
        BpfIter = "bpf_iter": AnonymousInode, inode ["bpf_iter"];
        /// `userfaultfd(2)` or `/dev/userfaultfd`.
        Userfaultfd = "userfaultfd": AnonymousInode, inode ["[userfaultfd]"];
        /// `fsopen(2)`, `fspick(2)`.
        Fscontext = "fscontext": AnonymousInode, inode ["[fscontext]"];
        /// The listener of `seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)`.
        SeccompNotify = "seccomp_notify": AnonymousInode, inode ["seccomp notify"];
        /// `landlock_create_ruleset(2)`.
        Landlock = "landlock": AnonymousInode, inode ["[landlock-ruleset]"];
        /// A KVM virtual machine, vcpu or device: every anonymous inode named `kvm-*`, and guest
        /// memory.
        Kvm = "kvm": AnonymousInode, inode ["[kvm-gmem]"], inode_prefix ["kvm-"], magic [GUEST_MEMORY];
        /// A VFIO device.
        Vfio = "vfio": AnonymousInode, inode ["[vfio-device]"];
        /// A DMA fence container.
        SyncFile = "sync_file": AnonymousInode, inode ["sync_file"];
        /// An anonymous inode of a name that is not in this list.
        AnonOther = "anon_other": AnonymousInode;
        /// `memfd_secret(2)`.
        MemfdSecret = "memfd_secret": Filesystem, magic [SECRET_MEMORY], mapped MemfdSecretMapped;
        /// A POSIX message queue descriptor.
        Mqueue = "mqueue": Filesystem, magic [MQUEUE];
        /// A dma-buf.
        DmaBuf = "dma_buf": Filesystem, magic [DMA_BUF];
        /// `AF_VSOCK`.
        Vsock = "vsock": Socket, family [AF_VSOCK];
        /// `AF_ALG`.
        Alg = "alg": Socket, family [AF_ALG];
        /// `AF_XDP`.
        Xdp = "xdp": Socket, family [AF_XDP];
        /// `AF_PACKET`.
        Packet = "packet": Socket, family [AF_PACKET];
        /// `AF_BLUETOOTH`.
        Bluetooth = "bluetooth": Socket, family [AF_BLUETOOTH];
        /// `AF_CAN`.
        Can = "can": Socket, family [AF_CAN];
        /// Multipath TCP (protocol 262), Go's default for listeners since 1.24.
        Mptcp = "mptcp": Socket, protocol [IPPROTO_MPTCP];
        /// SCTP (protocol 132).
        Sctp = "sctp": Socket, protocol [IPPROTO_SCTP];
        /// An unprivileged ICMP ("ping") socket.
        Ping = "ping": Socket, protocol [IPPROTO_ICMP, IPPROTO_ICMPV6];
        /// A socket of any other family or inet protocol that CRIU doesn't know.
        SocketOther = "socket_other": Socket;
        /// `/dev/net/tun`: a tun or tap device.
        Tun = "tun": Device, device [(10, 200)];
        /// An NVIDIA device (major 195).
        Nvidia = "nvidia": Device, device [(195, _)], mapped GpuMapped;
        /// A DRI device: GPU card or render node (major 226).
        Dri = "dri": Device, device [(226, _)], mapped GpuMapped;
        /// Any other character device that CRIU doesn't restore. Terminals and `mem` devices are
        /// not counted: whether they can be dumped depends on context, not on the device number.
        CharDevice = "char_device": Device;
        /// A block device.
        BlockDevice = "block_device": Device;
        // From here on what is in no slot.
        /// An `io_uring` that is mapped, and open nowhere in its process.
        IoUringMapped = "io_uring_mapped": Hidden;
        /// A perf event that is mapped, and open nowhere in its process.
        PerfEventMapped = "perf_event_mapped": Hidden;
        /// Memory of `memfd_secret(2)` that is mapped, and open nowhere in its process.
        MemfdSecretMapped = "memfd_secret_mapped": Hidden;
        /// A GPU that is mapped ([`Kind::Nvidia`], [`Kind::Dri`]), and open nowhere in its process.
        GpuMapped = "gpu_mapped": Hidden;
        /// Any other file of a kind that is counted, mapped, and open nowhere in its process: a BPF
        /// map, a vcpu, a device, …
        OtherMapped = "other_mapped": Hidden;
        /// An `io_uring` that a thread has registered, and that is neither open nor mapped in its
        /// process.
        IoUringRegistered = "io_uring_registered": Hidden;
        /// A file of a kind that is counted, registered with an `io_uring` (a direct descriptor).
        IoUringDirect = "io_uring_direct": Hidden;
        /// A file of a kind that is counted, sent over a unix socket and not received yet.
        FdInFlight = "fd_in_flight": Hidden;
    }
    uncounted {
        /// A regular file, by a path.
        File = "file";
        /// A directory.
        Directory = "directory";
        /// A symbolic link, opened with `O_PATH`.
        Symlink = "symlink";
        /// A pipe that has a path.
        Fifo = "fifo";
        /// A pipe without a path.
        Pipe = "pipe";
        /// Memory of `memfd_create(2)`, and other files of the kernel's own tmpfs.
        Memfd = "memfd";
        /// `/dev/null`, `/dev/zero`, …
        /// ([`CharDevice::Memory`](crate::classify::CharDevice::Memory)).
        MemDevice = "mem_device";
        /// `/dev/autofs` ([`CharDevice::Autofs`](crate::classify::CharDevice::Autofs)).
        Autofs = "autofs";
        /// A terminal ([`CharDevice::Terminal`](crate::classify::CharDevice::Terminal)).
        Tty = "tty";
        /// `AF_UNIX`, or the name of such a socket, opened with `O_PATH`.
        Unix = "unix";
        /// TCP.
        Tcp = "tcp";
        /// UDP or UDP-Lite.
        Udp = "udp";
        /// A raw socket of IPv4 or IPv6.
        Raw = "raw";
        /// `AF_NETLINK`.
        Netlink = "netlink";
        /// A namespace (nsfs).
        Namespace = "namespace";
        /// The area that the kernel maps into a process which has uprobes.
        UprobesMapped = "uprobes_mapped";
        /// No file: a process itself.
        Process = "process";
        /// What couldn't be inspected.
        Unreadable = "unreadable";
    }
}

/// By what a file of a [`Kind`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The name of its anonymous inode.
    AnonymousInode,
    /// The magic of its filesystem.
    Filesystem,
    /// A socket's family, type and protocol.
    Socket,
    /// A device's type and number.
    Device,
    /// What holds it, which is no slot: only a hidden scan finds it, and no [`Table`](crate::Table)
    /// or [`Flow`](crate::Flow) has any.
    Hidden,
}

impl Kind {
    /// How many kinds there are: the length of every per-kind array.
    pub const COUNT: usize = Self::ALL.len();

    /// Finds the kind with this discriminant.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// Finds the kind with this stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Finds the kind of an anonymous inode, by its name: the whole of it, or its beginning.
    #[must_use]
    pub fn of_anon_inode(name: &str) -> Self {
        let whole = ANON_INODES.iter().find(|(known, _)| *known == name);
        let known = whole.or_else(|| ANON_INODE_PREFIXES.iter().find(|(known, _)| name.starts_with(known)));
        known.map_or(Self::AnonOther, |(_, kind)| *kind)
    }

    /// Whether it is of what no slot holds.
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        matches!(self.class(), Class::Hidden)
    }

    /// Returns the index of this kind in every per-kind array.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl FileKind {
    /// Finds the kind with this stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

impl core::fmt::Display for FileKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}
