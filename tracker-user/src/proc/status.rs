//! Reads `/proc/PID/status` (fs/proc/array.c:proc_pid_status).

use std::io;

/// What the file tells of a process or thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// The id of the process or thread that the file belongs to.
    pub(crate) pid: u32,
    /// The process that it belongs to.
    pub(crate) tgid: u32,
    /// Its parent.
    pub(crate) parent: u32,
    /// The process that traces it, if any does.
    pub(crate) tracer: Option<u32>,
    /// Its name.
    pub(crate) comm: String,
    /// The state's letter: `Z` for a process that has ended, and so on.
    pub(crate) state: char,
    /// Its pid in each pid namespace, from the outermost that is visible.
    pub(crate) inner_pids: Vec<u32>,
    /// Whether it has memory: kernel threads, and processes that have ended, have none.
    pub(crate) has_memory: bool,
    /// The effective capabilities, one bit each.
    pub(crate) capabilities: u64,
}

impl Status {
    /// Reads the status of a process or thread; `None` if there is none.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        super::read(&format!("/proc/{pid}/status")).ok().map(|text| Self::parse(&text))
    }

    /// Reads the status of this process.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn own() -> io::Result<Self> {
        super::read("/proc/self/status").map(|text| Self::parse(&text))
    }

    /// Parses the file's text. What is missing is 0, or empty.
    pub(crate) fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(":\t")) {
            let number = || value.trim().parse().unwrap_or_default();
            match name {
                "Name" => status.comm = value.to_owned(),
                "State" => status.state = value.chars().next().unwrap_or_default(),
                "Tgid" => status.tgid = number(),
                "Pid" => status.pid = number(),
                "PPid" => status.parent = number(),
                "TracerPid" => status.tracer = Some(number()).filter(|pid| *pid != 0),
                "NSpid" => {
                    status.inner_pids = value.split_whitespace().filter_map(|n| n.parse().ok()).collect();
                }
                "VmSize" => status.has_memory = true,
                "CapEff" => status.capabilities = u64::from_str_radix(value.trim(), 16).unwrap_or_default(),
                _ => {}
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_is() {
        let text = "Name:\tweb: x\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nNgid:\t0\nPid:\t8\nPPid:\t1\nTracerPid:\t0\n\
                    NSpid:\t8\t1\nVmSize:\t 100 kB\nCapEff:\t000001ffffffffff\n";
        let status = Status::parse(text);
        assert_eq!((status.comm.as_str(), status.state), ("web: x", 'S'));
        assert_eq!((status.tgid, status.pid, status.parent), (7, 8, 1));
        assert_eq!((status.inner_pids, status.has_memory), (vec![8, 1], true));
        assert_eq!(status.capabilities, 0x1ff_ffff_ffff);
        assert_eq!((status.tracer, Status::parse("TracerPid:\t9\n").tracer), (None, Some(9)));
        assert_eq!(Status::parse("garbage\n:\t"), Status::default());
    }

    #[test]
    fn its_own() {
        let (own, pid) = (Status::own().unwrap(), std::process::id());
        assert_eq!((own.pid, own.tgid, own.has_memory), (pid, pid, true));
        assert_eq!(Status::of(pid).map(|status| status.parent), Some(own.parent));
        assert_eq!(Status::of(u32::MAX), None);
    }
}
