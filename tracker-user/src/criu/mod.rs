//! Finds the CRIU that would be used: its version, how it was built, and its options. Reads files
//! and runs `criu --version`.

mod config;
mod program;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use program::ProgramError;
use thiserror::Error;

use crate::{
    error::SyscallError,
    host::KernelVersion,
    verdict::{CriuVersion, DumpOption, Judge, Profile, RuleError, Rules, VersionSource},
};

/// The program that runs CRIU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CriuRunner {
    /// A user at a terminal.
    #[default]
    Criu,
    /// runc, and what uses it: docker, containerd, Kubernetes.
    Runc,
    /// crun.
    Crun,
    /// podman, with runc or crun.
    Podman,
}

impl CriuRunner {
    /// Returns the configuration files of which CRIU reads the first that exists, besides its own.
    const fn config_files(self) -> &'static [&'static str] {
        match self {
            Self::Criu => &[],
            Self::Runc => &["/etc/criu/runc.conf"],
            Self::Crun | Self::Podman => &["/etc/criu/crun.conf", "/etc/criu/runc.conf"],
        }
    }

    /// Returns the options that the runner always sets (runc: `criu_linux.go`, crun: `criu.c`).
    const fn options(self) -> &'static [DumpOption] {
        match self {
            Self::Criu => &[],
            Self::Runc | Self::Crun | Self::Podman => &[DumpOption::OrphanPtsMaster],
        }
    }
}

/// Why the CRIU to judge for isn't known.
#[derive(Debug, Error)]
pub enum CriuError {
    /// A file can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
    /// A file of rules is malformed.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// The given program is no CRIU.
    #[error("{}: {why} (is it a CRIU?)", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What went wrong.
        why: ProgramError,
    },
}

/// What the user says about the CRIU to judge for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The release; else that of the program.
    pub version: Option<CriuVersion>,
    /// The program; else the `criu` in `PATH`.
    pub program: Option<PathBuf>,
    /// The program that runs it.
    pub runner: CriuRunner,
    /// A configuration file instead of the runner's.
    pub config: Option<PathBuf>,
    /// A configuration file that the container wants; `config` has priority. Empty for none. It is
    /// no error if the file doesn't exist.
    pub annotation: Option<String>,
    /// Options, as they are given to CRIU.
    pub options: Vec<String>,
    /// Files of rules.
    pub rules: Vec<PathBuf>,
}

/// Creates the judge for the CRIU that is wanted, or found.
///
/// # Errors
/// When a given file can't be read, or is malformed; or when the given program is no CRIU.
pub fn judge(wanted: &Wanted, kernel: KernelVersion) -> Result<Judge, CriuError> {
    let mut rules = Rules::embedded()?;
    for path in &wanted.rules {
        rules = rules.overridden_by(Rules::parse(&read(path)?, &path.display().to_string())?);
    }
    Ok(Judge::new(rules, profile(wanted, kernel)?))
}

/// Finds the profile of the CRIU that is wanted, or found.
///
/// # Errors
/// Those of [`judge`].
pub fn profile(wanted: &Wanted, kernel: KernelVersion) -> Result<Profile, CriuError> {
    let program = wanted.program.clone().or_else(program::find);
    let found = match (&program, wanted.version) {
        (Some(program), None) => match program::version(program) {
            Ok(version) => Some(version),
            // A program that the user named must work.
            Err(why) if wanted.program.is_some() => {
                return Err(CriuError::Program { path: program.clone(), why });
            }
            Err(_) => None,
        },
        _ => None,
    };
    let mut profile = Profile::new(wanted.version, found, kernel);
    // If only a release was named, nothing is known about how it was built.
    if let Some(program) = program
        && (profile.source == VersionSource::Path || wanted.program.is_some())
    {
        program::learn(&program, &mut profile.build);
    }
    let configured =
        configured(wanted)?.into_iter().filter(|option| !config::is_lost(option, profile.version));
    for option in configured.chain(wanted.options.iter().cloned()) {
        profile.options.add(&option);
    }
    profile.options.on.extend(wanted.runner.options());
    Ok(profile)
}

/// Returns the options in CRIU's configuration files, then those in the runner's or the
/// container's.
fn configured(wanted: &Wanted) -> Result<Vec<String>, CriuError> {
    let mut options = Vec::new();
    // config.c:init_configuration
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".criu/default.conf"));
    for path in [Some(PathBuf::from("/etc/criu/default.conf")), home].into_iter().flatten() {
        options.extend(config::parse(&fs::read_to_string(path).unwrap_or_default()));
    }
    let text = match (&wanted.config, &wanted.annotation) {
        (Some(path), _) => Some(read(path)?),
        (None, Some(path)) => fs::read_to_string(path).ok(),
        (None, None) => wanted.runner.config_files().iter().find_map(|path| fs::read_to_string(path).ok()),
    };
    options.extend(text.map(|text| config::parse(&text)).unwrap_or_default());
    Ok(options)
}

fn read(path: &Path) -> Result<String, SyscallError> {
    fs::read_to_string(path).map_err(SyscallError::on("read", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_old_release_loses_paths_of_a_file_and_keeps_those_that_are_given() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "irmap-scan-path /srv\ntcp-close").unwrap();
        let of = |version| {
            let wanted = Wanted {
                version: Some(version),
                config: Some(file.path().to_owned()),
                options: vec!["--irmap-scan-path /root".into()],
                ..Wanted::default()
            };
            profile(&wanted, KernelVersion { major: 6, minor: 1 }).unwrap().options
        };
        let (old, new) = (of(CriuVersion::new(3, 19, 0)), of(CriuVersion::new(4, 0, 0)));
        assert!(old.irmap_paths.contains("/root") && !old.irmap_paths.contains("/srv"), "{old:?}");
        assert!(["/root", "/srv"].iter().all(|path| new.irmap_paths.contains(*path)), "{new:?}");
        assert_eq!(old.on, new.on);
        assert!(old.has(DumpOption::TcpClose));
    }
}
