//! The commit at which everything was tested, as documents name it, and what has changed since.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};

use crate::{command::output, paths::workspace};

/// The text before the commit in a document.
const BEFORE: &str = "All of it passed at commit `";

/// Returns a document's sentence that names a commit.
pub(crate) fn sentence(commit: &str) -> String {
    format!("{BEFORE}{commit}`.")
}

/// Returns the current commit. A document may name it only if no file is changed.
pub(crate) fn commit() -> anyhow::Result<String> {
    let changed = git(&["status", "--porcelain"])?;
    ensure!(changed.is_empty(), "commit first: the documents name the commit that was tested\n{changed}");
    git(&["rev-parse", "HEAD"])
}

/// Returns the commit that a document names.
pub(crate) fn named_in(document: &str) -> anyhow::Result<Option<String>> {
    let text = fs::read_to_string(workspace()?.join(document)).with_context(|| format!("read {document}"))?;
    Ok(named(&text))
}

fn named(text: &str) -> Option<String> {
    Some(text.split_once(BEFORE)?.1.split_once('`')?.0.to_owned())
}

/// Returns whether this clone has a commit.
pub(crate) fn is_here(commit: &str) -> bool {
    git(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_ok()
}

/// Returns a number that differs from commit to commit.
pub(crate) fn turn() -> usize {
    let digits = git(&["rev-parse", "--short=4", "HEAD"]).unwrap_or_default();
    usize::from_str_radix(digits.get(..4).unwrap_or_default(), 16).unwrap_or_default()
}

/// Returns the files that differ from those of a commit, including new ones.
pub(crate) fn changed_since(commit: &str) -> anyhow::Result<Vec<String>> {
    let changed = git(&["diff", "--name-only", "--no-renames", commit, "--"])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"])?;
    Ok(changed.lines().chain(new.lines()).map(str::to_owned).collect())
}

fn git(arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new("git").current_dir(workspace()?).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found() {
        assert_eq!(named(&format!("# Page\n\nText. {}\n", sentence("abc"))).as_deref(), Some("abc"));
        assert_eq!(named("# Page\n"), None);
    }
}
