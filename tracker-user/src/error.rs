//! Errors, and how users see them.

use std::{fmt, io};

use thiserror::Error;

/// A call that the kernel refused.
#[derive(Debug, Error)]
#[error("{call} {object}")]
pub struct SyscallError {
    /// The call.
    pub call: &'static str,
    /// The object of the call.
    pub object: String,
    /// The kernel's error.
    pub source: io::Error,
}

impl SyscallError {
    /// Names the call and its object, for `map_err`. The object is formatted only if there is an
    /// error.
    pub fn on(call: &'static str, object: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { call, object: object.to_string(), source }
    }
}

/// Formats an error and its causes in one line.
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
