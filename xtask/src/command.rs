//! Runs other programs, and shows that they go on while they are silent.

use std::{
    ffi::OsStr,
    io::{IsTerminal as _, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::paths::workspace;

/// How long a program may be silent before a line says that it goes on.
const SILENCE: Duration = Duration::from_millis(4500);

/// Returns the `cargo` that runs this program, in the workspace.
pub(crate) fn cargo() -> anyhow::Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()?);
    // cargo sets these variables for this package, and they are wrong for other packages: ring's
    // build script would see a change.
    let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_package) {
            cargo.env_remove(name);
        }
    }
    Ok(cargo)
}

/// Runs a command that must succeed, and shows what it prints. While it prints nothing, shows now
/// and then that it goes on.
pub(crate) fn must(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    eprintln!("+ {shown}");
    // On a terminal, cargo shows its progress itself.
    if std::io::stderr().is_terminal() && is_cargo(command) {
        let status = command.status().with_context(|| format!("start {shown}"))?;
        return if status.success() { Ok(()) } else { bail!("{shown}: {status}") };
    }
    watch(command.stdout(Stdio::piped()), &shown, std::io::stdout(), true)
}

/// Returns the standard output of a command that must succeed and takes long. Shows its standard
/// error as [`must`] does.
pub(crate) fn must_output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    eprintln!("+ {shown}");
    let output = Arc::new(Mutex::new(Vec::new()));
    if std::io::stderr().is_terminal() && is_cargo(command) {
        let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start {shown}"))?;
        if !output.status.success() {
            bail!("{shown}: {}", output.status);
        }
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let shared = Shared(Arc::clone(&output));
    watch(command.stdout(Stdio::piped()), &shown, shared, false)?;
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Does the same as [`must`] for a command that downloads something. Tries again: the server may be
/// away for a moment.
pub(crate) fn fetch(command: &mut Command) -> anyhow::Result<()> {
    for pause in [10, 30] {
        match must(command) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("{error:#}"),
        }
        // This wait is for the server to recover, not for an event here.
        for left in (1..=pause).rev().filter(|left| left % 5 == 0) {
            eprintln!("trying again in {left} s");
            thread::sleep(Duration::from_secs(5));
        }
    }
    must(command)
}

/// Returns the standard output of a command that must succeed and takes only a moment.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for a command, passes on what it prints, and shows when it is silent for long.
fn watch(
    command: &mut Command,
    shown: &str,
    output: impl Write + Send + 'static,
    is_seen: bool,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let last = Arc::new(Mutex::new(start));
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("start {shown}"))?;
    // Output that isn't shown doesn't end the silence.
    let last_output = if is_seen { Arc::clone(&last) } else { Arc::new(Mutex::new(start)) };
    let readers = pass_on_all(&mut child, (output, last_output), Arc::clone(&last));
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {shown}"))? {
            break status;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() > SILENCE {
            eprintln!("… {} s: {}", start.elapsed().as_secs(), short(shown));
            *last = Instant::now();
        }
        drop(last);
        thread::sleep(Duration::from_millis(20));
    };
    // A process that it has left running may keep its output open.
    let deadline = Instant::now() + SILENCE;
    while readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    if status.success() { Ok(()) } else { bail!("{shown}: {status}") }
}

/// Passes on its output and its errors, and notes for each when something came last.
fn pass_on_all(
    child: &mut Child,
    (output, last_output): (impl Write + Send + 'static, Arc<Mutex<Instant>>),
    last_error: Arc<Mutex<Instant>>,
) -> Vec<thread::JoinHandle<()>> {
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(thread::spawn(move || pass_on(stdout, output, &last_output)));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(thread::spawn(move || pass_on(stderr, std::io::stderr(), &last_error)));
    }
    readers
}

/// Passes on all that comes, at once.
fn pass_on(mut from: impl Read, mut to: impl Write, last: &Mutex<Instant>) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if to.write_all(buffer.get(..count).unwrap_or_default()).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

/// A buffer that the creator can read.
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn is_cargo(command: &Command) -> bool {
    Path::new(command.get_program()).file_stem() == Some(OsStr::new("cargo"))
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Returns the beginning of a command.
fn short(shown: &str) -> String {
    const MOST: usize = 60;
    let cut: String = shown.chars().take(MOST).collect();
    if cut.len() < shown.len() { format!("{cut}…") } else { cut }
}
