//! A table of TOML, read field by field, so that an error knows where it is.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{Expected, Problem};

/// A problem, and at which byte of the file it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) at: usize,
    pub(super) problem: Problem,
}

impl Problem {
    /// Says where in the file it is.
    pub(super) fn at<T>(self, place: &Spanned<T>) -> Located {
        Located { at: place.span().start, problem: self }
    }
}

/// Makes a problem of a word that isn't known.
pub(super) fn unknown(expected: Expected, word: &str) -> Problem {
    Problem::Word { expected, word: word.to_owned() }
}

/// Makes a problem of a value that isn't of the type that it must be.
pub(super) fn wrong_type(
    name: &'static str,
    expected: &'static str,
    found: &Spanned<DeValue<'_>>,
) -> Located {
    let what = match found.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Problem::Type { name, expected, found: what }.at(found)
}

/// A table of which all fields are known.
pub(super) struct Fields<'t> {
    table: &'t DeTable<'t>,
    at: usize,
}

impl<'t> Fields<'t> {
    /// Takes a table, which stands at this byte.
    ///
    /// # Errors
    /// When it has other fields than these.
    pub(super) fn new(table: &'t DeTable<'t>, at: usize, expected: Expected) -> Result<Self, Located> {
        let known = expected.known();
        match table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            Some(key) => Err(unknown(expected, key.get_ref()).at(key)),
            None => Ok(Self { table, at }),
        }
    }

    /// Makes a problem of the table as a whole.
    pub(super) fn wrong(&self, problem: Problem) -> Located {
        Located { at: self.at, problem }
    }

    /// Finds a field's value, if it is there.
    pub(super) fn get(&self, name: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(name)
    }

    /// Refuses a table without a field that must be there.
    pub(super) fn must<T>(&self, name: &'static str, value: Option<T>) -> Result<T, Located> {
        value.ok_or_else(|| self.wrong(Problem::Missing(name)))
    }

    /// Reads a text, if the field is there.
    pub(super) fn parse<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Result<Option<T>, Located> {
        self.get(name).map(|value| read(name, "a text", value, &parse)).transpose()
    }

    /// Reads each text of a list, if the field is there.
    pub(super) fn list<L: FromIterator<T>, T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Result<Option<L>, Located> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let expected = "a list of texts";
        let list = value.get_ref().as_array().ok_or_else(|| wrong_type(name, expected, value))?;
        let items = list.iter().map(|value| read(name, expected, value, &parse));
        items.collect::<Result<L, Located>>().map(Some)
    }
}

fn read<T>(
    name: &'static str,
    expected: &'static str,
    value: &Spanned<DeValue<'_>>,
    parse: impl Fn(&str) -> Result<T, Problem>,
) -> Result<T, Located> {
    let text = value.get_ref().as_str().ok_or_else(|| wrong_type(name, expected, value))?;
    parse(text).map_err(|problem| problem.at(value))
}
