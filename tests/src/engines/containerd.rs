//! containerd with CRI: pods, and containers in them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{
    IMAGE,
    cri::{self, Id, Nothing},
    daemon::Daemon,
    image,
};
use crate::{
    Zoo,
    container::{kill_cgroup, remove_cgroup},
    try_eventually,
};

/// A containerd for one test, with the image. It goes, with all that it runs, when dropped.
pub struct Containerd {
    daemon: Option<Daemon>,
    pods: RefCell<Vec<Pod>>,
    execs: Cell<u32>,
    runtime: tokio::runtime::Runtime,
    dir: TempDir,
}

/// A pod's sandbox.
struct Pod {
    id: String,
    cgroup: String,
    config: cri::SandboxConfig,
}

impl Containerd {
    /// Starts it.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory for containerd");
        fs::write(dir.path().join("config.toml"), config(dir.path())).expect("write config.toml");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut new = Self { daemon: None, pods: RefCell::default(), execs: Cell::default(), runtime, dir };
        new.resume();
        let archive = image::make(new.dir.path());
        let status = new.ctr().args(["images", "import"]).arg(archive).stdout(Stdio::null()).status();
        assert!(status.expect("run ctr").success(), "ctr images import failed");
        new
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// Ends the daemon. What it has started goes on.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Starts the daemon again.
    pub fn resume(&mut self) {
        self.try_resume().unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_resume(&mut self) -> Result<(), String> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.dir.path().join("config.toml"));
        self.daemon = Some(Daemon::try_start(command, &self.dir.path().join("log"), &self.socket())?);
        // It listens before it is ready.
        try_eventually("containerd speaks CRI", || {
            cri::call::<_, Nothing>(&self.runtime, &self.socket(), "ListPodSandbox", Nothing {})
        })
        .map(drop)
    }

    /// Runs a pod's sandbox, and returns its id.
    pub fn run_pod(&self, namespace: &str, name: &str) -> String {
        let uid = uid();
        let cgroup = format!("/kubepods/besteffort/pod{uid}");
        let labels = [("namespace", namespace), ("name", name), ("uid", &uid)];
        let labels = labels.map(|(label, value)| (format!("io.kubernetes.pod.{label}"), value.to_owned()));
        let security = cri::SandboxSecurity { namespaces: host_network() };
        let linux = cri::LinuxSandbox { cgroup_parent: cgroup.clone(), security: Some(security) };
        let config = cri::SandboxConfig {
            metadata: Some(cri::Metadata { name: name.into(), uid, namespace: namespace.into() }),
            labels: HashMap::from(labels),
            linux: Some(linux),
        };
        let request = cri::RunPodSandbox { config: Some(config.clone()) };
        let Id { id } = self.must("RunPodSandbox", request);
        self.pods.borrow_mut().push(Pod { id: id.clone(), cgroup, config });
        id
    }

    /// Runs a container in a pod, and returns its id. It only waits: see [`Containerd::zoo`].
    pub fn run(&self, pod: &str, name: &str) -> String {
        let pods = self.pods.borrow();
        let pod = pods.iter().find(|candidate| candidate.id == pod).expect("a pod of this containerd");
        let security = cri::ContainerSecurity { namespaces: host_network() };
        let mut labels = pod.config.labels.clone();
        labels.insert("io.kubernetes.container.name".into(), name.into());
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: IMAGE.into() }),
            labels,
            linux: Some(cri::LinuxContainer { security: Some(security) }),
        };
        let request = cri::CreateContainer {
            sandbox: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let Id { id } = self.must("CreateContainer", request);
        let Nothing {} = self.must("StartContainer", Id { id: id.clone() });
        id
    }

    /// Starts the fixture in a container, as `kubectl exec` does.
    pub fn zoo(&self, container: &str) -> Zoo {
        self.execs.set(self.execs.get() + 1);
        let name = format!("zoo-{}", self.execs.get());
        let mut ctr = self.ctr();
        ctr.args(["tasks", "exec", "--exec-id", &name, container, "/fdzoo"]);
        let mut zoo = Zoo::start(ctr);
        zoo.must("pid");
        zoo
    }

    /// Kills and removes a container.
    pub fn remove(&self, container: &str) {
        let Nothing {} = self.must("StopContainer", Id { id: container.into() });
        let Nothing {} = self.must("RemoveContainer", Id { id: container.into() });
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["--namespace", "k8s.io", "--address"]).arg(self.socket());
        ctr
    }

    #[track_caller]
    fn must<Q, A>(&self, method: &str, request: Q) -> A
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        cri::call(&self.runtime, &self.socket(), method, request).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Removes a pod, also when containerd can't do it any more.
    fn remove_pod(&self, pod: &Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let request = Id { id: pod.id.clone() };
            if let Err(error) = cri::call::<_, Nothing>(&self.runtime, &self.socket(), method, request) {
                eprintln!("{error}");
            }
        }
        kill_cgroup(&pod.cgroup);
        for cgroup in [&pod.cgroup, "/kubepods/besteffort", "/kubepods"] {
            remove_cgroup(cgroup);
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A test may have failed already. What can't be removed in the usual way is killed below.
        if self.daemon.is_none()
            && let Err(error) = self.try_resume()
        {
            eprintln!("{error}");
        }
        for pod in self.pods.take() {
            self.remove_pod(&pod);
        }
        self.daemon = None;
        super::end_all_below(self.dir.path());
    }
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    // Lowering the score for the out-of-memory killer takes a capability that a test may lack.
    format!(
        "version = 2\n\
         root = '{dir}/root'\n\
         state = '{dir}/state'\n\
         [grpc]\n\
         address = '{dir}/api.sock'\n\
         [plugins.'io.containerd.internal.v1.opt']\n\
         path = '{dir}/opt'\n\
         [plugins.'io.containerd.grpc.v1.cri']\n\
         sandbox_image = '{IMAGE}'\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd]\n\
         snapshotter = 'native'\n"
    )
}

fn host_network() -> Option<cri::Namespaces> {
    Some(cri::Namespaces { network: cri::NODE })
}

/// Returns an id as Kubernetes makes them.
fn uid() -> String {
    let hex = crate::random_id();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-")
}
