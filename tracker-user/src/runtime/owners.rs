//! Shares the owners of cgroups between threads. Who can wait may have an owner looked up; others
//! read what is already known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Container, Hierarchy, Owner, OwnerCache, Resolver};

/// A [`Resolver`] that threads share.
#[derive(Debug)]
pub struct Owners {
    hierarchy: Hierarchy,
    cache: OwnerCache,
    resolver: Mutex<Resolver>,
}

impl Owners {
    /// Shares a resolver of this hierarchy's cgroups.
    #[must_use]
    pub fn new(hierarchy: Hierarchy, resolver: Resolver) -> Self {
        Self { hierarchy, cache: resolver.cache(), resolver: Mutex::new(resolver) }
    }

    /// Returns the hierarchy.
    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Returns the owners that are already known. Reading them waits for nothing.
    #[must_use]
    pub fn cache(&self) -> OwnerCache {
        self.cache.clone()
    }

    /// Looks up an owner if it isn't known, or if the runtime may have just told it. May wait for
    /// the file system, and for [`Owners::refresh`].
    pub fn look_up(&self, cgroup: u64, may_be_told: bool) -> Owner {
        self.resolver().owner(cgroup, may_be_told)
    }

    /// Lists all containers. Walks the cgroup file system, without keeping others waiting.
    #[must_use]
    pub fn refresh(&self) -> Vec<Arc<Container>> {
        let cgroups = self.hierarchy.list();
        self.resolver().refresh(&cgroups)
    }

    /// Takes over new names from lookups.
    pub fn learn_names(&self) {
        self.resolver().learn_names();
    }

    /// Returns the container with the name that it has now.
    #[must_use]
    pub fn current(&self, container: Arc<Container>) -> Arc<Container> {
        self.resolver().current(container)
    }

    /// Locks the resolver, for work in several steps.
    pub fn resolver(&self) -> MutexGuard<'_, Resolver> {
        // A panic while it was locked has left nothing half changed, because entries are replaced
        // as a whole.
        self.resolver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
