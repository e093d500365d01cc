//! Versions of the kernel.

use std::fmt;

/// Version of a kernel, as far as facts depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl KernelVersion {
    /// Reads a release, such as `6.1.0-56-cloud-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }

    /// Whether this is at least the given version.
    #[must_use]
    pub const fn at_least(self, major: u32, minor: u32) -> bool {
        self.major > major || self.major == major && self.minor >= minor
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        let parse = |release| KernelVersion::parse(release).map(|v| (v.major, v.minor));
        assert_eq!(parse("6.1.0-56-cloud-amd64\n"), Some((6, 1)));
        assert_eq!(parse("5.10.262"), Some((5, 10)));
        assert_eq!(parse("7.3-rc1"), Some((7, 3)));
        assert_eq!(parse("next"), None);
        assert!(KernelVersion { major: 6, minor: 1 }.at_least(5, 15));
        assert!(!KernelVersion { major: 5, minor: 10 }.at_least(5, 15));
    }
}
