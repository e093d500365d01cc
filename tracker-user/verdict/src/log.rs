//! The log of a dump that failed: which file it was about, and what to do.

use crate::{
    facts::Fact,
    rules::{Message, Rule, Rules},
};

/// What made a dump fail, as its log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The line of the log, from 1.
    pub line: usize,
    /// What CRIU said.
    pub message: String,
    /// The process that was being dumped.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// The fd that the message names. Of a file on its way through a socket it is CRIU's own.
    pub fd: Option<u32>,
    /// Whether the dump went through all the same.
    pub finished: bool,
}

/// Messages that are never the cause: what it led to, or what does no harm.
const NO_CAUSE: &[&str] = &[
    "Dumping FAILED.",
    "Can't setup RLIMIT_NOFILE for self",
    "Dump files (pid: ",
    "Collect mappings (pid: ",
    "Can't cure (pid: ",
];

/// Finds what made a dump fail: the first error that isn't only a consequence. `None` if there is
/// none.
#[must_use]
pub fn cause(log: &[u8]) -> Option<Cause> {
    let text = String::from_utf8_lossy(log);
    let finished = text.contains("Dumping finished successfully");
    let (mut pid, mut comm) = (None, None);
    for (number, line) in text.lines().enumerate() {
        if let Some(task) = task(line) {
            (pid, comm) = (Some(task.0), Some(task.1.to_owned()));
        }
        let Some(message) = error(line) else { continue };
        if NO_CAUSE.iter().any(|consequence| message.starts_with(consequence)) {
            continue;
        }
        let message = message.to_owned();
        return Some(Cause { line: number + 1, message, pid, comm, fd: None, finished });
    }
    None
}

/// Reads `Dumping task (pid: 7 comm: web)`, which stands before all that is said of a process.
fn task(line: &str) -> Option<(u32, &str)> {
    let (_, rest) = line.split_once("Dumping task (pid: ")?;
    let (pid, rest) = rest.split_once(" comm: ")?;
    Some((pid.parse().ok()?, rest.strip_suffix(')')?))
}

/// Reads the message of a line that tells an error, without the subsystem's name in front:
/// `(00.005326) Error (criu/files-ext.c:94): unix: message`.
fn error(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, message) = rest.split_once("): ")?;
    let message = message.trim();
    Some(match message.split_once(": ") {
        Some((subsystem, rest)) if is_subsystem(subsystem) => rest.trim(),
        _ => message,
    })
}

/// Whether a word is the prefix of a subsystem's messages.
///
/// # Source
/// CRIU: `LOG_PREFIX` in its files.
fn is_subsystem(word: &str) -> bool {
    const SUBSYSTEMS: &[&str] = &[
        "inet",
        "unix",
        "sk unix",
        "fsnotify",
        "pidfd",
        "tty",
        "tun",
        "netlink",
        "sockets",
        "skqueue",
        "epoll",
        "bpfmap",
        "mnt",
        "net",
        "packet",
        "pipes",
        "irmap",
        "cg",
        "seccomp",
        "lock",
        "autofs",
        "file-lock",
        "sk",
        "proc_parse",
        "files-reg",
        "pie",
        "tcp",
        "soccr",
        "vdso",
        "kerndat",
    ];
    SUBSYSTEMS.contains(&word)
}

/// Finds the rule that says what CRIU said, and the facts that it names.
#[must_use]
pub fn rule_of<'a>(rules: &'a Rules, message: &str) -> Option<(&'a Rule, Vec<(Fact, String)>)> {
    let of = |rule: &'a Rule| Some((rule, matching(&rule.message, message)?));
    rules.iter().filter(|rule| !rule.message.is_empty()).find_map(of)
}

fn matching(pattern: &Message, message: &str) -> Option<Vec<(Fact, String)>> {
    pattern.matches(message.trim()).or_else(|| pattern.matches(error(message)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact;

    const LOG: &str = "\
(00.000100) Version: 4.0 (gitid v4.0)
(00.003000) Error (criu/util.c:641): Can't setup RLIMIT_NOFILE for self
(00.004000) Dumping task (pid: 42 comm: ibus-daemon)
(00.005326) Error (criu/files-ext.c:94): Can't dump file 7 of that type [600] (anon anon_inode:[pidfd])
(00.005400) Error (criu/cr-dump.c:1669): Dump files (pid: 42) failed with -1
(00.006000) Error (criu/cr-dump.c:2098): Dumping FAILED.
";

    #[test]
    fn the_first_error_that_is_no_consequence_is_the_cause() {
        let cause = cause(LOG.as_bytes()).unwrap();
        assert_eq!((cause.line, cause.pid, cause.comm.as_deref()), (4, Some(42), Some("ibus-daemon")));
        let rules = Rules::embedded().unwrap();
        let (rule, facts) = rule_of(&rules, &cause.message).unwrap();
        assert_eq!(rule.reason, "pidfd_unsupported");
        assert!(facts.contains(&(fact::FD.fact(), "7".into())));
    }

    #[test]
    fn a_subsystems_name_is_no_part_of_the_message() {
        let line = "(00.1) Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established option.";
        assert_eq!(error(line), Some("Connected TCP socket, consider using --tcp-established option."));
        assert_eq!(error("Error (a.c:1): Can't open x: No such file"), Some("Can't open x: No such file"));
        assert_eq!(error("(00.1) Warn  (a.c:1): careful"), None);
        let rules = Rules::embedded().unwrap();
        assert_eq!(rule_of(&rules, line).unwrap().0.reason, "tcp_established");
    }

    #[test]
    fn any_log_can_be_read() {
        for log in [&b""[..], b"\0\xff\xfe", b"Error (", b"(00.1) Error (x): ", &LOG.as_bytes()[..300]] {
            let _ = cause(log);
        }
        assert_eq!(cause(b"(00.1) Dumping finished successfully\n"), None);
    }
}
