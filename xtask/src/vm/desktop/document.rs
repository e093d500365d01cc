//! docs/case-vnc.md.

pub(super) fn write(_here: &str, _guest: &str) -> anyhow::Result<()> {
    Ok(())
}
