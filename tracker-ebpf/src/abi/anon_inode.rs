//! Anonymous inodes, which are told apart by their names.

/// Bytes of an anonymous inode's name that are compared.
pub const ANON_NAME_LEN: usize = 24;

/// Value of the map `FOPS`, whose key is the address of a `file_operations`: what an anonymous
/// inode is, learnt from its name.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Fop {
    /// Index of the kind.
    pub kind: u64,
    /// The inode's name, cut to [`ANON_NAME_LEN`] and filled with NUL.
    pub name: [u8; ANON_NAME_LEN],
}
