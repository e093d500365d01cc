//! docker and podman, which take the same commands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{IMAGE, daemon::Daemon, image};
use crate::{Zoo, container::remove_cgroup};

/// A docker or podman for one test, with the image and a socket. It goes, with all that it runs,
/// when dropped.
pub struct Engine {
    program: Program,
    daemon: Option<Daemon>,
    dir: TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Docker,
    /// With runc or crun.
    Podman(&'static str),
}

impl Engine {
    /// Starts docker.
    pub fn docker() -> Self {
        Self::start(Program::Docker)
    }

    /// Starts podman. It runs containers with `runtime`: runc or crun.
    pub fn podman(runtime: &'static str) -> Self {
        Self::start(Program::Podman(runtime))
    }

    fn start(program: Program) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the engine");
        let mut engine = Self { program, daemon: None, dir };
        engine.daemon = Some(engine.serve());
        let archive = image::make(engine.dir.path());
        engine.must(&["load", "--quiet", "--input", archive.to_str().expect("a path")]);
        engine
    }

    fn serve(&self) -> Daemon {
        let dir = self.dir.path();
        let command = match self.program {
            Program::Docker => dockerd(dir, &self.socket()),
            Program::Podman(_) => {
                let mut podman = self.command();
                podman.args(["system", "service", "--time", "0"]).arg(self.address());
                podman
            }
        };
        Daemon::start(command, &dir.join("log"), &self.socket())
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn command(&self) -> Command {
        match self.program {
            Program::Docker => {
                let mut docker = Command::new("docker");
                docker.args(["--host", &self.address()]);
                docker
            }
            Program::Podman(runtime) => podman(self.dir.path(), runtime),
        }
    }

    /// Runs the fixture in a container with this name.
    pub fn run(&self, name: &str) -> Zoo {
        let mut run = self.command();
        // By default podman raises limits, which takes a capability that a test may lack.
        run.args(["run", "--interactive", "--network", "none", "--ulimit", "nofile=1024:1024"]);
        run.args(["--ulimit", "nproc=1024:1024", "--name", name, IMAGE, "/fdzoo"]);
        let mut zoo = Zoo::start(run);
        zoo.must("pid");
        zoo
    }

    /// Tries to run a container. If that can't be done here, returns what the engine says.
    pub fn try_out(&self) -> Result<(), String> {
        let mut run = self.command();
        run.args(["run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024"]);
        let output = run.args(["--ulimit", "nproc=1024:1024", IMAGE, "/sleep", "0"]).output();
        let output = output.expect("run the engine");
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(why) }
    }

    /// Returns the id of a container.
    pub fn id(&self, name: &str) -> String {
        self.must(&["inspect", "--format", "{{.Id}}", name])
    }

    /// Renames a container.
    pub fn rename(&self, from: &str, to: &str) {
        self.must(&["rename", from, to]);
    }

    /// Kills and removes a container.
    pub fn remove(&self, name: &str) {
        self.must(&["rm", "--force", name]);
    }

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).stdin(Stdio::null()).output().expect("run the engine");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let list = self.command().args(["ps", "--all", "--quiet"]).output();
        let list =
            list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for id in list.split_whitespace() {
            let _ = self.command().args(["rm", "--force", id]).stdout(Stdio::null()).status();
        }
        self.daemon = None;
        super::end_all_below(self.dir.path());
        let left: &[&str] = match self.program {
            Program::Docker => &["/docker"],
            Program::Podman(_) => &["/libpod_parent/conmon", "/libpod_parent"],
        };
        left.iter().for_each(|cgroup| remove_cgroup(cgroup));
    }
}

/// Returns a dockerd that needs no network, and no capabilities that a test may lack.
fn dockerd(dir: &Path, socket: &Path) -> Command {
    let mut dockerd = Command::new("dockerd");
    dockerd.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    dockerd.args(["--ip-masq=false", "--userland-proxy=false", "--oom-score-adjust=0"]);
    dockerd.args(["--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs", "--config-file"]);
    let nothing = dir.join("daemon.json");
    fs::write(&nothing, "{}").expect("write an empty configuration");
    dockerd.arg(nothing).arg("--host").arg(format!("unix://{}", socket.display()));
    for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        dockerd.arg(option).arg(dir.join(name));
    }
    dockerd
}

fn podman(dir: &Path, runtime: &str) -> Command {
    let mut podman = Command::new("podman");
    podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
    podman.args(["--runtime", runtime]);
    for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        podman.arg(option).arg(dir.join(name));
    }
    podman
}
