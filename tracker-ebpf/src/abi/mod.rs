//! What programs and user space share, by subject.

pub(crate) mod anon_inode;
pub(crate) mod audit;
pub mod event;
pub(crate) mod hidden;
pub(crate) mod loss;
pub(crate) mod table;
pub(crate) mod tag;
