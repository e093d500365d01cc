//! Archives in cpio's "newc" format, which the kernel unpacks as its first root.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use anyhow::{Context as _, bail};

/// An archive that is being made. Equal contents give equal bytes.
#[derive(Default)]
pub(super) struct Archive {
    /// The entries by path, so that a directory comes before its contents.
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Directory,
    File(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
}

impl Archive {
    /// Adds a directory, and those above it.
    pub(super) fn directory(&mut self, path: &str) -> anyhow::Result<()> {
        self.add(path, Entry::Directory)
    }

    /// Adds an executable file, and the directories above it.
    pub(super) fn file(&mut self, path: &str, data: Vec<u8>) -> anyhow::Result<()> {
        self.add(path, Entry::File(data))
    }

    /// Adds a character device.
    pub(super) fn char_device(&mut self, path: &str, major: u32, minor: u32) -> anyhow::Result<()> {
        self.add(path, Entry::CharDevice { major, minor })
    }

    fn add(&mut self, path: &str, entry: Entry) -> anyhow::Result<()> {
        let path = Path::new(path);
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            bail!("{} is no plain absolute path", path.display());
        }
        for above in path.ancestors().skip(1) {
            self.entries.entry(name(above)?).or_insert(Entry::Directory);
        }
        self.entries.insert(name(path)?, entry);
        Ok(())
    }

    /// Returns the bytes of the archive.
    pub(super) fn finish(self) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (name, entry)) in (1..).zip(&self.entries) {
            if !name.is_empty() {
                write(&mut out, number, name, entry)?;
            }
        }
        write_entry(&mut out, &Header { links: 1, ..Header::default() }, "TRAILER!!!", &[])?;
        Ok(out)
    }
}

/// Returns a path as the archive has it: relative to the root.
fn name(path: &Path) -> anyhow::Result<String> {
    let name = path.strip_prefix("/").unwrap_or(path);
    name.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

#[derive(Default)]
struct Header {
    number: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn write(out: &mut Vec<u8>, number: u32, name: &str, entry: &Entry) -> anyhow::Result<()> {
    let header = |mode, links| Header { number, mode, links, device: (0, 0) };
    match entry {
        Entry::Directory => write_entry(out, &header(0o040_755, 2), name, &[]),
        Entry::File(data) => write_entry(out, &header(0o100_755, 1), name, data),
        Entry::CharDevice { major, minor } => {
            write_entry(out, &Header { device: (*major, *minor), ..header(0o020_600, 1) }, name, &[])
        }
    }
}

/// Writes header, name and data. Each is filled up to a multiple of four bytes.
fn write_entry(out: &mut Vec<u8>, header: &Header, name: &str, data: &[u8]) -> anyhow::Result<()> {
    let size = u32::try_from(data.len()).with_context(|| format!("{name} is too large"))?;
    let name_size = u32::try_from(name.len() + 1).context("the name is too long")?;
    let (major, minor) = header.device;
    // Owner, group, time, device and checksum are 0.
    let fields = [header.number, header.mode, 0, 0, header.links, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    fill(out);
    out.extend(data);
    fill(out);
    Ok(())
}

fn fill(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and data.
    type Read = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive as the kernel's `init/initramfs.c` does.
    fn read(mut bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |at: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * at..14 + 8 * at]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            let (mode, device) = (field(1), (field(9), field(10)));
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data);
                return entries;
            }
            entries.push((name, mode, device, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/hello", b"12345".to_vec()).unwrap();
        archive.char_device("/dev/console", 5, 1).unwrap();
        archive.directory("/proc").unwrap();
        archive.file("/init", Vec::new()).unwrap();
        let found = read(&archive.finish().unwrap());
        let expected = [
            ("dev", 0o040_755, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("init", 0o100_755, (0, 0), b""),
            ("proc", 0o040_755, (0, 0), b""),
            ("usr", 0o040_755, (0, 0), b""),
            ("usr/bin", 0o040_755, (0, 0), b""),
            ("usr/bin/hello", 0o100_755, (0, 0), b"12345"),
        ];
        let expected = expected.map(|(name, mode, device, data)| (name.into(), mode, device, data.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let mut archive = Archive::default();
        // `-` sorts before `/`.
        archive.directory("/a-b").unwrap();
        archive.directory("/a/b").unwrap();
        let names: Vec<String> = read(&archive.finish().unwrap()).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, ["a", "a-b", "a/b"]);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let mut archive = Archive::default();
        assert!(archive.directory("/a/../b").is_err());
        assert!(archive.file("bin/sh", Vec::new()).is_err());
    }
}
