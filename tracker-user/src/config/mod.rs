//! The values of a command's flags, where the command line doesn't give them: from the environment, else from a TOML file.
//!
//! A file's keys are the command's long flags, and its variables their names in capitals: a new flag needs nothing here. What
//! file and environment say is checked as the flag's own parser does, and then told to clap as the flag's default: so a flag
//! goes before the environment, and the environment before the file. Knows clap, and nothing of what the flags are for.

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

/// Flags that make sense only where they are typed.
const ONLY_TYPED: [&str; 2] = [FILE, "config.check"];

/// What was given elsewhere than on the command line, by the key's name.
type Given = BTreeMap<String, (Vec<OsString>, Origin)>;

/// What a command line comes to.
pub struct Parsed {
    /// As clap tells it.
    pub matches: ArgMatches,
    /// Every value with where it comes from; `None` if another subcommand was typed.
    pub settings: Option<Settings>,
}

/// What values come from. The file is read anew each time.
#[derive(Clone, Debug)]
pub struct Source {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub variables: Vec<(OsString, OsString)>,
}

impl Source {
    /// This process's own.
    #[must_use]
    pub fn here() -> Self {
        Self { arguments: std::env::args_os().collect(), variables: std::env::vars_os().collect() }
    }

    /// Parses the command line. If it is about this subcommand, file and environment give the values that it doesn't.
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

    /// Where the file is, and whether the user has named it.
    fn file(&self, typed: &ArgMatches) -> (PathBuf, bool) {
        let path = typed.get_one::<PathBuf>("config_file").cloned().unwrap_or_default();
        let is_typed = typed.value_source("config_file") == Some(ValueSource::CommandLine);
        match environment::value(&self.variables, &variable(FILE)) {
            Some(named) if !is_typed => (named.into(), true),
            _ => (path, is_typed),
        }
    }
}

/// What can't be seen isn't missing: then it can't be read, which is an error.
fn is_missing(path: &Path) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

#[cfg(test)]
mod tests;
