//! Finds the owner of a cgroup: from its id to its path, and from the path to a runtime and a
//! container's id.
//!
//! - `hierarchy`: the cgroup hierarchy that separates containers on this machine, and its paths;
//! - `path`: the names that runtimes give to cgroups; pure;
//! - `claims`: decides which of several cgroups an id in their names belongs to; pure;
//! - `names`: the names of containers, from annotations or labels; pure;
//! - `oci`, `states`: the files that runc and crun write about containers whose cgroup may have any
//!   name;
//! - `lookup`: asks runtimes over their sockets, and reads the files of engines, in the background;
//! - `directory`: the results of lookups;
//! - `resolver`: combines all these, and remembers the owners; `owners`: shares it between threads.
//!
//! A container is identified by its cgroup, whatever its name is. Its name is what its runtime
//! tells now; else what the runtime wrote into its files; else what the annotations of its
//! specification say; else its id. In Kubernetes this is the name in the pod, and a pod's sandbox
//! is called `POD`.

mod claims;
mod directory;
mod files;
mod hierarchy;
mod lookup;
mod names;
mod oci;
mod owners;
mod path;
mod resolver;
mod states;

pub use directory::{Directory, LookupCounts};
pub use hierarchy::{Cgroups, Hierarchy, HierarchyError};
pub use lookup::{ParseSocketError, Protocol, Settings, Socket, once as look_up_names, run as follow_names};
pub use names::SANDBOX;
pub use owners::Owners;
pub use path::{Identity, Runtime};
pub use resolver::{Cached, Container, Owner, OwnerCache, Resolver};
