//! A flag, as a key that the file and the environment can set.

use std::{
    any::TypeId,
    error::Error as _,
    ffi::{OsStr, OsString},
};

use clap::{
    Arg, ArgAction, Command, Id,
    builder::{BoolishValueParser, ValueParser},
    error::{ContextKind, ContextValue},
};

use super::{FILE, ONLY_TYPED, variable};

/// How similar two names must be for one to be suggested for the other.
const ALIKE: f64 = 0.8;

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`.
    Switch,
    /// A whole number; or a string, if the flag also accepts a unit.
    Number,
    /// A string.
    Text,
}

/// A long flag of a command.
#[derive(Clone, Debug)]
pub struct Key {
    /// The flag without dashes in front.
    pub name: String,
    /// The form of its values.
    pub shape: Shape,
    /// Whether it can be given several times.
    pub many: bool,
    /// clap's id of it.
    pub(super) id: Id,
    value_name: String,
    parser: ValueParser,
    /// Whether it belongs to the command itself, and so to every subcommand.
    global: bool,
}

impl Key {
    /// Returns all long flags of a subcommand, including those that every subcommand has.
    #[must_use]
    pub fn all(command: &Command, subcommand: &str) -> Vec<Self> {
        let global = command.get_arguments().filter(|arg| arg.is_global_set());
        let own = command.find_subcommand(subcommand).into_iter().flat_map(Command::get_arguments);
        global.chain(own).filter_map(Self::new).collect()
    }

    fn new(arg: &Arg) -> Option<Self> {
        let (shape, many) = match arg.get_action() {
            ArgAction::Set => (shape(arg), false),
            ArgAction::Append => (shape(arg), true),
            ArgAction::SetTrue => (Shape::Switch, false),
            // Help, version, and arguments that can't be set elsewhere: counts, and switches that
            // turn something off.
            _ => return None,
        };
        Some(Self {
            name: arg.get_long()?.to_owned(),
            shape,
            many,
            id: arg.get_id().clone(),
            value_name: arg
                .get_value_names()
                .and_then(<[_]>::first)
                .map(ToString::to_string)
                .unwrap_or_default(),
            parser: arg.get_value_parser().clone(),
            global: arg.is_global_set(),
        })
    }

    /// Whether a file can set it.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        !ONLY_TYPED.contains(&self.name.as_str())
    }

    /// Whether the environment can set it.
    #[must_use]
    pub fn is_in_environment(&self) -> bool {
        self.is_in_file() || self.name == FILE
    }

    /// Returns the key with this name.
    pub(super) fn find<'a>(keys: &'a [Self], name: &str) -> Option<&'a Self> {
        keys.iter().find(|key| key.name == name)
    }

    /// Returns the name that is most similar to another, if one is similar enough.
    pub(super) fn nearest(names: impl Iterator<Item = String>, name: &str) -> Option<String> {
        let likeness = |other: String| (strsim::jaro_winkler(&other, name), other);
        let best = names.map(likeness).max_by(|(a, _), (b, _)| a.total_cmp(b));
        best.filter(|(likeness, _)| *likeness > ALIKE).map(|(_, name)| name)
    }

    /// Returns why this flag's own parser refuses a value, if it does.
    pub(super) fn complaint(&self, value: &OsStr) -> Option<String> {
        let flag = Arg::new(self.id.clone())
            .long("value")
            .value_name(self.value_name.clone())
            .action(ArgAction::Set)
            .value_parser(if self.shape == Shape::Switch { switch() } else { self.parser.clone() });
        let mut typed = OsString::from("--value=");
        typed.push(value);
        Command::new("fdtracker")
            .no_binary_name(true)
            .arg(flag)
            .try_get_matches_from([typed])
            .err()
            .map(|error| why(&error))
    }

    /// Adds the variable to the help, and lets a switch be turned off on the command line, if
    /// something else turned it on.
    pub(super) fn explain(&self, command: Command, subcommand: &str) -> Command {
        self.change(command, subcommand, |arg| {
            let (short, long) =
                (self.help(arg.get_help()), arg.get_long_help().map(|help| self.help(Some(help))));
            let arg = match long {
                Some(long) => arg.help(short).long_help(long),
                None => arg.help(short),
            };
            if self.shape != Shape::Switch || !self.is_in_file() {
                return arg;
            }
            arg.action(ArgAction::Set)
                .value_parser(switch())
                .num_args(0..=1)
                .require_equals(true)
                .value_name("BOOL")
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true)
        })
    }

    fn help(&self, help: Option<&clap::builder::StyledStr>) -> String {
        let help = help.map(ToString::to_string).unwrap_or_default();
        if self.is_in_environment() && !self.global {
            format!("{help} [env: {}]", variable(&self.name)).trim_start().to_owned()
        } else {
            help
        }
    }

    /// Sets the default that holds if the flag isn't on the command line.
    pub(super) fn default(&self, command: Command, subcommand: &str, values: &[OsString]) -> Command {
        self.change(command, subcommand, |arg| {
            arg.default_values(values.iter().map(|value| clap::builder::OsStr::from(value.clone())))
        })
    }

    fn change(&self, command: Command, subcommand: &str, change: impl FnOnce(Arg) -> Arg) -> Command {
        if self.global {
            command.mut_arg(&self.id, change)
        } else {
            command.mut_subcommand(subcommand, |command| command.mut_arg(&self.id, change))
        }
    }
}

/// Returns a parser for `true`, `false` and the other words that people write: `1`, `yes`, `off`.
fn switch() -> ValueParser {
    BoolishValueParser::new().into()
}

fn shape(arg: &Arg) -> Shape {
    let numbers = [
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<i64>(),
    ];
    let of = arg.get_value_parser().type_id();
    match numbers.iter().any(|number| of == *number) {
        true => Shape::Number,
        false if of == TypeId::of::<bool>() => Shape::Switch,
        false => Shape::Text,
    }
}

/// Returns what is wrong with a value, without the value.
fn why(error: &clap::Error) -> String {
    match (error.source(), error.get(ContextKind::ValidValue)) {
        (_, Some(ContextValue::Strings(valid))) if !valid.is_empty() => {
            format!("it must be one of {}", valid.join(", "))
        }
        (Some(source), _) => source.to_string(),
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}
