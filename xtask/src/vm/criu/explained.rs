//! Where `fdtracker check` can't say what CRIU says, and why. Every other difference is a mistake.

use serde_json::Value;

use super::results::text;

/// What can't be found out from outside, by the beginning of a fixture's name.
const EXPLAINED: &[(&str, &str)] = &[
    ("file.ghost_in_queue", IN_FLIGHT),
    ("tty.queue", IN_FLIGHT),
    ("unix.queue_", IN_FLIGHT),
    ("unix.peer_in_queue", IN_FLIGHT),
    ("unix.pending_fd_bad", IN_FLIGHT),
    (
        "overlay.lower_deleted",
        "in which layer of an overlay a file is can't be told from outside, and on that it depends whether it can be linked to",
    ),
];

const IN_FLIGHT: &str = "a file is on its way through a unix socket: what it is shows only to whoever receives it, and CRIU's message has the number that it got there";

/// Returns why `check` can't agree with a dump. There is such a reason only if `check` says
/// `unknown`: anything else that it says must be right.
pub(super) fn explanation(dump: &Value) -> Option<&'static str> {
    let name = text(dump, "fixture");
    let is_unknown = dump.pointer("/check/verdict").and_then(Value::as_str) == Some("unknown");
    let known = EXPLAINED.iter().find(|(beginning, _)| is_unknown && name.starts_with(beginning));
    known.map(|(_, why)| *why)
}
