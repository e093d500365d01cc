//! Paths: the workspace, what is built in it, and what is kept outside it.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::command::{cargo, output};

/// Returns the path of the workspace.
pub(crate) fn workspace() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask is in the workspace")
}

/// Returns where cargo builds: `target`, unless `CARGO_TARGET_DIR` or `build.target-dir` says
/// something else.
pub(crate) fn target() -> anyhow::Result<&'static Path> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(target) = TARGET.get() {
        return Ok(target);
    }
    let metadata = output(cargo()?.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read what cargo metadata tells")?;
    let target = metadata.get("target_directory").and_then(Value::as_str);
    let target = target.context("cargo metadata tells no target_directory")?;
    Ok(TARGET.get_or_init(|| target.into()))
}

/// Returns the directory of guests' files and their results.
pub(crate) fn vm() -> anyhow::Result<PathBuf> {
    Ok(target()?.join("vm"))
}
