//! The one error of this crate: what was being done, and what the kernel answered.

use std::{fmt, io};

/// A step that failed, in words, with the operating system's error.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NodeError {
    /// What was being done, for example `cannot add the bridge leno0`.
    pub step: String,
    /// What the kernel answered.
    #[source]
    pub source: io::Error,
}

impl NodeError {
    pub(crate) fn new(step: impl fmt::Display, source: impl Into<io::Error>) -> NodeError {
        NodeError { step: step.to_string(), source: source.into() }
    }
}

/// Adds the step to a result whose error is the operating system's.
pub(crate) trait During<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, NodeError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, NodeError> {
        self.map_err(|e| NodeError { step: step(), source: e.into() })
    }
}
