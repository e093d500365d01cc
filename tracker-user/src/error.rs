//! Errors as users are shown them.

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
