//! Values of a command's flags that aren't on the command line: from the environment, else from a
//! TOML file.
//!
//! A file's keys are the command's long flags, and the variables are their names in capitals, so a
//! new flag needs nothing here. A value from the file or the environment is checked by the flag's
//! own parser, and then given to clap as the flag's default. So a flag has priority over the
//! environment, and the environment over the file. This module knows clap, but not what the flags
//! mean.

mod environment;
mod error;
mod file;
mod key;
mod settings;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, parser::ValueSource};

pub use environment::variable;
pub use error::ConfigError;
pub use key::{Key, Shape};
pub use settings::{Origin, Setting, Settings};

/// The flag that names the file.
const FILE: &str = "config.file";

/// Flags that make sense only on the command line.
const ONLY_TYPED: [&str; 2] = [FILE, "config.check"];

/// Values that the file and the environment give, by the key's name.
type Given = BTreeMap<String, (Vec<OsString>, Origin)>;

/// A parsed command line.
pub struct Parsed {
    /// clap's result.
    pub matches: ArgMatches,
    /// Every value with its origin; `None` if another subcommand was given.
    pub settings: Option<Settings>,
}

/// The command line and the environment of a process. The file is read again at each
/// [`Invocation::parse`].
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub variables: Vec<(OsString, OsString)>,
}

impl Invocation {
    /// Returns those of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self { arguments: std::env::args_os().collect(), variables: std::env::vars_os().collect() }
    }

    /// Parses the command line. For this subcommand, the file and the environment give the values
    /// that the command line doesn't.
    ///
    /// # Errors
    /// When the command line, the file or the environment is wrong, or the file can't be read.
    pub fn parse(&self, command: Command, subcommand: &str) -> Result<Parsed, ConfigError> {
        let keys = Key::all(&command, subcommand);
        let command = keys.iter().fold(command, |command, key| key.explain(command, subcommand));
        let matches = command.clone().try_get_matches_from(&self.arguments)?;
        let Some(typed) = matches.subcommand_matches(subcommand) else {
            return Ok(Parsed { matches, settings: None });
        };
        let (mut given, file) = match self.file(typed) {
            (path, false) if is_missing(&path) => (Given::new(), None),
            (path, _) => (file::read(&path, &keys)?, Some(path)),
        };
        let (variables, warnings) = environment::read(&self.variables, &keys)?;
        given.extend(variables);
        let command = keys.iter().fold(command, |command, key| match given.get(&key.name) {
            Some((values, _)) => key.default(command, subcommand, values),
            None => command,
        });
        let matches = command.try_get_matches_from(&self.arguments)?;
        let settings = matches
            .subcommand_matches(subcommand)
            .map(|matches| Settings::new(&keys, matches, &given, file, warnings));
        Ok(Parsed { matches, settings })
    }

    /// Returns the path of the file, and whether the user named it.
    fn file(&self, typed: &ArgMatches) -> (PathBuf, bool) {
        let path = typed.get_one::<PathBuf>("config_file").cloned().unwrap_or_default();
        let is_typed = typed.value_source("config_file") == Some(ValueSource::CommandLine);
        match environment::value(&self.variables, &variable(FILE)) {
            Some(named) if !is_typed => (named.into(), true),
            _ => (path, is_typed),
        }
    }
}

/// Whether the file doesn't exist. A file that can't be seen isn't missing: trying to read it is an
/// error.
fn is_missing(path: &Path) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

#[cfg(test)]
mod tests;
