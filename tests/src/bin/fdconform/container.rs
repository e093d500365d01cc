//! Fixtures in a container of runc's, with namespaces and a root of its own. runc has CRIU dump it.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use fdtracker_tests::{container::spec, descendants::end_all};

use crate::fixture;

/// The prefix of a fixture's name when it runs in a container.
pub(crate) const PREFIX: &str = "container.";

/// The fixtures that also work in a container; there is one for most kinds of file. There are no
/// connections: to lock them, CRIU needs `iptables` here. (CRIU 4.1.1 crashes on a configuration
/// file that names another way to lock them.)
const FIXTURES: &[&str] = &[
    "nothing.open",
    "eventfd.plain",
    "signalfd.plain",
    "epoll.watching",
    "timerfd.monotonic",
    "pidfd.self",
    "pidfd.child",
    "io_uring.unmapped",
    "perf_event.plain",
    "userfaultfd.plain",
    "landlock.ruleset",
    "bpfmap.hash",
    "bpfmap.ringbuf",
    "bpf_prog.plain",
    "inotify.tmpfs",
    "fanotify.tmpfs",
    "file.regular",
    "file.proc_self",
    "file.ghost_small",
    "memfd.plain",
    "memfd.secret",
    "lock.posix",
    "pipe.pair",
    "unix.stream_pair",
    "unix.listen",
    "tcp.listen",
    "netlink.fresh",
    "tree.children",
    "tree.pidfd_between",
    "tree.shared_table_good",
];

/// Options that `runc checkpoint` has too, with the same names.
const OPTIONS: [&str; 4] = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"];

/// Returns whether a fixture also runs in a container.
pub(crate) fn holds(fixture: &str) -> bool {
    FIXTURES.contains(&fixture)
}

/// Returns whether runc can have a container dumped with these options.
pub(crate) fn has_all(options: &[String]) -> bool {
    options.iter().all(|option| OPTIONS.contains(&option.as_str()))
}

/// A container whose first process is a fixture. It goes when this is dropped.
pub(crate) struct Contained {
    runc: Child,
    bundle: PathBuf,
    /// Its id.
    pub(crate) id: String,
}

impl Contained {
    /// Starts it, or returns why that can't be done.
    pub(crate) fn hold(name: &str) -> io::Result<Self> {
        let id = fdtracker_tests::random_id();
        let bundle = std::env::temp_dir().join(format!("fdconform-{id}"));
        make_root(&bundle.join("rootfs"))?;
        let spec = spec(&format!("/docker/{id}"), &["/fdfixture", "hold", name]);
        fs::write(bundle.join("config.json"), spec.to_string())?;
        let runc = Command::new("runc")
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut held = Self { runc, bundle, id };
        let mut answer = String::new();
        if let Some(output) = held.runc.stdout.take() {
            BufReader::new(output).read_line(&mut answer)?;
        }
        if answer.is_empty() {
            let mut why = String::new();
            // runc has ended, so its output ends too.
            if let Some(mut output) = held.runc.stderr.take() {
                output.read_to_string(&mut why)?;
            }
            return Err(io::Error::other(format!("runc run: {}", why.trim())));
        }
        fixture::pid(&answer)?;
        Ok(held)
    }

    /// Returns the command that dumps the container into a directory.
    pub(crate) fn checkpoint(&self, images: &Path, options: &[String]) -> Command {
        let mut runc = Command::new("runc");
        runc.args(["checkpoint", "--leave-running", "--image-path"])
            .arg(images)
            .arg("--work-path")
            .arg(images);
        runc.args(options).arg(&self.id);
        runc
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // A CRIU that hangs would keep the processes that it dumps alive.
        end_all(fixture::PATIENCE);
        let _ = self.runc.wait();
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

/// Makes a root with the fixture and all libraries of this machine. It is a guest that has only the
/// libraries it needs.
fn make_root(root: &Path) -> io::Result<()> {
    for dir in ["proc", "dev", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(fixture::program()?, root.join("fdfixture"))?;
    for dir in
        ["lib", "lib64", "usr/lib"].map(|dir| Path::new("/").join(dir)).iter().filter(|dir| dir.exists())
    {
        let to = root.join(dir.strip_prefix("/").unwrap_or(dir));
        if !Command::new("cp").arg("-a").arg(dir).arg(&to).status()?.success() {
            return Err(io::Error::other(format!("cp {} failed", dir.display())));
        }
    }
    Ok(())
}
