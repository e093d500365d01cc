//! Who is this container: from a cgroup's id to its path, and from the path to a runtime and a container's id.
//!
//! - `hierarchy`: which cgroup hierarchy tells containers apart on this machine, and its paths;
//! - `path`: what runtimes name their cgroups; pure;
//! - `oci`: what runc and crun write down of containers whose cgroup may have any name;
//! - `resolver`: puts the three together, and remembers.

mod hierarchy;
mod oci;
mod path;
mod resolver;

pub use hierarchy::{Hierarchy, HierarchyError};
pub use oci::criu_config;
pub use path::{Identity, Runtime};
pub use resolver::{Container, Owner, Resolver};
