//! The passes of a dump.

use crate::named::named;

named! {
    /// What CRIU does when, in the order of its passes over a process tree.
    ///
    /// # Source
    /// CRIU: `cr-dump.c:cr_dump_tasks`, `dump_one_task`; each pass names its function.
    Pass {
        /// Processes and their namespaces are collected (`collect_pstree`, `collect_pstree_ids`).
        Collect = "collect",
        /// Mappings of a process (`collect_mappings`).
        Mappings = "mappings",
        /// Its files are sent to CRIU (`drain_fds`).
        Drain = "drain",
        /// Each file is dumped (`dump_one_file`): the pass of a rule that names none.
        File = "file",
        /// Its epolls are dumped (`flush_eventpoll_dinfo_queue`).
        Epoll = "epoll",
        /// After all processes: dead processes whose pid is now another's thread
        /// (`dead_pid_conflict`).
        DeadPids = "dead_pids",
        /// File locks (`dump_file_locks`).
        Locks = "locks",
        /// Terminals of a session that isn't in the tree (`dump_verify_tty_sids`).
        Sessions = "sessions",
        /// The tree itself (`dump_pstree`).
        Tree = "tree",
        /// Sockets whose peer is outside (`fix_external_unix_sockets`).
        ExternalSockets = "external_sockets",
        /// Terminals without their other end (`tty_verify_active_pairs`).
        Terminals = "terminals",
    }
}

impl Pass {
    /// Whether the pass is over one process, before the next one's begins; else over all of them.
    #[must_use]
    pub const fn is_of_process(self) -> bool {
        matches!(self, Self::Mappings | Self::Drain | Self::File | Self::Epoll)
    }
}
