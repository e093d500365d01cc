//! Reads which containers runc and crun have state of.
//!
//! The machine's directories belong to root, and are read at each request. Users may put anything
//! into their own directories, on any file system. Those are read on a separate thread, at most
//! once a second, and the caller waits for it only a moment.

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

/// Directories of containers, and the runtimes that they belong to; `*` stands for every directory.
type Places = &'static [(&'static str, Runtime)];

/// Where the low-level runtimes keep the states of containers: those that they run on their own,
/// and those of engines.
const MACHINE: Places = &[
    ("/run/runc", Runtime::Runc),
    ("/run/crun", Runtime::Crun),
    ("/run/containerd/runc/*", Runtime::Containerd),
    ("/run/docker/runtime-runc/moby", Runtime::Docker),
    ("/run/docker/runtime-crun/moby", Runtime::Docker),
];
const USERS: Places = &[("/run/user/*/runc", Runtime::Runc), ("/run/user/*/crun", Runtime::Crun)];

/// The shortest time between two reads of users' directories.
const GAP: Duration = Duration::from_secs(1);

/// How long a caller waits for users' directories, while events wait, too. The first read may take
/// longer, for commands that read only once.
const MOMENT: Duration = Duration::from_millis(5);
const FIRST: Duration = Duration::from_millis(200);

/// States by cgroup.
pub(super) type ByCgroup = HashMap<String, Arc<State>>;

/// All states that were found, the machine's and the users'.
#[derive(Debug, Default)]
pub(super) struct AllStates {
    pub(super) machine: ByCgroup,
    pub(super) users: Arc<ByCgroup>,
}

impl AllStates {
    /// Returns the state of a cgroup. The machine's own has priority.
    pub(super) fn get(&self, cgroup: &str) -> Option<&State> {
        self.machine.get(cgroup).or_else(|| self.users.get(cgroup)).map(Arc::as_ref)
    }
}

/// Reads all states, and remembers them.
#[derive(Debug)]
pub(super) struct States {
    machine: StateFiles,
    users: UsersStates,
}

impl Default for States {
    fn default() -> Self {
        Self { machine: StateFiles::default(), users: UsersStates::of(USERS) }
    }
}

impl States {
    /// Reads the states. One that comes, goes or can't be understood meanwhile is left out.
    pub(super) fn read(&mut self, hierarchy_root: &Path) -> AllStates {
        AllStates {
            machine: self.machine.read(MACHINE, hierarchy_root, Budget::machine),
            users: self.users.read(hierarchy_root),
        }
    }
}

type Remembered = (Stamp, Option<Arc<State>>);

/// State files, remembered until they change: they are large, and are read often.
#[derive(Debug, Default)]
struct StateFiles(HashMap<PathBuf, Remembered>);

impl StateFiles {
    /// Reads the files in these places. Each directory has its own budget.
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
                        // If several share a cgroup, always the same one is returned.
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

/// Returns what is known of a file, and reads it again if it has changed. If it can't be read, or
/// is too much, the old state stays.
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

/// Users' states, as of the last read.
#[derive(Debug)]
struct UsersStates {
    places: Places,
    files: StateFiles,
    found: Arc<ByCgroup>,
    since: Option<Instant>,
    busy: Option<Receiver<(StateFiles, ByCgroup)>>,
}

impl UsersStates {
    fn of(places: Places) -> Self {
        Self { places, files: StateFiles::default(), found: Arc::default(), since: None, busy: None }
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

    /// Starts a read on a thread. If no thread can be started now, the next call tries again.
    fn start(&mut self, hierarchy_root: PathBuf) -> Option<Receiver<(StateFiles, ByCgroup)>> {
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

/// Whether the file's owner may say something about the cgroup.
fn may_tell(file: &Path, state: &State, hierarchy_root: &Path) -> bool {
    let Some(user) = files::user_of(file) else { return true };
    let dir = hierarchy_root.join(state.cgroup.trim_start_matches('/'));
    user == 0 || fs::metadata(dir).is_ok_and(|meta| meta.uid() == user)
}

/// Returns the file that holds a container's state (runc's or crun's), and its version.
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

    /// A directory of `count` containers of crun, whose specifications have this size. It is
    /// removed when dropped.
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
        let mut users = UsersStates::of(dir.places());
        // What wasn't read in the moment that a caller waits is there a moment later.
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
        let mut users = UsersStates::of(&[]);
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
        let (mut files, root) = (StateFiles::default(), Path::new("/nowhere"));
        let mut read = || files.read(dir.places(), root, budget).len();
        assert_eq!([read(), read(), read()], [2, 3, 3]);
    }
}
