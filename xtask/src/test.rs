//! `cargo xtask test`: everything that must hold, from nothing.

use std::{fs, process::Command, time::Instant};

use anyhow::Context as _;

use crate::{
    build_ebpf,
    command::{cargo, fetch, must, output, tools},
    machine::{Package, find, install, is_root, mount_tracefs},
    vm,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Refuse to install anything; say what is needed instead
    #[arg(long)]
    no_install: bool,

    /// Leave out the desktop, CRIU, and the kernels in emulated machines, which take most of the time
    #[arg(long)]
    no_vm: bool,

    /// Run only tests whose name contains this, and on this machine only
    filter: Option<String>,
}

/// What the tests start, and the package that has it.
const PROGRAMS: &[(&str, Package)] = &[
    ("curl", Package::Install("curl")),
    ("ip", Package::Install("iproute2")),
    ("openssl", Package::Install("openssl")),
    ("runc", Package::Install("runc")),
    ("crun", Package::Install("crun")),
    // With conmon, and policies that it wants in /etc.
    ("podman", Package::Install("podman")),
    ("containerd", CONTAINERD),
    ("ctr", CONTAINERD),
    ("containerd-shim-runc-v2", CONTAINERD),
    ("dockerd", DOCKER),
    ("docker", DOCKER),
    ("prometheus", PROMETHEUS),
    ("promtool", PROMETHEUS),
    ("prometheus-alertmanager", ALERTMANAGER),
    ("kubectl", Package::Install("kubernetes-client")),
    ("buildah", Package::Install("buildah")),
    ("pip3", Package::Install("python3-pip")),
];

/// Kubernetes' schemas, and Helm as a library: the manifests are checked with them.
const PYTHON_PACKAGES: &[&str] = &["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];

const CONTAINERD: Package =
    Package::Extract { package: "containerd", programs: &["containerd", "containerd-shim-runc-v2", "ctr"] };
const DOCKER: Package = Package::Extract { package: "docker.io", programs: &["docker", "dockerd"] };
const PROMETHEUS: Package = Package::Extract { package: "prometheus", programs: &["prometheus", "promtool"] };
const ALERTMANAGER: Package =
    Package::Extract { package: "prometheus-alertmanager", programs: &["prometheus-alertmanager"] };

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let with_vm = args.filter.is_none() && !args.no_vm;
    let is_wanted = |filter: &String| filter.starts_with(vm::desktop::TESTS.trim_end_matches(':'));
    let with_desktop = with_vm || args.filter.as_ref().is_some_and(is_wanted);
    let more = if with_desktop { vm::desktop::needed_packages()? } else { Vec::new() };
    install_programs(more, args.no_install)?;
    if with_desktop {
        vm::desktop::prepare(args.no_install)?;
    }
    build_ebpf::run(&build_ebpf::Args { check: true, no_install: args.no_install })?;

    let filter = args.filter.as_slice();
    build()?;
    build_static_agent()?;
    must(
        cargo()?.args(["test", "--locked", "--workspace", "--exclude", "fdtracker-tests", "--"]).args(filter),
    )?;
    must(&mut integration(filter)?)?;
    if with_vm {
        vm::everything(args.no_install)?;
    }
    eprintln!("all tests passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Installs what tests on this machine start, and more, and prepares it for the BPF programs.
pub(crate) fn install_programs(more: Vec<Package>, no_install: bool) -> anyhow::Result<()> {
    let missing = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package);
    let mut needed: Vec<Package> = missing.chain(build_ebpf::missing_packages()).chain(more).collect();
    // One package may have several programs.
    needed.sort();
    needed.dedup();
    install(&needed, !no_install)?;
    install_python_packages(no_install)?;
    mount_tracefs()
}

/// Builds what the integration tests run.
pub(crate) fn build() -> anyhow::Result<()> {
    must(cargo()?.args(["build", "--locked", "--package", "tracker-user", "--package", "fdtracker-tests"]))
}

/// Into the project's tools: tests look for them there, and are skipped without.
fn install_python_packages(only_say: bool) -> anyhow::Result<()> {
    let modules = tools()?.join("python");
    let installed = modules.join("installed");
    let wanted = PYTHON_PACKAGES.join("\n");
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if only_say {
        eprintln!(
            "tests of manifests are skipped without these Python packages: {}",
            PYTHON_PACKAGES.join(" ")
        );
        return Ok(());
    }
    let _ = fs::remove_dir_all(&modules);
    let mut pip = Command::new("pip3");
    pip.args(["install", "--quiet", "--root-user-action=ignore", "--target"]).arg(&modules);
    fetch(pip.args(PYTHON_PACKAGES))?;
    fs::write(&installed, wanted).with_context(|| format!("write {}", installed.display()))
}

/// Builds the agent as it is in its image: with no library beside it. It isn't optimized, because it hardly runs.
fn build_static_agent() -> anyhow::Result<()> {
    let mut cargo = cargo()?;
    cargo.args(["build", "--locked", "--bin", "fdtracker", "--target-dir", "target/static"]);
    // The flags would be those of build scripts, too, but for a target that is named.
    cargo.args(["--target", "x86_64-unknown-linux-gnu"]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["--config", "profile.dev.opt-level=0", "--config", "profile.dev.debug=false"]);
    must(&mut cargo)
}

/// The integration tests whose names contain this, as root, with the project's tools in `PATH`.
pub(crate) fn integration(filter: &[String]) -> anyhow::Result<Command> {
    let mut path = vec![tools()?.join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path)?;
    let mut cargo = cargo()?;
    cargo.env("PATH", &path);
    if !is_root() {
        // sudo sets a PATH of its own.
        let runner = format!("sudo -E env PATH={}", path.to_string_lossy());
        let host = host_triple()?.replace('-', "_").to_uppercase();
        cargo.env(format!("CARGO_TARGET_{host}_RUNNER"), runner);
    }
    cargo.args(["test", "--locked", "--package", "fdtracker-tests", "--"]).args(filter);
    Ok(cargo)
}

fn host_triple() -> anyhow::Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("rustc -vV tells no host"))
}
