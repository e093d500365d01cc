//! The hidden scan: what its iterators write.

/// A file that the hidden scan found, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// A [`sighting`] code.
    pub what: u64,
    /// Address of what holds the file: an `mm_struct` that maps it, the ring that it is registered
    /// with, the socket in whose queue it is; else 0.
    pub holder: u64,
    /// Address of the `struct file`; 0 where `n` stands for several.
    pub file: u64,
    /// Index of the file's kind.
    pub kind: u64,
    /// Id of the task's cgroup.
    pub cgroup_id: u64,
    /// How many files of this kind.
    pub n: u64,
    /// Thread group, in the initial pid namespace.
    pub tgid: u64,
}

/// Codes of [`Sighting::what`].
pub mod sighting {
    /// A slot holds the file.
    pub const OPEN: u64 = 1;
    /// The file is mapped.
    pub const MAPPED: u64 = 2;
    /// A thread has registered the ring with itself.
    pub const REGISTERED: u64 = 3;
    /// Files are registered with a ring.
    pub const DIRECT: u64 = 4;
    /// Files are in a socket's queue.
    pub const IN_FLIGHT: u64 = 5;
}
