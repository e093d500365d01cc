//! From a cgroup's id to the container that it belongs to, remembered.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    hierarchy::Hierarchy,
    oci::{State, States},
    path::{Identity, Runtime, identify},
};

/// A container, as users are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name; where only an id is known, the first 12 digits.
    pub name: String,
    /// What runs it.
    pub runtime: Runtime,
    /// Its Kubernetes namespace.
    pub namespace: Option<String>,
    /// Its Kubernetes pod.
    pub pod: Option<String>,
    /// The image that it was made from.
    pub image: Option<String>,
    /// The UID of its Kubernetes pod.
    pub pod_uid: Option<String>,
    /// Its cgroup, from the hierarchy's root.
    pub cgroup: String,
}

impl Container {
    /// A container of which nobody has told a name yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let Identity { runtime, id, pod_uid, cgroup } = identity;
        let hex = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let name = match id.as_str() {
            _ if hex => id.chars().take(12).collect(),
            // What is in no container goes by these.
            "host" | "unknown" | "other" => format!("{runtime}/{id}"),
            _ => id.clone(),
        };
        Self { id, name, runtime, namespace: None, pod: None, image: None, pod_uid, cgroup }
    }
}

/// Whom a cgroup belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A container.
    Container(Arc<Container>),
    /// No container: the host itself.
    Host,
    /// The cgroup had gone before it could be looked at.
    Unknown,
}

/// What isn't known to be a container's may become one's: a runtime makes the cgroup first, and writes down whose it is
/// afterwards.
const HOST_TTL: Duration = Duration::from_secs(1);

/// Finds the owners of cgroups.
#[derive(Debug)]
pub struct Resolver {
    hierarchy: Hierarchy,
    states: States,
    known: HashMap<u64, Known>,
}

impl Known {
    /// What a cgroup is can become clear later; once it is clear, it stays so.
    fn is_lasting(&self) -> bool {
        matches!(&self.owner, Owner::Container(container) if container.runtime != Runtime::Unknown)
    }
}

#[derive(Debug)]
struct Known {
    owner: Owner,
    since: Instant,
    /// It wasn't there any more when all were looked at.
    gone: bool,
}

impl Resolver {
    /// A resolver for the cgroups of this hierarchy.
    #[must_use]
    pub fn new(hierarchy: Hierarchy) -> Self {
        Self { hierarchy, states: States::default(), known: HashMap::new() }
    }

    /// The owner of a cgroup.
    pub fn owner(&mut self, cgroup: u64) -> Owner {
        if let Some(known) = self.known.get(&cgroup)
            && (known.is_lasting() || known.since.elapsed() < HOST_TTL)
        {
            return known.owner.clone();
        }
        let owner = match self.hierarchy.path_of(cgroup) {
            Ok(path) => owner_of(&path, &self.states.read(self.hierarchy.root())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Owner::Unknown,
            // Without CAP_DAC_READ_SEARCH a cgroup can't be opened by its id: look for it.
            Err(_) => {
                self.refresh();
                self.known.get(&cgroup).map_or(Owner::Unknown, |known| known.owner.clone())
            }
        };
        self.remember(cgroup, owner.clone());
        owner
    }

    /// Looks again at a cgroup that isn't known to be a container's.
    pub fn reconsider(&mut self, cgroup: u64) {
        if self.known.get(&cgroup).is_some_and(|known| !known.is_lasting()) {
            self.known.remove(&cgroup);
        }
    }

    /// Whether a cgroup has been removed, as [`Resolver::refresh`] saw it last.
    #[must_use]
    pub fn is_gone(&self, cgroup: u64) -> bool {
        self.known.get(&cgroup).is_none_or(|known| known.gone)
            && self.hierarchy.path_of(cgroup).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whose a cgroup was when it was last looked at.
    #[must_use]
    pub fn last_owner(&self, cgroup: u64) -> Owner {
        self.known.get(&cgroup).map_or(Owner::Unknown, |known| known.owner.clone())
    }

    /// Forgets whose the cgroups were that have been removed.
    pub fn forget_gone(&mut self) {
        self.known.retain(|_, known| !known.gone);
    }

    /// Looks at every cgroup. Returns the containers there are.
    pub fn refresh(&mut self) -> Vec<Arc<Container>> {
        let states = self.states.read(self.hierarchy.root());
        let mut before = std::mem::take(&mut self.known);
        let mut containers: HashMap<String, Arc<Container>> = HashMap::new();
        for (id, path) in self.hierarchy.list() {
            let owner = match before.remove(&id) {
                Some(known) if known.is_lasting() => known.owner,
                _ => owner_of(&path, &states),
            };
            let owner = match owner {
                // Cgroups of one container share its record.
                Owner::Container(found) => {
                    let shared = containers.entry(found.cgroup.clone()).or_insert(found);
                    Owner::Container(Arc::clone(shared))
                }
                other => other,
            };
            self.remember(id, owner);
        }
        for (id, known) in before {
            self.known.insert(id, Known { gone: true, ..known });
        }
        containers.into_values().collect()
    }

    fn remember(&mut self, cgroup: u64, owner: Owner) {
        self.known.insert(cgroup, Known { owner, since: Instant::now(), gone: false });
    }
}

/// The innermost of what the path says and what runtimes wrote down.
fn owner_of(path: &str, states: &[State]) -> Owner {
    let by_path = identify(path);
    let by_state = states
        .iter()
        .filter(|state| is_at_or_below(path, &state.cgroup))
        .max_by_key(|state| state.cgroup.len());
    let identity = match (by_path, by_state) {
        (Some(found), Some(state)) if state.cgroup.len() <= found.cgroup.len() => {
            let tells = found.runtime != Runtime::Unknown || state.cgroup != found.cgroup;
            Identity { runtime: if tells { found.runtime } else { state.runtime }, ..found }
        }
        (_, Some(state)) => Identity {
            runtime: state.runtime,
            id: state.id.clone(),
            pod_uid: None,
            cgroup: state.cgroup.clone(),
        },
        (Some(found), None) => found,
        (None, None) => return Owner::Host,
    };
    Owner::Container(Arc::new(Container::new(identity)))
}

fn is_at_or_below(path: &str, cgroup: &str) -> bool {
    path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn name(path: &str, states: &[State]) -> Option<(Runtime, String)> {
        match owner_of(path, states) {
            Owner::Container(c) => Some((c.runtime, c.name.clone())),
            Owner::Host | Owner::Unknown => None,
        }
    }

    fn web() -> State {
        State { id: "web".into(), runtime: Runtime::Runc, cgroup: "/shop/web".into() }
    }

    #[test]
    fn a_long_id_is_shortened_and_a_name_kept() {
        assert_eq!(name(&format!("/docker/{ID}"), &[]), Some((Runtime::Docker, "0123456789ab".into())));
        assert_eq!(name("/lxc.payload.mail/init", &[]), Some((Runtime::Lxc, "mail".into())));
    }

    #[test]
    fn what_a_runtime_wrote_down_names_any_cgroup() {
        assert_eq!(name("/shop/web", &[web()]), Some((Runtime::Runc, "web".into())));
        assert_eq!(name("/shop/web/worker", &[web()]), Some((Runtime::Runc, "web".into())));
        assert_eq!(name("/shop/website", &[web()]), None);
        assert_eq!(name("/shop", &[web()]), None);
    }

    #[test]
    fn the_innermost_counts() {
        let inside = format!("/shop/web/docker/{ID}");
        assert_eq!(name(&inside, &[web()]), Some((Runtime::Docker, "0123456789ab".into())));
        // The engine's path tells more than the state that its runc keeps of the same cgroup.
        let cgroup = format!("/system.slice/docker-{ID}.scope");
        let state = State { id: ID.into(), runtime: Runtime::Runc, cgroup: cgroup.clone() };
        assert_eq!(name(&cgroup, &[state]), Some((Runtime::Docker, "0123456789ab".into())));
    }

    #[test]
    fn an_unknown_engine_is_known_by_its_state() {
        let state = State { id: ID.into(), runtime: Runtime::Containerd, cgroup: format!("/default/{ID}") };
        let found = name(&format!("/default/{ID}"), &[state]);
        assert_eq!(found, Some((Runtime::Containerd, "0123456789ab".into())));
    }

    #[test]
    fn no_container_is_called_as_the_host() {
        let state = State { id: "host".into(), runtime: Runtime::Runc, cgroup: "/host".into() };
        assert_eq!(name("/host", &[state]), Some((Runtime::Runc, "runc/host".into())));
    }
}
