//! Reads values from a TOML file.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{ConfigError, Given, Key, Origin, Shape};
use crate::error::SyscallError;

/// The longest file that is read into memory: no configuration is that long.
const LONGEST: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// When it can't be read, or is wrong.
pub(super) fn read(path: &Path, keys: &[Key]) -> Result<Given, ConfigError> {
    let text = text(path).map_err(SyscallError::on("read the configuration file", path.display()))?;
    File { name: &path.display().to_string(), text: &text, keys }.parse()
}

fn text(path: &Path) -> io::Result<String> {
    // A pipe that nobody writes to must not block the agent.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file, but a directory, a pipe or a device"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("it is longer than {LONGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        io::Error::other(format!("it is no UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
    })
}

pub(super) struct File<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) keys: &'a [Key],
}

impl File<'_> {
    pub(super) fn parse(&self) -> Result<Given, ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| ConfigError::Syntax {
            place: self.place(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })?;
        let mut given = Given::new();
        self.walk("", table.get_ref(), &mut given)?;
        Ok(given)
    }

    /// Reads a table. Dots mean nesting, as in TOML: `web.listen-address`, or `listen-address` in
    /// `[web]`.
    fn walk(&self, above: &str, table: &DeTable<'_>, given: &mut Given) -> Result<(), ConfigError> {
        for (name, value) in table {
            let at = name.span().start;
            let name = format!("{above}{}", name.get_ref());
            match (Key::find(self.keys, &name), value.get_ref()) {
                (None, DeValue::Table(below)) if self.has_any_below(&name) || !below.is_empty() => {
                    self.walk(&format!("{name}."), below, given)?;
                }
                (None, _) => return Err(self.unknown(name, at)),
                (Some(key), _) if !key.is_in_file() => {
                    let why = "can only be given on the command line";
                    return Err(ConfigError::Misplaced { place: self.place(at), name, why });
                }
                (Some(key), _) => {
                    let origin = Origin::File(self.line(at));
                    if given.insert(name.clone(), (self.values(key, value)?, origin)).is_some() {
                        let why = "is set twice";
                        return Err(ConfigError::Misplaced { place: self.place(at), name, why });
                    }
                }
            }
        }
        Ok(())
    }

    fn has_any_below(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }

    fn unknown(&self, name: String, at: usize) -> ConfigError {
        let known = self.keys.iter().filter(|key| key.is_in_file()).map(|key| key.name.clone());
        let nearest = Key::nearest(known, &name);
        ConfigError::Unknown { place: self.place(at), name, nearest }
    }

    fn values(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, ConfigError> {
        match value.get_ref() {
            DeValue::Array(values) if key.many => values.iter().map(|value| self.value(key, value)).collect(),
            DeValue::Array(_) => Err(self.wrong(key, value, "it must be one value, not an array".into())),
            _ if key.many => {
                Err(self.wrong(key, value, format!("it must be an array, such as [{}]", self.quoted(value))))
            }
            _ => Ok(vec![self.value(key, value)?]),
        }
    }

    fn value(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<OsString, ConfigError> {
        let text = match (key.shape, value.get_ref()) {
            (Shape::Switch, DeValue::Boolean(on)) => on.to_string(),
            (Shape::Number, DeValue::Integer(number)) => {
                decimal(number).ok_or_else(|| self.wrong(key, value, "the number is too large".into()))?
            }
            (Shape::Number | Shape::Text, DeValue::String(text)) => text.clone().into_owned(),
            (Shape::Switch, _) => return Err(self.wrong(key, value, "it must be true or false".into())),
            (Shape::Number, _) => return Err(self.wrong(key, value, "it must be a whole number".into())),
            (Shape::Text, _) => {
                return Err(self.wrong(
                    key,
                    value,
                    format!("it must be a string, such as {}", self.quoted(value)),
                ));
            }
        };
        let text = OsString::from(text);
        match key.complaint(&text) {
            Some(why) => Err(self.wrong(key, value, why)),
            None => Ok(text),
        }
    }

    fn wrong(&self, key: &Key, value: &Spanned<DeValue<'_>>, why: String) -> ConfigError {
        let at = value.span().start;
        ConfigError::Value {
            place: self.place(at),
            name: key.name.clone(),
            value: self.written(value).into(),
            why,
        }
    }

    /// Returns a value as it is written in the file; only the beginning if it is long.
    fn written(&self, value: &Spanned<DeValue<'_>>) -> &str {
        let text = self.text.get(value.span()).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        line.char_indices().nth(80).and_then(|(end, _)| line.get(..end)).unwrap_or(line)
    }

    /// Returns the value as a string, in quotes.
    fn quoted(&self, value: &Spanned<DeValue<'_>>) -> String {
        let text = self.written(value);
        match value.get_ref() {
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Boolean(_) => {
                format!("\"{text}\"")
            }
            DeValue::String(_) => text.to_owned(),
            DeValue::Array(_) | DeValue::Table(_) => "\"text\"".to_owned(),
        }
    }

    fn place(&self, at: usize) -> String {
        format!("{}:{}", self.name, self.line(at))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }
}

fn decimal(number: &DeInteger<'_>) -> Option<String> {
    i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
}
