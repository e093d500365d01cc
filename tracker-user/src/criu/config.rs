//! Parses CRIU's configuration files.

use crate::verdict::CriuVersion;

/// Returns the options in a configuration file, each with its value behind a space. A line has a
/// name and perhaps a value; a comment begins with `#`.
///
/// # Source
/// CRIU `config.c:parse_config`.
pub(super) fn parse(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let option = |line: &str| {
        let (name, value) = line.split_once(|c: char| c.is_whitespace() || c == '=').unwrap_or((line, ""));
        let value = value.trim().trim_matches('"');
        if value.is_empty() { name.to_owned() } else { format!("{name} {value}") }
    };
    lines.filter(|line| !line.is_empty()).map(option).collect()
}

/// Whether a release loses this option if it stands in a file: before 4.0, CRIU keeps a pointer to
/// the path, and frees the file's text (`irmap.c:irmap_scan_path_add`;
/// <https://github.com/checkpoint-restore/criu/pull/2415>).
pub(super) fn is_lost(option: &str, version: CriuVersion) -> bool {
    version < CriuVersion::new(4, 0, 0) && option.split(' ').next() == Some("irmap-scan-path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let text =
            "# for runc\ntcp-established\n\nghost-limit 4M # more\nexternal=unix[7]\nlog-file \"/a b\"\n";
        assert_eq!(parse(text), ["tcp-established", "ghost-limit 4M", "external unix[7]", "log-file /a b"]);
        assert!(parse("").is_empty());
    }
}
