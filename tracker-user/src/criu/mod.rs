//! The CRIU that would be used, and how: what it is, how it was built, what it is told. Reads files and runs `criu --version`.

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

/// Who runs CRIU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Somebody at a terminal.
    #[default]
    Criu,
    /// runc, and what uses it: docker, containerd, Kubernetes.
    Runc,
    /// crun.
    Crun,
    /// podman, with either.
    Podman,
}

impl Engine {
    /// Configuration files of which CRIU reads the first that there is, besides its own.
    const fn config_files(self) -> &'static [&'static str] {
        match self {
            Self::Criu => &[],
            Self::Runc => &["/etc/criu/runc.conf"],
            Self::Crun | Self::Podman => &["/etc/criu/crun.conf", "/etc/criu/runc.conf"],
        }
    }

    /// What it always asks for (runc: `criu_linux.go`, crun: `criu.c`).
    const fn options(self) -> &'static [DumpOption] {
        match self {
            Self::Criu => &[],
            Self::Runc | Self::Crun | Self::Podman => &[DumpOption::OrphanPtsMaster],
        }
    }
}

/// Why it isn't known which CRIU to judge for.
#[derive(Debug, Error)]
pub enum CriuError {
    /// A file can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
    /// A file of rules is malformed.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// What was given isn't a CRIU.
    #[error("{}: {why} (is it a CRIU?)", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What it did.
        why: ProgramError,
    },
}

/// What the user says of it.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The release; else that of the program.
    pub version: Option<CriuVersion>,
    /// The program; else the `criu` in `PATH`.
    pub program: Option<PathBuf>,
    /// Who runs it.
    pub engine: Engine,
    /// A configuration file instead of the engine's.
    pub config: Option<PathBuf>,
    /// The same, as the container wants it, unless `config` says otherwise: empty for none, and no error if it isn't there.
    pub annotation: Option<String>,
    /// Options, as they are given to CRIU.
    pub options: Vec<String>,
    /// Files of rules.
    pub rules: Vec<PathBuf>,
}

/// The judge for the CRIU that is wanted, or found.
///
/// # Errors
/// When a file that was named can't be read, or is malformed; or when what was named isn't a CRIU.
pub fn judge(wanted: &Wanted, kernel: KernelVersion) -> Result<Judge, CriuError> {
    let mut rules = Rules::embedded()?;
    for path in &wanted.rules {
        rules = rules.overridden_by(Rules::parse(&read(path)?, &path.display().to_string())?);
    }
    Ok(Judge::new(rules, profile(wanted, kernel)?))
}

/// The profile of the CRIU that is wanted, or found.
///
/// # Errors
/// As [`judge`].
pub fn profile(wanted: &Wanted, kernel: KernelVersion) -> Result<Profile, CriuError> {
    let program = wanted.program.clone().or_else(program::find);
    let found = match (&program, wanted.version) {
        (Some(program), None) => match program::version(program) {
            Ok(version) => Some(version),
            // One that the user has named must work.
            Err(why) if wanted.program.is_some() => {
                return Err(CriuError::Program { path: program.clone(), why });
            }
            Err(_) => None,
        },
        _ => None,
    };
    let mut profile = Profile::new(wanted.version, found, kernel);
    // A release that was only named may be built in any way.
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
    profile.options.on.extend(wanted.engine.options());
    Ok(profile)
}

/// What stands in CRIU's configuration files, then in the engine's or the container's.
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
        (None, None) => wanted.engine.config_files().iter().find_map(|path| fs::read_to_string(path).ok()),
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
