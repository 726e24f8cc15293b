//! What goes wrong, and where.

use std::fmt;

/// A part of a template's source, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Span {
        let short = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span { start: short(start), end: short(end) }
    }

    pub(crate) fn to(self, end: Span) -> Span {
        Span { start: self.start, end: end.end }
    }

    /// The text there.
    pub(crate) fn of(self, source: &str) -> &str {
        source.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Why a template cannot be parsed or rendered. Its text has the form of Go's messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The template's name.
    pub template: String,
    /// Line, counted from 1.
    pub line: u32,
    /// Column in bytes, counted from 0 as Go does.
    pub column: u32,
    /// The part of the template that was being evaluated; none while parsing.
    pub at: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl Error {
    pub(crate) fn new(template: &str, source: &str, span: Span, at: bool, message: String) -> Error {
        let before = source.get(..(span.start as usize).min(source.len())).unwrap_or_default();
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let at = at.then(|| {
            let text = span.of(source).trim();
            match text.char_indices().nth(20) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text.to_owned(),
            }
        });
        Error { template: template.to_owned(), line: short(line), column: short(column), at, message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { template, line, column, at, message } = self;
        write!(f, "template: {template}:{line}:{column}: ")?;
        if let Some(at) = at {
            write!(f, "executing {template:?} at <{at}>: ")?;
        }
        f.write_str(message)
    }
}
