//! Facts about this machine: kernel version, clocks, processes, who holds a port.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::ClockId;
pub use tracker_verdict::KernelVersion;

use crate::proc;

/// Returns the running kernel's version.
///
/// # Errors
/// When `/proc` can't be read, or tells no version.
pub fn running_kernel() -> io::Result<KernelVersion> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    KernelVersion::parse(&release)
        .ok_or_else(|| io::Error::other(format!("no kernel version in {:?}", release.trim())))
}

/// Converts the kernel's event times (`CLOCK_BOOTTIME`) into wall-clock times.
#[must_use]
pub fn wall_clock(boot_ns: u64) -> SystemTime {
    let age = clock(ClockId::Boottime).saturating_sub(Duration::from_nanos(boot_ns));
    SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH)
}

/// Returns the time of the BPF programs' clock (`bpf_ktime_get_ns`): since the machine's start,
/// without the time that it slept.
#[must_use]
pub fn monotonic() -> Duration {
    clock(ClockId::Monotonic)
}

fn clock(id: ClockId) -> Duration {
    // These two clocks are never below 0.
    rustix::time::clock_gettime(id).try_into().unwrap_or_default()
}

/// Returns freed memory to the kernel. Reading the kernel's type information takes about 20 MB
/// once, which glibc would keep.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets this thread give way to others: the watched processes, and the thread that shows events.
/// Its own work may take some milliseconds longer.
pub fn give_way() {
    /// A third of the share of a thread at 0 (kernel: `sched_prio_to_weight`).
    const NICE: i32 = 5;
    // Giving way needs no capability. If it fails, everything still works, but more slowly.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Returns the name of a process, its `comm`; `None` if it has gone.
#[must_use]
pub fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned())
}

/// Returns the name of a process; empty if it has gone.
#[must_use]
pub fn comm_or_empty(pid: u32) -> String {
    comm(pid).unwrap_or_default()
}

/// Returns what an fd of a process is, as its link in `/proc` says; `None` if it has gone.
#[must_use]
pub fn fd_link(pid: u32, fd: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Whether `/proc` hides processes from other users.
#[must_use]
pub fn hides_processes() -> bool {
    proc::own_mountinfo().is_ok_and(|text| is_hidepid(&text))
}

fn is_hidepid(mountinfo: &str) -> bool {
    // The last mount covers the others.
    let mount = proc::mounts(mountinfo).filter(|mount| mount.mountpoint == "/proc").last();
    let hidepid = mount.and_then(|mount| mount.option("hidepid"));
    hidepid.is_some_and(|value| !matches!(value, "0" | "off"))
}

/// Returns the process that listens on a TCP port, as `pid 123 (name)`, if this user may see it.
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

/// Returns the inode of the socket that listens (state 0A) on a port, from `/proc/net/tcp`.
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
        let mount =
            |at: &str, options: &str| format!("1 2 0:3 / {at} rw,nosuid shared:4 - proc proc {options}\n");
        assert!(!is_hidepid(&(mount("/proc", "rw") + &mount("/x/proc", "rw,hidepid=2"))));
        assert!(is_hidepid(&(mount("/proc", "rw") + &mount("/proc", "rw,hidepid=invisible"))));
        assert!(!is_hidepid(&(mount("/proc", "rw,hidepid=2") + &mount("/proc", "rw"))));
        assert!(!is_hidepid(&mount("/proc", "rw,hidepid=off")));
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
