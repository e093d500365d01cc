//! Return probes that follow as many calls at once as there can be.
//!
//! One that is made by `perf_event_open` alone, as aya makes it, follows a handful of calls at
//! once, and skips the others (kernel: `register_kretprobe`, where `maxactive` is 0): too few for a
//! function that sleeps. Only tracefs lets one ask for more (Documentation/trace/kprobetrace.rst).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use super::{prerequisites::tracefs, sys};
use crate::host::monotonic;

/// Calls that are followed at once: tasks that are inside of the function. The kernel allows no
/// more than 4096.
const AT_ONCE: u32 = 1024;

/// The group of all events that are made here.
const GROUP: &str = "fdtracker";

/// A program that runs at the returns of a function. Dropping it detaches the program.
pub(super) struct ReturnProbe {
    /// Keeps the program attached. Dropped first: a definition can't be removed while it is in use.
    _event: OwnedFd,
    definition: Definition,
    function: &'static str,
}

impl ReturnProbe {
    /// Attaches a program of the type kprobe.
    pub(super) fn attach(program: BorrowedFd<'_>, function: &'static str) -> io::Result<Self> {
        let tracefs = tracefs().map_err(io::Error::other)?;
        // Another agent that starts may take an event that isn't in use yet for a leftover.
        Self::try_attach(program, function, &tracefs)
            .or_else(|_| Self::try_attach(program, function, &tracefs))
    }

    fn try_attach(program: BorrowedFd<'_>, function: &'static str, tracefs: &Path) -> io::Result<Self> {
        let definition = Definition::new(tracefs, function)?;
        let id = tracefs.join("events").join(GROUP).join(&definition.name).join("id");
        let id = fs::read_to_string(id)?.trim().parse().map_err(io::Error::other)?;
        Ok(Self { _event: sys::run_at_event(program, id)?, definition, function })
    }

    /// The function.
    pub(super) fn function(&self) -> &'static str {
        self.function
    }

    /// How many calls were not followed. Older kernels don't tell of those for which there was no
    /// room.
    pub(super) fn missed(&self) -> io::Result<u64> {
        let profile = fs::read_to_string(self.definition.file.with_file_name("kprobe_profile"))?;
        Ok(missed(&profile, &self.definition.name))
    }
}

/// An event's misses, in a list of all: name, hits, misses.
fn missed(profile: &str, name: &str) -> u64 {
    let mut lines = profile.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_event = lines.find(|words| words.first() == Some(&name));
    of_event.and_then(|words| words.get(2)?.parse().ok()).unwrap_or(0)
}

/// An event of the kernel's that is made here.
struct Definition {
    /// The file by which it is made and removed.
    file: PathBuf,
    name: String,
}

impl Definition {
    fn new(tracefs: &Path, function: &str) -> io::Result<Self> {
        let file = tracefs.join("kprobe_events");
        remove_leftovers(&file)?;
        // Other agents, in other pid namespaces too, make events of their own.
        let name = format!("{function}_{}_{}", process::id(), monotonic().as_nanos());
        command(&file, &format!("r{AT_ONCE}:{GROUP}/{name} {function}"))?;
        Ok(Self { file, name })
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        if let Err(error) = command(&self.file, &format!("-:{GROUP}/{}", self.name)) {
            tracing::debug!(name = self.name, %error, "an event of this agent's is left in {}", self.file.display());
        }
    }
}

/// Removes what agents have left that were killed.
fn remove_leftovers(file: &Path) -> io::Result<()> {
    for name in names(&fs::read_to_string(file)?) {
        // The kernel refuses to remove what another agent uses.
        let _ = command(file, &format!("-:{GROUP}/{name}"));
    }
    Ok(())
}

/// The names of this program's events in a list of all.
fn names(events: &str) -> impl Iterator<Item = &str> {
    // r1024:group/name function
    let full =
        events.lines().filter_map(|line| line.split(' ').next()?.split_once(':').map(|(_, name)| name));
    full.filter_map(|name| name.split_once('/')).filter(|(group, _)| *group == GROUP).map(|(_, name)| name)
}

/// Writes a line. The file must not be opened to be written anew: the kernel would remove
/// everybody's events.
fn command(file: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_those_of_the_event() {
        let profile = "  mine                       5        7\n  dup_fd_1_2                 3        2\n";
        assert_eq!((missed(profile, "dup_fd_1_2"), missed(profile, "dup_fd_1")), (2, 0));
    }

    #[test]
    fn only_own_events_are_removed() {
        let events = "p:kprobes/mine do_exit\nr1024:fdtracker/dup_fd_1_2 dup_fd\nr:fdtrackers/x dup_fd arg=$retval\n\n";
        assert_eq!(names(events).collect::<Vec<_>>(), ["dup_fd_1_2"]);
    }
}
