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

#[cfg(test)]
mod tests {
    use serde::{Serialize, de::DeserializeOwned};

    use super::*;
    use crate::{FileKind, Pass};

    #[track_caller]
    fn is_called<T: Serialize + DeserializeOwned + PartialEq + Copy>(value: T, name: &str) {
        assert_eq!(serde_json::to_value(value).unwrap(), name);
        assert!(serde_json::from_value::<T>(name.into()).unwrap() == value, "{name}");
    }

    #[test]
    fn json_has_the_stable_names() {
        for verdict in Verdict::ALL {
            is_called(*verdict, verdict.name());
        }
        for pass in Pass::ALL {
            is_called(*pass, pass.name());
        }
        for kind in FileKind::ALL {
            is_called(*kind, kind.name());
        }
        is_called(Verdict::NeedsOption, "needs_option");
        assert!(serde_json::from_str::<Verdict>("\"fine\"").is_err());
    }
}
