//! Errors of the configuration: what is wrong, where, and what would be right.

use thiserror::Error;

use crate::error::SyscallError;

/// Why the configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
    /// The file isn't TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// No flag has this name.
    #[error("{place}: no setting is called {name}{}", .nearest.as_ref().map(|n| format!(": did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// File and line.
        place: String,
        /// The key.
        name: String,
        /// The flag with the most similar name.
        nearest: Option<String>,
    },
    /// A key isn't allowed in this place.
    #[error("{place}: {name} {why}")]
    Misplaced {
        /// File and line, or the environment.
        place: String,
        /// The key.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// A value is wrong.
    #[error("{place}: {name} = {value}: {why}")]
    Value {
        /// File and line, or the environment.
        place: String,
        /// The key, or the variable.
        name: String,
        /// The value.
        value: String,
        /// What would be right.
        why: String,
    },
}
