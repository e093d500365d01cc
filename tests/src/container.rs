//! Real OCI containers, by runc.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{Zoo, fdzoo, random_id};

/// A running container whose only process is the fixture. It goes, with its cgroups, when dropped.
pub struct Container {
    /// Its id, as runc knows it.
    pub id: String,
    /// The fixture in it.
    pub zoo: Zoo,
    /// The cgroup above its own, which runc leaves behind.
    parent: String,
    _bundle: TempDir,
}

impl Container {
    /// Starts the fixture in a container, whose cgroup is below `parent`.
    pub fn start(id: Option<&str>, parent: &str) -> Self {
        Self::start_annotated(id, parent, serde_json::json!({}))
    }

    /// Starts it with annotations.
    pub fn start_annotated(id: Option<&str>, parent: &str, annotations: serde_json::Value) -> Self {
        let id = id.map_or_else(random_id, str::to_owned);
        let bundle = tempfile::tempdir().expect("a directory for the bundle");
        make_root(&bundle.path().join("rootfs"));
        let mut spec = spec(&format!("{parent}/{id}"), &["/fdzoo"]);
        spec["annotations"] = annotations;
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("write config.json");
        let mut runc = Command::new("runc");
        runc.args(["run", "--bundle"]).arg(bundle.path()).arg(&id);
        let mut new = Self { zoo: Zoo::start(runc), id, parent: parent.into(), _bundle: bundle };
        // After this answer runc knows the container, so that it can be deleted. If runc were
        // killed earlier, it would leave the container's cgroup behind.
        new.zoo.must("pid");
        new
    }

    /// Returns the pid of its first process, on the host.
    pub fn init(&self) -> u32 {
        let output = Command::new("runc").args(["state", &self.id]).output().expect("run runc state");
        let state: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("runc state prints JSON");
        state["pid"].as_u64().expect("a pid") as u32
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        self.zoo.end();
        remove_cgroup(&format!("{}/{}", self.parent, self.id));
        remove_cgroup(&self.parent);
    }
}

/// Returns the directories of a cgroup, one in every hierarchy.
fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dirs = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(format!("{at}{path}")))
    });
    dirs.collect()
}

/// Removes a cgroup from every hierarchy, unless it is in use.
pub fn remove_cgroup(path: &str) {
    for dir in cgroup_dirs(path) {
        let _ = fs::remove_dir(dir);
    }
}

/// Kills all processes in a cgroup or below it, and removes the cgroups below.
pub fn kill_cgroup(path: &str) {
    for dir in cgroup_dirs(path) {
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for dir in below.map(|entry| entry.path()) {
            crate::remove_killing(&dir);
        }
    }
}

/// Makes a root with the fixture and the libraries that it needs.
pub fn make_root(root: &Path) {
    for dir in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("make the root");
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("make the root readable");
    copy_program(&fdzoo(), root);
}

/// Copies a program into a root, with the libraries that it needs.
pub fn copy_program(program: &Path, root: &Path) {
    fs::copy(program, root.join(program.file_name().expect("a file"))).expect("copy the program");
    let output = Command::new("ldd").arg(program).output().expect("run ldd");
    let text = String::from_utf8_lossy(&output.stdout);
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a library has a directory")).expect("make the root");
        fs::copy(library, to).expect("copy a library");
    }
}

/// Returns the configuration of a container for runc: its cgroup, and what it starts.
pub fn spec(cgroup: &str, arguments: &[&str]) -> serde_json::Value {
    let all = ["bounding", "effective", "permitted"];
    let capabilities = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_KILL", "CAP_NET_ADMIN"];
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": all.iter().map(|set| (*set, capabilities)).collect::<std::collections::BTreeMap<_, _>>(),
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "zoo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
    })
}
