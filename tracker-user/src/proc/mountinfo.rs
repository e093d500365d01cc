//! Parses `/proc/PID/mountinfo` (fs/proc_namespace.c:show_mountinfo).

use std::{borrow::Cow, io};

/// One mount, from its line: `id parent major:minor root mountpoint options [tag…] - type source
/// options`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine<'a> {
    /// The mount's id.
    pub(crate) id: i64,
    /// The id of the mount that it is mounted on.
    pub(crate) parent: i64,
    /// Major and minor number of the filesystem's device.
    pub(crate) device: (u32, u32),
    /// The mount point, as seen from the root directory of the process whose file this is.
    pub(crate) mountpoint: Cow<'a, str>,
    /// The filesystem's type.
    pub(crate) filesystem: &'a str,
    /// The filesystem's own options.
    pub(crate) options: &'a str,
}

/// Reads the mounts that this process sees, for [`mounts`].
///
/// # Errors
/// When the file can't be read.
pub(crate) fn own_mountinfo() -> io::Result<String> {
    super::read("/proc/self/mountinfo")
}

/// Parses all mounts. Lines that aren't understood are left out.
pub(crate) fn mounts(text: &str) -> impl Iterator<Item = MountLine<'_>> {
    text.lines().filter_map(MountLine::parse)
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut words = before.split(' ');
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (major, minor) = words.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let mountpoint = unescape(words.nth(1)?);
        let mut words = after.split(' ');
        let (filesystem, _source) = (words.next()?, words.next());
        Some(Self { id, parent, device, mountpoint, filesystem, options: words.next().unwrap_or_default() })
    }

    /// Returns the value of one of the filesystem's options, if it is set.
    pub(crate) fn option(&self, name: &str) -> Option<&'a str> {
        let value = |option: &'a str| match option.split_once('=') {
            Some((known, value)) => (known == name).then_some(value),
            None => (option == name).then_some(""),
        };
        self.options.split(',').find_map(value)
    }
}

/// Decodes octal escapes, which the kernel uses for space, tab, line end and backslash
/// (seq_file.c:mangle_path).
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0_u32, |n, digit| Some(n * 8 + char::from(*digit).to_digit(8)?))
        });
        match octal.and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = "504 500 8:1 /var/lib/my\\040volume /data\\134x rw,nosuid shared:7 master:2 - ext4 /dev/sda1 rw,errors=remount-ro";
        let [mount] = mounts(line).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (504, 500, (8, 1)));
        assert_eq!((mount.mountpoint.as_ref(), mount.filesystem), ("/data\\x", "ext4"));
        assert_eq!(mount.option("errors"), Some("remount-ro"));
        assert_eq!(
            (mount.option("rw"), mount.option("nosuid"), mount.option("error")),
            (Some(""), None, None)
        );
    }

    #[test]
    fn what_isnt_understood_is_left_out() {
        assert_eq!(mounts("1 2 3\n1 2 a:b / / - x\n\n").count(), 0);
        assert_eq!(mounts("1 2 0:3 / /a rw - x").map(|mount| mount.options.len()).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\040b\\134"), "a b\\");
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("\\777"), "\\777");
        assert_eq!(unescape("\\377"), "\u{fffd}");
    }
}
