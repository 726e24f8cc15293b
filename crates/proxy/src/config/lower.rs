//! Lowering: from protobuf messages to the typed, immutable configuration that the data path
//! reads. Parse, don't validate: defaults are applied, regexes compiled, names interned,
//! references resolved, and *all* errors are collected, each with the path of its field.
//!
//! Each feature lowers its own message in its own `config.rs`, by a function
//! `fn lower(proto: P, at: &mut Lower) -> Option<Typed>` that destructures the message
//! *exhaustively* (no `..`): a field that the API gains breaks the build until it is lowered or
//! named in `unsupported`. Nothing is ignored silently. Lowering is pure: `--mode validate`,
//! xDS updates, tests and fuzz targets call the same functions.

use std::fmt;
use std::time::Duration;

use prost_types::Any;

/// One refused field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// Where in the message, e.g. `virtual_hosts[2].routes[5].match.safe_regex`.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// A resource that was refused, with all reasons; the last good version keeps serving.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Rejected(pub(crate) Vec<ConfigError>);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// The place in the message that is being lowered, and the errors found so far.
#[derive(Debug, Default)]
pub(crate) struct Lower {
    path: String,
    errors: Vec<ConfigError>,
}

impl Lower {
    /// Lowers one resource: `Ok` only if nothing was refused.
    pub(crate) fn resource<T>(lower: impl FnOnce(&mut Lower) -> Option<T>) -> Result<T, Rejected> {
        let mut at = Lower::default();
        let lowered = lower(&mut at);
        match lowered {
            Some(value) if at.errors.is_empty() => Ok(value),
            _ if at.errors.is_empty() => Err(Rejected(vec![ConfigError { path: String::new(), message: "refused".into() }])),
            _ => Err(Rejected(at.errors)),
        }
    }

    /// Lowers what lies in `field`.
    pub(crate) fn field<T>(&mut self, field: &str, lower: impl FnOnce(&mut Lower) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(field);
        let value = lower(self);
        self.path.truncate(length);
        value
    }

    /// Lowers every element of a repeated field; elements that are refused are left out.
    pub(crate) fn each<P, T>(&mut self, field: &str, items: Vec<P>, mut lower: impl FnMut(P, &mut Lower) -> Option<T>) -> Vec<T> {
        let items = items.into_iter().enumerate();
        items.filter_map(|(index, item)| self.field(&format!("{field}[{index}]"), |at| lower(item, at))).collect()
    }

    /// Lowers an optional message field.
    pub(crate) fn optional<P, T>(&mut self, field: &str, item: Option<P>, lower: impl FnOnce(P, &mut Lower) -> Option<T>) -> Option<T> {
        item.and_then(|item| self.field(field, |at| lower(item, at)))
    }

    /// Refuses the current place.
    pub(crate) fn error(&mut self, message: impl Into<String>) {
        self.errors.push(ConfigError { path: self.path.clone(), message: message.into() });
    }

    /// Refuses `field` of the current place.
    pub(crate) fn error_at(&mut self, field: &str, message: impl Into<String>) {
        self.field(field, |at| at.error(message));
    }

    /// Refuses a field that Envoy has and we do not, if it is set.
    pub(crate) fn unsupported(&mut self, field: &str, set: bool) {
        if set {
            self.error_at(field, "not supported yet");
        }
    }

    /// Refuses an extension that Envoy has and we do not.
    pub(crate) fn unsupported_extension(&mut self, name: &str, type_url: &str) {
        self.error(format!("extension '{name}' ({type_url}) is not supported yet"));
    }

    /// Unpacks a typed extension config of the expected type.
    pub(crate) fn unpack<T: prost::Message + prost::Name + Default>(&mut self, any: &Any) -> Option<T> {
        if any.type_url.rsplit('/').next() != Some(T::full_name().as_str()) {
            self.error(format!("expected {}, got {}", T::full_name(), any.type_url));
            return None;
        }
        match T::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => {
                self.error(format!("cannot decode {}: {error}", T::full_name()));
                None
            }
        }
    }

    /// A duration; negative ones are refused.
    pub(crate) fn duration(&mut self, field: &str, value: Option<prost_types::Duration>) -> Option<Duration> {
        let value = value?;
        match Duration::try_from(value) {
            Ok(duration) => Some(duration),
            Err(_) => {
                self.error_at(field, "must not be negative");
                None
            }
        }
    }
}
