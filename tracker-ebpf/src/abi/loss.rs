//! Losses: what had no room, or could not be followed.

/// A loss that the kernel side counts: index into the array `LOSSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Loss {
    /// No room in the ring for an event.
    Ring,
    /// No room in `TABLES`: a table isn't counted.
    Tables,
    /// No room in `SLOTS`: a slot isn't counted.
    Slots,
    /// No room in `FLOWS`: opened and closed aren't counted for a cgroup.
    Flows,
    /// A slot moved faster than a probe could follow.
    Contended,
    /// A table has more room than [`MAX_SCANNED_FDS`](crate::MAX_SCANNED_FDS), or a message
    /// carried more fds than are followed.
    Truncated,
}

impl Loss {
    /// Every loss, in the order of the discriminants.
    pub const ALL: [Self; 6] =
        [Self::Ring, Self::Tables, Self::Slots, Self::Flows, Self::Contended, Self::Truncated];

    /// The stable name: the `stage` label of `fdtracker_events_lost_total`.
    #[must_use]
    pub const fn stage(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Tables => "tables_full",
            Self::Slots => "slots_full",
            Self::Flows => "flows_full",
            Self::Contended => "contended",
            Self::Truncated => "truncated",
        }
    }
}
