//! `/proc/PID/maps` (fs/proc/task_mmu.c:show_map_vma).

/// A mapping of a file, or one that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::inspect) struct Mapping {
    pub(in crate::inspect) start: u64,
    pub(in crate::inspect) end: u64,
    pub(in crate::inspect) major: u32,
    pub(in crate::inspect) minor: u32,
    pub(in crate::inspect) inode: u64,
    /// With line ends as `\012`, and ` (deleted)`.
    pub(in crate::inspect) name: String,
}

impl Mapping {
    /// The mappings that have a file or a name. Lines that aren't understood are left out.
    pub(in crate::inspect) fn parse(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::line).filter(|m| m.inode != 0 || !m.name.is_empty()).collect()
    }

    /// `start-end rwxp offset major:minor inode   name`; the name may have spaces.
    fn line(line: &str) -> Option<Self> {
        let mut words = line.splitn(5, ' ');
        let (range, _mode, _offset, device) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let (major, minor) = device.split_once(':')?;
        let rest = words.next()?.trim_start();
        let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
            inode: inode.parse().ok()?,
            name: name.trim_start_matches(' ').to_owned(),
        })
    }

    /// Its name in `/proc/PID/map_files`.
    pub(in crate::inspect) fn file_name(&self) -> String {
        format!("{:x}-{:x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_names() {
        let text = "\
556d3b5c2000-556d3b5c4000 r--p 00000000 08:01 131095                     /usr/bin/my cat (deleted)
556d3b5c4000-556d3b5c5000 rw-p 00000000 00:00 0 
556d3c000000-556d3c021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:0f 1077                       anon_inode:[io_uring]
7f0000002000-7f0000003000 rw-s 08000000 00:0f 1077                       anon_inode:[io_uring]
7ffff7ffb000-7ffff7ffc000 rwxp 00000000 00:00 0                          [uprobes]
garbage
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        let found = Mapping::parse(text);
        let names: Vec<_> = found.iter().map(|m| m.name.as_str()).collect();
        let ring = "anon_inode:[io_uring]";
        assert_eq!(names, ["/usr/bin/my cat (deleted)", "[heap]", ring, ring, "[uprobes]", "[vsyscall]"]);
        assert_eq!((found[0].major, found[0].minor, found[0].inode), (8, 1, 131_095));
        assert_eq!(found[2].file_name(), "7f0000000000-7f0000001000");
    }

    #[test]
    fn a_file_without_a_name() {
        let found = Mapping::parse("1000-2000 r--p 00000000 00:05 12\n1000-2000 r--p 00000000\n");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].inode, found[0].name.as_str()), (12, ""));
    }
}
