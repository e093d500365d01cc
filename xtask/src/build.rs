//! Builds what the tests run. There is one build of everything with the same features, whichever
//! part is wanted.
//!
//! Programs are linked statically, as the agent in the image is, if there is a C library for that.
//! So the tests also cover static programs.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    command::{cargo, must_output, output},
    machine::is_root,
    paths::target,
};

/// A program that a build made.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Whether it is a test binary.
    is_test: bool,
}

/// Returns a cargo command for the whole workspace.
pub(crate) fn cargo_of_all(command: &str) -> anyhow::Result<Command> {
    cargo_with_path(command, &std::env::var_os("PATH").unwrap_or_default())
}

/// Returns the same for tests, which find programs in this `PATH`.
pub(crate) fn cargo_with_path(command: &str, path: &OsStr) -> anyhow::Result<Command> {
    let host = host_triple()?;
    let mut cargo = cargo()?;
    cargo.env("PATH", path);
    // Without an explicit target, the flags would also apply to build scripts.
    cargo.args([command, "--locked", "--workspace", "--target", &host]);
    if has_static_libc() {
        let theirs = std::env::var("RUSTFLAGS").unwrap_or_default();
        cargo.env("RUSTFLAGS", format!("{theirs} -C target-feature=+crt-static").trim());
    }
    if !is_root() {
        // Tests need root, and sudo sets a PATH of its own.
        let path = path.to_str().filter(|path| !path.contains(' '));
        let path = path.context("a PATH with a space in it can't be kept by sudo")?;
        let variable = format!("CARGO_TARGET_{}_RUNNER", host.replace('-', "_").to_uppercase());
        cargo.env(variable, format!("sudo -E env PATH={path}"));
    }
    Ok(cargo)
}

/// Builds all programs and all tests.
pub(crate) fn all() -> anyhow::Result<Vec<Executable>> {
    // Several callers ask for it, and cargo takes a second to answer.
    static BUILT: Mutex<Option<Vec<Executable>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(built) = &*built {
        return Ok(built.clone());
    }
    let mut build = cargo_of_all("build")?;
    build.arg("--all-targets");
    let executables = executables(&mut build)?;
    *built = Some(executables.clone());
    Ok(executables)
}

/// Returns the executables that aren't tests.
pub(crate) fn programs() -> anyhow::Result<Vec<Executable>> {
    Ok(all()?.into_iter().filter(|program| !program.is_test).collect())
}

/// Returns the integration tests.
pub(crate) fn integration() -> anyhow::Result<Executable> {
    let tests = all()?.into_iter().find(|program| program.is_test && program.name == "integration");
    tests.context("cargo has built no test that is called integration")
}

/// Returns whether there was a build before, so that not everything must be compiled.
pub(crate) fn was_built() -> anyhow::Result<bool> {
    Ok(target()?.join(host_triple()?).join("debug/deps").exists())
}

/// Runs a cargo command that builds, and returns the executables that it made.
pub(crate) fn executables(cargo: &mut Command) -> anyhow::Result<Vec<Executable>> {
    let messages = must_output(cargo.arg("--message-format=json-render-diagnostics"))?;
    Ok(messages.lines().filter_map(executable).collect())
}

/// Reads an executable from a line of cargo's output.
fn executable(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    Some(Executable {
        name: message.pointer("/target/name")?.as_str()?.to_owned(),
        path: message.get("executable")?.as_str()?.into(),
        is_test: message.pointer("/profile/test")?.as_bool()?,
    })
}

/// Returns whether the C compiler finds a C library that can be linked statically.
fn has_static_libc() -> bool {
    // If there is none, it answers with the name alone.
    output(Command::new("cc").arg("-print-file-name=libc.a")).is_ok_and(|path| path.starts_with('/'))
}

fn host_triple() -> anyhow::Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV tells no host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_are_told_apart() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["bin"],"name":"fdzoo"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found = executable(&line(false, r#""/target/debug/fdzoo""#)).unwrap();
        assert_eq!((found.name.as_str(), found.is_test), ("fdzoo", false));
        assert!(executable(&line(true, r#""/target/debug/deps/fdzoo-1""#)).unwrap().is_test);
        assert!(executable(&line(false, "null")).is_none(), "a library");
        assert!(executable("{\"reason\":\"build-finished\",\"success\":true}").is_none());
    }
}
