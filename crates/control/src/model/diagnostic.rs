//! What is wrong or noteworthy about the configuration, for people and for machines.
//!
//! Readers and derivations produce [`Finding`]s, which know a field's path only. The place in the
//! file is added by whoever holds the text (`crate::source`), which makes a [`Diagnostic`] of it.

use std::fmt;

use serde::Serialize;

use super::ObjectRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object (or file) is not used; its last good version is, if there was one.
    Error,
    /// The object is used, but not all of it, or not with the effect that its author expects.
    Warning,
}

/// One fault of one object, not yet located in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What sort of fault, a stable kebab-case word such as `unknown-subset`.
    pub code: &'static str,
    /// The field, as `spec.http[0].route[1].destination.subset`; empty for the whole object.
    pub path: String,
    /// What is wrong, a clause without the path.
    pub message: String,
}

/// One fault with its place, as printed in the log and served on `/debug/diagnostics`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What sort of fault, a stable kebab-case word such as `unknown-subset`.
    pub code: String,
    /// The file; empty where the configuration does not come from one.
    pub file: String,
    /// Line, counted from 1; 0 where unknown.
    pub line: u32,
    /// Column in characters, counted from 1; 0 where unknown.
    pub column: u32,
    /// The object's kind, as `VirtualService`; empty if no object could be read.
    pub kind: String,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The field; empty for the whole object.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Diagnostic {
    /// A finding about an object, not yet located.
    pub fn about(object: &ObjectRef, finding: &Finding) -> Diagnostic {
        Diagnostic {
            severity: finding.severity,
            code: finding.code.to_owned(),
            file: String::new(),
            line: 0,
            column: 0,
            kind: object.kind.to_string(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            path: finding.path.clone(),
            message: finding.message.clone(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.kind.is_empty() {
            write!(f, "{} {}/{}: ", self.kind, self.namespace, self.name)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{} [{}]", self.message, self.code)
    }
}
