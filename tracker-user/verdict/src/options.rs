//! The options of a dump that change what CRIU makes of a file.

use std::{collections::BTreeSet, fmt};

/// Defines [`DumpOption`] with the option's name, without its dashes.
macro_rules! options {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// An option that is on or off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DumpOption { $($(#[$doc])* $variant,)+ }

        impl DumpOption {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The option's name, as in CRIU's configuration files.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

options! {
    /// Dump connected TCP sockets, and restore the connections.
    TcpEstablished = "tcp-established",
    /// Dump connected TCP sockets as closed ones.
    TcpClose = "tcp-close",
    /// Leave out connections that aren't accepted yet.
    SkipInFlight = "skip-in-flight",
    /// Dump datagram sockets whose peer is outside of the tree.
    ExtUnixSk = "ext-unix-sk",
    /// Dump file locks.
    FileLocks = "file-locks",
    /// Make a temporary link to a file whose name was deleted and that has another.
    LinkRemap = "link-remap",
    /// The terminal is that of the shell from which CRIU is run.
    ShellJob = "shell-job",
    /// Use any path to a device.
    EvasiveDevices = "evasive-devices",
    /// Search for watched files, even if their handles can be opened.
    ForceIrmap = "force-irmap",
    /// Dump processes with uprobes.
    AllowUprobes = "allow-uprobes",
    /// The other end of a pseudo terminal is given at restore. Engines set it; it has no switch.
    OrphanPtsMaster = "orphan-pts-master",
}

impl DumpOption {
    /// Finds the option with this name, with or without dashes in front.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.trim_start_matches('-');
        Self::ALL.iter().copied().find(|option| option.name() == name)
    }
}

impl fmt::Display for DumpOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.name())
    }
}

/// The options of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Those that are on.
    pub on: BTreeSet<DumpOption>,
    /// `--ghost-limit`: the largest deleted file that is dumped, in bytes.
    pub ghost_limit: u64,
    /// `--external`: what is given at restore instead.
    pub external: BTreeSet<String>,
    /// `--irmap-scan-path`: where watched files are searched for.
    pub irmap_paths: BTreeSet<String>,
}

/// What CRIU takes if `--ghost-limit` isn't given (`cr_options.h:DEFAULT_GHOST_LIMIT`).
pub const DEFAULT_GHOST_LIMIT: u64 = 1 << 20;

impl Default for Options {
    fn default() -> Self {
        Self {
            on: BTreeSet::new(),
            ghost_limit: DEFAULT_GHOST_LIMIT,
            external: BTreeSet::new(),
            irmap_paths: BTreeSet::new(),
        }
    }
}

impl Options {
    /// Whether an option is on.
    #[must_use]
    pub fn has(&self, option: DumpOption) -> bool {
        self.on.contains(&option)
    }

    /// Adds an option as it is given to CRIU: `--ghost-limit 4M`, or a name alone. One that isn't
    /// known changes nothing.
    pub fn add(&mut self, argument: &str) {
        let (name, value) = argument.split_once([' ', '=']).unwrap_or((argument, ""));
        match name.trim_start_matches('-') {
            "ghost-limit" => self.ghost_limit = size(value).unwrap_or(self.ghost_limit),
            "external" => drop(self.external.insert(value.to_owned())),
            "irmap-scan-path" => drop(self.irmap_paths.insert(value.to_owned())),
            name => self.on.extend(DumpOption::from_name(name)),
        }
    }

    /// Lists the options as they are given to CRIU.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = self.on.iter().map(DumpOption::to_string).collect();
        if self.ghost_limit != DEFAULT_GHOST_LIMIT {
            all.push(format!("--ghost-limit {}", self.ghost_limit));
        }
        all.extend(self.external.iter().map(|what| format!("--external {what}")));
        all.extend(self.irmap_paths.iter().map(|path| format!("--irmap-scan-path {path}")));
        all
    }
}

/// Reads a size as CRIU does: bytes, or with a K, M or G behind.
///
/// # Source
/// CRIU: `config.c:parse_size`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = match text.chars().last()? {
        'K' | 'k' => 10,
        'M' | 'm' => 20,
        'G' | 'g' => 30,
        _ => 0,
    };
    let digits = if unit == 0 { text } else { text.get(..text.len() - 1)? };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_name() {
        assert_eq!(DumpOption::from_name("--file-locks"), Some(DumpOption::FileLocks));
        assert_eq!(DumpOption::from_name("file-locks"), Some(DumpOption::FileLocks));
        assert_eq!(DumpOption::from_name("locks"), None);
    }

    #[test]
    fn sizes() {
        assert_eq!([size("4M"), size("512"), size("1k")], [Some(4 << 20), Some(512), Some(1024)]);
        for bad in ["", "M", "-1", "4T", "99999999999G"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn options_are_added_as_they_are_given() {
        let mut options = Options::default();
        for argument in ["--ghost-limit 4M", "--external unix[7]", "--file-locks", "--no-such"] {
            options.add(argument);
        }
        assert_eq!(options.ghost_limit, 4 << 20);
        assert!(options.has(DumpOption::FileLocks) && options.external.contains("unix[7]"));
    }

    #[test]
    fn options_are_shown_as_they_are_given() {
        let mut options = Options::default();
        assert!(options.arguments().is_empty());
        options.on.insert(DumpOption::TcpClose);
        options.ghost_limit = 4 << 20;
        assert_eq!(options.arguments(), ["--tcp-close", "--ghost-limit 4194304"]);
    }
}
