//! What is known of an open file: facts, by the names that rules use for them.

use std::{borrow::Cow, collections::BTreeMap};

/// What a fact is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Whether something is so.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A word, or a text that a message quotes.
    Text(Cow<'static, str>),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&'static str> for Value {
    fn from(value: &'static str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value.into())
    }
}

/// What a fact may be, so that a rule that compares it with something else is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// [`Value::Bool`].
    Bool,
    /// [`Value::Int`].
    Int,
    /// [`Value::Text`], one of these words; any text if there are none.
    Text(&'static [&'static str]),
}

/// Defines [`Fact`] with the name that rules use.
macro_rules! facts {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal $type:expr,)+) => {
        /// Something that can be known of an open file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fact { $($(#[doc = $doc])+ $variant,)+ }

        impl Fact {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name that rules use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it may be.
            #[must_use]
            pub const fn value_type(self) -> Type {
                match self { $(Self::$variant => $type,)+ }
            }

            /// What it means, in a few words.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

facts! {
    // Of every file.
    /// The fd number.
    Fd = "fd" Type::Int,
    /// The process.
    Pid = "pid" Type::Int,
    /// What the fd's link in /proc says.
    Link = "link" Type::Text(&[]),
    /// The link without what the kernel appends to it when the file was deleted.
    Path = "path" Type::Text(&[]),
    /// st_mode: type and permissions.
    Mode = "mode" Type::Int,
    /// st_ino: the inode's number.
    Inode = "inode" Type::Int,
    /// The descriptor was opened with O_PATH.
    OPath = "o_path" Type::Bool,
    /// The mount of the file, as fdinfo tells it (mnt_id).
    MountId = "mount_id" Type::Int,
    /// Whether CRIU knows that mount: it is among those of the tree's mount namespaces, and nothing is mounted over it.
    Mount = "mount" Type::Text(&["known", "unknown", "overmounted"]),
    /// `--external file[mount:inode]` names the file.
    External = "external" Type::Bool,
    /// Locks that are held through the descriptor: by the tree's processes, or by one outside.
    Lock = "lock" Type::Text(&["none", "held", "outside"]),
    /// Number of a process that holds such a lock.
    LockPid = "lock_pid" Type::Int,

    // Of files with a path.
    /// Hard links (st_nlink).
    Links = "links" Type::Int,
    /// Size in bytes (st_size).
    Size = "size" Type::Int,
    /// Bytes allocated (st_blocks times 512).
    Allocated = "allocated" Type::Int,
    /// Where the path leads now: to the same file, to another, or nowhere.
    Leads = "leads" Type::Text(&["same", "other", "nowhere"]),
    /// The file that the path leads to now: device and inode, as CRIU prints it.
    LeadsTo = "leads_to" Type::Text(&[]),
    /// The file that is open: device and inode, as CRIU prints it.
    Identity = "identity" Type::Text(&[]),
    /// The filesystem, where it matters.
    Filesystem = "filesystem" Type::Text(&["overlay", "nfs", "proc", "devpts", "other"]),

    /// Whether it is of huge pages, and the kernel has any left.
    HugePages = "huge_pages" Type::Text(&["not_used", "free", "none_free"]),

    // Of devices.
    /// The device: major:minor.
    Device = "device" Type::Text(&[]),
    /// The device's major number.
    Major = "major" Type::Int,
    /// The device's minor number.
    Minor = "minor" Type::Int,

    // Of anonymous inodes.
    /// Where the target of a pidfd is: reaped, in the tree, or outside of it.
    Target = "target" Type::Text(&["reaped", "inside", "outside"]),
    /// The target of a pidfd, as fdinfo tells it.
    TargetPid = "target_pid" Type::Int,
    /// The pidfd is of a thread (PIDFD_THREAD).
    OfThread = "of_thread" Type::Bool,
    /// The clock of a timerfd (fdinfo: clockid).
    Clock = "clock" Type::Int,
    /// The type of a BPF map (fdinfo: map_type).
    MapType = "map_type" Type::Int,
    /// Whether all targets of an epoll are open in its own process.
    Targets = "targets" Type::Text(&["found", "escaped"]),
    /// Whether CRIU finds again what is watched: yes; its handle can't be opened; it has no path; its mount isn't known.
    Watches = "watches" Type::Text(&["found", "no_handle", "no_path", "no_mount"]),
    /// The device of the first watch that isn't found.
    WatchDevice = "watch_device" Type::Int,
    /// The inode of the first watch that isn't found.
    WatchInode = "watch_inode" Type::Int,

    // Of mappings.
    /// Where it is mapped.
    Address = "address" Type::Int,
    /// Where it ends.
    AddressEnd = "address_end" Type::Int,

    // Of pipes.
    /// A pipe of packets (O_DIRECT).
    Packets = "packets" Type::Bool,
    /// Readable pipes and fifos in the whole tree.
    Pipes = "pipes" Type::Int,

    // Of sockets.
    /// Address family.
    Family = "family" Type::Int,
    /// Socket type.
    SocketType = "socket_type" Type::Int,
    /// Protocol.
    Protocol = "protocol" Type::Int,
    /// Where the socket's network namespace is.
    Netns = "netns" Type::Text(&["inside", "outside"]),
    /// The socket's filter.
    Filter = "filter" Type::Text(&["none", "classic", "ebpf"]),
    /// State of a TCP socket, or of a unix socket.
    State = "state" Type::Text(&["close", "listen", "connected", "syn_recv", "connecting", "time_wait"]),
    /// The same, as the kernel numbers them.
    StateNumber = "state_number" Type::Int,
    /// Connections that wait to be accepted.
    Backlog = "backlog" Type::Int,
    /// The datagram is corked (UDP_CORK).
    Corked = "corked" Type::Bool,
    /// Bytes, or messages, that wait to be read.
    Queued = "queued" Type::Int,
    /// Highest multicast group of a netlink socket.
    Group = "group" Type::Int,
    /// Port id of a netlink socket.
    PortId = "port_id" Type::Int,
    /// Multicast memberships of a packet socket are of a kind that CRIU can't restore.
    Memberships = "memberships" Type::Bool,

    // Of unix sockets.
    /// The peer: none, in the tree, outside, not to be found, or waiting to be accepted.
    Peer = "peer" Type::Text(&["none", "inside", "outside", "missing", "pending"]),
    /// The peer's inode.
    PeerInode = "peer_inode" Type::Int,
    /// The peer can be reached by a name.
    PeerNamed = "peer_named" Type::Bool,
    /// The socket's own name, as messages quote it.
    Name = "name" Type::Text(&[]),
    /// The peer's name, as messages quote it.
    PeerName = "peer_name" Type::Text(&[]),
    /// Both directions are shut down.
    ShutDown = "shut_down" Type::Bool,
    /// Bytes that were sent and not read, of a connection that waits to be accepted.
    Unread = "unread" Type::Int,
    /// A connection that waits to be accepted was closed by its client.
    PendingClosed = "pending_closed" Type::Bool,
    /// Messages that wait carry credentials (SO_PASSCRED), or other control data than files.
    Credentials = "credentials" Type::Bool,

    // Of terminals.
    /// Number of a pseudo terminal.
    Terminal = "terminal" Type::Int,
    /// Which end of a pseudo terminal; the terminal that controls whoever uses it (`/dev/tty`), or none of these.
    End = "end" Type::Text(&["master", "slave", "control", "none"]),
    /// The other end is open in the tree; of /dev/tty a pseudo terminal of the same session.
    Paired = "paired" Type::Bool,
    /// How many slaves without their master are open in the tree that have a smaller number.
    LoneBefore = "lone_before" Type::Int,
    /// Where the leader of the session is: the terminal's, or the process's.
    Leader = "leader" Type::Text(&["inside", "outside", "none"]),
    /// The terminal's session.
    Session = "session" Type::Int,
    /// The terminal's foreground process group.
    Foreground = "foreground" Type::Int,
    /// The terminal's driver, as CRIU calls it.
    Driver = "driver" Type::Text(&[]),

    // Of namespaces.
    /// Whether a process of the tree, or CRIU, is in the namespace.
    Namespace = "namespace" Type::Text(&["inside", "outside"]),

    // Of processes.
    /// It is the first of the tree.
    Root = "root" Type::Bool,
    /// Its state, as /proc tells it.
    ProcessState = "process_state" Type::Text(&[]),
    /// Another process traces it.
    Traced = "traced" Type::Bool,
    /// A namespace of its own, of a kind that CRIU dumps of the tree's root only; none if it has none.
    Nested = "nested" Type::Text(&["none", "pid", "ipc", "uts", "cgroup", "time", "user"]),

    // Of the environment.
    /// CRIU was built with libbpf.
    Libbpf = "libbpf" Type::Bool,
    /// The CUDA plugin is installed, with the tool that it needs.
    CudaPlugin = "cuda_plugin" Type::Bool,
    /// The amdgpu plugin is installed.
    AmdgpuPlugin = "amdgpu_plugin" Type::Bool,
    /// The tree has a network namespace of its own, which is dumped.
    OwnNetns = "own_netns" Type::Bool,
    /// In which layer of an overlay the file is.
    Layer = "layer" Type::Text(&["lower", "upper"]),
    /// What a file couldn't be looked at for.
    Why = "why" Type::Text(&[]),
}

impl Fact {
    /// The fact with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fact| fact.name() == name)
    }
}

/// What is known of a file. What isn't here was not looked at, or could not be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<Fact, Value>);

impl Facts {
    /// Learns a fact.
    pub fn set(&mut self, fact: Fact, value: impl Into<Value>) {
        self.0.insert(fact, value.into());
    }

    /// Learns a fact, if it could be told.
    pub fn set_some(&mut self, fact: Fact, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(fact, value);
        }
    }

    /// What is known.
    #[must_use]
    pub fn get(&self, fact: Fact) -> Option<&Value> {
        self.0.get(&fact)
    }

    /// A number that is known.
    #[must_use]
    pub fn int(&self, fact: Fact) -> Option<i64> {
        match self.get(fact)? {
            Value::Int(value) => Some(*value),
            Value::Bool(_) | Value::Text(_) => None,
        }
    }

    /// A text that is known.
    #[must_use]
    pub fn text(&self, fact: Fact) -> Option<&str> {
        match self.get(fact)? {
            Value::Text(value) => Some(value),
            Value::Bool(_) | Value::Int(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<_> = Fact::ALL.iter().map(|fact| fact.name()).collect();
        assert_eq!(names.len(), Fact::ALL.len());
    }

    #[test]
    fn facts_are_found_by_name() {
        assert_eq!(Fact::from_name("of_thread"), Some(Fact::OfThread));
        assert_eq!(Fact::from_name("of_threads"), None);
        assert!(Fact::Clock.meaning().starts_with("The clock of a timerfd"));
    }
}
