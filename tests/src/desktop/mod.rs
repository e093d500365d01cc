//! The desktop of the first report, in a real container: XFCE on TightVNC with IBus, from Debian's
//! packages. It is on overlayfs, as containers are.
//!
//! `cargo xtask desktop` makes the root and installs the CRIUs.

mod rfb;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Seek as _},
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{fs::MetadataExt as _, net, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

pub use self::rfb::{Screen, handshake};
use crate::{
    container::remove_cgroup,
    criu::{Criu, FewerFiles, Log},
    deadline, eventually, hierarchy, patience, pids_in, random_id,
    sys::{own_session, wait_within},
};

/// What runs on the VNC server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// XFCE with IBus, as in the report.
    Whole,
    /// XFCE alone.
    WithoutIbus,
    /// A window manager, and the bus that it needs.
    Simplified,
}

impl Session {
    /// Returns the name by which the script in the container knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::WithoutIbus => "without-ibus",
            Self::Simplified => "simplified",
        }
    }

    /// Returns the processes that it has once it is up.
    fn processes(self) -> impl Iterator<Item = &'static str> {
        const IBUS: &[&str] =
            &["ibus-daemon", "ibus-engine-sim", "ibus-extension-", "ibus-ui-gtk3", "ibus-x11"];
        const XFCE: &[&str] = &["wrapper-2.0", "xfce4-panel", "xfce4-session", "xfdesktop", "xfsettingsd"];
        let (ibus, xfce) = match self {
            Self::Whole => (IBUS, XFCE),
            Self::WithoutIbus => (&[][..], XFCE),
            Self::Simplified => (&[][..], &[][..]),
        };
        ["Xtightvnc", "dbus-daemon", JOB, "xfwm4"].iter().chain(ibus).chain(xfce).copied()
    }
}

/// The process that counts, and isn't part of the desktop.
pub const JOB: &str = "job";

/// How long to wait between two polls of the desktop while it starts. Each poll takes time from the
/// start.
const POLL: Duration = Duration::from_millis(200);

/// The container's name, in an annotation like containerd's.
pub const NAME: &str = "desktop";

/// A running desktop. It goes, with all its processes, when dropped.
pub struct Desktop {
    /// Its id, as runc knows it.
    pub id: String,
    /// What runs in it.
    pub session: Session,
    /// The port of its VNC server on this machine's loopback.
    port: u16,
    runc: Child,
    bundle: Bundle,
}

/// An fd of one of the desktop's processes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open {
    /// The process that has it.
    pub process: Process,
    /// Its number.
    pub fd: u32,
    /// Its link. Empty if it was closed meanwhile.
    pub link: PathBuf,
}

/// One of the desktop's processes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The pid on the host.
    pub pid: u32,
    /// The pid in the container.
    pub inner: u32,
    /// Its name.
    pub comm: String,
}

/// The variable that names the container's root.
const ROOT: &str = "FDTRACKER_DESKTOP_ROOT";

/// Returns why there can be no desktop here, if there is a reason.
pub fn missing() -> Option<String> {
    let Some(root) = std::env::var_os(ROOT) else {
        return Some(format!("{ROOT} isn't set (cargo xtask desktop makes one, and sets it)"));
    };
    let session = Path::new(&root).join("usr/bin/xfce4-session");
    (!session.exists()).then(|| format!("{} isn't there (cargo xtask desktop makes it)", session.display()))
}

fn root() -> PathBuf {
    std::env::var_os(ROOT).expect("it isn't missing").into()
}

impl Desktop {
    /// Starts a session, and waits until it is up and at rest.
    pub fn start(session: Session) -> Self {
        let desktop = Self::begin(session);
        desktop.wait();
        desktop
    }

    fn begin(session: Session) -> Self {
        let (display, port) = free_display();
        let bundle = Bundle::make();
        let script = include_bytes!("session.sh");
        fs::write(bundle.root().join("session.sh"), script).expect("write the session's script");
        // It is written later, by `configure`. CRIU reads it at each dump.
        fs::write(bundle.criu_config(), "").expect("write CRIU's configuration file");
        let id = random_id();
        let arguments = ["/bin/sh", "/session.sh", session.name(), &display.to_string(), &port.to_string()];
        let spec = spec(&id, &arguments, &bundle.criu_config());
        fs::write(bundle.dir.path().join("config.json"), spec.to_string()).expect("write config.json");
        let mut runc = Command::new("runc");
        runc.args(["run", "--bundle"]).arg(bundle.dir.path()).arg(&id);
        Self { runc: bundle.run(runc), id, session, port, bundle }
    }

    /// Waits until it is up and at rest.
    #[track_caller]
    fn wait(&self) {
        eventually("the desktop is up", || {
            std::thread::sleep(POLL);
            let found: BTreeSet<String> = self.processes().into_iter().map(|process| process.comm).collect();
            match self.session.processes().find(|wanted| !found.contains(*wanted)) {
                Some(absent) => Err(format!("no {absent} among {found:?}; {}", self.bundle.said())),
                None => Ok(()),
            }
        });
        self.see();
        self.rest();
    }

    /// Connects as a VNC client, and returns the screen.
    #[track_caller]
    pub fn see(&self) -> Screen {
        let screen = eventually("a VNC client sees the desktop", || handshake(self.port));
        assert_eq!((screen.width, screen.height), (1024, 768), "{screen:?}");
        screen
    }

    /// Waits until for some time no process comes, goes or opens anything.
    #[track_caller]
    fn rest(&self) {
        // Where every instruction is emulated, a start has longer pauses.
        let quiet = Duration::from_secs(5) * patience().min(4);
        // The job opens and closes its file all the time, so it is left out.
        let open = || -> BTreeSet<Open> {
            self.open().into_iter().filter(|open| open.process.comm != JOB).collect()
        };
        let (mut since, mut last) = (Instant::now(), open());
        eventually("the desktop is at rest", || {
            std::thread::sleep(POLL);
            let now = open();
            if now != last {
                (since, last) = (Instant::now(), now);
            }
            if since.elapsed() > quiet { Ok(()) } else { Err("something changes") }
        });
    }

    /// Returns all open fds, as `/proc` lists them.
    pub fn open(&self) -> Vec<Open> {
        let mut open = Vec::new();
        for process in self.processes() {
            for entry in fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten() {
                let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok()).expect("a number");
                let link = fs::read_link(entry.path()).unwrap_or_default();
                open.push(Open { process: process.clone(), fd, link });
            }
        }
        open
    }

    /// Returns device (as fdinfo shows it) and inode of these directories in its root, and of
    /// everything below them.
    pub fn inodes(&self, dirs: &[&str]) -> BTreeSet<(u64, u64)> {
        let mut inodes = BTreeSet::new();
        let mut waiting: Vec<PathBuf> = dirs.iter().map(|dir| self.bundle.root().join(dir)).collect();
        while let Some(path) = waiting.pop() {
            let Ok(meta) = path.symlink_metadata() else { continue };
            // Kernel: MKDEV
            let device = u64::from(libc::major(meta.dev())) << 20 | u64::from(libc::minor(meta.dev()));
            inodes.insert((device, meta.ino()));
            if meta.is_dir() {
                waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        inodes
    }

    /// Returns all its processes.
    pub fn processes(&self) -> Vec<Process> {
        let cgroup = hierarchy().root().join("docker").join(&self.id);
        let process = |pid: u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            Some(Process { pid, inner: pids.split_whitespace().last()?.parse().ok()?, comm })
        };
        pids_in(&cgroup).into_iter().filter_map(process).collect()
    }

    /// Returns the first of its processes with this name.
    #[track_caller]
    pub fn process(&self, comm: &str) -> Process {
        let all = self.processes();
        let found = all.iter().find(|process| process.comm == comm);
        found.unwrap_or_else(|| panic!("no {comm} among {all:?}")).clone()
    }

    /// Returns how far the job has counted.
    pub fn counted(&self) -> u64 {
        // The job may have begun just now.
        eventually("the job has counted", || {
            let text = fs::read_to_string(self.bundle.root().join("root/result"));
            text.unwrap_or_default().trim().parse::<u64>().map_err(|error| error.to_string())
        })
    }

    /// Writes CRIU's configuration file, which the container names.
    pub fn configure(&self, lines: &str) {
        fs::write(self.bundle.criu_config(), lines).expect("write CRIU's configuration file");
    }

    /// Has runc dump it. It goes on only if the dump fails.
    pub fn checkpoint(&self, criu: &Criu) -> Dump {
        let images = self.bundle.empty_images();
        Dump::run(self.runc(criu, "checkpoint").arg(&self.id), &images.join("dump.log"))
    }

    /// Dumps it with options that a user gives, without a configuration file. It goes on.
    pub fn dump_by_hand(&self, criu: &Criu, options: &[String]) -> Dump {
        let images = self.bundle.empty_images();
        let mut dump = Command::new(&criu.program);
        dump.args(["dump", "--leave-running", "-v4", "-o", "dump.log", "-D"]).arg(&images);
        dump.args(["-t", &self.init().to_string(), "--root"]).arg(self.bundle.root());
        // As runc does: mounts from outside are mounted again at the restore, and runc manages the
        // cgroups.
        dump.args(["--external", "mnt[]", "--manage-cgroups=ignore"]).args(options);
        Dump::run(&mut dump, &images.join("dump.log"))
    }

    /// Returns the pid of its first process, on the host.
    fn init(&self) -> u32 {
        self.processes().iter().find(|process| process.inner == 1).expect("an init").pid
    }

    /// Has runc restore it from the last dump, after which it was gone.
    #[track_caller]
    pub fn restore(&mut self, criu: &Criu) {
        self.runc.wait().expect("wait for runc");
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let mut runc = self.runc(criu, "restore");
        runc.arg("--bundle").arg(self.bundle.dir.path()).arg(&self.id);
        let _fewer = FewerFiles::lower().expect("lower the most files that may be open");
        self.runc = self.bundle.run(runc);
        self.see();
    }

    fn runc(&self, criu: &Criu, what: &str) -> Command {
        let images = self.bundle.images();
        let mut runc = Command::new("runc");
        runc.arg("--criu").arg(&criu.program).arg(what);
        runc.arg("--image-path").arg(&images).arg("--work-path").arg(&images);
        runc
    }

    /// Dumps one of its processes, with its descendants, by itself, from inside the container.
    pub fn checkpoint_subtree(&self, criu: &Criu, process: &Process) -> Dump {
        let images = self.bundle.inner_images();
        let _ = fs::remove_dir_all(&images);
        fs::create_dir(&images).expect("make a directory for images");
        let mut dump = self.criu_inside(criu, "dump");
        dump.args(["-o", "dump.log", "-t", &process.inner.to_string()]);
        Dump::run(&mut dump, &images.join("dump.log"))
    }

    /// Restores that part.
    pub fn restore_subtree(&self, criu: &Criu) -> Dump {
        let mut restore = self.criu_inside(criu, "restore");
        restore.args(["-o", "restore.log", "--restore-detached"]);
        Dump::run(&mut restore, &self.bundle.inner_images().join("restore.log"))
    }

    /// Returns a command that runs CRIU in the container's namespaces.
    fn criu_inside(&self, criu: &Criu, what: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &self.init().to_string(), "-m", "-p", "-i", "-u"]).arg(&criu.program);
        nsenter.args([what, "-v4", "-D", INNER_IMAGES]);
        nsenter
    }

    /// Ends the session as the engine would, and waits. Returns runc's exit code.
    pub fn stop(mut self) -> Option<i32> {
        let _ = Command::new("runc").args(["kill", &self.id, "TERM"]).status();
        eventually("the session ends", || match self.runc.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            _ => Err(format!("left: {:?}", self.processes())),
        })
    }
}

/// The directory for the images of a part, in the container.
const INNER_IMAGES: &str = "/root/images";

impl Drop for Desktop {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let _ = self.runc.kill();
        let _ = self.runc.wait();
        remove_cgroup(&format!("/docker/{}", self.id));
        remove_cgroup("/docker");
    }
}

/// The outcome of a dump or of a restore.
#[derive(Debug)]
pub struct Dump {
    /// Whether CRIU succeeded.
    pub done: bool,
    /// CRIU's log, and all other output.
    pub log: String,
}

impl Dump {
    /// Runs a CRIU, or a program that starts one. If it hangs, ends it with all that it has
    /// started.
    fn run(command: &mut Command, log: &Path) -> Self {
        let limit = 2 * deadline();
        let mut errors = tempfile::tempfile().expect("make a file for errors");
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command.stderr(errors.try_clone().expect("the file for errors"));
        let _fewer = FewerFiles::lower().expect("lower the most files that may be open");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let status = wait_within(&mut child, limit).expect("wait for CRIU");
        if status.is_none() {
            // SAFETY: the group's first process hasn't been waited for, so it is still its own.
            unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
            child.wait().expect("wait for CRIU");
        }
        let mut said = fs::read(log).unwrap_or_default();
        errors.rewind().and_then(|()| errors.read_to_end(&mut said)).expect("read errors");
        let mut log = String::from_utf8_lossy(&said).into_owned();
        if status.is_none() {
            log += &format!("\nnot finished within {limit:?}, and killed");
        }
        Self { done: status.is_some_and(|status| status.success()), log }
    }

    /// Returns the errors in the log.
    pub fn errors(&self) -> Log {
        Log::read(&self.log)
    }
}

/// The container's directory. It is on a file system of its own, because an upper directory of
/// overlayfs can't be on another overlayfs.
struct Bundle {
    dir: TempDir,
}

impl Bundle {
    fn make() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the bundle");
        let new = Self { dir };
        let at = new.dir.path();
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], at);
        for part in ["rootfs", "upper", "work"] {
            fs::create_dir(at.join(part)).expect("make a part of the bundle");
        }
        let options = format!(
            "lowerdir={},upperdir={at},workdir={work}",
            root().canonicalize().expect("a root").display(),
            at = at.join("upper").display(),
            work = at.join("work").display(),
        );
        mount(&["-t", "overlay", "-o", &options, "overlay"], &at.join("rootfs"));
        new
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn criu_config(&self) -> PathBuf {
        self.dir.path().join("criu.conf")
    }

    /// Returns a directory for images.
    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Returns the same, empty.
    fn empty_images(&self) -> PathBuf {
        let images = self.images();
        let _ = fs::remove_dir_all(&images);
        fs::create_dir(&images).expect("make a directory for images");
        images
    }

    /// Returns where the images of a part are.
    fn inner_images(&self) -> PathBuf {
        self.root().join(INNER_IMAGES.trim_start_matches('/'))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("runc.log")
    }

    /// Returns what runc has printed.
    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Starts runc.
    fn run(&self, mut runc: Command) -> Child {
        let log = File::create(self.log()).expect("make a log");
        let errors = log.try_clone().expect("the log");
        own_session(&mut runc);
        runc.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("start runc")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for at in [self.root(), self.dir.path().to_owned()] {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

#[track_caller]
fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().expect("run mount");
    assert!(status.success(), "mount {arguments:?} {}", at.display());
}

/// Returns a display that nobody uses, and the port of its VNC server.
fn free_display() -> (u16, u16) {
    const FIRST_PORT: u16 = 5900;
    let is_free = |display: &u16| {
        let name = net::SocketAddr::from_abstract_name(format!("/tmp/.X11-unix/X{display}"));
        name.and_then(|name| net::UnixListener::bind_addr(&name)).is_ok()
            && TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST_PORT + display)).is_ok()
    };
    let display = (50..100).find(is_free).expect("a free display");
    (display, FIRST_PORT + display)
}

/// Returns the configuration for runc: as docker's containers have it, but in this machine's
/// network.
fn spec(id: &str, arguments: &[&str], criu_config: &Path) -> serde_json::Value {
    let mut spec = crate::container::spec(&format!("/docker/{id}"), arguments);
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"];
    let sets = ["bounding", "effective", "permitted"];
    spec["process"]["capabilities"] =
        sets.iter().map(|set| ((*set).to_owned(), json!(capabilities))).collect();
    spec["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    spec["hostname"] = NAME.into();
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-name": NAME,
        "org.criu.config": criu_config.to_str().expect("a path"),
    });
    let mounts = spec["mounts"].as_array_mut().expect("a list of mounts");
    mounts.push(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}));
    mounts.push(json!({"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "mode=1777"]}));
    // Here a part of it can be dumped from inside.
    for criu in Criu::all() {
        let dir = criu.program.parent().expect("a directory").to_str().expect("a path");
        mounts.push(json!({"destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro"]}));
    }
    spec
}
