//! Real engines: containerd with Kubernetes' CRI, docker and podman. Each keeps all its files in a
//! directory of its own, so that it neither finds nor leaves anything outside.
//!
//! All containers run the fixture from one image, which is made here and needs no registry.

mod containerd;
mod cri;
mod daemon;
mod engine;
mod image;

use std::{fs, path::Path, process::Command};

pub use self::{containerd::Containerd, engine::Engine, image::NAME as IMAGE};

/// Kills all processes whose command line names a directory, and unmounts what is mounted in it.
/// These may be shims of containerd and podman, which live longer than their engine. Usually
/// nothing is left to do.
fn end_all_below(dir: &Path) {
    let name = dir.to_str().expect("a path");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(name) {
            eprintln!("still running: {}", String::from_utf8_lossy(&command).replace('\0', " "));
            // SAFETY: the directory has a name of its own, and is this test's.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for at in mounted.filter(|at| at.starts_with(name)) {
        let _ = Command::new("umount").args(["--lazy", at]).status();
    }
}
