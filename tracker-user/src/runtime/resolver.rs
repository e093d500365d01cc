//! Finds the container that a cgroup's id belongs to, and remembers it.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    claims::Claims,
    directory::Directory,
    hierarchy::{Cgroups, Hierarchy},
    names::{Names, clean, is_engine_id},
    oci::State,
    path::{Identity, Runtime, candidates},
    states::{AllStates, States},
};

/// A container, as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name; if only an id is known, the first 12 digits.
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
    /// The configuration file that it wants CRIU to read, instead of the engine's (annotation
    /// `org.criu.config`); empty if it wants none.
    pub criu_config: Option<String>,
    /// Whether a source has told its name.
    named: bool,
}

impl Container {
    /// Creates a container whose name isn't known yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let Identity { runtime, id, pod_uid, cgroup } = identity;
        let name = if is_engine_id(&id) { id.chars().take(12).collect() } else { shown(&id, runtime) };
        Self {
            id,
            name,
            runtime,
            namespace: None,
            pod: None,
            image: None,
            pod_uid,
            cgroup,
            criu_config: None,
            named: false,
        }
    }

    /// Gives the container the names that it has now. What they don't contain stays as it is.
    fn called(mut self, names: Names) -> Self {
        if let Some(name) = names.name {
            let name = shown(&name, self.runtime);
            // If the name is the same and no pod is told, the pod that is known stays.
            if names.pod.is_some() || name != self.name {
                (self.namespace, self.pod) = (names.namespace, names.pod);
            }
            (self.name, self.named) = (name, true);
        }
        self.image = names.image.or(self.image);
        self
    }
}

/// Returns a name as it is shown. The names that mean something else in metrics and lists get the
/// runtime in front.
fn shown(name: &str, runtime: Runtime) -> String {
    match clean(name) {
        Some(name) if matches!(name.as_str(), "host" | "unknown" | "other") => format!("{runtime}/{name}"),
        Some(name) => name,
        None => "?".into(),
    }
}

/// The owner of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A container.
    Container(Arc<Container>),
    /// No container: the host itself.
    Host,
    /// The cgroup had gone before it could be read.
    Unknown,
}

/// How long it holds that a cgroup belongs to no container. A runtime makes the cgroup first, and
/// writes down whose it is afterwards.
const HOST_TTL: Duration = Duration::from_secs(1);

/// After this time, a runtime has written down what it knows of a new container.
const NAMED_WITHIN: Duration = Duration::from_secs(5);

/// Finds the owners of cgroups. For that it reads the cgroup file system and the files of runtimes.
#[derive(Debug)]
pub struct Resolver {
    hierarchy: Hierarchy,
    states: States,
    claims: Claims,
    directory: Arc<Directory>,
    /// The state of the directory that was read last.
    news: u64,
    known: OwnerCache,
}

/// The owners that are already known. Reading takes no lock, because on a busy machine a thread
/// that holds one may have to wait long for a CPU.
#[derive(Clone, Debug, Default)]
pub struct OwnerCache(Arc<ArcSwap<HashMap<u64, Known>>>);

/// A cache's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The owner.
    Current(Owner),
    /// The owner that was known some time ago: it should be looked up again.
    Old(Owner),
    /// The owner must be looked up.
    Missing,
}

impl OwnerCache {
    /// Returns the owner of a cgroup. `may_be_told` says that the runtime may have just written
    /// down whose the cgroup is.
    #[must_use]
    pub fn get(&self, cgroup: u64, may_be_told: bool) -> Cached {
        match self.0.load().get(&cgroup) {
            None => Cached::Missing,
            Some(known) if may_be_told && known.should_be_reconsidered() => Cached::Missing,
            Some(known) if known.is_current() => Cached::Current(known.owner.clone()),
            Some(known) => Cached::Old(known.owner.clone()),
        }
    }

    /// Returns the containers whose cgroups existed when they were last listed.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut containers: HashMap<&str, &Arc<Container>> = HashMap::new();
        let known = self.0.load();
        for known in known.values().filter(|known| !known.gone) {
            if let Owner::Container(container) = &known.owner {
                containers.insert(&container.cgroup, container);
            }
        }
        containers.into_values().cloned().collect()
    }

    fn read<T>(&self, read: impl FnOnce(&HashMap<u64, Known>) -> T) -> T {
        read(&self.0.load())
    }

    /// Changes a copy, which is then read by all. Only one resolver does so.
    fn write<T>(&self, write: impl FnOnce(&mut HashMap<u64, Known>) -> T) -> T {
        let mut known = HashMap::clone(&self.0.load());
        let result = write(&mut known);
        self.replace(known);
        result
    }

    fn replace(&self, known: HashMap<u64, Known>) {
        self.0.store(Arc::new(known));
    }
}

impl Known {
    /// The owner that was just found, of a cgroup of which this was known before.
    fn found(owner: Owner, before: Option<&Self>) -> Self {
        let is_same = |before: &&Self| match (&before.owner, &owner) {
            (Owner::Container(before), Owner::Container(now)) => before.id == now.id,
            _ => false,
        };
        let now = Instant::now();
        let came = before.filter(is_same).map_or(now, |before| before.came);
        Self { owner, came, read: now, gone: false }
    }

    /// Whether this is a new container without a name, whose engine may still write it down.
    fn may_be_named(&self) -> bool {
        matches!(&self.owner, Owner::Container(container) if !container.named)
            && self.came.elapsed() < NAMED_WITHIN
    }

    /// Whether the owner is final. An owner that is clear doesn't change; others may become clear
    /// later.
    fn is_lasting(&self) -> bool {
        matches!(&self.owner, Owner::Container(container) if container.runtime != Runtime::Unknown)
    }

    fn is_current(&self) -> bool {
        self.is_lasting() || self.read.elapsed() < HOST_TTL
    }

    /// Whether no container is known, or its container is new and has no name.
    fn should_be_reconsidered(&self) -> bool {
        !self.is_lasting() || self.may_be_named()
    }
}

#[derive(Clone, Debug)]
struct Known {
    owner: Owner,
    /// When the container was seen first.
    came: Instant,
    /// When the owner was read last.
    read: Instant,
    /// Whether it was missing when all cgroups were listed.
    gone: bool,
}

impl Resolver {
    /// Creates a resolver for the cgroups of this hierarchy, which reads names in the directory.
    #[must_use]
    pub fn new(hierarchy: Hierarchy, directory: Arc<Directory>) -> Self {
        let (states, claims) = (States::default(), Claims::default());
        Self { hierarchy, states, claims, directory, news: 0, known: OwnerCache::default() }
    }

    /// Returns what is known, for callers who can't wait.
    #[must_use]
    pub fn cache(&self) -> OwnerCache {
        self.known.clone()
    }

    fn known(&self, cgroup: u64) -> Option<Known> {
        self.known.read(|known| known.get(&cgroup).cloned())
    }

    /// Returns the owner of a cgroup. `may_be_told` says that the runtime may have just written down
    /// whose the cgroup is. An owner that was known is kept if the cgroup has gone meanwhile.
    pub fn owner(&mut self, cgroup: u64, may_be_told: bool) -> Owner {
        self.learn_names();
        let known = self.known(cgroup);
        let will_do = |known: &&Known| known.is_current() && !(may_be_told && known.should_be_reconsidered());
        if let Some(known) = known.as_ref().filter(will_do) {
            return known.owner.clone();
        }
        let owner = match self.hierarchy.path_of(cgroup) {
            Ok(path) => {
                let states = self.states.read(self.hierarchy.root());
                let found = self.find(&path, &states);
                self.named(found)
            }
            // What it counted still belongs to its owner: no id is given twice.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.last_owner(cgroup),
            // Without CAP_DAC_READ_SEARCH a cgroup can't be opened by its id, so list all of them.
            Err(_) => {
                self.refresh(&self.hierarchy.list());
                self.last_owner(cgroup)
            }
        };
        // For containers that are known, runtimes are asked at intervals anyway.
        let is_new = known
            .as_ref()
            .is_none_or(|known| !matches!(known.owner, Owner::Container(_)) || known.may_be_named());
        if let Owner::Container(container) = &owner
            && is_new
        {
            self.ask_for(container);
        }
        self.remember(cgroup, owner.clone());
        owner
    }

    /// Returns the owner of the cgroup at a path. If its name contains the id of another container,
    /// it is ignored, and the cgroup belongs to the container around it.
    fn find(&mut self, path: &str, states: &AllStates) -> Owner {
        let Self { claims, hierarchy, .. } = self;
        owner_of(path, states, |identity| claims.claim(identity, |path| hierarchy.rank_of(path)))
    }

    /// Takes over new names from the directory. Waits for nothing.
    pub(super) fn learn_names(&mut self) {
        let news = self.directory.news();
        if news == std::mem::replace(&mut self.news, news) {
            return;
        }
        let mut known = self.known.read(HashMap::clone);
        // Cgroups of one container share its record.
        let mut records: HashMap<String, Owner> = HashMap::new();
        for known in known.values_mut() {
            if let Owner::Container(container) = &known.owner {
                let record = records.entry(container.cgroup.clone());
                known.owner = record.or_insert_with(|| self.named(known.owner.clone())).clone();
            }
        }
        self.known.replace(known);
    }

    /// Returns an owner with the names from the directory.
    fn named(&self, owner: Owner) -> Owner {
        let Owner::Container(container) = owner else { return owner };
        let is_users = |user| self.hierarchy.user_of(&container.cgroup) == Some(user);
        Owner::Container(match self.directory.find(&container.id, is_users) {
            Some(names) => Arc::new(Container::clone(&container).called(names)),
            None => container,
        })
    }

    /// Requests lookups if nobody has told the container's name.
    fn ask_for(&self, container: &Container) {
        if !container.named && is_engine_id(&container.id) {
            self.directory.ask();
        }
    }

    /// Returns the container with the name that it has now; the given one if it has gone.
    pub fn current(&mut self, container: Arc<Container>) -> Arc<Container> {
        self.learn_names();
        let is_same = |known: &Known| match &known.owner {
            Owner::Container(known) if known.cgroup == container.cgroup => Some(Arc::clone(known)),
            Owner::Container(_) | Owner::Host | Owner::Unknown => None,
        };
        self.known.read(|known| known.values().find_map(is_same)).unwrap_or(container)
    }

    /// Whether a cgroup has been removed, as of the last [`Resolver::refresh`].
    #[must_use]
    pub fn is_gone(&self, cgroup: u64) -> bool {
        self.known(cgroup).is_none_or(|known| known.gone)
            && self.hierarchy.path_of(cgroup).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Returns the owner that a cgroup had when it was last read.
    #[must_use]
    pub fn last_owner(&self, cgroup: u64) -> Owner {
        self.known(cgroup).map_or(Owner::Unknown, |known| known.owner)
    }

    /// Forgets the owners of cgroups that have been removed.
    pub fn forget_gone(&mut self) {
        self.known.write(|known| known.retain(|_, known| !known.gone));
    }

    /// Takes over the list of all cgroups from [`Hierarchy::list`]. Returns their containers.
    pub fn refresh(&mut self, cgroups: &Cgroups) -> Vec<Arc<Container>> {
        self.learn_names();
        let states = self.states.read(self.hierarchy.root());
        let (mut before, mut after) = (self.known.read(HashMap::clone), HashMap::new());
        let mut containers: HashMap<String, Arc<Container>> = HashMap::new();
        // The first pass is for claims: only when all are known is it clear which cgroup an id
        // belongs to.
        self.claims.clear();
        cgroups.paths.iter().for_each(|(_, path)| drop(self.find(path, &states)));
        for (id, path) in &cgroups.paths {
            let known = before.remove(id);
            let lasts = known.as_ref().is_some_and(Known::is_lasting);
            let last = known.as_ref().map(|known| known.owner.clone());
            let owner = match (self.find(path, &states), last) {
                (Owner::Container(found), known) => {
                    // Cgroups of one container share its record.
                    let record = containers.entry(found.cgroup.clone());
                    Owner::Container(Arc::clone(record.or_insert_with(|| self.again(found, known))))
                }
                // A runtime deletes its files on a container before the last process has ended.
                (_, Some(Owner::Container(found))) if lasts => {
                    Owner::Container(Arc::clone(containers.entry(found.cgroup.clone()).or_insert(found)))
                }
                (owner, _) => owner,
            };
            after.insert(*id, Known::found(owner, known.as_ref()));
        }
        for (id, known) in before {
            // A cgroup that was found after the list was made may still exist.
            let gone = known.gone || known.read < cgroups.listed;
            after.insert(id, Known { gone, ..known });
        }
        self.known.replace(after);
        containers.into_values().collect()
    }

    /// Returns the record of a container that was found, and that may have been known before.
    fn again(&self, found: Arc<Container>, known: Option<Owner>) -> Arc<Container> {
        let Owner::Container(found) = self.named(Owner::Container(Arc::clone(&found))) else { return found };
        match known {
            Some(Owner::Container(known)) if known.id == found.id => {
                let is_better = found.named || !known.named;
                // A container stays the same if nobody tells its name any more.
                if is_better && *found != *known { found } else { known }
            }
            _ => {
                self.ask_for(&found);
                found
            }
        }
    }

    fn remember(&mut self, cgroup: u64, owner: Owner) {
        self.known.write(|known| {
            let found = Known::found(owner, known.get(&cgroup));
            known.insert(cgroup, found)
        });
    }
}

/// Returns the innermost owner, from the path and from runtimes' files.
fn owner_of(path: &str, states: &AllStates, mut has_its_id: impl FnMut(&Identity) -> bool) -> Owner {
    let by_path = candidates(path).find(&mut has_its_id);
    let state = innermost(path, states).filter(|state| has_its_id(&state.identity()));
    let (identity, state) = match (by_path, state) {
        (Some(found), Some(state)) if state.cgroup.len() <= found.cgroup.len() => {
            let is_same = state.cgroup == found.cgroup;
            let tells = found.runtime != Runtime::Unknown || !is_same;
            let runtime = if tells { found.runtime } else { state.runtime };
            (Identity { runtime, ..found }, Some(state).filter(|_| is_same))
        }
        (_, Some(state)) => (state.identity(), Some(state)),
        (Some(found), None) => (found, None),
        (None, None) => return Owner::Host,
    };
    let container = Container::new(identity);
    Owner::Container(Arc::new(match state {
        Some(State { names, criu_config, .. }) => {
            Container { criu_config: criu_config.clone(), ..container.called(names.clone()) }
        }
        None => container,
    }))
}

/// Returns the state of the cgroup at a path, or of the nearest cgroup above that has one.
fn innermost<'a>(path: &str, states: &'a AllStates) -> Option<&'a State> {
    let mut at = path;
    loop {
        if let Some(state) = states.get(at) {
            return Some(state);
        }
        at = at.rsplit_once('/')?.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn owner(path: &str, states: &[State]) -> Owner {
        let machine = states.iter().map(|state| (state.cgroup.clone(), Arc::new(state.clone()))).collect();
        owner_of(path, &AllStates { machine, ..AllStates::default() }, |_| true)
    }

    fn name(path: &str, states: &[State]) -> Option<(Runtime, String)> {
        match owner(path, states) {
            Owner::Container(c) => Some((c.runtime, c.name.clone())),
            Owner::Host | Owner::Unknown => None,
        }
    }

    fn state(id: &str, runtime: Runtime, cgroup: &str) -> State {
        let (id, cgroup) = (id.into(), cgroup.into());
        State { id, runtime, cgroup, names: Names::default(), criu_config: None }
    }

    fn web() -> State {
        state("web", Runtime::Runc, "/shop/web")
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
        // The engine's path tells more than the state that its runc keeps for the same cgroup.
        let cgroup = format!("/system.slice/docker-{ID}.scope");
        let state = state(ID, Runtime::Runc, &cgroup);
        assert_eq!(name(&cgroup, &[state]), Some((Runtime::Docker, "0123456789ab".into())));
    }

    #[test]
    fn who_goes_by_anothers_id_belongs_to_whom_it_is_in() {
        let mut claims = Claims::default();
        let outer = "f".repeat(64);
        let (real, fake) = (format!("/docker/{ID}"), format!("/docker/{outer}/docker-{ID}.scope"));
        let rank = |path: &str| Hierarchy::unified("/nowhere").rank_of(path);
        let mut id = |path: &str| match owner_of(path, &AllStates::default(), |id| claims.claim(id, rank)) {
            Owner::Container(found) => Some(found.id.clone()),
            Owner::Host | Owner::Unknown => None,
        };
        assert_eq!(id(&real).as_deref(), Some(ID));
        assert_eq!(id(&fake), Some(outer));
        assert_eq!(id(&format!("/user.slice/user-1000.slice/x/docker-{ID}.scope")), None);
    }

    #[test]
    fn an_unknown_engine_is_known_by_its_state() {
        let state = state(ID, Runtime::Containerd, &format!("/default/{ID}"));
        let found = name(&format!("/default/{ID}"), &[state]);
        assert_eq!(found, Some((Runtime::Containerd, "0123456789ab".into())));
    }

    #[test]
    fn no_container_is_called_as_what_is_none() {
        for reserved in ["host", "unknown", "other"] {
            let state = state(reserved, Runtime::Runc, "/web");
            assert_eq!(name("/web", &[state]), Some((Runtime::Runc, format!("runc/{reserved}"))));
            let told = State { names: Names::plain(reserved, None), ..web() };
            assert_eq!(name("/shop/web", &[told]), Some((Runtime::Runc, format!("runc/{reserved}"))));
        }
        assert_eq!(name("/lxc.payload.a\nb", &[]), Some((Runtime::Lxc, "a\u{fffd}b".into())));
    }

    #[test]
    fn annotations_name_the_container_of_their_cgroup_only() {
        let cgroup = format!("/kubepods/podUID/{ID}");
        let names = Names::in_pod("shop", "front-1", "nginx", Some("nginx:1"));
        let state =
            State { names, criu_config: Some("/x".into()), ..state(ID, Runtime::Containerd, &cgroup) };
        let Owner::Container(found) = owner(&format!("{cgroup}/init"), std::slice::from_ref(&state)) else {
            panic!("no container");
        };
        assert_eq!((found.namespace.as_deref(), found.pod.as_deref()), (Some("shop"), Some("front-1")));
        assert_eq!((found.name.as_str(), found.image.as_deref()), ("nginx", Some("nginx:1")));
        assert_eq!(found.criu_config.as_deref(), Some("/x"));
        let inner = "f".repeat(64);
        let Owner::Container(found) = owner(&format!("{cgroup}/docker/{inner}"), &[state]) else {
            panic!("no container");
        };
        assert_eq!(
            (found.id.clone(), found.pod.as_deref(), found.criu_config.as_deref()),
            (inner, None, None)
        );
    }

    #[test]
    fn an_owner_isnt_lost_when_the_cgroup_has_gone() {
        let root = tempfile::tempdir().unwrap();
        let mut resolver = Resolver::new(Hierarchy::unified(root.path()), Arc::default());
        let Owner::Container(unnamed) = owner(&format!("/docker/{ID}"), &[]) else { panic!("no container") };
        resolver.remember(7, Owner::Container(Arc::clone(&unnamed)));
        // A process in it has called exec, and has ended with its cgroup: no cgroup has this number.
        assert_eq!(resolver.owner(7, true), Owner::Container(unnamed));
    }

    #[test]
    fn a_scrape_makes_no_container_new() {
        let mut resolver = Resolver::new(Hierarchy::unified("/nowhere"), Arc::default());
        let docker = owner(&format!("/docker/{ID}"), &[]);
        resolver.remember(7, docker.clone());
        let came = resolver.known(7).unwrap().came;
        resolver.remember(7, docker);
        assert_eq!(resolver.known(7).unwrap().came, came);
        resolver.remember(7, Owner::Host);
        assert!(resolver.known(7).unwrap().came > came);
    }

    #[test]
    fn a_container_is_named_later_and_renamed() {
        let directory = Arc::new(Directory::default());
        let mut resolver = Resolver::new(Hierarchy::unified("/nowhere"), Arc::clone(&directory));
        for cgroup in [7, 8] {
            resolver.remember(cgroup, owner(&format!("/docker/{ID}"), &[]));
        }
        let Owner::Container(unnamed) = resolver.owner(7, false) else { panic!("no container") };
        let mut called = |name: &str| {
            directory.replace(0, "mock", None, HashMap::from([(ID.into(), Names::plain(name, None))]));
            let (Owner::Container(a), Owner::Container(b)) =
                (resolver.owner(7, false), resolver.owner(8, false))
            else {
                panic!("no container");
            };
            assert!(Arc::ptr_eq(&a, &b));
            assert!(Arc::ptr_eq(&a, &resolver.current(Arc::clone(&unnamed))));
            a.name.clone()
        };
        assert_eq!(called("web"), "web");
        assert_eq!(called("shop"), "shop");
        assert_eq!(called("other"), "docker/other");
    }
}
