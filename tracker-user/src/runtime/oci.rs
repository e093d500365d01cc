//! What runc and crun write down of the containers that they started: which cgroup is which container's, whatever its
//! name.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;

use super::path::Runtime;

/// Where the low-level runtimes keep the state of containers: by themselves, and under an engine. One directory of
/// containers each; `*` stands for every directory.
const STATE_DIRS: [(&str, Runtime); 7] = [
    ("/run/runc", Runtime::Runc),
    ("/run/crun", Runtime::Crun),
    ("/run/containerd/runc/*", Runtime::Containerd),
    ("/run/docker/runtime-runc/moby", Runtime::Docker),
    ("/run/docker/runtime-crun/moby", Runtime::Docker),
    ("/run/user/*/runc", Runtime::Runc),
    ("/run/user/*/crun", Runtime::Crun),
];

/// A container that a low-level runtime has state of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) id: String,
    pub(super) runtime: Runtime,
    /// Path in the hierarchy.
    pub(super) cgroup: String,
}

/// As runc writes it: `state.json`.
#[derive(Deserialize)]
struct RuncState {
    cgroup_paths: HashMap<String, String>,
}

/// As crun writes it: `status`.
#[derive(Deserialize)]
struct CrunStatus {
    #[serde(rename = "cgroup-path")]
    cgroup_path: String,
}

/// States, remembered for as long as their files don't change: they are large, and are asked for often.
#[derive(Debug, Default)]
pub(super) struct States {
    files: HashMap<PathBuf, (SystemTime, Option<State>)>,
}

impl States {
    /// All states there are. One that comes, goes or can't be understood meanwhile is left out.
    pub(super) fn read(&mut self, hierarchy_root: &Path) -> Vec<State> {
        let mut before = std::mem::take(&mut self.files);
        for (pattern, runtime) in STATE_DIRS {
            for container in expand(pattern).iter().flat_map(|dir| subdirs(dir)) {
                let Some((file, changed)) = state_file(&container) else { continue };
                let state = match before.remove(&file) {
                    Some((at, state)) if at == changed => state,
                    _ => read_state(&container, &file, runtime, hierarchy_root),
                };
                self.files.insert(file, (changed, state));
            }
        }
        self.files.values().filter_map(|(_, state)| state.clone()).collect()
    }
}

/// The file that holds a container's state (runc's or crun's), and when it last changed.
fn state_file(container: &Path) -> Option<(PathBuf, SystemTime)> {
    ["state.json", "status"].iter().find_map(|name| {
        let file = container.join(name);
        let changed = fs::metadata(&file).ok()?.modified().ok()?;
        Some((file, changed))
    })
}

fn read_state(container: &Path, file: &Path, runtime: Runtime, hierarchy_root: &Path) -> Option<State> {
    let id = container.file_name()?.to_str()?.to_owned();
    let json = fs::read(file).ok()?;
    let cgroup =
        if file.ends_with("state.json") { runc_cgroup(&json, hierarchy_root)? } else { crun_cgroup(&json)? };
    Some(State { id, runtime, cgroup })
}

/// runc names the cgroup's directory in each hierarchy: by controller on v1, under "" on v2.
fn runc_cgroup(json: &[u8], hierarchy_root: &Path) -> Option<String> {
    let state: RuncState = serde_json::from_slice(json).ok()?;
    let paths = state.cgroup_paths.values();
    paths.filter_map(|path| Path::new(path).strip_prefix(hierarchy_root).ok()?.to_str()).find_map(absolute)
}

fn crun_cgroup(json: &[u8]) -> Option<String> {
    let status: CrunStatus = serde_json::from_slice(json).ok()?;
    absolute(status.cgroup_path.trim_start_matches('/'))
}

/// The configuration file that a container wants CRIU to be told of, instead of the engine's, by its annotation `org.criu.config`;
/// empty if it wants none.
#[must_use]
pub fn criu_config(id: &str) -> Option<String> {
    let dirs = STATE_DIRS.iter().flat_map(|(pattern, _)| expand(pattern)).map(|dir| dir.join(id));
    dirs.into_iter().find_map(|container| {
        let read = |name: &str| fs::read(container.join(name)).ok();
        read("state.json")
            .and_then(|json| runc_criu_config(&json))
            .or_else(|| crun_criu_config(&read("config.json")?))
    })
}

/// The annotation by which a container names its configuration of CRIU (runc: `handleCriuConfigurationFile`, crun: `criu.c`).
const CRIU_CONFIG: &str = "org.criu.config";

/// runc writes each annotation down as a label: `name=value`.
fn runc_criu_config(state: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct State {
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        labels: Option<Vec<String>>,
    }
    let labels = serde_json::from_slice::<State>(state).ok()?.config.labels?;
    let of_criu = |label: &String| Some(label.strip_prefix(CRIU_CONFIG)?.strip_prefix('=')?.to_owned());
    labels.iter().find_map(of_criu)
}

/// crun keeps the container's specification.
fn crun_criu_config(spec: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Spec {
        annotations: Option<HashMap<String, String>>,
    }
    serde_json::from_slice::<Spec>(spec).ok()?.annotations?.remove(CRIU_CONFIG)
}

/// The root itself is nobody's container.
fn absolute(path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    (!path.is_empty()).then(|| format!("/{path}"))
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    match pattern.split_once("/*") {
        None => vec![pattern.into()],
        Some((parent, rest)) => {
            subdirs(Path::new(parent)).into_iter().map(|dir| dir.join(rest.trim_start_matches('/'))).collect()
        }
    }
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|ty| ty.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runc_v1() {
        let json = br#"{"id":"web","cgroup_paths":{"memory":"/sys/fs/cgroup/memory/shop/web",
            "":"/sys/fs/cgroup/unified/shop/web","cpu":"/sys/fs/cgroup/cpu/shop/web"}}"#;
        assert_eq!(runc_cgroup(json, Path::new("/sys/fs/cgroup/memory")).as_deref(), Some("/shop/web"));
        assert_eq!(runc_cgroup(json, Path::new("/sys/fs/cgroup/pids")), None);
    }

    #[test]
    fn runc_v2() {
        let json = br#"{"cgroup_paths":{"":"/sys/fs/cgroup/system.slice/runc-web.scope"}}"#;
        let found = runc_cgroup(json, Path::new("/sys/fs/cgroup"));
        assert_eq!(found.as_deref(), Some("/system.slice/runc-web.scope"));
        let root = br#"{"cgroup_paths":{"":"/sys/fs/cgroup"}}"#;
        assert_eq!(runc_cgroup(root, Path::new("/sys/fs/cgroup")), None);
    }

    #[test]
    fn annotations_for_criu() {
        let state = br#"{"config":{"labels":["bundle=/b","org.criu.config=/etc/criu/web.conf"]}}"#;
        assert_eq!(runc_criu_config(state).as_deref(), Some("/etc/criu/web.conf"));
        assert_eq!(runc_criu_config(br#"{"config":{"labels":["org.criu.config="]}}"#).as_deref(), Some(""));
        assert_eq!(runc_criu_config(br#"{"config":{"labels":null}}"#), None);
        let spec = br#"{"ociVersion":"1","annotations":{"org.criu.config":"/x","run.oci.handler":"y"}}"#;
        assert_eq!(crun_criu_config(spec).as_deref(), Some("/x"));
        assert_eq!((crun_criu_config(b"{}"), crun_criu_config(b"[")), (None, None));
    }

    #[test]
    fn crun() {
        let found = crun_cgroup(br#"{"pid":5,"cgroup-path":"/web","scope":null}"#);
        assert_eq!(found.as_deref(), Some("/web"));
        assert_eq!(crun_cgroup(br#"{"cgroup-path":"/"}"#), None);
        assert_eq!(crun_cgroup(b"{"), None);
    }
}
