//! The owners of cgroups, for several threads: whoever can wait has them looked up, and others read what
//! is known.

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
    /// Shares a resolver for the cgroups of this hierarchy.
    #[must_use]
    pub fn new(hierarchy: Hierarchy, resolver: Resolver) -> Self {
        Self { hierarchy, cache: resolver.cache(), resolver: Mutex::new(resolver) }
    }

    /// The hierarchy.
    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// What is known already. Waits for nothing.
    #[must_use]
    pub fn cache(&self) -> OwnerCache {
        self.cache.clone()
    }

    /// Looks an owner up, if that isn't known or may be told only now. May wait for the file system, and
    /// for [`Owners::refresh`].
    pub fn look_up(&self, cgroup: u64, may_be_told: bool) -> Owner {
        let mut resolver = self.resolver();
        if may_be_told {
            resolver.reconsider(cgroup);
        }
        resolver.owner(cgroup)
    }

    /// All containers. Walks the cgroup file system, and doesn't keep others waiting meanwhile.
    #[must_use]
    pub fn refresh(&self) -> Vec<Arc<Container>> {
        let cgroups = self.hierarchy.list();
        self.resolver().refresh(&cgroups)
    }

    /// Takes over the names that lookups have found.
    pub fn learn_names(&self) {
        self.resolver().learn_names();
    }

    /// The container of this cgroup as it is called now.
    #[must_use]
    pub fn current(&self, container: Arc<Container>) -> Arc<Container> {
        self.resolver().current(container)
    }

    /// The resolver, for what takes several steps.
    pub fn resolver(&self) -> MutexGuard<'_, Resolver> {
        // A panic while it was locked left nothing half done: what is known is replaced as a whole.
        self.resolver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
