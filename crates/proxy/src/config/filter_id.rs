//! Numbers for the names of filters, given when lowering, so that requests compare numbers.
//!
//! Chains and the per-route settings of tables that come by RDS are lowered apart from each
//! other and meet by name; a name gets the same number wherever it stands.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The number of a filter's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilterId(u32);

impl FilterId {
    /// The number of this name; for lowering only.
    pub(crate) fn of(name: &str) -> FilterId {
        static NAMES: LazyLock<Mutex<HashMap<Box<str>, u32>>> = LazyLock::new(Mutex::default);
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = names.get(name) {
            return FilterId(*number);
        }
        let number = u32::try_from(names.len()).unwrap_or(u32::MAX);
        names.insert(name.into(), number);
        FilterId(number)
    }
}

#[cfg(test)]
mod tests {
    use super::FilterId;

    #[test]
    fn a_name_has_one_number() {
        assert_eq!(FilterId::of("a"), FilterId::of("a"));
        assert_ne!(FilterId::of("a"), FilterId::of("b"));
    }
}
