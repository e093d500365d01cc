//! The table in `docs/configuration.md` and the example `deploy/fdtracker.toml`, which are
//! generated from the flags.
//!
//! `cargo xtask gen` rewrites both.

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::{Arg, Command, CommandFactory as _};

use super::{args::Cli, load};
use crate::config::{Key, Shape, variable};

/// The lines around the table in the document.
const BOUNDS: (&str, &str) = ("<!-- begin: made from the flags -->\n", "<!-- end -->\n");

struct Row {
    key: Key,
    arg: Arg,
}

fn rows() -> Vec<Row> {
    let command = Cli::command();
    let keys = Key::all(&command, load::AGENT).into_iter().filter(Key::is_in_file);
    let agent = command.find_subcommand(load::AGENT).into_iter().flat_map(Command::get_arguments);
    let args: Vec<&Arg> = command.get_arguments().chain(agent).collect();
    let row = |key: Key| {
        let arg = args.iter().find(|arg| arg.get_long() == Some(key.name.as_str())).unwrap();
        Row { arg: (*arg).clone(), key }
    };
    keys.map(row).collect()
}

impl Row {
    fn kind(&self) -> &'static str {
        match (self.key.shape, self.key.many) {
            (Shape::Switch, _) => "boolean",
            (Shape::Number, false) => "number",
            (Shape::Text, false) => "string",
            (Shape::Number, true) => "array of numbers",
            (Shape::Text, true) => "array of strings",
        }
    }

    /// Returns the default, as TOML; `None` if there is none.
    fn default(&self) -> Option<String> {
        let values = self.arg.get_default_values().iter().map(|value| value.to_str().unwrap());
        let text = |value: &str| match self.key.shape {
            Shape::Number if value.parse::<u64>().is_ok() => value.to_owned(),
            _ => format!("{value:?}"),
        };
        let values: Vec<String> = values.map(text).collect();
        match (self.key.shape, self.key.many) {
            (Shape::Switch, _) => Some("false".into()),
            (_, true) => Some(format!("[{}]", values.join(", "))),
            (_, false) => values.into_iter().next(),
        }
    }

    fn help(&self) -> String {
        let help = self.arg.get_help().unwrap().to_string();
        help.replace("; can be given several times", "")
    }

    fn possible(&self) -> String {
        let values: Vec<String> =
            self.arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if values.is_empty() || self.key.shape == Shape::Switch {
            String::new()
        } else {
            format!(": one of {}", values.join(", "))
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from("| key | variable | type | default | on SIGHUP |\n|---|---|---|---|---|\n");
    for row in rows {
        let name = &row.key.name;
        let default = row.default().map_or("none".into(), |default| format!("`{default}`"));
        let live = if load::is_live(name) { "changes" } else { "needs a restart" };
        table += &format!(
            "| `{name}` | `{}` | {}{} | {default} | {live} |\n",
            variable(name),
            row.kind(),
            row.possible()
        );
    }
    table
}

fn example(rows: &[Row]) -> String {
    let mut text = String::from(
        "# fdtracker's configuration, to be put at /etc/fdtracker/fdtracker.toml. Each key is a flag of `fdtracker agent`;\n\
         # `#key = value` shows a default. `fdtracker agent --config.check` says whether all is right, and what it comes to;\n\
         # a running agent takes changes over on SIGHUP. docs/configuration.md says more.\n",
    );
    let mut last = "";
    for row in rows {
        let heading = row.arg.get_help_heading().unwrap_or("The agent");
        if std::mem::replace(&mut last, heading) != heading {
            text += &format!("\n### {heading}\n");
        }
        text += &format!("\n# {}{}\n", row.help(), row.possible());
        let (name, value_name) = (&row.key.name, row.arg.get_value_names().and_then(|names| names.first()));
        text += &match (row.default(), value_name) {
            (Some(default), _) => format!("#{name} = {default}\n"),
            (None, value_name) => format!("# {name} = {:?}\n", value_name.map(ToString::to_string).unwrap()),
        };
    }
    text
}

#[track_caller]
fn is_up_to_date(name: &str, make: impl Fn(&str) -> String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let found = fs::read_to_string(&path).unwrap_or_default();
    let made = make(&found);
    if std::env::var_os("FDTRACKER_WRITE_DOCS").is_some() {
        fs::write(path, made).unwrap();
    } else {
        assert_eq!(found, made, "{name}: cargo xtask gen rewrites it");
    }
}

#[test]
fn the_table_is_up_to_date() {
    is_up_to_date("docs/configuration.md", |document| {
        let (before, rest) = document.split_once(BOUNDS.0).unwrap();
        let (_, after) = rest.split_once(BOUNDS.1).unwrap();
        format!("{before}{}{}{}{after}", BOUNDS.0, table(&rows()), BOUNDS.1)
    });
}

#[test]
fn the_example_is_up_to_date() {
    is_up_to_date("deploy/fdtracker.toml", |_| example(&rows()));
}

#[test]
fn no_variable_sets_two_flags() {
    let rows = rows();
    let variables: BTreeSet<String> = rows.iter().map(|row| variable(&row.key.name)).collect();
    assert_eq!(variables.len(), rows.len());
}

#[test]
fn what_verdicts_are_about_changes_live() {
    for name in ["criu", "tcp-established", "rules", "audit-interval", "log-level"] {
        assert!(load::is_live(name), "{name}");
    }
    for name in ["web.listen-address", "socket", "feeder", "max-fds"] {
        assert!(!load::is_live(name), "{name}");
    }
}
