//! Tests what the agent can do with few capabilities: as a user without privileges, with the
//! documented capabilities and nothing else.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use fdtracker::privileges::USES;
use fdtracker_tests::{Agent, Container, eventually, fdtracker, same, sys::check, truth};
use tempfile::TempDir;

use crate::{Needs, Test, test};

const RUNC: Needs = Needs::Programs(&["runc"]);

pub fn tests() -> Vec<Test> {
    vec![
        test("privileges::counts_and_judges", RUNC, counts_and_judges),
        test("privileges::counts_without_looks", RUNC, counts_without_looks),
        test("privileges::a_missing_capability_is_named", Needs::Root, a_missing_capability_is_named),
        test("privileges::looks_as_root_does", RUNC, looks_as_root_does),
        test("privileges::what_is_lost_is_unknown", RUNC, what_is_lost_is_unknown),
        test("privileges::no_thread_keeps_more", Needs::Root, no_thread_keeps_more),
        test("privileges::the_unit_agrees", Needs::Nobody, the_unit_agrees),
    ]
}

/// Checks that an agent of root gives up the capabilities that it doesn't need, and more if it is
/// told to.
fn no_thread_keeps_more() {
    let used = USES.iter().map(|used| u32::from(used.capability.index())).collect();
    for (arguments, allowed) in
        [(&[][..], used), (&["--capabilities.keep", "CAP_BPF,CAP_PERFMON"][..], vec![39, 38])]
    {
        let agent = Agent::start(arguments);
        // By now the threads that read maps have started.
        agent.metrics();
        let allowed: u64 = allowed.iter().map(|number| 1 << number).sum();
        for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads").flatten() {
            // The thread may have ended meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            for set in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
                let held = status.lines().find_map(|line| line.strip_prefix(set)).expect("a set").trim();
                let held = u64::from_str_radix(held, 16).expect("a number");
                assert_eq!(held & !allowed, 0, "{arguments:?}: {set} {held:x} of {:?}", task.path());
            }
        }
    }
}

/// A user id that nobody has on a machine that runs tests.
const UID: u32 = 54_242;

/// Returns the numbers of capabilities by name.
fn numbers(names: &[&str]) -> Vec<u32> {
    let number = |name: &&str| {
        let used = USES.iter().find(|used| used.capability.to_string() == *name);
        u32::from(used.unwrap_or_else(|| panic!("the agent doesn't use {name}")).capability.index())
    };
    names.iter().map(number).collect()
}

/// What `docs/operations.md` lists: all that the agent needs, with what inspections need in
/// addition.
const BASE: [&str; 4] = ["CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"];
const DETAIL: [&str; 3] = ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_NET_ADMIN"];

/// A copy of the agent that any user can start, in a directory that anyone can enter.
struct Binary {
    dir: TempDir,
}

impl Binary {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the agent");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        fs::copy(fdtracker(), dir.path().join("fdtracker")).expect("copy the agent");
        Self { dir }
    }

    /// Returns a command that runs it as a user without privileges, but with these capabilities.
    fn command(&self, capabilities: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("fdtracker"));
        let numbers = numbers(capabilities);
        // SAFETY: system calls only, on memory that was there before the fork.
        unsafe { command.pre_exec(move || become_nobody(&numbers)) };
        command
    }

    fn agent(&self, capabilities: &[&str], arguments: &[&str]) -> Agent {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID)).expect("give the directory away");
        Agent::start_in(dir, self.command(capabilities), arguments)
    }
}

/// Keeps these capabilities over the change of user and the exec that follows, and drops all
/// others.
fn become_nobody(numbers: &[u32]) -> io::Result<()> {
    // Kernel: `include/uapi/linux/capability.h`, _LINUX_CAPABILITY_VERSION_3 and struct
    // __user_cap_data_struct.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let mut data = [Data::default(); 2];
    for number in numbers {
        let (word, bit) = (&mut data[*number as usize / 32], 1 << (number % 32));
        (word.effective, word.permitted, word.inheritable) =
            (word.effective | bit, word.permitted | bit, word.inheritable | bit);
    }
    // Kernels before 5.11 count BPF maps as locked memory; the unit has LimitMEMLOCK=infinity for
    // them. Newer kernels ignore it.
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: integers, and pointers to what lives through the calls.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited);
        for bound in 0..=63_u64 {
            // The kernel refuses numbers that it doesn't know.
            if !numbers.iter().any(|n| u64::from(*n) == bound) {
                libc::prctl(libc::PR_CAPBSET_DROP, bound, 0, 0, 0);
            }
        }
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(UID, UID, UID).into())?;
        check(libc::setresuid(UID, UID, UID).into())?;
        check(libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()))?;
        for number in numbers {
            check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, *number, 0, 0).into())?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into()).map(drop)
    }
}

/// Checks that the agent isn't root, and has no other capabilities than these.
#[track_caller]
fn has_only(agent: &Agent, capabilities: &[&str]) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent's status");
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim().to_owned()
    };
    let bits = numbers(capabilities).into_iter().map(|number| 1_u64 << number);
    let mask = format!("{:016x}", bits.sum::<u64>());
    assert_eq!(line("Uid:").split_whitespace().next(), Some(UID.to_string().as_str()));
    // The agent may drop some after its start. It must not have more.
    let has = |set: &str| u64::from_str_radix(&line(set), 16).expect("a mask");
    let allowed = u64::from_str_radix(&mask, 16).expect("a mask");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(has(set) & !allowed, 0, "{set} {:016x}, allowed {mask}", has(set));
    }
}

fn counts_and_judges() {
    let (binary, mut container) = (Binary::new(), Container::start(None, "/docker"));
    let agent =
        binary.agent(&BASE, &["--criu", "4.0", "--audit-interval", "200ms", "--judge-interval", "200ms"]);
    has_only(&agent, &BASE);
    let pid = container.init();
    container.zoo.must("open pidfd");
    eventually("the agent agrees with /proc", || same(agent.counts(&container.id)?, truth(pid)));
    assert_eq!(agent.counts(&container.id), Ok(BTreeMap::from([("pidfd".to_owned(), 1)])));
    let found = agent.container(&container.id).expect("the container");
    assert_eq!((&found["state"], &found["runtime"]), (&"blocked".into(), &"docker".into()));
    let labels = [("container", &container.id[..12])];
    let metrics = agent.metrics();
    assert_eq!(metrics.find("fdtracker_container_checkpointable", &labels), Some(0.0));
    assert_eq!(metrics.find("fdtracker_ready", &[]), Some(1.0));
    container.zoo.must("close_range 3 100 0");
    eventually("the agent agrees with /proc", || same(agent.counts(&container.id)?, truth(pid)));
    // It can't see mounts, so that it doesn't call the container checkpointable.
    assert_eq!(agent.metrics().find("fdtracker_container_checkpointable", &labels), None);
}

/// Checks that without inspections every fd is still counted: the kernel's programs see all of
/// them, whoever the agent runs as.
fn counts_without_looks() {
    let (binary, mut container) = (Binary::new(), Container::start(None, "/docker"));
    let agent = binary.agent(&BASE[..3], &["--criu", "4.0", "--audit-interval", "200ms"]);
    has_only(&agent, &BASE[..3]);
    container.zoo.must("open pidfd");
    let expected = BTreeMap::from([("pidfd".to_owned(), 1)]);
    eventually("the pidfd is counted", || same(agent.counts(&container.id)?, expected.clone()));
    // That kind is never dumped, whatever an inspection finds.
    assert_eq!(agent.container(&container.id).expect("the container")["state"], "blocked");
}

fn a_missing_capability_is_named() {
    let binary = Binary::new();
    for without in &BASE[..3] {
        let others: Vec<&str> = BASE.into_iter().filter(|name| name != without).collect();
        let dir = tempfile::tempdir().expect("a directory for the socket");
        std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID)).expect("give the directory away");
        let output = binary
            .command(&others)
            .args(["agent", "--web.listen-address", "127.0.0.1:0", "--socket"])
            .arg(dir.path().join("agent.sock"))
            .stdin(Stdio::null())
            .output()
            .expect("start the agent");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{without} is missing, to ")), "{without}: {said}");
    }
}

/// Runs `check -o json` on a process, and returns the exit code and the document.
fn check_by(mut command: Command, pid: u32) -> (Option<i32>, serde_json::Value) {
    let output = command
        .args(["check", &format!("pid:{pid}"), "--criu", "4.0", "-o", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("run check");
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

/// Starts a container with one file of each sort that needs a capability to inspect.
fn full() -> Container {
    let mut container = Container::start(None, "/docker");
    for kind in ["pidfd", "epoll", "eventfd"] {
        container.zoo.must(&format!("open {kind}"));
    }
    for socket in ["mptcp", "vsock"] {
        // Kernels without this family refuse.
        let _ = container.zoo.ask(&format!("open {socket}"));
    }
    container
}

/// Checks that an inspection with all documented capabilities sees what root sees.
fn looks_as_root_does() {
    let (binary, container) = (Binary::new(), full());
    let pid = container.init();
    let all = [&BASE[..], &DETAIL].concat();
    let by_root = check_by(Command::new(fdtracker()), pid);
    assert_eq!(by_root.0, Some(1), "{}", by_root.1);
    assert_eq!(check_by(binary.command(&all), pid), by_root);
}

/// Checks that with fewer capabilities nothing is taken for harmless: what is blocked for root is
/// blocked or unknown.
fn what_is_lost_is_unknown() {
    let (binary, mut container) = (Binary::new(), full());
    let pid = container.init();
    let (code, report) = check_by(binary.command(&BASE), pid);
    assert_eq!((code, &report["verdict"]), (Some(1), &"blocked".into()), "{report}");
    container.zoo.must("close_range 3 100 0");
    assert_eq!(check_by(Command::new(fdtracker()), pid).0, Some(0));
    let (code, report) = check_by(binary.command(&BASE), pid);
    assert_eq!((code, &report["verdict"]), (Some(3), &"unknown".into()), "{report}");
}

/// Checks that the unit names the capabilities that these tests use.
fn the_unit_agrees() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let read =
        |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let unit = read("deploy/systemd/fdtracker.service");
    for set in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let found = unit.lines().find_map(|line| line.strip_prefix(set));
        assert_eq!(found, Some(BASE.join(" ").as_str()), "{set}");
    }
}
