//! Conditions of a rule.

use std::{cmp::Ordering, fmt};

use crate::{
    Profile,
    facts::{Fact, Type, Value},
};

/// Whether a condition matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It does.
    Yes,
    /// It doesn't.
    No,
    /// The fact isn't known.
    Unknown,
}

/// What a fact must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// One of these.
    OneOf(Vec<Value>),
    /// None of these.
    NoneOf(Vec<Value>),
    /// In this relation to a number.
    Compare(Comparison, Limit),
}

/// A relation of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

impl Comparison {
    const ALL: [(&str, Self); 4] =
        [("<=", Self::AtMost), (">=", Self::AtLeast), ("<", Self::Less), (">", Self::More)];

    fn is_met(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::More => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }

    /// Splits `>= 4` into the relation and the rest.
    fn split(text: &str) -> Option<(Self, &str)> {
        let (sign, relation) = Self::ALL.into_iter().find(|(sign, _)| text.starts_with(sign))?;
        Some((relation, text.get(sign.len()..)?.trim()))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Self::ALL.into_iter().find(|(_, relation)| relation == self).map_or("", |(sign, _)| sign);
        f.write_str(sign)
    }
}

/// A number that is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// This one.
    Number(i64),
    /// What `--ghost-limit` says.
    GhostLimit,
}

impl Condition {
    /// Whether a fact is as it must be.
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
                matches!(value, Value::Int(number) if relation.is_met(number.cmp(&limit)))
            }
        };
        if is_so { Truth::Yes } else { Truth::No }
    }

    /// Reads what a rule says of a fact.
    ///
    /// # Errors
    /// When a fact of this type can't be so: why.
    pub(super) fn parse(fact: Fact, value: &toml::Value) -> Result<Self, String> {
        if let toml::Value::String(text) = value
            && fact.value_type() == Type::Int
        {
            return Self::parse_comparison(text);
        }
        if let toml::Value::Table(table) = value {
            let (Some(values), 1) = (table.get("not"), table.len()) else {
                return Err("a table can only say what a fact is not: { not = … }".into());
            };
            return Ok(Self::NoneOf(alternatives(fact, values)?));
        }
        Ok(Self::OneOf(alternatives(fact, value)?))
    }

    fn parse_comparison(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no comparison, such as \">= 64\" or \"> ghost_limit\"");
        let (relation, rest) = Comparison::split(text).ok_or_else(wrong)?;
        let limit = match rest {
            "ghost_limit" => Limit::GhostLimit,
            number => Limit::Number(number.parse().map_err(|_| wrong())?),
        };
        Ok(Self::Compare(relation, limit))
    }

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

fn alternatives(fact: Fact, value: &toml::Value) -> Result<Vec<Value>, String> {
    match value {
        toml::Value::Array(values) => values.iter().map(|value| one(fact, value)).collect(),
        value => Ok(vec![one(fact, value)?]),
    }
}

fn one(fact: Fact, value: &toml::Value) -> Result<Value, String> {
    let name = fact.name();
    match (fact.value_type(), value) {
        (Type::Bool, toml::Value::Boolean(value)) => Ok(Value::Bool(*value)),
        (Type::Bool, _) => Err(format!("{name} is true or false")),
        (Type::Int, toml::Value::Integer(value)) => Ok(Value::Int(*value)),
        (Type::Int, _) => Err(format!("{name} is a number, or a comparison such as \">= 64\"")),
        (Type::Word(words), toml::Value::String(text)) => {
            let place = words.iter().position(|word| word == text).and_then(|place| u8::try_from(place).ok());
            let never = || format!("{name} is never {text:?}, but {}", words.join(", "));
            place.map(Value::Word).ok_or_else(never)
        }
        (Type::Text, toml::Value::String(text)) => Ok(Value::Text(text.clone().into())),
        (Type::Text | Type::Word(_), _) => Err(format!("{name} is a text")),
    }
}

/// Some versions: all that are in each of these relations. No relation: all versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions(Vec<(Comparison, [u32; 3])>);

impl Versions {
    pub(super) fn include(&self, version: [u32; 3]) -> bool {
        self.0.iter().all(|(relation, limit)| relation.is_met(version.cmp(limit)))
    }

    /// Reads `>=4.1, <4.2`.
    ///
    /// # Errors
    /// When it is something else: what would be right.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            let wrong = || format!("{text:?} is no range of versions, such as \">=4.1, <4.2\"");
            let (relation, version) = Comparison::split(part.trim()).ok_or_else(wrong)?;
            let mut numbers = [0; 3];
            let mut places = numbers.iter_mut();
            for number in version.split('.') {
                *places.next().ok_or_else(wrong)? = number.parse().map_err(|_| wrong())?;
            }
            Ok((relation, numbers))
        };
        text.split(',').map(part).collect::<Result<_, String>>().map(Self)
    }

    pub(super) fn describe(&self, of: &str) -> Option<String> {
        let part = |(relation, [major, minor, patch]): &(Comparison, [u32; 3])| {
            let patch = if *patch > 0 { format!(".{patch}") } else { String::new() };
            format!("{relation} {major}.{minor}{patch}")
        };
        let parts: Vec<String> = self.0.iter().map(part).collect();
        (!parts.is_empty()).then(|| format!("{of} {}", parts.join(" and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FactType, KernelVersion, Key, fact, word::Target};

    fn profile() -> Profile {
        Profile::new(None, None, KernelVersion { major: 6, minor: 12 })
    }

    fn condition<T>(key: Key<T>, text: &str) -> Result<Condition, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        Condition::parse(key.fact(), &table["value"])
    }

    fn truth<T: FactType>(key: Key<T>, text: &str, value: T) -> Truth {
        condition(key, text).unwrap().of(Some(&value.into_value()), &profile())
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
        let unknown = condition(fact::OF_THREAD, "true").unwrap().of(None, &profile());
        assert_eq!(unknown, Truth::Unknown);
    }

    #[test]
    fn what_a_fact_cant_be_is_refused() {
        assert!(condition(fact::OF_THREAD, "1").is_err());
        assert!(condition(fact::CLOCK, "true").is_err());
        assert!(condition(fact::CLOCK, "\"about 8\"").is_err());
        for text in ["\"outsite\"", "3", "{ is = \"outside\" }"] {
            assert!(condition(fact::TARGET, text).is_err(), "{text}");
        }
        let error = condition(fact::TARGET, "\"outsite\"").unwrap_err();
        assert!(error.contains("reaped, inside, outside"));
    }

    #[test]
    fn ranges_of_versions() {
        let range = Versions::parse(">=4.1, <4.2").unwrap();
        assert!(range.include([4, 1, 0]) && range.include([4, 1, 1]));
        assert!(!range.include([4, 0, 0]) && !range.include([4, 2, 0]));
        assert!(Versions::default().include([3, 17, 1]));
        for bad in ["", "4.1", "=4.1", ">=4.x", ">=4.1.1.1", ">=4.1,"] {
            assert!(Versions::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(range.describe("CRIU").unwrap(), "CRIU >= 4.1 and < 4.2");
    }
}
