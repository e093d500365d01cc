//! The programs that the integration tests start on this machine, and their packages.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::{
    build_ebpf, cache,
    command::fetch,
    machine::{PROGRAM_DIRS, Package, find, find_in, install, mount_tracefs, unpacked},
};

/// Programs, and the package of each.
const PROGRAMS: &[(&str, Package)] = &[
    ("curl", Package::Install("curl")),
    ("ip", Package::Install("iproute2")),
    ("openssl", Package::Install("openssl")),
    ("runc", Package::Install("runc")),
    ("crun", Package::Install("crun")),
    // The package brings conmon, and the policies that podman needs in /etc.
    ("podman", Package::Install("podman")),
    ("containerd", CONTAINERD),
    ("ctr", CONTAINERD),
    ("containerd-shim-runc-v2", CONTAINERD),
    ("dockerd", DOCKER),
    ("docker", DOCKER),
    ("prometheus", PROMETHEUS),
    ("promtool", PROMETHEUS),
    ("prometheus-alertmanager", Package::Extract("prometheus-alertmanager")),
    ("kubectl", Package::Install("kubernetes-client")),
    ("buildah", Package::Install("buildah")),
    ("pip3", Package::Install("python3-pip")),
    // The package brings libc.a, which is linked into the programs.
    ("cc", Package::Install("build-essential")),
];

const CONTAINERD: Package = Package::Extract("containerd");
const DOCKER: Package = Package::Extract("docker.io");
const PROMETHEUS: Package = Package::Extract("prometheus");

/// Kubernetes' schemas, and Helm as a library. The manifests are checked with them.
const PYTHON_PACKAGES: &[&str] = &["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];

/// Returns the packages that must be installed before the tests.
pub(crate) fn missing() -> anyhow::Result<Vec<Package>> {
    let mut missing = build_ebpf::missing_packages();
    for (program, package) in PROGRAMS {
        let is_here = match package {
            Package::Install(_) => find(program).is_some(),
            Package::Extract(name) => find(program).is_some() || find_in(name, program)?.is_some(),
        };
        if !is_here {
            missing.push(*package);
        }
    }
    Ok(missing)
}

/// Installs these packages and more, and prepares the machine for the BPF programs.
pub(crate) fn provide(more: Vec<Package>, no_install: bool) -> anyhow::Result<()> {
    let mut needed = missing()?;
    needed.extend(more);
    // One package may have several of the programs.
    needed.sort();
    needed.dedup();
    if find("apt-get").is_some() || needed.is_empty() {
        install(&needed, !no_install)?;
    } else {
        // Each test that is skipped names what is missing.
        eprintln!("there is no apt-get to install what is missing: {needed:?}");
    }
    if python_modules()?.is_none() {
        install_python_packages(no_install)?;
    }
    mount_tracefs()
}

/// Returns `PATH` with the unpacked packages first.
pub(super) fn path() -> anyhow::Result<std::ffi::OsString> {
    let mut path = Vec::new();
    let mut packages: Vec<Package> = PROGRAMS.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    for package in packages {
        if let Package::Extract(name) = package
            && let Some(dir) = unpacked(name)?
        {
            path.extend(PROGRAM_DIRS.map(|place| dir.join(place)).into_iter().filter(|dir| dir.exists()));
        }
    }
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    Ok(std::env::join_paths(path)?)
}

/// The directory of Python's packages in the cache.
const PYTHON: &str = "python";

/// Returns the directory of Python's packages, if it is there.
pub(super) fn python_modules() -> anyhow::Result<Option<PathBuf>> {
    cache::get(PYTHON, &PYTHON_PACKAGES.join("+"))
}

fn install_python_packages(only_say: bool) -> anyhow::Result<()> {
    if only_say {
        let packages = PYTHON_PACKAGES.join(" ");
        eprintln!("tests of manifests are skipped without these Python packages: {packages}");
        return Ok(());
    }
    eprintln!("installing by pip: {}", PYTHON_PACKAGES.join(" "));
    cache::get_or_make(PYTHON, &PYTHON_PACKAGES.join("+"), |dir| {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut pip = Command::new("pip3");
        pip.args(["install", "--quiet", "--root-user-action=ignore", "--target"]).arg(dir);
        fetch(pip.args(PYTHON_PACKAGES))
    })
    .map(drop)
}
