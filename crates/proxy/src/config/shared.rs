//! What messages were lowered to that are equal in many resources: a thousand clusters have the same
//! circuit breakers, a thousand listeners count the same metrics of the same node.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::config::wire::Fingerprint;

/// Lowered parts by what they were lowered from, for as long as anybody has them. On the main thread,
/// which alone lowers: the lock is never waited for.
#[derive(Default)]
pub(crate) struct Shared(Mutex<Known>);

#[derive(Default)]
struct Known {
    parts: HashMap<Key, Weak<dyn Any + Send + Sync>>,
    /// With so many, those that nobody has any more are looked for.
    limit: usize,
}

/// What a part was made of: its type, what it depends on beside its message, and the message.
type Key = (TypeId, u8, Fingerprint);

impl Shared {
    /// The part that was made of this message. `also`: what it depends on beside that.
    pub(crate) fn find<T: Send + Sync + 'static>(&self, also: u8, wire: &[u8]) -> Option<Arc<T>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), also, Fingerprint::of(wire));
        known.parts.get(&key)?.upgrade()?.downcast().ok()
    }

    /// From now on this is the part of that message.
    pub(crate) fn add<T: Send + Sync + 'static>(&self, also: u8, wire: &[u8], part: &Arc<T>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.parts.len() >= known.limit {
            known.parts.retain(|_, part| part.strong_count() > 0);
            known.limit = 2 * known.parts.len().max(16);
        }
        let part: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(part);
        known.parts.insert((TypeId::of::<T>(), also, Fingerprint::of(wire)), Arc::downgrade(&part));
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Shared;

    #[test]
    fn parts_are_known_by_what_they_were_made_of_while_somebody_has_them() {
        let shared = Shared::default();
        let part = Arc::new(7u32);
        shared.add(0, b"seven", &part);
        assert!(shared.find::<u32>(0, b"seven").is_some_and(|found| Arc::ptr_eq(&found, &part)));
        assert_eq!(shared.find::<u64>(0, b"seven"), None);
        assert_eq!(shared.find::<u32>(1, b"seven"), None);
        assert_eq!(shared.find::<u32>(0, b"eight"), None);
        drop(part);
        assert_eq!(shared.find::<u32>(0, b"seven"), None);
    }

    #[test]
    fn what_nobody_has_is_forgotten() {
        let shared = Shared::default();
        let kept = Arc::new(String::new());
        shared.add(0, b"kept", &kept);
        (0..1000u32).for_each(|number| shared.add(0, &number.to_be_bytes(), &Arc::new(number)));
        assert!(shared.0.lock().unwrap().parts.len() <= 32);
        assert!(shared.find::<String>(0, b"kept").is_some());
    }
}
