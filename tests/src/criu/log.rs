//! CRIU's log: which of its errors say why a dump failed.

use serde_json::{Value, json};

/// An error: `(00.012345) Error (criu/files-ext.c:98): unix: text`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Seconds since CRIU started, if the line has them.
    pub time: String,
    /// Source file and line.
    pub place: String,
    /// The part of CRIU that prints it, if the line names that.
    pub subsystem: String,
    /// The message, without all of these.
    pub text: String,
}

/// The errors of a log.
#[derive(Debug, Default)]
pub struct Log {
    /// The errors in their order.
    pub errors: Vec<Line>,
}

/// The parts of CRIU that name themselves (CRIU: `LOG_PREFIX`).
const SUBSYSTEMS: &[&str] = &[
    "aio",
    "apparmor",
    "autofs",
    "bfd",
    "bpfmap",
    "cg",
    "coredump",
    "cpu",
    "epoll",
    "eventfd",
    "file-lock",
    "filter",
    "fsnotify",
    "inet",
    "inet-tcp",
    "inetsk",
    "irmap",
    "itimer",
    "kerndat",
    "lsm",
    "memfd",
    "mnt",
    "mnt-v2",
    "namespaces",
    "net",
    "netlink",
    "network-lock",
    "nfconn",
    "openat2",
    "packet",
    "page-pipe",
    "page-read",
    "page-xfer",
    "pagemap",
    "pagemap-cache",
    "path",
    "pidfd",
    "pie",
    "pipes",
    "plugin",
    "proc_parse",
    "pstree",
    "rseq",
    "seccomp",
    "signalfd",
    "sk unix",
    "skqueue",
    "sockets",
    "stats",
    "tcp",
    "timens",
    "timerfd",
    "tls",
    "tty",
    "tun",
    "uffd",
    "unix",
    "uns",
    "userns",
    "util",
    "vdso",
];

impl Log {
    /// Finds the errors.
    pub fn read(text: &str) -> Self {
        Self { errors: text.lines().filter_map(Line::read).collect() }
    }

    /// Returns the errors that say why a dump failed. Leaves out errors that CRIU also prints for a
    /// process without open files. Leaves out errors that only report a consequence, unless there
    /// are no others.
    pub fn cause(&self, usual: &Self) -> Vec<&Line> {
        let lines: Vec<&Line> =
            self.errors.iter().filter(|line| line.text != "Dumping FAILED." && !usual.has(line)).collect();
        let says_why: Vec<&Line> = lines.iter().copied().filter(|line| !line.is_consequence()).collect();
        let mut cause: Vec<&Line> = Vec::new();
        for line in if says_why.is_empty() { lines } else { says_why } {
            // CRIU tries some things again, and prints the same error again.
            if !cause.iter().any(|other| other.text == line.text) {
                cause.push(line);
            }
        }
        cause
    }

    fn has(&self, line: &Line) -> bool {
        self.errors.iter().any(|other| (&other.subsystem, &other.text) == (&line.subsystem, &line.text))
    }
}

/// Splits the name of a part of CRIU off the message.
fn named(text: &str) -> (&str, &str) {
    text.split_once(": ").filter(|(name, _)| SUBSYSTEMS.contains(name)).unwrap_or(("", text))
}

impl Line {
    fn read(line: &str) -> Option<Self> {
        let (before, rest) = line.split_once("Error (")?;
        let (place, text) = rest.split_once("): ")?;
        let (time, subsystem, text) = if let Some(time) = before.strip_prefix('(') {
            let (subsystem, text) = named(text);
            (time.strip_suffix(") ")?, subsystem, text)
        } else {
            // `pie: 35: `, from inside the process that is dumped, where there is no clock.
            before.strip_prefix("pie: ")?;
            ("", "pie", text)
        };
        let own = |text: &str| text.trim().to_owned();
        Some(Self { time: own(time), place: own(place), subsystem: own(subsystem), text: own(text) })
    }

    /// Returns whether the line only reports a consequence, as `Dump files (pid: 12) failed with
    /// -1` does.
    fn is_consequence(&self) -> bool {
        let number = |text: &str| text.parse::<i32>().is_ok();
        let failed = self.text.rsplit_once(") failed with ");
        failed.is_some_and(|(what, code)| {
            number(code) && what.rsplit_once(" (pid: ").is_some_and(|(_, pid)| number(pid))
        })
    }

    /// Returns the line as results have it.
    pub fn json(&self) -> Value {
        json!({"time": self.time, "place": self.place, "subsystem": self.subsystem, "text": self.text})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.000100) Error (criu/util.c:1): Can't setup RLIMIT_NOFILE for self
(00.005000) Warn  (criu/fsnotify.c:2): fsnotify: \tHandle cannot be opened
(00.005326) Error (criu/sk-unix.c:94): unix: Can't dump half of stream unix connection. name: ; peer name: 
pie: 35: Error (criu/pie/parasite.c:3): send_fds failed (-22)
(00.005432) Error (criu/cr-dump.c:1669): Dump files (pid: 35) failed with -1
(00.006000) Error (criu/cr-dump.c:2098): Dumping FAILED.
";

    fn texts(lines: &[&Line]) -> Vec<String> {
        lines.iter().map(|line| format!("{}|{}", line.subsystem, line.text)).collect()
    }

    #[test]
    fn the_cause_is_what_is_neither_usual_nor_a_consequence() {
        let usual = Log::read(LOG.lines().next().unwrap());
        let log = Log::read(LOG);
        assert_eq!(log.errors.len(), 5);
        assert_eq!(
            texts(&log.cause(&usual)),
            [
                "unix|Can't dump half of stream unix connection. name: ; peer name:",
                "pie|send_fds failed (-22)"
            ]
        );
    }

    #[test]
    fn a_consequence_is_the_cause_if_nothing_else_is_said() {
        let log = Log::read(&LOG.lines().skip(4).collect::<Vec<_>>().join("\n"));
        assert_eq!(texts(&log.cause(&Log::default())), ["|Dump files (pid: 35) failed with -1"]);
    }

    #[test]
    fn time_and_place_are_kept_apart() {
        let log = Log::read(LOG);
        let first = log.errors.first().unwrap();
        assert_eq!((first.time.as_str(), first.place.as_str()), ("00.000100", "criu/util.c:1"));
    }
}
