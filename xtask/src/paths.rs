//! Where things are: the workspace, what is built in it, and what outlives it.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::command::{cargo, output};

/// The workspace.
pub(crate) fn workspace() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask is in the workspace")
}

/// Where cargo builds: `target`, unless `CARGO_TARGET_DIR` or `build.target-dir` says otherwise.
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

/// Where guests' files go, and what came of them.
pub(crate) fn vm() -> anyhow::Result<PathBuf> {
    Ok(target()?.join("vm"))
}
