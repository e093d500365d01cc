//! What this machine is: kernel version, clocks, who holds a port.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::ClockId;
pub use tracker_verdict::KernelVersion;

/// The running kernel's version.
///
/// # Errors
/// When `/proc` can't be read, or tells no version.
pub fn running_kernel() -> io::Result<KernelVersion> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    KernelVersion::parse(&release)
        .ok_or_else(|| io::Error::other(format!("no kernel version in {:?}", release.trim())))
}

/// Turns the kernel's event times (`CLOCK_BOOTTIME`) into wall-clock times.
#[must_use]
pub fn wall_clock(boot_ns: u64) -> SystemTime {
    let age = clock(ClockId::Boottime).saturating_sub(Duration::from_nanos(boot_ns));
    SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH)
}

/// The BPF programs' clock, `bpf_ktime_get_ns`: since the start of the machine, less what it slept.
#[must_use]
pub fn monotonic() -> Duration {
    clock(ClockId::Monotonic)
}

fn clock(id: ClockId) -> Duration {
    // These two never go below 0.
    rustix::time::clock_gettime(id).try_into().unwrap_or_default()
}

/// Returns freed memory to the kernel. Reading the kernel's type information takes some 20 MB once, which glibc would keep.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The name of a process: its `comm`. `None` when it has gone.
#[must_use]
pub fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned())
}

/// The name of a process; empty when it has gone.
#[must_use]
pub fn comm_or_empty(pid: u32) -> String {
    comm(pid).unwrap_or_default()
}

/// What `/proc/PID/status` says of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The process, or thread, that was asked for.
    pub pid: u32,
    /// Its process.
    pub tgid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its name.
    pub comm: String,
    /// `Z` for one that has ended, and so on.
    pub state: char,
    /// Its pid in each pid namespace, from the outermost that is visible.
    pub inner_pids: Vec<u32>,
    /// Whether it has memory: kernel threads, and processes that have ended, have none.
    pub has_memory: bool,
}

impl Status {
    /// Of a process or thread; `None` when there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/status")).ok()?;
        Some(Self { pid, ..Self::parse(&String::from_utf8_lossy(&text)) })
    }

    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(":\t")) {
            let number = || value.trim().parse().unwrap_or_default();
            match name {
                "Name" => status.comm = value.to_owned(),
                "State" => status.state = value.chars().next().unwrap_or_default(),
                "Tgid" => status.tgid = number(),
                "PPid" => status.parent = number(),
                "NSpid" => {
                    status.inner_pids = value.split_whitespace().filter_map(|n| n.parse().ok()).collect();
                }
                "VmSize" => status.has_memory = true,
                _ => {}
            }
        }
        status
    }
}

/// What an fd of a process is, as its link in `/proc` says. `None` when it has gone.
#[must_use]
pub fn fd_link(pid: u32, fd: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Whether `/proc` doesn't show everybody all processes.
#[must_use]
pub fn hides_processes() -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| is_hidepid(&mounts))
}

fn is_hidepid(mounts: &str) -> bool {
    let of_proc = |line: &&str| line.split(' ').nth(1) == Some("/proc");
    // What is mounted last is what is seen.
    let options = mounts.lines().rfind(of_proc).and_then(|line| line.split(' ').nth(3));
    let hidepid = options.and_then(|options| options.split(',').find_map(|o| o.strip_prefix("hidepid=")));
    hidepid.is_some_and(|value| !matches!(value, "0" | "off"))
}

/// Which process listens on a TCP port, as `pid 123 (name)`, as far as this user may see it.
#[must_use]
pub fn listener_of(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|table| listening_inode(&table, port).map(str::to_owned))?;
    let target = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(fds) = fs::read_dir(entry.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == Path::new(&target))) {
            return Some(format!("pid {pid} ({})", comm(pid).unwrap_or_default()));
        }
    }
    None
}

/// The inode of the socket that listens (state 0A) on a port, from `/proc/net/tcp`.
fn listening_inode(table: &str, port: u16) -> Option<&str> {
    let suffix = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next()?;
        let (_remote, state) = (words.next()?, words.next()?);
        let inode = words.nth(5)?;
        (local.ends_with(&suffix) && state == "0A").then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidepid() {
        assert!(!is_hidepid("proc /proc proc rw,relatime 0 0\nproc /x/proc proc rw,hidepid=2 0 0"));
        assert!(is_hidepid("proc /proc proc rw 0 0\nproc /proc proc rw,nosuid,hidepid=invisible 0 0"));
        assert!(!is_hidepid("proc /proc proc rw,hidepid=off 0 0\n"));
    }

    #[test]
    fn what_a_process_is() {
        let text = "Name:\tweb: x\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nPPid:\t1\nNSpid:\t7\t1\nVmSize:\t 100 kB\n";
        let status = Status::parse(text);
        assert_eq!((status.comm.as_str(), status.state, status.tgid, status.parent), ("web: x", 'S', 7, 1));
        assert_eq!((status.inner_pids, status.has_memory), (vec![7, 1], true));
        assert_eq!(Status::parse("garbage\n:\t"), Status::default());
    }

    #[test]
    fn finds_the_listening_socket() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:2648 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 111 1 x\n   \
             1: 0100007F:2648 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 x\n";
        assert_eq!(listening_inode(table, 0x2648), Some("222"));
        assert_eq!(listening_inode(table, 80), None);
    }
}
