//! Conditions of a rule.

use toml::{Spanned, de::DeValue};

use super::{
    comparison::Comparison,
    error::{Expected, Problem},
    reader::{Fields, Located, unknown, wrong_type},
};
use crate::{
    Profile,
    facts::{Fact, Type, Value},
};

/// Whether a condition matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    /// It does.
    Yes,
    /// It doesn't.
    No,
    /// The fact isn't known.
    Unknown,
}

/// What a fact must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// One of these.
    OneOf(Vec<Value>),
    /// None of these.
    NoneOf(Vec<Value>),
    /// In this relation to a number.
    Compare(Comparison, Limit),
}

/// A number that is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// This one.
    Number(i64),
    /// What `--ghost-limit` says.
    GhostLimit,
}

impl Condition {
    /// Whether it matches a value.
    pub(super) fn of(&self, value: Option<&Value>, profile: &Profile) -> Truth {
        let Some(value) = value else { return Truth::Unknown };
        let is_so = match self {
            Self::OneOf(values) => values.contains(value),
            Self::NoneOf(values) => !values.contains(value),
            Self::Compare(relation, limit) => {
                let limit = match limit {
                    Limit::Number(number) => *number,
                    Limit::GhostLimit => i64::try_from(profile.options.ghost_limit).unwrap_or(i64::MAX),
                };
                matches!(value, Value::Int(number) if relation.includes(number.cmp(&limit)))
            }
        };
        if is_so { Truth::Yes } else { Truth::No }
    }

    /// Reads what a rule says of a fact.
    ///
    /// # Errors
    /// When the fact can't be so.
    pub(super) fn read(fact: Fact, value: &Spanned<DeValue<'_>>) -> Result<Self, Located> {
        match value.get_ref() {
            DeValue::String(text) if fact.value_type() == Type::Int => {
                Self::comparison(text).ok_or_else(|| Problem::Comparison(text.to_string()).at(value))
            }
            DeValue::Table(table) => {
                let fields = Fields::new(table, value.span().start, Expected::Condition)?;
                Ok(Self::NoneOf(alternatives(fact, fields.must("not", fields.get("not"))?)?))
            }
            _ => Ok(Self::OneOf(alternatives(fact, value)?)),
        }
    }

    fn comparison(text: &str) -> Option<Self> {
        let (relation, rest) = Comparison::split(text)?;
        let limit = match rest {
            "ghost_limit" => Limit::GhostLimit,
            number => Limit::Number(number.parse().ok()?),
        };
        Some(Self::Compare(relation, limit))
    }

    /// Describes it.
    pub(super) fn describe(&self, fact: Fact) -> String {
        let name = fact.name();
        let list =
            |values: &[Value]| values.iter().map(|value| fact.show(value)).collect::<Vec<_>>().join(" or ");
        match self {
            Self::OneOf(values) if *values == [Value::Bool(true)] => name.to_owned(),
            Self::OneOf(values) if *values == [Value::Bool(false)] => format!("not {name}"),
            Self::OneOf(values) => format!("{name} {}", list(values)),
            Self::NoneOf(values) => format!("{name} not {}", list(values)),
            Self::Compare(relation, Limit::Number(number)) => format!("{name} {relation} {number}"),
            Self::Compare(relation, Limit::GhostLimit) => format!("{name} {relation} ghost limit"),
        }
    }
}

fn alternatives(fact: Fact, value: &Spanned<DeValue<'_>>) -> Result<Vec<Value>, Located> {
    match value.get_ref() {
        DeValue::Array(values) => values.iter().map(|value| one(fact, value)).collect(),
        _ => Ok(vec![one(fact, value)?]),
    }
}

fn one(fact: Fact, value: &Spanned<DeValue<'_>>) -> Result<Value, Located> {
    let wrong = |expected| Err(wrong_type(fact.name(), expected, value));
    match (fact.value_type(), value.get_ref()) {
        (Type::Bool, DeValue::Boolean(value)) => Ok(Value::Bool(*value)),
        (Type::Bool, _) => wrong("true or false"),
        (Type::Int, DeValue::Integer(number)) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number.map(Value::Int).or_else(|_| wrong("a number of 64 bits"))
        }
        (Type::Int, _) => wrong("a number, or a comparison such as \">= 64\""),
        (Type::Word(words), DeValue::String(text)) => {
            let place = words.iter().position(|word| word == text).and_then(|place| u8::try_from(place).ok());
            place.map(Value::Word).ok_or_else(|| unknown(Expected::Of(fact), text).at(value))
        }
        (Type::Text, DeValue::String(text)) => Ok(Value::Text(text.to_string().into())),
        (Type::Text | Type::Word(_), _) => wrong("a text"),
    }
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;
    use crate::{FactType, KernelVersion, Key, fact, word::Target};

    fn profile() -> Profile {
        Profile::new(None, None, KernelVersion { major: 6, minor: 12 })
    }

    fn condition<T>(key: Key<T>, text: &str) -> Condition {
        let text = format!("value = {text}");
        let table = DeTable::parse(&text).unwrap();
        Condition::read(key.fact(), &table.get_ref()["value"]).unwrap()
    }

    fn truth<T: FactType>(key: Key<T>, text: &str, value: T) -> Truth {
        condition(key, text).of(Some(&value.into_value()), &profile())
    }

    #[test]
    fn values_are_compared() {
        assert_eq!(truth(fact::OF_THREAD, "true", true), Truth::Yes);
        assert_eq!(truth(fact::CLOCK, "[8, 9]", 9), Truth::Yes);
        assert_eq!(truth(fact::CLOCK, "[8, 9]", 1), Truth::No);
        assert_eq!(truth(fact::MINOR, "\">= 64\"", 64), Truth::Yes);
        assert_eq!(truth(fact::MINOR, "\"> 64\"", 64), Truth::No);
        assert_eq!(truth(fact::SIZE, "\"> ghost_limit\"", (1 << 20) + 1), Truth::Yes);
        assert_eq!(truth(fact::TARGET, "{ not = \"outside\" }", Target::Inside), Truth::Yes);
        let unknown = condition(fact::OF_THREAD, "true").of(None, &profile());
        assert_eq!(unknown, Truth::Unknown);
    }
}
