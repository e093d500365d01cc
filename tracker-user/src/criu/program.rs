//! The program `criu`: which it is, and how it was built.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::verdict::{CriuVersion, Fact, Facts};

/// The `criu` in `PATH`, which root's may lack its directory of.
pub(super) fn find() -> Option<PathBuf> {
    in_path("criu").or_else(|| Some(PathBuf::from("/usr/sbin/criu")).filter(|path| path.is_file()))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The version that it tells.
///
/// # Errors
/// When it can't be run, or tells none: what happened.
pub(super) fn version(program: &Path) -> Result<CriuVersion, String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| "--version tells no version".to_owned())
}

fn parse(output: &str) -> Option<CriuVersion> {
    output.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().parse().ok()
}

/// Where distributions put plugins (`plugin.h:CR_PLUGIN_DEFAULT`).
const PLUGINS: [&str; 4] =
    ["/usr/lib/criu", "/usr/lib64/criu", "/usr/local/lib/criu", "/usr/lib/x86_64-linux-gnu/criu"];

/// Learns how a program was built, and which plugins there are.
pub(super) fn learn(program: &Path, facts: &mut Facts) {
    // The name of the library that it needs, or the messages of one that is part of it.
    let binary = fs::read(program).ok();
    facts.set_some(Fact::Libbpf, binary.map(|binary| contains(&binary, b"libbpf")));
    let plugin = |name: &str| PLUGINS.iter().any(|dir| Path::new(dir).join(name).exists());
    facts.set(Fact::CudaPlugin, plugin("cuda_plugin.so") && in_path("cuda-checkpoint").is_some());
    facts.set(Fact::AmdgpuPlugin, plugin("amdgpu_plugin.so"));
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_criu_prints() {
        assert_eq!(parse("Version: 4.1.1\nGitID: v4.1.1\n"), Some(CriuVersion::new(4, 1, 1)));
        assert_eq!(parse("Version: 3.17.1\n"), Some(CriuVersion::new(3, 17, 1)));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn what_isnt_criu_is_told() {
        assert!(version(Path::new("/bin/true")).is_err());
        assert!(version(Path::new("/nonexistent/criu")).is_err());
    }
}
