//! Which containers runc and crun have state of. The machine's directories are root's, and read whenever it is asked. Users put into theirs
//! what they like, on file systems that they like: those are read apart, at most once a second, and waited for no longer than a moment.

use std::{
    collections::HashMap,
    fs, io, mem,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    files::{self, Budget, Stamp, expand, subdirs},
    oci::{State, read_state},
    path::Runtime,
};

/// Directories of containers, and whose they are; `*` stands for every directory.
type Places = &'static [(&'static str, Runtime)];

/// Where the low-level runtimes keep the state of containers: by themselves, and under an engine.
const MACHINE: Places = &[
    ("/run/runc", Runtime::Runc),
    ("/run/crun", Runtime::Crun),
    ("/run/containerd/runc/*", Runtime::Containerd),
    ("/run/docker/runtime-runc/moby", Runtime::Docker),
    ("/run/docker/runtime-crun/moby", Runtime::Docker),
];
const USERS: Places = &[("/run/user/*/runc", Runtime::Runc), ("/run/user/*/crun", Runtime::Crun)];

/// Between two looks at users' directories.
const GAP: Duration = Duration::from_secs(1);

/// How long users' directories are waited for: events wait meanwhile. The first look may take longer, for commands that look once.
const MOMENT: Duration = Duration::from_millis(5);
const FIRST: Duration = Duration::from_millis(200);

/// States by their cgroups.
pub(super) type ByCgroup = HashMap<String, Arc<State>>;

/// What there is, of the machine and of users.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) machine: ByCgroup,
    pub(super) users: Arc<ByCgroup>,
}

impl Found {
    /// The state of a cgroup. The machine's own goes first.
    pub(super) fn get(&self, cgroup: &str) -> Option<&State> {
        self.machine.get(cgroup).or_else(|| self.users.get(cgroup)).map(Arc::as_ref)
    }
}

/// All states.
#[derive(Debug)]
pub(super) struct States {
    machine: Files,
    users: Users,
}

impl Default for States {
    fn default() -> Self {
        Self { machine: Files::default(), users: Users::of(USERS) }
    }
}

impl States {
    /// Those that there are. One that comes, goes or can't be understood meanwhile is left out.
    pub(super) fn read(&mut self, hierarchy_root: &Path) -> Found {
        Found {
            machine: self.machine.read(MACHINE, hierarchy_root, Budget::machine),
            users: self.users.read(hierarchy_root),
        }
    }
}

type Remembered = (Stamp, Option<Arc<State>>);

/// States, remembered for as long as their files don't change: they are large, and are asked for often.
#[derive(Debug, Default)]
struct Files(HashMap<PathBuf, Remembered>);

impl Files {
    /// The budget is that of each directory.
    fn read(&mut self, places: Places, hierarchy_root: &Path, budget: fn() -> Budget) -> ByCgroup {
        let mut before = mem::take(&mut self.0);
        let mut found = ByCgroup::new();
        for (pattern, runtime) in places {
            for dir in expand(pattern).into_iter().filter(|dir| !files::is_users_link(dir)) {
                let mut budget = budget();
                for container in subdirs(&dir).into_iter().take(budget.containers) {
                    let Some((file, stamp)) = state_file(&container) else { continue };
                    let known = before.remove(&file);
                    let read = || read_state(&container, &file, *runtime, hierarchy_root, &mut budget);
                    let Some((stamp, state)) = newest(known, stamp, read) else { continue };
                    if let Some(state) = state.as_ref().filter(|state| may_tell(&file, state, hierarchy_root))
                    {
                        // Of several that share a cgroup always the same is told.
                        let known = found.entry(state.cgroup.clone()).or_insert_with(|| Arc::clone(state));
                        if known.runtime == state.runtime && state.id < known.id {
                            *known = Arc::clone(state);
                        }
                    }
                    self.0.insert(file, (stamp, state));
                }
            }
        }
        found
    }
}

/// What is known of a file, read anew if that has changed. What can't be read now, or would be too much, stays as it was.
fn newest(
    known: Option<Remembered>,
    stamp: Stamp,
    read: impl FnOnce() -> io::Result<Option<State>>,
) -> Option<Remembered> {
    match known {
        Some((at, state)) if at == stamp => Some((at, state)),
        before => read().map(|state| (stamp, state.map(Arc::new))).ok().or(before),
    }
}

/// Users' states, as they were read last.
#[derive(Debug)]
struct Users {
    places: Places,
    files: Files,
    found: Arc<ByCgroup>,
    since: Option<Instant>,
    busy: Option<Receiver<(Files, ByCgroup)>>,
}

impl Users {
    fn of(places: Places) -> Self {
        Self { places, files: Files::default(), found: Arc::default(), since: None, busy: None }
    }

    fn read(&mut self, hierarchy_root: &Path) -> Arc<ByCgroup> {
        let mut patience = Duration::ZERO;
        if self.busy.is_none() && self.since.is_none_or(|since| since.elapsed() >= GAP) {
            patience = if self.since.is_none() { FIRST } else { MOMENT };
            self.since = Some(Instant::now());
            self.busy = self.start(hierarchy_root.to_owned());
        }
        match self.busy.as_ref().map(|busy| busy.recv_timeout(patience)) {
            Some(Ok((files, found))) => {
                (self.files, self.found, self.busy) = (files, Arc::new(found), None);
                self.since = Some(Instant::now());
            }
            Some(Err(RecvTimeoutError::Disconnected)) => self.busy = None,
            Some(Err(RecvTimeoutError::Timeout)) | None => {}
        }
        Arc::clone(&self.found)
    }

    /// If there can't be a thread now, there may be one the next time.
    fn start(&mut self, hierarchy_root: PathBuf) -> Option<Receiver<(Files, ByCgroup)>> {
        let (sender, receiver) = sync_channel(1);
        let (places, mut files) = (self.places, mem::take(&mut self.files));
        let work = move || {
            let found = files.read(places, &hierarchy_root, Budget::user);
            // An error means that nobody waits any more.
            drop(sender.send((files, found)));
        };
        thread::Builder::new().name("states".into()).spawn(work).ok().map(|_| receiver)
    }
}

/// Whether whoever wrote the state has a say about the cgroup.
fn may_tell(file: &Path, state: &State, hierarchy_root: &Path) -> bool {
    let Some(user) = files::user_of(file) else { return true };
    let dir = hierarchy_root.join(state.cgroup.trim_start_matches('/'));
    user == 0 || fs::metadata(dir).is_ok_and(|meta| meta.uid() == user)
}

/// The file that holds a container's state (runc's or crun's), and what changes with it.
fn state_file(container: &Path) -> Option<(PathBuf, Stamp)> {
    ["state.json", "status"].iter().find_map(|name| {
        let file = container.join(name);
        let stamp = Stamp::of(&file)?;
        Some((file, stamp))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of `count` containers of crun, with this much in their specifications, which goes when dropped.
    struct Dir(PathBuf);

    impl Dir {
        fn with(name: &str, count: usize, spec: usize) -> Self {
            let dir = std::env::temp_dir().join(format!("fdtracker-{name}-{}", std::process::id()));
            let new = Self(dir);
            (0..count).for_each(|n| new.add(n, spec));
            new
        }

        fn add(&self, n: usize, spec: usize) {
            let container = self.0.join(n.to_string());
            fs::create_dir_all(&container).unwrap();
            fs::write(container.join("status"), format!(r#"{{"cgroup-path":"/c{n}"}}"#)).unwrap();
            fs::write(container.join("config.json"), " ".repeat(spec)).unwrap();
        }

        fn places(&self) -> Places {
            let dir = self.0.to_str().unwrap().to_owned().leak();
            Box::leak(Box::new([(&*dir, Runtime::Crun)]))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn users_states_are_read_at_most_once_a_second() {
        let dir = Dir::with("users-states", 1, 0);
        let mut users = Users::of(dir.places());
        // What wasn't read in the moment that it may take is there a moment later.
        let mut until = |count: usize| {
            let start = Instant::now();
            while users.read(Path::new("/nowhere")).len() != count {
                assert!(start.elapsed() < Duration::from_secs(20));
                thread::sleep(MOMENT);
            }
            start.elapsed()
        };
        until(1);
        dir.add(1, 0);
        assert!(until(2) > GAP / 2);
    }

    #[test]
    fn a_thread_that_hangs_is_not_waited_for() {
        let mut users = Users::of(&[]);
        let (_sender, receiver) = sync_channel(1);
        (users.busy, users.since) = (Some(receiver), Some(Instant::now()));
        let start = Instant::now();
        (0..1_000).for_each(|_| drop(users.read(Path::new("/nowhere"))));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn what_is_too_much_at_once_is_read_later() {
        let budget = || Budget { containers: 3, bytes: 250 };
        let dir = Dir::with("states-budget", 5, 100);
        let (mut files, root) = (Files::default(), Path::new("/nowhere"));
        let mut read = || files.read(dir.places(), root, budget).len();
        assert_eq!([read(), read(), read()], [2, 3, 3]);
    }
}
