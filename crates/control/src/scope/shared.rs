//! Facts by which much is derived, made once and handed round: a key of a query that contains them is as
//! small as a pointer, however many memos have one.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A shared value beside its hash. Compares, hashes and orders as values do; equal ones that share storage
/// are compared without a look at them, and so are nearly all that differ.
pub(crate) struct Shared<T>(Arc<Hashed<T>>);

struct Hashed<T> {
    hash: u64,
    value: T,
}

impl<T: Hash> From<T> for Shared<T> {
    fn from(value: T) -> Shared<T> {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Shared(Arc::new(Hashed { hash: hasher.finish(), value }))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(Arc::clone(&self.0))
    }
}

impl<T: Eq> PartialEq for Shared<T> {
    fn eq(&self, other: &Shared<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.value == other.0.value)
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: Ord> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Shared<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Shared<T>) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.value.cmp(&other.0.value) }
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::Shared;

    #[test]
    fn equal_values_are_equal_wherever_they_are() {
        let [a, b, other] = ["x", "x", "y"].map(|text| Shared::from(text.to_owned()));
        assert_eq!(a, b);
        assert_eq!(a, a.clone());
        assert_ne!(a, other);
        assert!(a < other && a <= b);
        let map = HashMap::from([(a, 1)]);
        assert_eq!((map.get(&b), map.get(&other)), (Some(&1), None));
        assert_eq!(other.len(), 1);
    }
}
