//! What CRIU makes of a file.

use crate::named::named;

named! {
    /// What CRIU would make of a file; of a container, the worst of its files. Ordered from best to
    /// worst.
    Verdict {
        /// Dumped.
        Ok = "ok",
        /// Dumped with an option that the profile doesn't have.
        NeedsOption = "needs_option",
        /// It depends on something that was not inspected.
        Unknown = "unknown",
        /// The dump fails.
        Blocked = "blocked",
    }
}
