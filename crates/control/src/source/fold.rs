//! Merges changes that come close together, and holds those of configuration back for a moment.
//!
//! An author who saves three files, or one in pieces, means one change: half of it may route to
//! what is not there yet. Endpoints do not wait: where a pod is gone, every moment counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Change, ObjectRef};

/// How long nothing must have happened for a change to be taken for complete.
const QUIET: Duration = Duration::from_millis(30);

/// How long a change waits at most.
const MOST: Duration = Duration::from_millis(100);

/// Changes that wait.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    waiting: BTreeMap<ObjectRef, Change>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Fold {
    /// Takes changes, of which those that must not wait are given back.
    pub(crate) fn push(&mut self, changes: Vec<Change>, now: Instant) -> Vec<Change> {
        let mut urgent = Vec::new();
        for change in changes {
            if change.object().kind.is_endpoint() {
                urgent.push(change);
            } else {
                self.first.get_or_insert(now);
                self.last = Some(now);
                self.waiting.insert(change.object().clone(), change);
            }
        }
        urgent
    }

    /// When the first of the waiting changes came.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.first
    }

    /// When the waiting changes are due; `None` if there are none.
    pub(crate) fn due(&self) -> Option<Instant> {
        Some((self.last? + QUIET).min(self.first? + MOST))
    }

    /// The waiting changes, if they are due.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<Change> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.first = None;
        self.last = None;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Fold;
    use crate::model::{Change, Kind, ObjectRef};

    fn gone(kind: Kind, name: &str) -> Change {
        Change::Remove(ObjectRef { kind, namespace: "default".to_owned(), name: name.to_owned() })
    }

    #[test]
    fn endpoints_pass_and_configuration_waits_until_it_is_quiet() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut fold = Fold::default();
        let urgent = fold.push(vec![gone(Kind::Pod, "a"), gone(Kind::Gateway, "b")], at(0));
        assert_eq!(urgent.len(), 1);
        assert!(fold.take(at(20)).is_empty());
        assert!(fold.push(vec![gone(Kind::Gateway, "b"), gone(Kind::Service, "c")], at(20)).is_empty());
        assert!(fold.take(at(45)).is_empty());
        assert_eq!(fold.take(at(50)).len(), 2);
        assert_eq!(fold.due(), None);
    }

    #[test]
    fn a_steady_stream_of_changes_does_not_wait_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut fold = Fold::default();
        for millis in (0..100).step_by(10) {
            fold.push(vec![gone(Kind::Service, "c")], at(millis));
            assert!(fold.take(at(millis)).is_empty());
        }
        assert_eq!(fold.take(at(100)).len(), 1);
    }
}
