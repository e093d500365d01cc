//! All settings, with their values and origins.

use std::{
    ffi::OsString,
    fmt::{self, Display},
    path::PathBuf,
};

use clap::{ArgMatches, parser::ValueSource};
use toml::Value;

use super::{Given, Key, Shape, variable};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No value was given.
    Default,
    /// This line of the file.
    File(usize),
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

/// A flag with its values.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The flag.
    pub key: Key,
    /// Its values; empty if it isn't set.
    pub values: Vec<OsString>,
    /// Where they come from.
    pub origin: Origin,
}

/// All flags of a command. Displayed as TOML, with the origin of each value.
#[derive(Clone, Debug)]
pub struct Settings {
    all: Vec<Setting>,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Warnings about what is no error, but probably a mistake.
    pub warnings: Vec<String>,
}

impl Settings {
    pub(super) fn new(
        keys: &[Key],
        matches: &ArgMatches,
        given: &Given,
        file: Option<PathBuf>,
        warnings: Vec<String>,
    ) -> Self {
        let setting = |key: &Key| {
            let raw = || matches.get_raw(key.id.as_str()).into_iter().flatten().map(OsString::from);
            let values = match key.shape {
                Shape::Switch if !key.many => vec![matches.get_flag(key.id.as_str()).to_string().into()],
                Shape::Switch | Shape::Number | Shape::Text => raw().collect(),
            };
            let origin = match matches.value_source(key.id.as_str()) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                _ => given.get(&key.name).map_or(Origin::Default, |(_, origin)| *origin),
            };
            Setting { key: key.clone(), values, origin }
        };
        let all = keys.iter().filter(|key| key.is_in_file()).map(setting).collect();
        Self { all, file, warnings }
    }

    /// Returns the names of those whose values differ in `other`.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&str> {
        let differs = |(ours, theirs): &(&Setting, &Setting)| ours.values != theirs.values;
        self.all.iter().zip(&other.all).filter(differs).map(|(ours, _)| ours.key.name.as_str()).collect()
    }

    /// Copies the values of `other` for those names that `which` holds for.
    pub fn adopt(&mut self, other: &Self, which: impl Fn(&str) -> bool) {
        for (ours, theirs) in self.all.iter_mut().zip(&other.all) {
            if which(&ours.key.name) {
                ours.clone_from(theirs);
            }
        }
    }
}

impl Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(path) => writeln!(f, "# The file is {}.", path.display())?,
            None => writeln!(f, "# There is no file.")?,
        }
        self.all.iter().try_for_each(|setting| writeln!(f, "{setting}"))
    }
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, values, origin } = self;
        let mut values = values.iter().map(|value| literal(key, &value.to_string_lossy()));
        match (key.many, values.next()) {
            (true, first) => {
                let all: Vec<String> =
                    first.into_iter().chain(values).map(|value| value.to_string()).collect();
                write!(f, "{} = [{}]", key.name, all.join(", "))?;
            }
            (false, Some(value)) => write!(f, "{} = {value}", key.name)?,
            (false, None) => return write!(f, "# {} is not set", key.name),
        }
        match origin {
            Origin::Default => write!(f, " # default"),
            Origin::File(line) => write!(f, " # file, line {line}"),
            Origin::Environment => write!(f, " # environment: {}", variable(&key.name)),
            Origin::Flag => write!(f, " # flag"),
        }
    }
}

fn literal(key: &Key, value: &str) -> Value {
    let text = || Value::String(value.to_owned());
    match key.shape {
        Shape::Switch => value.parse().map_or_else(|_| text(), Value::Boolean),
        Shape::Number => value.parse().map_or_else(|_| text(), Value::Integer),
        Shape::Text => text(),
    }
}
