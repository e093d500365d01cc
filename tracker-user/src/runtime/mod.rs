//! Who is this container: from a cgroup's id to its path, and from the path to a runtime and a container's id.
//!
//! - `hierarchy`: which cgroup hierarchy tells containers apart on this machine, and its paths;
//! - `path`: what runtimes name their cgroups; pure;
//! - `claims`: whose an id is that several cgroups have in their names; pure;
//! - `names`: what containers are called, by annotations or labels; pure;
//! - `oci`, `states`: what runc and crun write down of containers whose cgroup may have any name;
//! - `lookup`: asks runtimes over their sockets, and reads what engines write down, in the background;
//! - `directory`: what lookups have found;
//! - `resolver`: puts all that together, and remembers; `owners`: shares it between threads.
//!
//! A container goes by its cgroup, whatever it is called. Its name is what its runtime says now, else what it wrote down, else the
//! annotations of its specification, else its id. In Kubernetes that is the name in the pod; a pod's sandbox is called `POD`.

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
pub use lookup::{ParseSocketError, Protocol, Settings, Socket, once as look_names_up, run as follow_names};
pub use names::SANDBOX;
pub use owners::Owners;
pub use path::{Identity, Runtime};
pub use resolver::{Cached, Container, Owner, OwnerCache, Resolver};
