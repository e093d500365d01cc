//! Errors as users are shown them.

use std::{fmt, io};

use thiserror::Error;

/// A call that the kernel refused: which, on what, and why.
#[derive(Debug, Error)]
#[error("{call} {object}")]
pub struct SyscallError {
    /// What was called.
    pub call: &'static str,
    /// On what.
    pub object: String,
    /// What the kernel says.
    pub source: io::Error,
}

impl SyscallError {
    /// Names the call and its object, for `map_err`. The object is made into text only if there is an error.
    pub fn on(call: &'static str, object: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { call, object: object.to_string(), source }
    }
}

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_with_its_object_and_its_cause() {
        let error = SyscallError::on("read", "/proc/1/cgroup")(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(chain(error), "read /proc/1/cgroup: Permission denied (os error 13)");
    }
}
