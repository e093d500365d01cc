//! The CRIU that a verdict is about.

use std::{collections::BTreeSet, fmt, str::FromStr};

use thiserror::Error;

use crate::{KernelVersion, facts::Facts, named::named, options::Options};

/// A CRIU release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 where the release has two.
    pub patch: u32,
}

impl CriuVersion {
    /// Makes one of its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }
}

/// The oldest release that the rules were checked against.
pub const OLDEST_KNOWN: CriuVersion = CriuVersion::new(3, 17, 1);

/// The newest release that the rules were checked against; a newer one is judged like it.
pub const NEWEST_KNOWN: CriuVersion = CriuVersion::new(4, 2, 1);

/// The releases that a plan may lead to.
pub const KNOWN_VERSIONS: [CriuVersion; 8] = [
    OLDEST_KNOWN,
    CriuVersion::new(3, 18, 0),
    CriuVersion::new(3, 19, 0),
    CriuVersion::new(4, 0, 0),
    CriuVersion::new(4, 1, 0),
    CriuVersion::new(4, 1, 1),
    CriuVersion::new(4, 2, 0),
    NEWEST_KNOWN,
];

/// Where CRIU searches for watched files, and the first release that does. The root itself is
/// searched without what is below.
///
/// # Source
/// CRIU: `irmap.c:hints`.
const HINTS: [(&str, CriuVersion); 8] = [
    ("/etc", OLDEST_KNOWN),
    ("/var/spool", OLDEST_KNOWN),
    ("/var/log", OLDEST_KNOWN),
    ("/usr/share/dbus-1/services", CriuVersion::new(4, 0, 0)),
    ("/usr/share/dbus-1/system-services", OLDEST_KNOWN),
    ("/var/lib/polkit-1/localauthority", OLDEST_KNOWN),
    ("/usr/share/polkit-1/actions", OLDEST_KNOWN),
    ("/lib/udev", OLDEST_KNOWN),
];

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 {
            write!(f, ".{}", self.patch)?;
        }
        Ok(())
    }
}

/// What was given is no CRIU version.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a CRIU version, such as 4.1.1 ({OLDEST_KNOWN} to {NEWEST_KNOWN} are known)")]
pub struct ParseVersionError(String);

impl FromStr for CriuVersion {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, ParseVersionError> {
        let bad = || ParseVersionError(text.to_owned());
        let numbers: Vec<u32> =
            text.trim().split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        match *numbers.as_slice() {
            [major, minor] => Ok(Self::new(major, minor, 0)),
            [major, minor, patch] => Ok(Self::new(major, minor, patch)),
            _ => Err(bad()),
        }
    }
}

named! {
    /// Where a profile's version comes from.
    VersionSource {
        /// The user said so.
        Given = "given",
        /// The `criu` in the agent's `PATH`.
        Path = "path",
        /// No CRIU was found: the newest known is assumed.
        Assumed = "assumed",
    }
}

/// What a verdict depends on besides the fd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The release.
    pub version: CriuVersion,
    /// Where the version comes from.
    pub source: VersionSource,
    /// The kernel that CRIU would run on.
    pub kernel: KernelVersion,
    /// How it was built, and its plugins, as far as that is known: facts of the environment.
    pub build: Facts,
    /// The options of the dump.
    pub options: Options,
}

impl Profile {
    /// Makes a profile: of the version given, else the one found, else the newest known.
    #[must_use]
    pub fn new(given: Option<CriuVersion>, found: Option<CriuVersion>, kernel: KernelVersion) -> Self {
        let (version, source) = match (given, found) {
            (Some(version), _) => (version, VersionSource::Given),
            (None, Some(version)) => (version, VersionSource::Path),
            (None, None) => (NEWEST_KNOWN, VersionSource::Assumed),
        };
        Self { version, source, kernel, build: Facts::default(), options: Options::default() }
    }

    /// Makes the same for another release of CRIU.
    #[must_use]
    pub fn with_version(&self, version: CriuVersion) -> Self {
        Self { version, ..self.clone() }
    }

    /// Lists where it searches for watched files of which it has no handle: what it is told, and
    /// what it knows of itself. The paths are in the root process's mount namespace; all that is
    /// below is searched.
    #[must_use]
    pub fn irmap_paths(&self) -> BTreeSet<String> {
        let known = HINTS.iter().filter(|(_, since)| *since <= self.version);
        known.map(|(path, _)| (*path).to_owned()).chain(self.options.irmap_paths.iter().cloned()).collect()
    }

    /// Whether it is newer than all releases that the rules were checked against.
    #[must_use]
    pub fn is_newer_than_known(&self) -> bool {
        self.version > NEWEST_KNOWN
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CRIU {}", self.version)?;
        match self.source {
            VersionSource::Given => Ok(()),
            VersionSource::Path => write!(f, " (found in PATH)"),
            VersionSource::Assumed => {
                write!(f, " (none found: the newest known is assumed; set one with --criu)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_looks_where_it_knows_to_and_where_it_is_told_to() {
        let of = |version| {
            let kernel = KernelVersion { major: 6, minor: 1 };
            let mut profile = Profile::new(Some(version), None, kernel);
            profile.options.irmap_paths.insert("/root".into());
            profile.irmap_paths()
        };
        let (old, new) = (of(CriuVersion::new(3, 19, 0)), of(CriuVersion::new(4, 0, 0)));
        assert!(old.contains("/root") && old.contains("/etc"), "{old:?}");
        let more: Vec<_> = new.difference(&old).collect();
        assert_eq!(more, ["/usr/share/dbus-1/services"]);
    }

    #[test]
    fn versions() {
        assert_eq!("4.1.1".parse(), Ok(CriuVersion::new(4, 1, 1)));
        assert_eq!("4.2".parse(), Ok(CriuVersion::new(4, 2, 0)));
        assert!(CriuVersion::new(3, 17, 1) < CriuVersion::new(4, 0, 0));
        assert_eq!(CriuVersion::new(4, 2, 0).to_string(), "4.2");
        for bad in ["", "4", "four", "4.1.1.1", "4.-1", "4.1-rc1"] {
            assert!(bad.parse::<CriuVersion>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_user_is_believed_first() {
        let kernel = KernelVersion { major: 6, minor: 1 };
        let (a, b) = (CriuVersion::new(3, 19, 0), CriuVersion::new(4, 0, 0));
        assert_eq!(Profile::new(Some(a), Some(b), kernel).version, a);
        assert_eq!(Profile::new(None, Some(b), kernel).source, VersionSource::Path);
        let assumed = Profile::new(None, None, kernel);
        assert_eq!((assumed.version, assumed.source), (NEWEST_KNOWN, VersionSource::Assumed));
    }
}
