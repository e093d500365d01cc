//! `/proc/PID/fdinfo/FD` (fs/proc/fd.c:seq_show, and each file's `show_fdinfo`).

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::inspect) struct FdInfo {
    /// As given to `open`: those of fcntl(2).
    pub(in crate::inspect) flags: Option<i64>,
    /// Since Linux 3.15.
    pub(in crate::inspect) mount: Option<i64>,
    /// A pidfd's target.
    pub(in crate::inspect) pid: Option<i64>,
    /// A timerfd's clock.
    pub(in crate::inspect) clock: Option<i64>,
    /// A BPF map's type.
    pub(in crate::inspect) map_type: Option<i64>,
    /// The number of a pseudo terminal, of its master.
    pub(in crate::inspect) terminal: Option<i64>,
    /// Files on their way through a unix socket (Linux 5.5).
    pub(in crate::inspect) files_in_flight: Option<i64>,
    /// What an epoll waits for.
    pub(in crate::inspect) targets: Vec<Target>,
    /// What an inotify or fanotify watches.
    pub(in crate::inspect) marks: Vec<Mark>,
    pub(in crate::inspect) locks: Vec<LockKind>,
    /// A line on what is watched, or waited for, wasn't understood: the list isn't whole.
    pub(in crate::inspect) incomplete: bool,
}

/// A file that an epoll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::inspect) struct Target {
    /// The fd by which it was added, which may be something else by now.
    pub(in crate::inspect) fd: u32,
    /// Its inode (Linux 4.13).
    pub(in crate::inspect) inode: Option<u64>,
}

/// What an inotify or a fanotify watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::inspect) enum Mark {
    Inode(Watch),
    Mount(i64),
    /// A whole filesystem, which CRIU doesn't know of (proc_parse.c:parse_fdinfo_pid_s).
    Filesystem,
}

/// An inode that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::inspect) struct Watch {
    /// The filesystem's device, as the kernel packs it for itself.
    pub(in crate::inspect) device: u32,
    pub(in crate::inspect) inode: u64,
    /// The file's handle: its type, and its bytes. Not there if the filesystem has none, or the kernel no `CONFIG_EXPORTFS`.
    pub(in crate::inspect) handle: Option<(i32, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::inspect) enum LockKind {
    Posix,
    Flock,
    /// Of the open file, not of a process.
    OpenFile,
    Lease,
    Other,
}

impl FdInfo {
    /// Lines that aren't known are left out: each kernel adds some.
    pub(in crate::inspect) fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            info.line(line);
        }
        info
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) =
            line.strip_prefix("inotify ").or_else(|| line.strip_prefix("fanotify ino:").map(|_| line))
        {
            let watch = Watch::parse(rest).map(Mark::Inode);
            self.incomplete |= watch.is_none();
            self.marks.extend(watch);
        } else if line.starts_with("fanotify mnt_id:") {
            let mark = hex(line, "mnt_id").and_then(|id| id.try_into().ok()).map(Mark::Mount);
            self.incomplete |= mark.is_none();
            self.marks.extend(mark);
        } else if line.starts_with("fanotify sdev:") {
            self.marks.push(Mark::Filesystem);
        } else if let Some((name, value)) = line.split_once(':') {
            self.field(name.trim_end(), value.trim(), line);
        }
    }

    fn field(&mut self, name: &str, value: &str, line: &str) {
        let number = || value.parse().ok();
        match name {
            "flags" => self.flags = i64::from_str_radix(value, 8).ok(),
            "mnt_id" => self.mount = number(),
            "Pid" => self.pid = number(),
            "clockid" => self.clock = number(),
            "map_type" => self.map_type = number(),
            "tty-index" => self.terminal = number(),
            "scm_fds" => self.files_in_flight = number(),
            "lock" => self.locks.push(LockKind::parse(value)),
            "tfd" => {
                let fd = value.split_whitespace().next().and_then(|fd| fd.parse().ok());
                self.incomplete |= fd.is_none();
                self.targets.extend(fd.map(|fd| Target { fd, inode: hex(line, "ino") }));
            }
            _ => {}
        }
    }
}

impl LockKind {
    /// `1: POSIX  ADVISORY  WRITE 2371 08:01:131095 0 EOF` (fs/locks.c:lock_get_status)
    fn parse(value: &str) -> Self {
        match value.split_whitespace().nth(1) {
            Some("POSIX" | "ACCESS") => Self::Posix,
            Some("FLOCK") => Self::Flock,
            Some("OFDLCK") => Self::OpenFile,
            Some("LEASE" | "DELEG") => Self::Lease,
            _ => Self::Other,
        }
    }
}

impl Watch {
    /// `wd:1 ino:2 sdev:800001 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0200000000000000`
    /// (fs/notify/fdinfo.c:inotify_fdinfo)
    fn parse(line: &str) -> Option<Self> {
        let device = hex(line, "sdev")?.try_into().ok()?;
        Some(Self { device, inode: hex(line, "ino")?, handle: handle(line) })
    }

    /// The device's major and minor number (include/linux/kdev_t.h).
    pub(in crate::inspect) const fn device_numbers(&self) -> (u32, u32) {
        (self.device >> 20, self.device & 0xf_ffff)
    }
}

fn handle(line: &str) -> Option<(i32, Vec<u8>)> {
    let length = usize::try_from(hex(line, "fhandle-bytes")?).ok()?;
    // The kernel prints it as a signed number, in hexadecimal.
    let kind = hex(line, "fhandle-type")? as u32 as i32;
    let digits = word(line, "f_handle").filter(|digits| digits.len() == length * 2)?;
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
        .collect();
    Some((kind, bytes?))
}

/// The value of `name:value` among the words of a line.
fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
}

fn hex(line: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(word(line, name)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_file_has() {
        // 5.10 has no inode.
        let info = FdInfo::parse("pos:\t0\nflags:\t02100000\nmnt_id:\t24\n");
        assert_eq!((info.flags, info.mount), (Some(0o2_100_000), Some(24)));
        let info = FdInfo::parse("pos:\t0\nflags:\t040001\nmnt_id:\t14\nino:\t3\nnew-in-8.0:\tx:y\n");
        assert_eq!((info.flags, info.mount), (Some(0o40_001), Some(14)));
        assert_eq!(FdInfo::parse(""), FdInfo::default());
        assert_eq!(FdInfo::parse("flags:\t0o8\nmnt_id:\n:\n::::\nlock\n"), FdInfo::default());
    }

    #[test]
    fn pidfds() {
        let old = FdInfo::parse("pos:\t0\nflags:\t02000002\nmnt_id:\t15\nPid:\t4242\nNSpid:\t4242\t7\n");
        assert_eq!(old.pid, Some(4242));
        let reaped = FdInfo::parse("pos:\t0\nflags:\t02000202\nmnt_id:\t15\nino:\t9\nPid:\t-1\nNSpid:\t-1\n");
        assert_eq!((reaped.pid, reaped.flags), (Some(-1), Some(0o2_000_202)));
    }

    #[test]
    fn timers_maps_terminals() {
        let timer = "pos:\t0\nflags:\t02\nmnt_id:\t15\nclockid: 8\nticks: 0\nsettime flags: 01\n\
                     it_value: (0, 49406829)\nit_interval: (1, 0)\n";
        assert_eq!(FdInfo::parse(timer).clock, Some(8));
        let map = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1077\nmap_type:\t27\nkey_size:\t0\nvalue_size:\t0\n\
                   max_entries:\t4096\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t20864\nmap_id:\t3\nfrozen:\t0\n";
        assert_eq!(FdInfo::parse(map).map_type, Some(27));
        let master = "pos:\t0\nflags:\t02400002\nmnt_id:\t26\nino:\t2\ntty-index:\t5\n";
        assert_eq!(FdInfo::parse(master).terminal, Some(5));
        assert_eq!(FdInfo::parse("scm_fds: 2\n").files_in_flight, Some(2));
    }

    #[test]
    fn epoll_targets() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\n\
                    tfd:        5 events:       1d data: ffffffffffffffff pos:0 ino:61af sdev:7\n\
                    tfd:       12 events:       19 data:                c\n";
        let targets = FdInfo::parse(text).targets;
        assert_eq!(targets, [Target { fd: 5, inode: Some(0x61af) }, Target { fd: 12, inode: None }]);
        assert!(FdInfo::parse("tfd: x\n").incomplete);
    }

    #[test]
    fn inotify_watches() {
        let text = "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 \
                    f_handle:7e9e0000640d1b6c\n";
        let info = FdInfo::parse(text);
        let [Mark::Inode(watch)] = &info.marks[..] else { panic!("{info:?}") };
        assert_eq!((watch.inode, watch.device_numbers()), (0x9e7e, (8, 0x13)));
        assert_eq!(watch.handle, Some((1, vec![0x7e, 0x9e, 0, 0, 0x64, 0x0d, 0x1b, 0x6c])));
        // overlayfs, Linux 6.18
        let text = "inotify wd:1 ino:11 sdev:30 mask:2 ignored_mask:0 fhandle-bytes:2 fhandle-type:f8 f_handle:00fb\n";
        let info = FdInfo::parse(text);
        let [Mark::Inode(watch)] = &info.marks[..] else { panic!("{info:?}") };
        assert_eq!(watch.handle, Some((0xf8, vec![0, 0xfb])));
        // Without handles: the filesystem has none.
        let info = FdInfo::parse("inotify wd:1 ino:11 sdev:30 mask:2 ignored_mask:0 \n");
        let [Mark::Inode(watch)] = &info.marks[..] else { panic!("{info:?}") };
        assert_eq!(watch.handle, None);
        assert!(FdInfo::parse("inotify wd:1 sdev:30\n").incomplete);
    }

    #[test]
    fn a_handle_of_another_length_is_none() {
        let line = |bytes: &str| {
            format!("inotify wd:1 ino:11 sdev:30 fhandle-bytes:2 fhandle-type:1 f_handle:{bytes}")
        };
        for bytes in ["00", "0011ff", "zz00", "001", ""] {
            let info = FdInfo::parse(&line(bytes));
            assert!(matches!(&info.marks[..], [Mark::Inode(Watch { handle: None, .. })]), "{info:?}");
        }
    }

    #[test]
    fn fanotify_marks() {
        let text = "fanotify flags:10 event-flags:0\n\
                    fanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000000\n\
                    fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:40000000 fhandle-bytes:8 \
                    fhandle-type:1 f_handle:69f90400c275b5b4\n\
                    fanotify sdev:800013 mflags:0 mask:1 ignored_mask:0\n";
        let info = FdInfo::parse(text);
        assert!(!info.incomplete);
        let [Mark::Mount(0x12), Mark::Inode(watch), Mark::Filesystem] = &info.marks[..] else {
            panic!("{info:?}")
        };
        assert_eq!(watch.inode, 0x4f969);
    }

    #[test]
    fn locks() {
        let text = "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n\
                    lock:\t2: POSIX  ADVISORY  READ 359 fd:00:77 0 0\n\
                    lock:\t3: OFDLCK ADVISORY  WRITE -1 08:01:12 0 EOF\n\
                    lock:\t4: LEASE  ACTIVE    READ 359 08:01:12 0 EOF\nlock:\t\n";
        use LockKind::{Flock, Lease, OpenFile, Other, Posix};
        assert_eq!(FdInfo::parse(text).locks, [Flock, Posix, OpenFile, Lease, Other]);
    }
}
