//! All facts. Each is a [`Key`] with the type of its value; the name is the one that rules use.
//!
//! [`Key`]: super::Key

use super::{
    FactType as _, Key, Text, Type, Value,
    word::{
        Driver, End, Filesystem, Filter, HugePages, Layer, Leader, Leads, LockHolder, MountState, Nested,
        Peer, Place, SocketState, Target, Targets, Watches,
    },
};

/// Defines a [`Key`] for each fact, and [`Fact`].
macro_rules! facts {
    ($($(#[doc = $doc:literal])+ $key:ident = $name:literal: $type:ty,)+) => {
        $($(#[doc = $doc])+ pub const $key: Key<$type> = Key::new(Fact(Id::$key));)+

        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "the names of the keys")]
        enum Id { $($key,)+ }

        impl Fact {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self(Id::$key),)+];

            /// The name that rules use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 { $(Id::$key => $name,)+ }
            }

            /// The type of its value.
            #[must_use]
            pub const fn value_type(self) -> Type {
                match self.0 { $(Id::$key => <$type>::TYPE,)+ }
            }

            /// What it means, in a few words.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self.0 { $(Id::$key => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

facts! {
    // Of every file.
    /// The fd number.
    FD = "fd": i64,
    /// The process.
    PID = "pid": i64,
    /// What the fd's link in /proc says.
    LINK = "link": Text,
    /// The link without what the kernel appends to it when the file was deleted.
    PATH = "path": Text,
    /// st_mode: type and permissions.
    MODE = "mode": i64,
    /// st_ino: the inode's number.
    INODE = "inode": i64,
    /// The descriptor was opened with O_PATH.
    O_PATH = "o_path": bool,
    /// The mount of the file, as fdinfo tells it (mnt_id).
    MOUNT_ID = "mount_id": i64,
    /// Whether CRIU knows that mount: it is among those of the tree's mount namespaces, and nothing
    /// is mounted over it.
    MOUNT = "mount": MountState,
    /// `--external file[mount:inode]` names the file.
    EXTERNAL = "external": bool,
    /// Locks that are held through the descriptor: by the tree's processes, or by one outside.
    LOCK = "lock": LockHolder,
    /// Number of a process that holds such a lock.
    LOCK_PID = "lock_pid": i64,

    // Of files with a path.
    /// Hard links (st_nlink).
    LINKS = "links": i64,
    /// Size in bytes (st_size).
    SIZE = "size": i64,
    /// Bytes allocated (st_blocks times 512).
    ALLOCATED = "allocated": i64,
    /// Where the path leads now: to the same file, to another, or nowhere.
    LEADS = "leads": Leads,
    /// The file that the path leads to now: device and inode, as CRIU prints it.
    LEADS_TO = "leads_to": Text,
    /// The file that is open: device and inode, as CRIU prints it.
    IDENTITY = "identity": Text,
    /// The filesystem, where it matters.
    FILESYSTEM = "filesystem": Filesystem,

    /// Whether it is of huge pages, and the kernel has any left.
    HUGE_PAGES = "huge_pages": HugePages,

    // Of devices.
    /// The device: major:minor.
    DEVICE = "device": Text,
    /// The device's major number.
    MAJOR = "major": i64,
    /// The device's minor number.
    MINOR = "minor": i64,

    // Of anonymous inodes.
    /// Where the target of a pidfd is: reaped, in the tree, or outside of it.
    TARGET = "target": Target,
    /// The target of a pidfd, as fdinfo tells it.
    TARGET_PID = "target_pid": i64,
    /// The pidfd is of a thread (PIDFD_THREAD).
    OF_THREAD = "of_thread": bool,
    /// The clock of a timerfd (fdinfo: clockid).
    CLOCK = "clock": i64,
    /// The type of a BPF map (fdinfo: map_type).
    MAP_TYPE = "map_type": i64,
    /// Whether all targets of an epoll are open in its own process.
    TARGETS = "targets": Targets,
    /// Whether CRIU finds again what is watched: yes; its handle can't be opened; it has no path;
    /// its mount isn't known.
    WATCHES = "watches": Watches,
    /// The device of the first watch that isn't found.
    WATCH_DEVICE = "watch_device": i64,
    /// The inode of the first watch that isn't found.
    WATCH_INODE = "watch_inode": i64,

    // Of mappings.
    /// Where it is mapped.
    ADDRESS = "address": i64,
    /// Where it ends.
    ADDRESS_END = "address_end": i64,

    // Of pipes.
    /// A pipe of packets (O_DIRECT).
    PACKETS = "packets": bool,
    /// Readable pipes and fifos in the whole tree.
    PIPES = "pipes": i64,

    // Of sockets.
    /// Address family.
    FAMILY = "family": i64,
    /// Socket type.
    SOCKET_TYPE = "socket_type": i64,
    /// Protocol.
    PROTOCOL = "protocol": i64,
    /// Where the socket's network namespace is.
    NETNS = "netns": Place,
    /// The socket's filter.
    FILTER = "filter": Filter,
    /// State of a TCP socket, or of a unix socket.
    STATE = "state": SocketState,
    /// The same, as the kernel numbers them.
    STATE_NUMBER = "state_number": i64,
    /// Connections that wait to be accepted.
    BACKLOG = "backlog": i64,
    /// The datagram is corked (UDP_CORK).
    CORKED = "corked": bool,
    /// Bytes, or messages, that wait to be read.
    QUEUED = "queued": i64,
    /// Highest multicast group of a netlink socket.
    GROUP = "group": i64,
    /// Port id of a netlink socket.
    PORT_ID = "port_id": i64,
    /// Multicast memberships of a packet socket are of a kind that CRIU can't restore.
    MEMBERSHIPS = "memberships": bool,

    // Of unix sockets.
    /// The peer: none, in the tree, outside, not to be found, or waiting to be accepted.
    PEER = "peer": Peer,
    /// The peer's inode.
    PEER_INODE = "peer_inode": i64,
    /// The peer can be reached by a name.
    PEER_NAMED = "peer_named": bool,
    /// The socket's own name, as messages quote it.
    NAME = "name": Text,
    /// The peer's name, as messages quote it.
    PEER_NAME = "peer_name": Text,
    /// Both directions are shut down.
    SHUT_DOWN = "shut_down": bool,
    /// Bytes that were sent and not read, of a connection that waits to be accepted.
    UNREAD = "unread": i64,
    /// A connection that waits to be accepted was closed by its client.
    PENDING_CLOSED = "pending_closed": bool,
    /// Messages that wait carry credentials (SO_PASSCRED), or other control data than files.
    CREDENTIALS = "credentials": bool,

    // Of terminals.
    /// Number of a pseudo terminal.
    TERMINAL = "terminal": i64,
    /// Which end of a pseudo terminal; the terminal that controls whoever uses it (`/dev/tty`), or
    /// none of these.
    END = "end": End,
    /// The other end is open in the tree; of /dev/tty a pseudo terminal of the same session.
    PAIRED = "paired": bool,
    /// How many slaves without their master are open in the tree that have a smaller number.
    LONE_BEFORE = "lone_before": i64,
    /// Where the leader of the session is: the terminal's, or the process's.
    LEADER = "leader": Leader,
    /// The terminal's session.
    SESSION = "session": i64,
    /// The terminal's foreground process group.
    FOREGROUND = "foreground": i64,
    /// The terminal's driver, as CRIU calls it.
    DRIVER = "driver": Driver,

    // Of namespaces.
    /// Whether a process of the tree, or CRIU, is in the namespace.
    NAMESPACE = "namespace": Place,

    // Of processes.
    /// It is the first of the tree.
    ROOT = "root": bool,
    /// Its state, as /proc tells it.
    PROCESS_STATE = "process_state": Text,
    /// Another process traces it.
    TRACED = "traced": bool,
    /// A namespace of its own, of a kind that CRIU dumps of the tree's root only; none if it has
    /// none.
    NESTED = "nested": Nested,

    // Of the environment.
    /// CRIU was built with libbpf.
    LIBBPF = "libbpf": bool,
    /// The CUDA plugin is installed, with the tool that it needs.
    CUDA_PLUGIN = "cuda_plugin": bool,
    /// The amdgpu plugin is installed.
    AMDGPU_PLUGIN = "amdgpu_plugin": bool,
    /// The tree has a network namespace of its own, which is dumped.
    OWN_NETNS = "own_netns": bool,
    /// In which layer of an overlay the file is.
    LAYER = "layer": Layer,
    /// Why a file couldn't be inspected.
    WHY = "why": Text,
}

/// Something that can be known of a file, without the type of its value: what rules have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fact(Id);

impl Fact {
    /// Finds the fact with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fact| fact.name() == name)
    }

    /// Shows a value of this fact as rules and messages have it.
    pub(crate) fn show(self, value: &Value) -> Text {
        match (value, self.value_type()) {
            (Value::Bool(value), _) => value.to_string().into(),
            (Value::Int(value), _) => value.to_string().into(),
            (Value::Text(value), _) => value.clone(),
            (Value::Word(index), Type::Word(names)) => {
                names.get(usize::from(*index)).copied().unwrap_or("?").into()
            }
            (Value::Word(_), Type::Bool | Type::Int | Type::Text) => "?".into(),
        }
    }
}

impl std::fmt::Debug for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
