//! Stable codes for why a file isn't dumped.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The stable code of a rule, such as `pidfd_unsupported`: letters, digits and underscores.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Reason(Cow<'static, str>);

/// The reason of what can't be told, because something isn't known of the file.
pub const NOT_KNOWN: Reason = Reason(Cow::Borrowed("not_known"));

/// What was given is no [`Reason`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no reason: that is a word of letters, digits and underscores")]
pub struct ParseReasonError(String);

impl Reason {
    /// Returns the code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reason {
    type Error = ParseReasonError;

    fn try_from(text: String) -> Result<Self, ParseReasonError> {
        let is_word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_word && !text.is_empty() { Ok(Self(text.into())) } else { Err(ParseReasonError(text)) }
    }
}

impl FromStr for Reason {
    type Err = ParseReasonError;

    fn from_str(text: &str) -> Result<Self, ParseReasonError> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl PartialEq<str> for Reason {
    fn eq(&self, text: &str) -> bool {
        self.0 == text
    }
}

impl PartialEq<&str> for Reason {
    fn eq(&self, text: &&str) -> bool {
        self == *text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_a_word() {
        assert_eq!("tcp_established".parse::<Reason>().unwrap(), "tcp_established");
        for bad in ["", "two words", "größe", "a-b", "a\n"] {
            assert_eq!(bad.parse::<Reason>(), Err(ParseReasonError(bad.into())));
        }
        assert!("not_known".parse::<Reason>().is_ok_and(|reason| reason == NOT_KNOWN));
    }

    #[test]
    fn json_has_the_word() {
        assert_eq!(serde_json::to_string(&NOT_KNOWN).unwrap(), r#""not_known""#);
        assert_eq!(serde_json::from_str::<Reason>(r#""x_1""#).unwrap(), "x_1");
        assert!(serde_json::from_str::<Reason>(r#""x 1""#).is_err());
    }
}
