//! Texts with facts in them: `Can't dump file {fd} of that type [{mode:o}]`.

use std::fmt::Write as _;

use super::{
    error::{Expected, Problem},
    file,
    reader::unknown,
};
use crate::facts::{Fact, Type, Value};

/// A text with places for facts. `{fact}` is a fact as it is; `{fact:x}`, `{fact:#x}`, `{fact:o}`
/// and `{fact:016x}` are a number in another base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Fact(Fact, Form),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Hex,
    PrefixedHex,
    /// As addresses are printed: 16 digits.
    PaddedHex,
    Octal,
}

/// Forms, as they are written behind a fact's name.
pub(super) const FORMS: &[(&str, Form)] = &[
    ("", Form::Plain),
    ("x", Form::Hex),
    ("#x", Form::PrefixedHex),
    ("016x", Form::PaddedHex),
    ("o", Form::Octal),
];

impl Message {
    /// Reads a text.
    ///
    /// # Errors
    /// When a place names no fact, or isn't closed.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (place, after) = after.split_once('}').ok_or_else(|| Problem::Open(text.to_owned()))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Self::place(place)?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    /// Reads a place for a fact: `fact`, or `fact:x`.
    fn place(place: &str) -> Result<Part, Problem> {
        let (name, form) = place.split_once(':').unwrap_or((place, ""));
        let fact = file::fact(name)?;
        let known = FORMS.iter().find(|(known, _)| *known == form).map(|(_, form)| *form);
        let known = known.ok_or_else(|| unknown(Expected::Form, form))?;
        if known != Form::Plain && fact.value_type() != Type::Int {
            return Err(Problem::Form { fact: fact.name(), form: form.to_owned() });
        }
        Ok(Part::Fact(fact, known))
    }

    /// Makes one without places.
    pub(super) fn of_text(text: String) -> Self {
        Self(vec![Part::Text(text)])
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fills in facts, and `?` for what isn't known.
    pub(crate) fn fill<'a>(&self, lookup: impl Fn(Fact) -> Option<&'a Value>) -> String {
        let mut text = String::new();
        for part in &self.0 {
            // Writing to a string can't fail.
            let _ = match part {
                Part::Text(part) => write!(text, "{part}"),
                Part::Fact(fact, form) => match (lookup(*fact), form) {
                    // As printf has them: %x and %o take the low 32 bits.
                    (Some(Value::Int(n)), Form::Hex) => write!(text, "{n:x}"),
                    (Some(Value::Int(n)), Form::PrefixedHex) => write!(text, "{n:#x}"),
                    (Some(Value::Int(n)), Form::PaddedHex) => write!(text, "{n:016x}"),
                    (Some(Value::Int(n)), Form::Octal) => write!(text, "{n:o}"),
                    (Some(value), _) => write!(text, "{}", fact.show(value)),
                    (None, _) => write!(text, "?"),
                },
            };
        }
        text
    }

    /// Shows the text as it stands in the file: places by their names.
    #[must_use]
    pub fn pattern(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Fact(fact, _) => format!("{{{}}}", fact.name()),
        };
        self.0.iter().map(part).collect()
    }

    /// Recognises a text as this one, with whatever facts in it. Returns the facts, as texts.
    #[must_use]
    pub fn matches(&self, text: &str) -> Option<Vec<(Fact, String)>> {
        let mut rest = text;
        let mut facts = Vec::new();
        let mut parts = self.0.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Text(part) => rest = rest.strip_prefix(part.as_str())?,
                Part::Fact(fact, _) => {
                    let end = match parts.peek() {
                        Some(Part::Text(next)) => rest.find(next.as_str())?,
                        // Two facts in a row can't be told apart.
                        Some(Part::Fact(..)) => return None,
                        None => rest.len(),
                    };
                    let (value, after) = rest.split_at_checked(end)?;
                    facts.push((*fact, value.to_owned()));
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Facts, fact, word::Nested};

    fn facts() -> Facts {
        let mut facts = Facts::default();
        facts.set(fact::FD, 7);
        facts.set(fact::MODE, 0o600);
        facts.set(fact::INODE, 0xab);
        facts.set(fact::LINK, "anon_inode:[pidfd]".into());
        facts.set(fact::NESTED, Nested::Ipc);
        facts
    }

    fn fill(message: &str) -> String {
        let facts = facts();
        Message::parse(message).unwrap().fill(|fact| facts.value(fact))
    }

    #[test]
    fn facts_are_filled_in() {
        let text = "Can't dump file 7 of that type [600] (anon anon_inode:[pidfd])";
        assert_eq!(fill("Can't dump file {fd} of that type [{mode:o}] (anon {link})"), text);
        assert_eq!(fill("{inode:x} {inode:#x} {size}"), "ab 0xab ?");
        assert_eq!(fill("{inode:016x}"), "00000000000000ab");
        assert_eq!(fill("Can't dump nested {nested} namespace"), "Can't dump nested ipc namespace");
    }

    #[test]
    fn a_text_is_recognised() {
        let message = Message::parse("Can't dump file {fd} of that type [{mode:o}] (anon {link})").unwrap();
        let found =
            message.matches("Can't dump file 24 of that type [600] (anon anon_inode:[pidfd])").unwrap();
        assert_eq!(found[0], (fact::FD.fact(), "24".to_owned()));
        assert_eq!(found[2], (fact::LINK.fact(), "anon_inode:[pidfd]".to_owned()));
        assert!(message.matches("Can't dump file 24").is_none());
        assert!(message.matches("").is_none());
    }

    #[test]
    fn bad_places_are_refused() {
        for bad in ["{", "{nothing}", "{fd:y}", "{link:x}", "{fd"] {
            assert!(Message::parse(bad).is_err(), "{bad}");
        }
        assert!(Message::parse("").unwrap().is_empty());
    }
}
