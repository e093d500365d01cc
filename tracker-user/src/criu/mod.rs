//! Finding the CRIU that would be used.

use std::process::{Command, Stdio};

use crate::{
    host::KernelVersion,
    verdict::{CriuVersion, Profile},
};

/// The profile for this machine: `given`, else the version of the `criu` in `PATH`, else the newest known.
#[must_use]
pub fn profile(given: Option<CriuVersion>, kernel: KernelVersion) -> Profile {
    let found = if given.is_some() { None } else { installed() };
    Profile::new(given, found, kernel)
}

/// The version that `criu --version` tells.
fn installed() -> Option<CriuVersion> {
    let output =
        Command::new("criu").arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(output: &str) -> Option<CriuVersion> {
    output.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().parse().ok()
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
}
