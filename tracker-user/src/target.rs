//! Finds the process tree that a user means: from words to the process at its root.

use std::{fmt, fs, path::Path, str::FromStr, sync::Arc};

use thiserror::Error;

use crate::{
    error::SyscallError,
    proc::Status,
    runtime::{Container, Directory, Hierarchy, HierarchyError, Resolver, SANDBOX},
};

/// The tree that a user means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `pid:N`: the tree under a process.
    Pid(u32),
    /// `cgroup:/PATH`: the processes in a cgroup.
    Cgroup(String),
    /// `pod/NAMESPACE/NAME[/CONTAINER]`: a pod's container.
    Pod {
        /// Kubernetes namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The container's name in the pod.
        container: Option<String>,
    },
    /// A container, by its name or the beginning of its id.
    Container(String),
}

/// A text that describes no target.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no target: give a container's name or the beginning of its id, pod/NAMESPACE/NAME, pid:N or cgroup:/PATH"
)]
pub struct ParseTargetError(String);

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        let bad = || ParseTargetError(text.to_owned());
        if let Some(pid) = text.strip_prefix("pid:") {
            return pid.parse().ok().filter(|pid| *pid != 0).map(Self::Pid).ok_or_else(bad);
        }
        if let Some(path) = text.strip_prefix("cgroup:") {
            let sound = path.starts_with('/') && !path.split('/').any(|part| part == "..");
            return if sound { Ok(Self::Cgroup(path.trim_end_matches('/').to_owned())) } else { Err(bad()) };
        }
        if let Some(pod) = text.strip_prefix("pod/") {
            let parts: Vec<&str> = pod.split('/').collect();
            if parts.iter().any(|part| part.is_empty()) {
                return Err(bad());
            }
            return match *parts.as_slice() {
                [namespace, name] => Ok(Self::pod(namespace, name, None)),
                [namespace, name, container] => Ok(Self::pod(namespace, name, Some(container))),
                _ => Err(bad()),
            };
        }
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(bad());
        }
        Ok(Self::Container(text.to_owned()))
    }
}

impl Target {
    fn pod(namespace: &str, name: &str, container: Option<&str>) -> Self {
        let container = container.map(str::to_owned);
        Self::Pod { namespace: namespace.into(), name: name.into(), container }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::Pod { namespace, name, container: None } => write!(f, "pod/{namespace}/{name}"),
            Self::Pod { namespace, name, container: Some(container) } => {
                write!(f, "pod/{namespace}/{name}/{container}")
            }
            Self::Container(name) => f.write_str(name),
        }
    }
}

/// Why no tree was found.
#[derive(Debug, Error)]
pub enum TargetError {
    /// Containers can't be told apart.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// There is no such container.
    #[error("there is no container {name}{}", others(.known))]
    NoContainer {
        /// What was asked for.
        name: String,
        /// The containers that exist.
        known: Vec<String>,
    },
    /// Several containers match.
    #[error("{name} may be any of {}: give more of its id", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Those that match.
        candidates: Vec<String>,
    },
    /// There is no such pod on this node.
    #[error(
        "there is no pod {namespace}/{name} on this node (no runtime tells of one, and /var/log/pods has none)"
    )]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// Nothing runs there.
    #[error("no process is in {0}")]
    Empty(String),
    /// A process that can't be dumped.
    #[error("{pid} ({comm}) is {what}, which can't be dumped")]
    NoTree {
        /// Its pid.
        pid: u32,
        /// Its name.
        comm: String,
        /// What it is.
        what: &'static str,
    },
    /// A thread, not a process.
    #[error("{tid} is a thread of the process {pid}: give pid:{pid}")]
    Thread {
        /// The thread.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// A file can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
}

fn others(containers: &[String]) -> String {
    const MANY: usize = 10;
    match containers.len() {
        0 => ", and no other".into(),
        n if n > MANY => format!(" among {n}: fdtracker ls lists them"),
        _ => format!("; there are {}", containers.join(", ")),
    }
}

/// The process tree of a target.
#[derive(Clone, Debug)]
pub struct TargetTree {
    /// The process at its root.
    pub root: u32,
    /// The container that it belongs to.
    pub container: Option<Arc<Container>>,
    /// All processes in its cgroup; there may be more than in the tree.
    pub pids: Vec<u32>,
}

impl TargetTree {
    /// Finds the tree of a cgroup. `root` is where its hierarchy is mounted.
    ///
    /// # Errors
    /// When no process runs there, or it can't be dumped.
    pub fn in_cgroup(
        root: &Path,
        cgroup: &str,
        container: Option<Arc<Container>>,
    ) -> Result<Self, TargetError> {
        let pids = pids_below(&root.join(cgroup.trim_start_matches('/')))?;
        let init = init_of(&pids).ok_or_else(|| TargetError::Empty(cgroup.to_owned()))?;
        check(init)?;
        Ok(Self { root: init, container, pids })
    }
}

impl Target {
    /// Finds the tree. Containers have the names that the directory knows.
    ///
    /// # Errors
    /// When there is none, or several; the message says which there are.
    pub fn find(&self, directory: &Arc<Directory>) -> Result<TargetTree, TargetError> {
        if let Self::Pid(pid) = self {
            check(*pid)?;
            return Ok(TargetTree { root: *pid, container: None, pids: Vec::new() });
        }
        let hierarchy = Hierarchy::find()?;
        let root = hierarchy.root().to_owned();
        let (container, cgroup) = match self {
            Self::Cgroup(path) => (None, path.clone()),
            _ => {
                let cgroups = hierarchy.list();
                let mut resolver = Resolver::new(hierarchy, Arc::clone(directory));
                let container = self.choose(&resolver.refresh(&cgroups))?;
                let cgroup = container.cgroup.clone();
                (Some(container), cgroup)
            }
        };
        TargetTree::in_cgroup(&root, &cgroup, container)
    }

    fn choose(&self, containers: &[Arc<Container>]) -> Result<Arc<Container>, TargetError> {
        let found: Vec<_> = match self {
            Self::Pod { namespace, name, container } => {
                let uids = pod_uids(namespace, name);
                let of_pod = |c: &&Arc<Container>| match &c.pod {
                    Some(pod) => pod == name && c.namespace.as_ref() == Some(namespace),
                    None => c.pod_uid.as_ref().is_some_and(|uid| uids.contains(&bare(uid))),
                };
                let of_pod: Vec<_> = containers.iter().filter(of_pod).cloned().collect();
                if of_pod.is_empty() && uids.is_empty() {
                    return Err(TargetError::NoPod { namespace: namespace.into(), name: name.into() });
                }
                let is_meant = |c: &Arc<Container>| match container {
                    Some(wanted) => c.name == *wanted,
                    None => c.name != SANDBOX,
                };
                of_pod.into_iter().filter(is_meant).collect()
            }
            Self::Container(wanted) => return by_name(containers, wanted),
            Self::Pid(_) | Self::Cgroup(_) => Vec::new(),
        };
        only(found, &self.to_string(), containers)
    }
}

/// Returns the container with this name, or with an id that begins like this.
///
/// # Errors
/// When there is none, or several; the message says which there are.
pub fn by_name(containers: &[Arc<Container>], wanted: &str) -> Result<Arc<Container>, TargetError> {
    let those =
        |is: &dyn Fn(&Container) -> bool| containers.iter().filter(|c| is(c)).cloned().collect::<Vec<_>>();
    let named = those(&|c| c.name == wanted || c.id == wanted);
    let by_id = || those(&|c| !wanted.is_empty() && c.id.starts_with(wanted));
    let found = if named.is_empty() { by_id() } else { named };
    only(found, wanted, containers)
}

fn only(
    mut found: Vec<Arc<Container>>,
    wanted: &str,
    all: &[Arc<Container>],
) -> Result<Arc<Container>, TargetError> {
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => {
            let known = all.iter().map(|container| container.name.clone()).collect();
            Err(TargetError::NoContainer { name: wanted.to_owned(), known })
        }
        (Some(last), _) => {
            let candidates = found.iter().chain([&last]).map(|c| short(&c.id)).collect();
            Err(TargetError::Ambiguous { name: wanted.to_owned(), candidates })
        }
    }
}

fn short(id: &str) -> String {
    id.chars().take(16).collect()
}

/// Removes the dashes from a UID, because cgroups spell it in several ways.
fn bare(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// Returns the UIDs of pods with this name: the kubelet keeps their logs in
/// `/var/log/pods/NAMESPACE_NAME_UID`.
fn pod_uids(namespace: &str, name: &str) -> Vec<String> {
    let prefix = format!("{namespace}_{name}_");
    let entries = fs::read_dir("/var/log/pods").into_iter().flatten().flatten();
    let uid = |entry: fs::DirEntry| Some(bare(entry.file_name().to_str()?.strip_prefix(&prefix)?));
    entries.filter_map(uid).collect()
}

/// Lists all processes in a cgroup and below it.
fn pids_below(dir: &Path) -> Result<Vec<u32>, TargetError> {
    let path = dir.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        // A threaded cgroup lists only threads.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        result => result.map_err(SyscallError::on("read", path.display()))?,
    };
    // 0 stands for a process that isn't in this pid namespace, or has been waited for (Linux 7).
    let mut pids: Vec<u32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A cgroup that is removed meanwhile has no processes.
            pids.extend(pids_below(&entry.path()).unwrap_or_default());
        }
    }
    Ok(pids)
}

/// Returns the process at which a dump of a container starts: the first one in its pid namespace;
/// else the oldest of those whose parent isn't in the container.
fn init_of(pids: &[u32]) -> Option<u32> {
    let status: Vec<Status> = pids.iter().filter_map(|pid| Status::of(*pid)).collect();
    let is_top = |status: &&Status| !pids.contains(&status.parent);
    let top = || status.iter().filter(is_top);
    let first = top().find(|status| status.inner_pids.len() > 1 && status.inner_pids.last() == Some(&1));
    first.or_else(|| top().min_by_key(|status| status.pid)).map(|status| status.pid)
}

/// Checks whether a process can be dumped at all.
fn check(pid: u32) -> Result<(), TargetError> {
    let status = Status::of(pid).ok_or(TargetError::NoProcess(pid))?;
    let refuse = |what| Err(TargetError::NoTree { pid, comm: status.comm.clone(), what });
    if status.tgid != pid {
        return Err(TargetError::Thread { tid: pid, pid: status.tgid });
    }
    if pid == std::process::id() {
        return refuse("fdtracker itself");
    }
    match status.state {
        'Z' | 'X' => refuse("a process that has ended"),
        // Kernel threads have no memory.
        _ if !status.has_memory => refuse("a kernel thread"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_shown() {
        for text in ["pid:7", "cgroup:/a/b", "pod/web/front-1", "pod/web/front-1/nginx", "3f8c", "web"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("cgroup:/a/".parse(), Ok(Target::Cgroup("/a".into())));
        for bad in [
            "",
            "pid:",
            "pid:x",
            "pid:0",
            "pid:-1",
            "cgroup:a",
            "cgroup:/a/../b",
            "pod/web",
            "pod/a//b",
            "a b",
        ] {
            assert!(bad.parse::<Target>().unwrap_err().to_string().contains("pid:N"), "{bad}");
        }
    }

    #[test]
    fn what_cant_be_dumped_is_told() {
        let error = |pid: u32| Target::Pid(pid).find(&Arc::default()).unwrap_err().to_string();
        assert!(error(std::process::id()).contains("fdtracker itself"));
        assert!(error(u32::MAX).contains("there is no process"));
    }
}
