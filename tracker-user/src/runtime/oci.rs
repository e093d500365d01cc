//! Reads the files in which runc and crun describe the containers that they started: which cgroup
//! belongs to which container, whatever the cgroup's name is, and the annotations in which the
//! engine tells the container's name.

use std::{collections::HashMap, io, path::Path};

use serde::Deserialize;

use super::{
    files::{self, Budget},
    names::Names,
    path::{Identity, Runtime},
};

/// A container's specification has about 10 KiB, and more if there are many devices.
const LARGEST: u64 = 4 << 20;

/// A container, as a low-level runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) id: String,
    pub(super) runtime: Runtime,
    /// The path in the hierarchy.
    pub(super) cgroup: String,
    /// The names that the engine gave it.
    pub(super) names: Names,
    /// The configuration file that the container wants CRIU to read, instead of the engine's; empty
    /// if it wants none.
    pub(super) criu_config: Option<String>,
}

impl State {
    pub(super) fn identity(&self) -> Identity {
        let (runtime, id, cgroup) = (self.runtime, self.id.clone(), self.cgroup.clone());
        Identity { runtime, id, pod_uid: None, cgroup }
    }
}

/// The annotation that says so (runc: `handleCriuConfigurationFile`, crun: `criu.c`).
const CRIU_CONFIG: &str = "org.criu.config";

/// runc's file, `state.json`. Each annotation is a label, `name=value`.
#[derive(Deserialize)]
struct RuncState {
    cgroup_paths: HashMap<String, String>,
    #[serde(default)]
    config: RuncConfig,
}

#[derive(Default, Deserialize)]
struct RuncConfig {
    labels: Option<Vec<String>>,
}

/// crun's file, `status`.
#[derive(Deserialize)]
struct CrunStatus {
    #[serde(rename = "cgroup-path")]
    cgroup_path: String,
}

/// A container's specification, which crun keeps beside its own file.
#[derive(Default, Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

impl Spec {
    /// Returns the names in the annotations.
    pub(super) fn names(&self) -> Names {
        Names::from_annotations(|key| self.get(key))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// Reads the state in a container's directory, from the file that holds it.
///
/// # Errors
/// When a file can't be read, or is larger than the budget.
pub(super) fn read_state(
    container: &Path,
    file: &Path,
    runtime: Runtime,
    hierarchy_root: &Path,
    budget: &mut Budget,
) -> io::Result<Option<State>> {
    let Some(id) = container.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let id = id.to_owned();
    let json = budget.read(file, LARGEST)?;
    let state = if file.ends_with("state.json") {
        runc_state(id, runtime, &json, hierarchy_root)
    } else {
        let spec = match budget.read(&container.join("config.json"), LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(error),
            read => read.unwrap_or_default(),
        };
        crun_state(id, runtime, &json, &spec)
    };
    let state = state.filter(|state| state.cgroup.len() <= libc::PATH_MAX as usize);
    Ok(state.map(|state| match files::user_of(file) {
        None | Some(0) => state,
        // A user's container is in no pod of Kubernetes, and must not choose what root's CRIU
        // reads.
        Some(_) => State { names: state.names.without_pod(), criu_config: None, ..state },
    }))
}

/// Reads runc's file. It has the cgroup's directory in each hierarchy: by controller on v1, under
/// `""` on v2.
fn runc_state(id: String, runtime: Runtime, json: &[u8], hierarchy_root: &Path) -> Option<State> {
    let state: RuncState = serde_json::from_slice(json).ok()?;
    let mut paths = state.cgroup_paths.values().filter_map(|path| {
        let below = Path::new(path).strip_prefix(hierarchy_root).ok()?.to_str()?;
        absolute(below)
    });
    let cgroup = paths.next()?;
    let labels = state.config.labels.unwrap_or_default();
    let get = |key: &str| labels.iter().find_map(|label| label.strip_prefix(key)?.strip_prefix('='));
    let names = Names::from_annotations(get);
    Some(State { id, runtime, cgroup, names, criu_config: get(CRIU_CONFIG).map(str::to_owned) })
}

fn crun_state(id: String, runtime: Runtime, status: &[u8], spec: &[u8]) -> Option<State> {
    let status: CrunStatus = serde_json::from_slice(status).ok()?;
    let cgroup = absolute(status.cgroup_path.trim_start_matches('/'))?;
    let spec: Spec = serde_json::from_slice(spec).unwrap_or_default();
    Some(State {
        id,
        runtime,
        cgroup,
        names: spec.names(),
        criu_config: spec.get(CRIU_CONFIG).map(str::to_owned),
    })
}

/// Makes a path absolute; `None` for the root, which is no container.
fn absolute(path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    (!path.is_empty()).then(|| format!("/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runc(json: &str, root: &str) -> Option<State> {
        runc_state("web".into(), Runtime::Runc, json.as_bytes(), Path::new(root))
    }

    fn crun(status: &str, spec: &str) -> Option<State> {
        crun_state("web".into(), Runtime::Crun, status.as_bytes(), spec.as_bytes())
    }

    #[test]
    fn runc_v1() {
        let json = r#"{"id":"web","cgroup_paths":{"memory":"/sys/fs/cgroup/memory/shop/web",
            "":"/sys/fs/cgroup/unified/shop/web","cpu":"/sys/fs/cgroup/cpu/shop/web"}}"#;
        assert_eq!(runc(json, "/sys/fs/cgroup/memory").unwrap().cgroup, "/shop/web");
        assert_eq!(runc(json, "/sys/fs/cgroup/pids"), None);
    }

    #[test]
    fn runc_v2() {
        let json = r#"{"cgroup_paths":{"":"/sys/fs/cgroup/system.slice/runc-web.scope"}}"#;
        assert_eq!(runc(json, "/sys/fs/cgroup").unwrap().cgroup, "/system.slice/runc-web.scope");
        assert_eq!(runc(r#"{"cgroup_paths":{"":"/sys/fs/cgroup"}}"#, "/sys/fs/cgroup"), None);
    }

    #[test]
    fn runcs_labels_are_annotations() {
        let state = |labels: &str| {
            let paths = r#""cgroup_paths":{"":"/sys/fs/cgroup/web"}"#;
            runc(&format!(r#"{{{paths},"config":{{"labels":{labels}}}}}"#), "/sys/fs/cgroup").unwrap()
        };
        let found = state(r#"["bundle=/b","org.criu.config=/etc/a=b.conf","nerdctl/name=web=1"]"#);
        assert_eq!(found.criu_config.as_deref(), Some("/etc/a=b.conf"));
        assert_eq!(found.names, Names::plain("web=1", None));
        assert_eq!(state(r#"["org.criu.config="]"#).criu_config.as_deref(), Some(""));
        assert_eq!((state("null").criu_config, state("[]").names), (None, Names::default()));
    }

    #[test]
    fn crun_keeps_the_specification() {
        let status = r#"{"pid":5,"cgroup-path":"/web","scope":null}"#;
        let spec = r#"{"ociVersion":"1","annotations":{"org.criu.config":"/x","io.kubernetes.pod.name":"front-1",
            "io.kubernetes.pod.namespace":"shop","io.kubernetes.container.name":"nginx"}}"#;
        let found = crun(status, spec).unwrap();
        assert_eq!((found.cgroup.as_str(), found.criu_config.as_deref()), ("/web", Some("/x")));
        assert_eq!(found.names, Names::in_pod("shop", "front-1", "nginx", None));
        for none in ["", "{}", "[", r#"{"annotations":null}"#] {
            assert_eq!(crun(status, none).unwrap().names, Names::default(), "{none}");
        }
        assert_eq!((crun(r#"{"cgroup-path":"/"}"#, ""), crun("{", "")), (None, None));
    }
}
