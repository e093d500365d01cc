//! What is wrong, where, and what would be right.

use thiserror::Error;

use crate::error::SyscallError;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
    /// The file is no TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// No flag is called so.
    #[error("{place}: no setting is called {name}{}", .nearest.as_ref().map(|n| format!(": did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// File and line.
        place: String,
        /// The key.
        name: String,
        /// The flag that is called nearly so.
        nearest: Option<String>,
    },
    /// A key may not stand where it stands.
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
