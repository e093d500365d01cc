//! The steps, in the order in which they are walked.

/// Defines [`Step`] with the name by which the child is told.
macro_rules! steps {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// One change of a table, of each kind that there is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Step { $($(#[$doc])* $variant,)+ }

        impl Step {
            pub(super) const ALL: &[Self] = &[$(Self::$variant,)+];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            pub(super) fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|step| step.name() == name)
            }
        }
    };
}

steps! {
    /// `eventfd`
    Open = "open",
    /// `pidfd_open`
    Pidfd = "pidfd",
    /// `dup`
    Dup = "dup",
    /// `F_DUPFD`
    DupFd = "dupfd",
    /// `dup2` over a slot that holds nothing to count
    Dup2 = "dup2",
    /// `dup2` over another kind
    Dup2Over = "dup2-over",
    /// `SCM_RIGHTS`
    Receive = "scm-rights",
    /// `pidfd_getfd`
    GetFd = "pidfd-getfd",
    /// `close`
    Close = "close",
    /// `close_range`
    CloseRange = "close-range",
    /// A thread with `unshare(CLONE_FILES)`
    Unshare = "unshare",
    /// A thread with `close_range(CLOSE_RANGE_UNSHARE)`
    CloseRangeUnshare = "close-range-unshare",
    /// The end of both threads, and of their tables
    ThreadExit = "thread-exit",
    /// `fork`
    Fork = "fork",
    /// `SIGKILL`
    Kill = "kill",
    /// `execve`, with an fd that closes on it
    Exec = "exec",
    /// The end of the process
    Exit = "exit",
}
