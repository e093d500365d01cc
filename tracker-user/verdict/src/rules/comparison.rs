//! Relations of numbers and of versions.

use std::{cmp::Ordering, fmt};

use super::error::Problem;

/// A relation of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
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

    /// Whether numbers in this order are in this relation.
    pub(super) fn includes(self, order: Ordering) -> bool {
        match self {
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::More => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }

    /// Splits `>= 4` into the relation and the rest.
    pub(super) fn split(text: &str) -> Option<(Self, &str)> {
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

/// Some versions: all that are in each of these relations. No relation: all versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions(Vec<(Comparison, [u32; 3])>);

impl Versions {
    pub(super) fn include(&self, version: [u32; 3]) -> bool {
        self.0.iter().all(|(relation, limit)| relation.includes(version.cmp(limit)))
    }

    /// Reads `>=4.1, <4.2`.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let parts = text.split(',').map(|part| Self::part(part.trim()));
        parts.collect::<Option<_>>().map(Self).ok_or_else(|| Problem::Versions(text.to_owned()))
    }

    fn part(text: &str) -> Option<(Comparison, [u32; 3])> {
        let (relation, version) = Comparison::split(text)?;
        let mut numbers = [0; 3];
        let mut places = numbers.iter_mut();
        for number in version.split('.') {
            *places.next()? = number.parse().ok()?;
        }
        Some((relation, numbers))
    }

    /// Describes the versions; `None` if it is all.
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

    #[test]
    fn ranges_of_versions() {
        let range = Versions::parse(">=4.1, <4.2").unwrap();
        assert!(range.include([4, 1, 0]) && range.include([4, 1, 1]));
        assert!(!range.include([4, 0, 0]) && !range.include([4, 2, 0]));
        assert!(Versions::default().include([3, 17, 1]));
        for bad in ["", "4.1", "=4.1", ">=4.x", ">=4.1.1.1", ">=4.1,"] {
            assert_eq!(Versions::parse(bad), Err(Problem::Versions(bad.into())), "{bad}");
        }
        assert_eq!(range.describe("CRIU").unwrap(), "CRIU >= 4.1 and < 4.2");
    }
}
