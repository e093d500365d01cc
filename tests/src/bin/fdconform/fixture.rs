//! Starts fixtures, and ends them with all that they started.

use std::{
    io::{self, BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fdtracker_tests::descendants::end_all;
use serde_json::Value;

use crate::container::{self, Contained};

/// How long a fixture's end may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A state that `fdfixture` can make.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) about: String,
    /// The options of further dumps.
    pub(crate) options: Vec<Vec<String>>,
}

impl Fixture {
    /// Returns the options of each dump: none, and each set that the fixture names.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &[String]> {
        std::iter::once(&[][..]).chain(self.options.iter().map(Vec::as_slice))
    }

    /// Returns the same fixture in a container, if it can run there.
    fn contained(&self) -> Option<Self> {
        let mut options = self.options.clone();
        options.retain(|options| container::has_all(options));
        let (name, about) =
            (format!("{}{}", container::PREFIX, self.name), format!("{}, in a container", self.about));
        container::holds(&self.name).then_some(Self { name, about, options })
    }

    /// Makes the state, or returns why that can't be done.
    pub(crate) fn hold(&self) -> io::Result<Held> {
        if let Some(name) = self.name.strip_prefix(container::PREFIX) {
            return Contained::hold(name).map(Held::Container);
        }
        self.hold_here().map(Held::Process)
    }

    fn hold_here(&self) -> io::Result<Process> {
        let child = Command::new(program()?)
            .args(["hold", &self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut held = Process { child, pid: 0 };
        let mut answer = String::new();
        if let Some(output) = held.child.stdout.take() {
            BufReader::new(output).read_line(&mut answer)?;
        }
        held.pid = pid(&answer)?;
        Ok(held)
    }
}

/// Reads a fixture's answer: the pid of the process to be dumped, as the fixture sees it.
pub(crate) fn pid(answer: &str) -> io::Result<u32> {
    match answer.trim().split_once(' ') {
        Some(("ready", pid)) => pid.parse().map_err(io::Error::other),
        Some(("no", reason)) => Err(io::Error::other(reason.to_owned())),
        _ => Err(io::Error::other(format!("the fixture ended, saying {answer:?}"))),
    }
}

/// Returns all fixtures.
pub(crate) fn list() -> io::Result<Vec<Fixture>> {
    let output = Command::new(program()?).arg("list").output()?;
    let mut all =
        String::from_utf8_lossy(&output.stdout).lines().map(read).collect::<io::Result<Vec<_>>>()?;
    let contained: Vec<Fixture> = all.iter().filter_map(Fixture::contained).collect();
    all.extend(contained);
    Ok(all)
}

fn read(line: &str) -> io::Result<Fixture> {
    let value: Value = serde_json::from_str(line)?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let options = value.get("options").cloned().unwrap_or_default();
    Ok(Fixture { name: text("name"), about: text("about"), options: serde_json::from_value(options)? })
}

/// Returns the path of `fdfixture`, which is beside this program.
pub(crate) fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("fdfixture"))
}

/// A fixture that has been made. It goes when this is dropped.
pub(crate) enum Held {
    Process(Process),
    Container(Contained),
}

impl Held {
    /// Returns the target for `fdtracker check`.
    pub(crate) fn target(&self) -> String {
        match self {
            Self::Process(process) => format!("pid:{}", process.pid),
            Self::Container(container) => container.id.clone(),
        }
    }
}

/// Processes on this machine, without a container.
pub(crate) struct Process {
    child: Child,
    /// The process to be dumped.
    pub(crate) pid: u32,
}

impl Drop for Process {
    fn drop(&mut self) {
        end_all(PATIENCE);
        let _ = self.child.wait();
    }
}
