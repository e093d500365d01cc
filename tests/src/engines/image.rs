//! The image of the containers: the fixture, and a program that only waits. It has the format of
//! `docker save`, which every engine reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::container::{copy_program, make_root};

/// Its name.
pub const NAME: &str = "localhost/fdtracker-zoo:test";

/// What a container runs if it only has to exist.
pub(super) const WAIT: [&str; 2] = ["/sleep", "infinity"];

/// Writes the archive into a directory.
pub(super) fn make(dir: &Path) -> PathBuf {
    let (root, parts) = (dir.join("image-root"), dir.join("image-parts"));
    make_root(&root);
    copy_program(Path::new("/bin/sleep"), &root);
    fs::create_dir(&parts).expect("make a directory for the image");
    tar(&root, &parts.join("layer.tar"));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": WAIT},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&parts.join("layer.tar")))]},
    });
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    for (name, json) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(parts.join(name), json.to_string()).expect("write the image");
    }
    let archive = dir.join("image.tar");
    tar(&parts, &archive);
    archive
}

fn tar(dir: &Path, to: &Path) {
    let status = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(to).arg(".").status();
    assert!(status.expect("run tar").success(), "tar of {}", dir.display());
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("run sha256sum");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split(' ').next().expect("a digest").to_owned()
}
