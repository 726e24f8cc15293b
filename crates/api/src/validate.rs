//! Checks messages in wire form as Envoy checks them before use.
//!
//! Three kinds of fault, all found in one walk that also enters `Any`s of known types:
//! violated `validate.rules` constraints (protoc-gen-validate), fields that the schema does not
//! know, and deprecated fields.

use prost::{Message, Name};

use crate::Errors;

/// What a walk over one message found. Paths are as in [`crate::Error`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Constraints that do not hold, bytes that are no such message, and uses of fields and enum
    /// values that Envoy disallows by default: each makes Envoy reject the message.
    pub violations: Vec<Violation>,
    /// Fields on the wire that the schema does not know. Envoy accepts them from xDS by default
    /// and refuses them in files.
    pub unknown: Vec<Violation>,
    /// Deprecated fields and enum values in use that are still allowed.
    pub deprecated: Vec<Violation>,
}

/// A fault and the field that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as `virtual_hosts[1].domains`, with proto names.
    pub path: String,
    /// What is wrong, worded as Envoy words it (`value length must be at least 1 characters`).
    pub message: String,
}

/// Walks a message in wire form and reports all that is wrong with it.
///
/// # Errors
/// None: a type that the schema does not know is a violation of the whole message.
pub fn inspect(type_name: &str, wire: &[u8]) -> Report {
    let _ = (type_name, wire);
    todo!()
}

/// [`inspect`], for callers that only want to accept or reject.
///
/// # Errors
/// All violations.
pub fn validate(type_name: &str, wire: &[u8]) -> Result<(), Vec<Violation>> {
    let report = inspect(type_name, wire);
    if report.violations.is_empty() { Ok(()) } else { Err(report.violations) }
}

/// [`validate`] for a message that is a Rust value.
///
/// # Errors
/// All violations, without places.
pub fn message<T: Message + Name>(message: &T) -> Result<(), Errors> {
    let _ = message;
    todo!()
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}
