//! Errors of configuration: what is wrong, at which field and at which place of which file.
//!
//! All readers of this crate collect their errors instead of stopping at the first, so that an
//! author sees them together: [`Errors`].

use std::fmt;

use crate::yaml::Position;

/// One fault in a configuration, printed as
/// `envoy.yaml:31:9: static_resources.listeners[0].nmae: unknown field, did you mean 'name'?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file as its reader named it, or empty where the text has no name.
    pub file: String,
    /// Line, counted from 1; 0 where the place is unknown.
    pub line: u32,
    /// Column in characters, counted from 1; 0 where the place is unknown.
    pub column: u32,
    /// The field, as `clusters[3].load_assignment.endpoints[0]`; empty for the whole document.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// The name that was probably meant.
    pub suggestion: Option<String>,
}

impl Error {
    /// An error without a file.
    pub fn new(position: Position, path: impl Into<String>, message: impl Into<String>) -> Error {
        Error {
            file: String::new(),
            line: position.line,
            column: position.column,
            path: path.into(),
            message: message.into(),
            suggestion: None,
        }
    }

    /// The same error with the name of its file.
    #[must_use]
    pub fn in_file(mut self, file: &str) -> Error {
        file.clone_into(&mut self.file);
        self
    }

    /// The same error with a name that was probably meant.
    #[must_use]
    pub fn suggest(mut self, suggestion: Option<&str>) -> Error {
        self.suggestion = suggestion.map(str::to_owned);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
        }
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.file.is_empty() || self.line > 0 {
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, ", did you mean '{suggestion}'?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// All faults found in one configuration, in the order of their places. Printed one per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The errors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }
}

impl IntoIterator for Errors {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Errors {
    type Item = &'a Error;
    type IntoIter = std::slice::Iter<'a, Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl From<Error> for Errors {
    fn from(error: Error) -> Errors {
        Errors(vec![error])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// The candidate nearest to `name`, if one is near enough to have been meant.
///
/// Near: at most a third of the letters wrong, missing, added or swapped (Damerau-Levenshtein,
/// adjacent swaps), not counting case, `_` and `-`.
pub(crate) fn nearest<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let wanted = letters(name);
    if wanted.is_empty() || wanted.len() > 64 {
        return None;
    }
    let mut best: Option<(usize, &'c str)> = None;
    for candidate in candidates {
        let letters = letters(candidate);
        let limit = wanted.len().max(letters.len()) / 3;
        if wanted.len().abs_diff(letters.len()) > limit.max(1) {
            continue;
        }
        let distance = distance(&wanted, &letters);
        if distance <= limit.max(1)
            && distance < wanted.len()
            && best.is_none_or(|(least, _)| distance < least)
        {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Whether one of two names is a slip of the pen for the other.
pub(crate) fn is_slip(name: &str, other: &str) -> bool {
    const MOST: usize = 2;
    let (name, other) = (letters(name), letters(other));
    name.len().abs_diff(other.len()) <= MOST && distance(&name, &other) <= MOST
}

fn letters(name: &str) -> Vec<u8> {
    name.bytes().filter(|byte| !matches!(byte, b'_' | b'-')).map(|byte| byte.to_ascii_lowercase()).collect()
}

/// Edits that make `b` of `a`, a swap of neighbours being one.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let width = b.len() + 1;
    let mut before: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1; width];
        for (j, y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row[j + 1] = least;
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
