//! What the integration tests share: agents, fixtures, cgroups, and the truth that `/proc` tells.
//!
//! Nothing here sleeps in the hope that something happens: [`eventually`] polls with a deadline.
//! Everything that a test starts or makes goes when its value is dropped, also when the test fails.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fmt::Display,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use fdtracker::runtime::Hierarchy;
use tempfile::TempDir;
use tracker_ebpf::{Kind, classify};

pub mod container;
pub mod criu;
pub mod descendants;
pub mod desktop;
pub mod engines;
pub mod kinds;
pub mod monitoring;
mod rival;
pub mod sys;
mod tables;

pub use container::{Container, make_root};
pub use rival::Rival;

/// Returns how long something may take that should happen at once: the machine may be busy.
/// `FDTRACKER_TEST_PATIENCE` multiplies it for slow machines.
pub fn deadline() -> Duration {
    Duration::from_secs(20) * patience()
}

/// Returns the factor by which everything may take longer here.
pub fn patience() -> u32 {
    std::env::var("FDTRACKER_TEST_PATIENCE").map_or(1, |n| n.parse().expect("a number"))
}

/// Polls until `f` returns a value. Panics with the last error if none comes.
#[track_caller]
pub fn eventually<T, E: Display>(what: &str, f: impl FnMut() -> Result<T, E>) -> T {
    try_eventually(what, f).unwrap_or_else(|error| panic!("{error}"))
}

/// Does the same as [`eventually`], but returns the error. For callers that add to the message, or
/// must not panic, such as a drop.
///
/// # Errors
/// `what`, and what `f` said last.
pub fn try_eventually<T, E: Display>(what: &str, mut f: impl FnMut() -> Result<T, E>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match f() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() > deadline() => {
                WAITS_IN_VAIN.fetch_add(1, Relaxed);
                return Err(format!("{what}: not within {:?}: {last}", deadline()));
            }
            // Polling without pauses would keep a slow machine from answering.
            Err(_) => std::thread::sleep(Duration::from_millis(5) * patience()),
        }
    }
}

static WAITS_IN_VAIN: AtomicU32 = AtomicU32::new(0);

/// Returns how many times a wait ended at the [`deadline`] in vain.
pub fn waits_in_vain() -> u32 {
    WAITS_IN_VAIN.load(Relaxed)
}

/// Returns `Ok` if both are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("found {found:?}, expected {expected:?}")) }
}

/// Returns the path of the binary under test, which is beside this test's own.
///
/// # Panics
/// If it isn't there.
pub fn fdtracker() -> PathBuf {
    let path = std::env::var_os("FDTRACKER").map_or_else(|| target_dir().join("fdtracker"), PathBuf::from);
    assert!(path.exists(), "{} isn't there: cargo build -p tracker-user makes it", path.display());
    path
}

/// Returns the path of the fixture.
pub fn fdzoo() -> PathBuf {
    target_dir().join("fdzoo")
}

/// Returns the path of the fixture with many tasks.
pub fn fdstress() -> PathBuf {
    target_dir().join("fdstress")
}

fn target_dir() -> PathBuf {
    let me = std::env::current_exe().expect("this test's own path");
    me.parent().and_then(Path::parent).expect("target/PROFILE/deps").to_owned()
}

/// Returns the feeder for all agents, if `FDTRACKER_FEEDER` names one.
pub fn feeder() -> Option<String> {
    std::env::var("FDTRACKER_FEEDER").ok()
}

/// Returns an agent's arguments about its feeder.
pub fn feeder_arguments() -> Vec<String> {
    feeder().map_or_else(Vec::new, |feeder| vec!["--feeder".into(), feeder])
}

/// A running `fdtracker agent` with a socket and a port of its own.
pub struct Agent {
    child: Child,
    /// `--web.listen-address`.
    pub address: SocketAddr,
    /// `--socket`.
    pub socket: PathBuf,
    _dir: TempDir,
}

fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a directory for the socket")
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempdir(), Command::new(fdtracker()), arguments)
    }

    /// Starts an agent by this command, which must execute the agent in the end. Its socket is in
    /// this directory.
    pub fn start_in(dir: TempDir, command: Command, arguments: &[&str]) -> Self {
        Self::run(dir, command, &[&["--web.listen-address", "127.0.0.1:0"], arguments].concat())
    }

    /// Starts an agent that listens where the arguments say.
    pub fn start_by(command: Command, arguments: &[&str]) -> Self {
        Self::run(tempdir(), command, arguments)
    }

    fn run(dir: TempDir, mut command: Command, arguments: &[&str]) -> Self {
        let socket = dir.path().join("agent.sock");
        let mut child = command
            .args(["agent", "--socket"])
            .arg(&socket)
            .args(if arguments.contains(&"--feeder") { Vec::new() } else { feeder_arguments() })
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the agent");
        let log = BufReader::new(child.stderr.take().expect("its standard error"));
        let address = listening_address(log);
        let agent = Self { child, address, socket, _dir: dir };
        agent.wait_until_ready();
        agent
    }

    fn wait_until_ready(&self) {
        eventually("the agent is ready", || {
            UnixStream::connect(&self.socket).map_err(|error| error.to_string())?;
            match self.ask("/readyz") {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status} {body}")),
            }
        });
    }

    /// Starts a new agent after a kill, with the same socket and port, and waits until it is ready.
    pub fn start_again(&mut self) {
        let mut command = Command::new(fdtracker());
        command.args(["agent", "--web.listen-address", &self.address.to_string(), "--socket"]);
        self.child = command
            .arg(&self.socket)
            .args(feeder_arguments())
            .stdin(Stdio::null())
            .spawn()
            .expect("start the agent");
        self.wait_until_ready();
    }

    /// Returns its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a GET, and returns status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path)
    }

    /// Sends a request, and returns status and body.
    pub fn request(&self, method: &str, path: &str) -> (u16, String) {
        request(self.address, method, path)
    }

    /// Sends a GET over its unix socket, and returns status and body.
    pub fn ask(&self, path: &str) -> (u16, String) {
        exchange(UnixStream::connect(&self.socket).expect("connect to the agent"), "GET", path)
    }

    /// Returns the metrics that it exports.
    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        Metrics(text)
    }

    /// Returns a command that talks to this agent.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(fdtracker());
        command.args(arguments).arg("--socket").arg(&self.socket).stdin(Stdio::null());
        command
    }

    /// Returns the document that `ls -o json --processes` prints.
    pub fn ls(&self) -> serde_json::Value {
        let output = self.command(&["ls", "-o", "json", "--processes"]).output().expect("run ls");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("ls prints JSON")
    }

    /// Returns one container of `ls`.
    pub fn container(&self, id: &str) -> Result<serde_json::Value, String> {
        let ls = self.ls();
        let all = ls["containers"].as_array().expect("a list of containers");
        all.iter().find(|c| c["id"] == id).cloned().ok_or_else(|| format!("no container {id}"))
    }

    /// Returns the counts of one container, by kind.
    pub fn counts(&self, id: &str) -> Result<BTreeMap<String, i64>, String> {
        Ok(counts_of(&self.container(id)?["counts"]))
    }

    /// Asks it to end, and waits. Returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        // SAFETY: the child hasn't been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        self.child.wait().ok().and_then(|status| status.code())
    }

    /// Kills it, as the kernel's out-of-memory killer would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends a request, and returns status and body.
pub fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    exchange(TcpStream::connect(address).expect("connect to the agent"), method, path)
}

fn exchange(mut stream: impl std::io::Read + std::io::Write, method: &str, path: &str) -> (u16, String) {
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Returns the address at which an agent listens, as its log says.
pub fn listening_address_in(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("listening on http")?;
    rest.split('/').nth(2)?.parse().ok()
}

/// Reads the agent's log up to the address at which it listens, and then reads on, so that the
/// agent never blocks.
fn listening_address(mut log: BufReader<impl std::io::Read + Send + 'static>) -> SocketAddr {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let read = log.read_line(&mut line).expect("read the agent's log");
        assert!(read > 0, "the agent ended:\n{seen}");
        seen.push_str(&line);
        if let Some(address) = listening_address_in(&line) {
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
            return address;
        }
    }
}

/// Returns counts from JSON, by kind.
pub fn counts_of(counts: &serde_json::Value) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    // Fds in flight have a row for each verdict.
    for row in counts.as_array().expect("a list of counts") {
        let kind = row["kind"].as_str().expect("a kind").to_owned();
        *sums.entry(kind).or_default() += row["count"].as_i64().expect("a count");
    }
    sums
}

/// Metrics in Prometheus' text format.
pub struct Metrics(
    /// The text.
    pub String,
);

impl Metrics {
    /// Returns the value of the one series with this name whose labels include these; 0 if there is
    /// none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or(0.0)
    }

    /// Returns the sum of all series of a metric.
    pub fn sum(&self, name: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with('{')).then(|| value.parse::<f64>().expect("a number"))
        });
        values.sum()
    }

    /// Returns how many corrections audits have made. `None` once the kernel has skipped programs,
    /// as Linux 7 does at tracepoints on a busy CPU: then audits may have to correct what was
    /// missed anywhere on the machine, unless both an open and its close were missed.
    pub fn corrections(&self) -> Option<f64> {
        let skipped = self.sum("fdtracker_probe_misses_total") > 0.0;
        (!skipped).then(|| self.get("fdtracker_audit_corrections_total", &[]))
    }

    /// Returns the same as [`Metrics::get`], or `None` if there is no such series.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let mut found = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let labels: Vec<&str> = rest.trim_matches(['{', '}']).split(',').collect();
            let matches = (rest.is_empty() || rest.starts_with('{'))
                && wanted.iter().all(|label| labels.contains(&label.as_str()));
            matches.then(|| value.parse().expect("a number"))
        });
        let value = found.next();
        assert!(found.next().is_none(), "several series {name}{labels:?} in\n{}", self.0);
        value
    }
}

/// A running fixture: `fdzoo`, or another program that takes commands as it does.
pub struct Zoo {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Zoo {
    /// Starts the fixture by this command, which must execute the fixture in the end.
    pub fn start(mut command: Command) -> Self {
        sys::own_session(&mut command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the fixture");
        let commands = child.stdin.take().expect("its standard input");
        let answers = BufReader::new(child.stdout.take().expect("its standard output"));
        Self { child, commands, answers }
    }

    /// Starts the fixture in a cgroup.
    pub fn in_cgroup(cgroup: &Cgroup) -> Self {
        let mut zoo = Self::start(Command::new(fdzoo()));
        let pid = zoo.child.id();
        unlimit_locked_memory(pid);
        cgroup.add(pid);
        assert_eq!(zoo.ask("pid"), Ok(vec![pid.into()]));
        zoo
    }

    /// Sends a command, and waits for the answer.
    pub fn ask(&mut self, command: &str) -> Result<Vec<i64>, String> {
        writeln!(self.commands, "{command}").expect("the fixture reads commands");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the fixture answers");
        match answer.trim().split_once(' ').unwrap_or((answer.trim(), "")) {
            ("ok", numbers) => Ok(numbers.split_whitespace().map(|n| n.parse().expect("a number")).collect()),
            ("no", reason) => Err(reason.to_owned()),
            _ => panic!("the fixture answered {answer:?} to {command:?}"),
        }
    }

    /// Sends a command that must succeed. Returns the first number of the answer, or 0.
    #[track_caller]
    pub fn must(&mut self, command: &str) -> i64 {
        let answer = self.ask(command).unwrap_or_else(|reason| panic!("{command}: {reason}"));
        answer.first().copied().unwrap_or(0)
    }

    /// Returns the pid of the program that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, and waits.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Zoo {
    fn drop(&mut self) {
        self.end();
    }
}

/// Raises the limit of locked memory. Kernels before 5.11 count a BPF map as memory that its maker
/// has locked; newer ones don't.
fn unlimit_locked_memory(pid: u32) {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads one structure, and writes none.
    unsafe { libc::prlimit(pid as i32, libc::RLIMIT_MEMLOCK, &raw const unlimited, std::ptr::null_mut()) };
}

/// Returns the cgroup hierarchy of the machine.
pub fn hierarchy() -> Hierarchy {
    Hierarchy::find().expect("a cgroup hierarchy")
}

/// A cgroup with the name of a container's. It goes, with all processes in it, when dropped.
pub struct Cgroup {
    /// The container's id.
    pub id: String,
    dir: PathBuf,
}

impl Cgroup {
    /// Makes `/docker/ID`.
    pub fn docker() -> Self {
        let id = random_id();
        let dir = hierarchy().root().join("docker").join(&id);
        fs::create_dir_all(&dir).expect("make a cgroup");
        Self { id, dir }
    }

    /// Returns the name by which the container is shown.
    pub fn name(&self) -> &str {
        &self.id[..12]
    }

    /// Returns its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("move a process to a cgroup");
    }

    /// Returns the processes in it.
    pub fn pids(&self) -> Vec<u32> {
        pids_in(&self.dir)
    }

    /// Returns what is open in its processes according to `/proc`, by kind.
    pub fn truth(&self) -> BTreeMap<String, i64> {
        truth_of(self.pids())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_killing(&self.dir);
        // `docker` goes too, unless something else is in it.
        let _ = self.dir.parent().map(fs::remove_dir);
    }
}

/// Returns the processes of the cgroup with this directory.
fn pids_in(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // A process that has been waited for is listed as 0 until the kernel has finished with it
    // (Linux 7). A kill of 0 would end this process with its whole group.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// Kills all processes in a cgroup that a test made for itself, until it can be removed.
fn remove_killing(cgroup: &Path) {
    let start = Instant::now();
    while start.elapsed() < deadline() {
        for pid in pids_in(cgroup) {
            // SAFETY: the process is in a cgroup that this test made for its own.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns 64 hexadecimal digits that nobody else has.
pub fn random_id() -> String {
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).expect("random bytes");
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Returns what a process has open according to `/proc`, by kind. Leaves out sockets: their links
/// don't tell the family.
pub fn truth(pid: u32) -> BTreeMap<String, i64> {
    truth_of([pid])
}

/// Returns the same for several processes. A table that tasks share counts once.
fn truth_of(pids: impl IntoIterator<Item = u32>) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for table in tables::tables(pids) {
        for fd in fs::read_dir(table).into_iter().flatten().flatten() {
            if let Some(kind) = kind_of(&fd.path()) {
                *counts.entry(kind.name().to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

fn kind_of(fd: &Path) -> Option<Kind> {
    let link = fs::read_link(fd).ok()?.to_string_lossy().into_owned();
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return Some(Kind::of_anon_inode(name));
    }
    if link.starts_with("pidfd:") {
        return Some(Kind::Pidfd);
    }
    if link == "/secretmem (deleted)" {
        return Some(Kind::MemfdSecret);
    }
    let meta = fs::metadata(fd).ok()?;
    match classify::file(meta.mode(), || magic(fd).unwrap_or_default()) {
        classify::File::CharDevice => {
            classify::char_device(libc::major(meta.rdev()), libc::minor(meta.rdev())).counted()
        }
        classify::File::Counted(kind) => Some(kind),
        // The link of an anonymous inode has already decided.
        classify::File::AnonymousInode | classify::File::Socket | classify::File::NotCounted => None,
    }
}

fn magic(path: &Path) -> Option<u64> {
    let path = CString::new(path.to_str()?).ok()?;
    // SAFETY: the structure is plain data, which the call fills; the path is NUL-terminated.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &raw mut stat) == 0).then_some(stat.f_type as u64)
    }
}
