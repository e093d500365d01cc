//! What is known of a file or a process. Each fact has a name, by which rules ask for it, and a
//! type.
//!
//! [`fact`](table) lists all facts, [`word`] the words that some of them can be.

pub mod table;
pub mod word;

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

pub use table::Fact;
use word::Word;

/// A text that a message quotes.
pub type Text = Cow<'static, str>;

/// A fact, with the type of its value: [`fact`](table) has one for each.
pub struct Key<T> {
    fact: Fact,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    const fn new(fact: Fact) -> Self {
        Self { fact, of: PhantomData }
    }

    /// Returns the fact without its type, as rules have it.
    #[must_use]
    pub const fn fact(self) -> Fact {
        self.fact
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fact.fmt(f)
    }
}

impl<T> PartialEq<Key<T>> for Fact {
    fn eq(&self, key: &Key<T>) -> bool {
        *self == key.fact
    }
}

/// The type of a fact's value, as rules have it: a rule names its facts in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `bool`.
    Bool,
    /// `i64`.
    Int,
    /// One of the enums of [`word`]: one of these words.
    Word(&'static [&'static str]),
    /// [`Text`].
    Text,
}

/// The value of a fact, as rules have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Whether something is so.
    Bool(bool),
    /// A number.
    Int(i64),
    /// The place of a word among those that the fact can be.
    Word(u8),
    /// A text that a message quotes.
    Text(Text),
}

/// What a fact can be: `bool`, `i64`, [`Text`], or an enum of [`word`].
pub trait FactType: Sized {
    /// The value as it is looked up: a text isn't copied.
    type Ref<'a>;

    /// The type, as rules have it.
    const TYPE: Type;

    /// Forgets the type.
    fn into_value(self) -> Value;

    /// Returns the value, if it is of this type.
    fn of(value: &Value) -> Option<Self::Ref<'_>>;
}

impl FactType for bool {
    type Ref<'a> = Self;

    const TYPE: Type = Type::Bool;

    fn into_value(self) -> Value {
        Value::Bool(self)
    }

    fn of(value: &Value) -> Option<Self> {
        if let Value::Bool(value) = value { Some(*value) } else { None }
    }
}

impl FactType for i64 {
    type Ref<'a> = Self;

    const TYPE: Type = Type::Int;

    fn into_value(self) -> Value {
        Value::Int(self)
    }

    fn of(value: &Value) -> Option<Self> {
        if let Value::Int(value) = value { Some(*value) } else { None }
    }
}

impl FactType for Text {
    type Ref<'a> = &'a str;

    const TYPE: Type = Type::Text;

    fn into_value(self) -> Value {
        Value::Text(self)
    }

    fn of(value: &Value) -> Option<&str> {
        if let Value::Text(value) = value { Some(value) } else { None }
    }
}

impl<W: Word> FactType for W {
    type Ref<'a> = Self;

    const TYPE: Type = Type::Word(W::NAMES);

    fn into_value(self) -> Value {
        Value::Word(self.index())
    }

    fn of(value: &Value) -> Option<Self> {
        if let Value::Word(index) = value { Self::from_index(*index) } else { None }
    }
}

/// What is known of a file. What isn't here was not inspected, or could not be told.
///
/// A fact has a type, so only what rules know of can be said:
///
/// ```
/// use tracker_verdict::{Facts, fact, word::Target};
///
/// let mut facts = Facts::default();
/// facts.set(fact::TARGET, Target::Inside);
/// facts.set(fact::TARGET_PID, 7);
/// assert_eq!(facts.get(fact::TARGET), Some(Target::Inside));
/// assert_eq!(facts.get(fact::OF_THREAD), None);
/// ```
///
/// A word that no rule can know doesn't compile:
///
/// ```compile_fail,E0599
/// # use tracker_verdict::{Facts, fact, word::Target};
/// # let mut facts = Facts::default();
/// facts.set(fact::TARGET, Target::Outsite);
/// ```
///
/// Nor does a value of another type:
///
/// ```compile_fail,E0308
/// # use tracker_verdict::{Facts, fact};
/// # let mut facts = Facts::default();
/// facts.set(fact::OF_THREAD, 3);
/// ```
///
/// Nor a fact that isn't there:
///
/// ```compile_fail,E0425
/// # use tracker_verdict::{Facts, fact};
/// # let mut facts = Facts::default();
/// facts.set(fact::OF_THREADS, true);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<Fact, Value>);

impl Facts {
    /// Learns a fact.
    pub fn set<T: FactType>(&mut self, key: Key<T>, value: T) {
        self.0.insert(key.fact, value.into_value());
    }

    /// Learns a fact, if it could be told.
    pub fn set_some<T: FactType>(&mut self, key: Key<T>, value: Option<T>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Returns what is known.
    #[must_use]
    pub fn get<T: FactType>(&self, key: Key<T>) -> Option<T::Ref<'_>> {
        T::of(self.0.get(&key.fact)?)
    }

    /// Returns what is known of a fact that a rule names.
    pub(crate) fn value(&self, fact: Fact) -> Option<&Value> {
        self.0.get(&fact)
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(fact, value)| (fact.name(), fact.show(value)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<_> = Fact::ALL.iter().map(|fact| fact.name()).collect();
        assert_eq!(names.len(), Fact::ALL.len());
    }

    #[test]
    fn facts_are_found_by_name() {
        assert_eq!(Fact::from_name("of_thread"), Some(table::OF_THREAD.fact()));
        assert_eq!(Fact::from_name("of_threads"), None);
        assert!(table::CLOCK.fact().meaning().starts_with("The clock of a timerfd"));
    }

    #[test]
    fn values_come_back_as_they_were_set() {
        let mut facts = Facts::default();
        facts.set(table::OF_THREAD, true);
        facts.set(table::PID, -1);
        facts.set(table::WATCHES, word::Watches::NoPath);
        facts.set(table::WHY, "gone".into());
        facts.set_some(table::INODE, None);
        assert_eq!(facts.get(table::OF_THREAD), Some(true));
        assert_eq!(facts.get(table::PID), Some(-1));
        assert_eq!(facts.get(table::WATCHES), Some(word::Watches::NoPath));
        assert_eq!(facts.get(table::WHY), Some("gone"));
        assert_eq!(facts.get(table::INODE), None);
        let shown = r#"{"pid": "-1", "of_thread": "true", "watches": "no_path", "why": "gone"}"#;
        assert_eq!(format!("{facts:?}"), shown);
    }

    #[test]
    fn a_type_knows_its_words() {
        let fact = table::WATCHES.fact();
        assert_eq!(fact.value_type(), Type::Word(&["found", "no_handle", "no_path", "no_mount"]));
        assert_eq!(fact.show(&Value::Word(9)), "?");
    }
}
