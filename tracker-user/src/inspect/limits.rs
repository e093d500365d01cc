//! What a look in detail can't see on this machine.

use std::{os::fd::AsFd as _, process};

use super::{netlink, sys};
use crate::privileges::{self, Need};

/// What can't be seen, each with the reason; nothing if all can.
#[must_use]
pub fn limits() -> Vec<String> {
    let mut limits: Vec<String> = match privileges::missing(Need::Inspections) {
        Ok(missing) => {
            missing.iter().map(|used| format!("{} (needs {})", used.reason, used.capability)).collect()
        }
        Err(error) => vec![format!("what capabilities this process has (/proc/self/status: {error})")],
    };
    let own = process::id();
    if let Err(error) = sys::compare(own, own, sys::Compare::Tables) {
        limits.push(format!("shared fd tables, and the targets of epolls (kcmp: {error}; CONFIG_KCMP)"));
    }
    if let Err(error) = sys::diagnostics().and_then(|socket| netlink::unix_sockets(socket.as_fd())) {
        limits.push(format!("the peers of unix sockets (sock_diag: {error}; the module unix_diag)"));
    }
    limits
}
