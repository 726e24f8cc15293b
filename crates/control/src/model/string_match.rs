//! Istio's `StringMatch`: exact, prefix or regular expression.

use serde::Deserialize;

/// How a text must look. With none of the three given, it must only be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StringMatch {
    /// Exact string.
    pub(crate) exact: Option<String>,
    /// Prefix string.
    pub(crate) prefix: Option<String>,
    /// RE2, must match the whole text; `*` means "is present".
    pub(crate) regex: Option<String>,
}

impl StringMatch {
    /// Whether it asks for presence only.
    pub(crate) fn is_present_match(&self) -> bool {
        match (&self.exact, &self.prefix, &self.regex) {
            (None, None, None) => true,
            (None, None, Some(regex)) => regex == "*",
            _ => false,
        }
    }
}
