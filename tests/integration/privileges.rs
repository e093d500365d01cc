//! What the agent may do, and what it does without: a user of no rank with the documented capabilities, and nothing else.

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

/// Root's agent gives up what it has no use for, and more if it is told to.
fn no_thread_keeps_more() {
    let used = USES.iter().map(|used| u32::from(used.capability.index())).collect();
    for (arguments, allowed) in
        [(&[][..], used), (&["--capabilities.keep", "CAP_BPF,CAP_PERFMON"][..], vec![39, 38])]
    {
        let agent = Agent::start(arguments);
        // Threads that read maps have been started by now.
        agent.metrics();
        let allowed: u64 = allowed.iter().map(|number| 1 << number).sum();
        for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads").flatten() {
            // It may have ended meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            for set in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
                let held = status.lines().find_map(|line| line.strip_prefix(set)).expect("a set").trim();
                let held = u64::from_str_radix(held, 16).expect("a number");
                assert_eq!(held & !allowed, 0, "{arguments:?}: {set} {held:x} of {:?}", task.path());
            }
        }
    }
}

/// Nobody else's on a machine that tests run on.
const UID: u32 = 54_242;

/// The numbers of capabilities by name.
fn numbers(names: &[&str]) -> Vec<u32> {
    let number = |name: &&str| {
        let used = USES.iter().find(|used| used.capability.to_string() == *name);
        u32::from(used.unwrap_or_else(|| panic!("the agent doesn't use {name}")).capability.index())
    };
    names.iter().map(number).collect()
}

/// What `docs/operations.md` says: all that it needs, and what looks in detail want besides.
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

    /// A command that runs it as a user of no rank with these capabilities.
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

/// Has these capabilities kept over the change of user, and over the exec that follows; all others go.
fn become_nobody(numbers: &[u32]) -> io::Result<()> {
    // include/uapi/linux/capability.h: _LINUX_CAPABILITY_VERSION_3, struct __user_cap_data_struct.
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
    // Kernels before 5.11 count maps as locked memory: LimitMEMLOCK=infinity in the unit. Newer ones don't care.
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: integers, and pointers to what lives through the calls.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited);
        for bound in 0..=63_u64 {
            // Numbers that this kernel doesn't know are refused.
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

/// What the agent is that runs with these capabilities: no root, and no others.
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
    // Dropping some after the start is well; having more is not.
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
    // Mounts can't be seen: it isn't called checkpointable.
    assert_eq!(agent.metrics().find("fdtracker_container_checkpointable", &labels), None);
}

/// The kernel's programs see every fd, whoever the agent is.
fn counts_without_looks() {
    let (binary, mut container) = (Binary::new(), Container::start(None, "/docker"));
    let agent = binary.agent(&BASE[..3], &["--criu", "4.0", "--audit-interval", "200ms"]);
    has_only(&agent, &BASE[..3]);
    container.zoo.must("open pidfd");
    let expected = BTreeMap::from([("pidfd".to_owned(), 1)]);
    eventually("the pidfd is counted", || same(agent.counts(&container.id)?, expected.clone()));
    // That kind is never dumped, however it looks.
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

/// The document that `check -o json` prints about a process, and the exit code.
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

/// A container with a file of each sort that a capability is needed for.
fn full() -> Container {
    let mut container = Container::start(None, "/docker");
    for kind in ["pidfd", "epoll", "eventfd"] {
        container.zoo.must(&format!("open {kind}"));
    }
    for socket in ["mptcp", "vsock"] {
        // Kernels without them refuse.
        let _ = container.zoo.ask(&format!("open {socket}"));
    }
    container
}

/// With all that is documented, a look sees what root sees.
fn looks_as_root_does() {
    let (binary, container) = (Binary::new(), full());
    let pid = container.init();
    let all = [&BASE[..], &DETAIL].concat();
    let by_root = check_by(Command::new(fdtracker()), pid);
    assert_eq!(by_root.0, Some(1), "{}", by_root.1);
    assert_eq!(check_by(binary.command(&all), pid), by_root);
}

/// Less is never taken for nothing: what is blocked for root is blocked or unknown.
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

/// The unit names the capabilities that these tests ran with.
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
